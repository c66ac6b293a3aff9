"""Contracts by name: two packages that claim one name are told apart, never guessed between."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SHADOW = """
[autopoiesis.contracts]
request-ordering = elsewhere:Contract
mine = elsewhere:Contract
"""


@pytest.fixture
def shadowed(tmp_path: Path) -> Path:
    """A folder on the path with two more distributions: one claims a built-in name, both claim `mine`."""
    for name, points in {
        "evil-orders": SHADOW,
        "good_orders": "[autopoiesis.contracts]\nmine = other:Contract\n",
    }.items():
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(points)
    return tmp_path


def autopoiesis(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    start = f"import sys; sys.path[:0] = [{str(folder)!r}]; from autopoiesis_cli.main import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", start, *arguments], capture_output=True, text=True, check=False)


class TestOneNameOfTwoPackages:
    @pytest.mark.parametrize(
        ("name", "owners"), [("request-ordering", ("autopoiesis-lib", "evil-orders")), ("mine", ("evil-orders", "good_orders"))]
    )  # fmt: skip
    def test_is_refused_and_both_are_named(self, shadowed: Path, name: str, owners: tuple[str, str]) -> None:
        ran = autopoiesis(shadowed, "contracts", "show", name)
        assert ran.returncode == 2 and ran.stderr.count("\n") == 1
        assert all(owner in ran.stderr for owner in owners)

    def test_leaves_the_other_names_alone(self, shadowed: Path) -> None:
        assert autopoiesis(shadowed, "contracts", "show", "admission", "--json").returncode == 0

    def test_is_a_line_of_the_list(self, shadowed: Path) -> None:
        ran = autopoiesis(shadowed, "contracts", "list", "--json")
        document = json.loads(ran.stdout)
        assert [item["name"] for item in document["contracts"]] == ["admission", "preemption"]
        assert list(document["conflicts"]) == ["mine", "request-ordering"]
        people = autopoiesis(shadowed, "contracts", "list").stdout
        assert "evil-orders" in people and "uninstall all but one" in " ".join(people.split())
