"""`autopoiesis contracts`: what there is, one in full, and a new one that works."""

import subprocess
import sys
from pathlib import Path

import pytest

from autopoiesis_lib.registry import contract_names

from .conftest import Command


def test_every_registered_contract_is_listed_with_a_baseline(command: Command) -> None:
    listed = command("contracts", "list", "--json").document["contracts"]
    assert [item["name"] for item in listed] == list(contract_names())
    assert all(
        item["decisions"] and item["invariants"] and item["baselines"] and item["description"] for item in listed
    )


def test_one_contract_shows_views_with_units_and_bounds_and_the_theorem(command: Command) -> None:
    document = command("contracts", "show", "request-ordering", "--json").document
    waited = next(field for field in document["views"]["Waiting"] if field["name"] == "waited_us")
    assert (waited["unit"], waited["low"], waited["high"]) == ("us", 0, 86_400_000_000)
    (ages,) = document["invariants"]
    assert ages["least"] == {"parameter": "aging", "limit": 600_000_000}
    assert [theorem["name"] for theorem in document["theorems"]] == ["BoundedBypass"]
    assert next(iter(document["baselines"])) == "fcfs"


def test_show_prove_proves_every_lemma_now(command: Command) -> None:
    ran = command("contracts", "show", "request-ordering", "--prove", "--json")
    assert ran.code == 0
    proofs = [proof for theorem in ran.document["theorems"] for proof in theorem["proofs"]]
    assert {proof["verdict"] for proof in proofs} == {"PROVED"}
    assert "BoundedBypass: consecution" in {proof["name"] for proof in proofs}


def test_people_see_the_fields_and_the_invariant_as_source(command: Command) -> None:
    ran = command("contracts", "show", "request-ordering")
    assert ran.code == 0
    for expected in (
        "num_prompt_tokens",
        "1 to 1,048,576 tokens",
        "def ages(",
        "theorem BoundedBypass",
        "baseline fcfs",
    ):
        assert expected in ran.out


@pytest.mark.slow
def test_a_new_contract_passes_its_own_tests(command: Command, tmp_path: Path) -> None:
    ran = command("contracts", "new", "batch-sizing", "--json")
    assert ran.code == 0
    assert (tmp_path / ran.document["files"][0]).is_file()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "batch-sizing"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Bad Name", "not a contract name"),
        ("json", "is taken"),
        ("request-ordering", "already"),
        ("../up", "not a contract name"),
    ],
)
def test_a_name_that_cannot_be_a_contract_is_refused(command: Command, tmp_path: Path, name: str, reason: str) -> None:
    ran = command("contracts", "new", name)
    assert ran.code == 2
    assert reason in ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_never_written_into(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    ran = command("contracts", "new", "batch-sizing", "--out", "mine")
    assert ran.code == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
