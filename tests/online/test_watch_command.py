"""Claims about `autopoiesis watch` and what a person may say to it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def autopoiesis(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "autopoiesis_cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_watching_an_empty_channel_is_quiet_and_says_where_it_stands(tmp_path: Path) -> None:
    assert autopoiesis(tmp_path, "keys", "new", "fleet").returncode == 0
    done = autopoiesis(tmp_path, "watch", "--channel", "channel", "--key", "fleet", "--rounds", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["stage"], found["active"], found["frozen"]) == ("idle", None, False)
    assert not (tmp_path / "channel" / "active.json").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("watch", "--channel", "channel"), "--allow-unsigned"),
        (("watch", "--channel", "channel", "--key", "nobody"), "keys new nobody"),
        (
            ("watch", "--channel", "channel", "--allow-unsigned", "--rounds", "1", "--objective", "foo=1"),
            "objective 'foo' is not measured; there are e2e_mean_us",
        ),
        (("deploy", "approve", "--channel", "channel"), "no policy waits for approval"),
    ],
)
def test_a_users_mistake_is_one_clear_line(tmp_path: Path, arguments: tuple[str, ...], line: str) -> None:
    done = autopoiesis(tmp_path, *arguments)
    assert done.returncode == 2
    assert line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_freeze_is_seen_by_the_watcher(tmp_path: Path) -> None:
    assert autopoiesis(tmp_path, "keys", "new", "fleet").returncode == 0
    assert autopoiesis(tmp_path, "deploy", "freeze", "--channel", "channel").returncode == 0
    done = autopoiesis(tmp_path, "watch", "--channel", "channel", "--rounds", "1", "--json")
    assert json.loads(done.stdout)["frozen"] is True
    assert autopoiesis(tmp_path, "deploy", "unfreeze", "--channel", "channel").returncode == 0
