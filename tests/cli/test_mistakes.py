"""A user's mistake is one clear line and exit code 2, never a traceback; with `--json` also one object."""

from pathlib import Path

import pytest

from .conftest import Command


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "policy.py", "--contract", "no-such-contract"],
        ["verify", "policy.py"],
        ["verify", "policy.py", "--contract", "request-ordering", "--set", "max_aging_us=soon"],
        ["verify", "policy.py", "--contract", "request-ordering", "--set", "no_such_parameter=1"],
        ["verify", "policy.py", "--contract", "request-ordering", "--no-such-option"],
        ["no-such-command"],
        ["contracts", "show", "no-such-contract"],
        ["simulate", "request-ordering", "--trace", "no-such-trace"],
        ["simulate", "request-ordering", "--trace", "azure-conv", "--rate", "fast"],
        ["simulate", "request-ordering", "--trace", "azure-conv", "--calibration", "no-such-file"],
        ["simulate", "request-ordering", "--trace", "azure-conv", "--policy", "no-such-policy.py"],
        ["evolve", "request-ordering"],
        ["evolve", "request-ordering", "--trace", "azure-conv", "--proposer", "llm"],
        ["evolve", "request-ordering", "--trace", "azure-conv", "--model", "openai/gpt"],
        ["evolve", "request-ordering", "--trace", "azure-conv", "--seconds", "-1"],
        ["evolve", "request-ordering", "--trace", "azure-conv", "--objective", "e2e_p99_us=high"],
        ["trace", "inspect", "no-such-trace"],
        ["certificate", "check", "no-such-certificate.json"],
        ["deploy", "no-such-policy.py", "--channel", "channel"],
        ["deploy", "no-such-run", "--channel", "channel"],
        ["deploy", "rollback", "--channel", "channel"],
        ["keys", "new", "a/b"],
        ["report", "no-such-run"],
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_exit_code_2(command: Command, arguments: list[str]) -> None:
    ran = command(*arguments, "--json")
    assert ran.code == 2, ran
    assert list(ran.document) == ["error"]
    lines = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert lines == [f"error: {ran.document['error']}"]
    assert "Traceback" not in ran.err
    assert "defect" not in ran.err


def test_without_arguments_it_says_what_it_can_do(command: Command) -> None:
    ran = command()
    assert ran.code == 2
    for name in ("verify", "evolve", "simulate", "deploy", "contracts", "trace", "certificate", "keys", "report"):
        assert name in ran.out


def test_an_unwritable_certificate_is_one_line(command: Command, policies: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "certificate.json"
    ran = command("verify", policies / "fcfs.py", "--contract", "request-ordering", "--certificate", target)
    assert ran.code == 2
    assert ran.err.count("\n") == 1


def test_the_version_is_that_of_the_distribution(command: Command) -> None:
    from importlib.metadata import version

    assert command("--version").out == f"{version('autopoiesis-lib')}\n"
