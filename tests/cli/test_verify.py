"""`autopoiesis verify`: every verdict, its exit code, one JSON object or one clear line, never a traceback."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from autopoiesis_contracts.request_ordering import Engine, RequestOrdering, Waiting

from autopoiesis_lib import Policy
from autopoiesis_lib.certificate import Certificate

from .conftest import Command, Ran

ORDERING = ("--contract", "request-ordering")
HEADER = "from autopoiesis_contracts.request_ordering import Engine, Waiting\n\n"
SIGNATURE = "def score(request: Waiting, engine: Engine) -> int:\n"


def one_clear_line(ran: Ran) -> str:
    """The only line on stderr."""
    assert "Traceback" not in ran.err
    assert "Traceback" not in ran.out
    lines = ran.err.splitlines()
    assert len(lines) == 1, ran.err
    assert lines[0].startswith("error: ")
    return lines[0]


def write(folder: Path, text: str | bytes, name: str = "policy.py") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_fcfs_is_proved_and_the_least_t_is_reported(command: Command, policies: Path) -> None:
    ran = command("verify", policies / "fcfs.py", *ORDERING, "--json")
    assert ran.code == 0
    document = ran.document
    assert document["verdict"] == "PROVED"
    (ages,) = [item for item in document["obligations"] if item["name"] == "ages"]
    assert ages["least"] == {"parameter": "aging", "value": 0, "unit": "us", "tight": True}
    assert document["least"] == {"ages": 0}
    assert [gate["name"] for gate in document["gates"]] == [
        "contract",
        "grammar",
        "types",
        "ranges",
        "quick-fuzz",
        "proof",
        "fuzz",
        "replay",
    ]
    assert any("T = 0 us" in claim for claim in document["claims"])


def test_a_parameter_is_set_by_its_own_kind_of_value(command: Command, policies: Path) -> None:
    fcfs = policies / "fcfs.py"
    assert command("verify", fcfs, *ORDERING, "--set", "priority_order=false").code == 0
    assert command("verify", fcfs, *ORDERING, "--set", "priority_order=true").code == 1
    for wrong in ("priority_order=1", "max_aging_us=true", "=3", "max_aging_us=soon"):
        ran = command("verify", fcfs, *ORDERING, "--set", wrong)
        assert ran.code == 2, wrong
        one_clear_line(ran)


def test_shortest_first_with_aging_is_proved_with_the_bound_its_numbers_imply(command: Command, policies: Path) -> None:
    document = command("verify", policies / "sjf_aging.py", *ORDERING, "--json").document
    assert document["verdict"] == "PROVED"
    assert document["least"] == {"ages": 8_191_000}


def test_sjf_without_aging_is_refuted_with_a_replaying_pair(command: Command, policies: Path) -> None:
    ran = command("verify", policies / "sjf.py", *ORDERING, "--json")
    assert ran.code == 1
    assert "REFUTED" in one_clear_line(ran)
    (ages,) = [item for item in ran.document["obligations"] if item["name"] == "ages"]
    assert ages["verdict"] == "REFUTED"
    pair: dict[str, Any] = ages["counterexample"]
    older, newer, engine = Waiting(**pair["older"]), Waiting(**pair["newer"]), Engine(**pair["engine"])
    assert older.waited_us >= newer.waited_us + pair["aging"]
    contract = RequestOrdering()
    policy = Policy.from_file(policies / "sjf.py", contract)
    assert policy(older, engine) < policy(newer, engine)
    assert not policy.holds("ages", older=older, newer=newer, engine=engine, aging=pair["aging"])


def test_the_emitted_pytest_runs_and_fails_for_the_refuted_policy(
    command: Command, policies: Path, tmp_path: Path
) -> None:
    document = command("verify", policies / "sjf.py", *ORDERING, "--json").document
    write(tmp_path, (policies / "sjf.py").read_text())
    write(tmp_path, document["counterexample"]["pytest"], "test_counterexample.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_counterexample.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "1 failed" in done.stdout


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (HEADER + "import os\n" + SIGNATURE + "    return request.waited_us\n", "import os"),
        (HEADER + SIGNATURE + "    return int(request.waited_us * 0.5)\n", "float"),
        (HEADER + SIGNATURE + "    n = 0\n    while n < 3:\n        n += 1\n    return n\n", "while"),
    ],
    ids=["import", "float", "while"],
)
def test_python_outside_the_language_is_unsupported(command: Command, tmp_path: Path, text: str, named: str) -> None:
    ran = command("verify", write(tmp_path, text), *ORDERING, "--json")
    assert ran.code == 1
    assert ran.document["verdict"] == "UNSUPPORTED"
    assert named in one_clear_line(ran)


@pytest.mark.parametrize(
    "text",
    [
        HEADER + "def score(request: Waiting, engine: Engine) -> int:\n    return (\n",
        HEADER + "def rank(request: Waiting, engine: Engine) -> int:\n    return 1\n",
        HEADER + "def score(request: Waiting, engine: Engine) -> str:\n    return 'x'\n",
        HEADER + "def score(request: Waiting) -> int:\n    return request.waited_us\n",
        HEADER + SIGNATURE + "    return request.no_such_field\n",
        "",
        b"\x80\x81\x00\xff" * 40,
        b"x" * (64 * 1024 + 1),
    ],
    ids=["syntax", "missing-function", "return-type", "arity", "field", "empty", "binary", "oversized"],
)
def test_what_is_no_policy_is_invalid(command: Command, tmp_path: Path, text: str | bytes) -> None:
    path = write(tmp_path, text)
    ran = command("verify", path, *ORDERING, "--json")
    assert ran.code == 2
    document = ran.document
    assert document["verdict"] == "INVALID"
    assert document["policy"] == {"path": str(path), "digest": None}
    assert document["obligations"] == []
    assert "INVALID" in one_clear_line(ran)


@pytest.mark.parametrize("name", ["missing.py", "."], ids=["missing", "directory"])
def test_a_file_that_cannot_be_read_is_invalid(command: Command, tmp_path: Path, name: str) -> None:
    ran = command("verify", tmp_path / name, *ORDERING, "--json")
    assert ran.code == 2
    assert ran.document["verdict"] == "INVALID"
    assert "cannot be read" in one_clear_line(ran)


def test_a_policy_that_takes_too_long_is_unknown(command: Command, policies: Path) -> None:
    ran = command("verify", policies / "crowded.py", *ORDERING, "--time-limit", "0.001", "--json")
    assert ran.code == 1
    assert ran.document["verdict"] == "UNKNOWN"
    assert "--time-limit" in one_clear_line(ran)


def test_a_tighter_contract_refuses_what_a_loose_one_proves(command: Command, policies: Path) -> None:
    tight = command("verify", policies / "sjf_aging.py", *ORDERING, "--set", "max_aging_us=8_190_999", "--json")
    exact = command("verify", policies / "sjf_aging.py", *ORDERING, "--set", "max_aging_us=8191000", "--json")
    assert (tight.code, tight.document["verdict"]) == (1, "REFUTED")
    assert (exact.code, exact.document["verdict"]) == (0, "PROVED")


def test_people_see_gates_obligations_values_a_test_and_the_verdict(command: Command, policies: Path) -> None:
    ran = command("verify", policies / "sjf.py", *ORDERING)
    assert ran.code == 1
    for expected in ("quick-fuzz", "score is safe", "num_prompt_tokens", "def test_ages() -> None:", "REFUTED in"):
        assert expected in ran.out


def test_people_see_the_claims_of_a_proved_policy(command: Command, policies: Path) -> None:
    ran = command("verify", policies / "crowded.py", *ORDERING)
    assert ran.code == 0
    assert ran.err == ""
    assert "aging = 38,192,000 us (38.192 s, least)" in ran.out
    assert "what this proves" in ran.out


def test_only_a_proved_policy_gets_a_certificate(command: Command, policies: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    proved = command("verify", policies / "fcfs.py", *ORDERING, "--certificate", good, "--json")
    refuted = command("verify", policies / "sjf.py", *ORDERING, "--certificate", bad, "--json")
    assert proved.document["certificate"] == str(good)
    assert Certificate.read(good).policy_digest == proved.document["policy"]["digest"]
    assert refuted.document["certificate"] is None
    assert not bad.exists()


def test_the_installed_command_prints_one_object_and_exits_with_the_verdict(process: Command, policies: Path) -> None:
    ran = process("verify", policies / "fcfs.py", *ORDERING, "--json")
    assert ran.code == 0, ran.err
    assert ran.document["verdict"] == "PROVED"
    assert ran.out.count("\n") == 1
