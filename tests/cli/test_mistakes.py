"""A user's mistake is one clear line and exit code 2, never a traceback; with `--json` also one object."""

import gzip
import os
import tracemalloc
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


HOSTILE: dict[str, bytes] = {
    "nat.csv": b"TIMESTAMP,ContextTokens,GeneratedTokens\nNaT,1,1\n",
    "year-2607.csv": b"TIMESTAMP,ContextTokens,GeneratedTokens\n2607-12-01 00:00:00,1,1\n",
    "int64.csv": b"arrival_us,num_prompt_tokens,num_output_tokens\n9223372036854775808,1,1\n",
    "digits.jsonl": b'{"queued_ts": 1, "input_toks": ' + b"9" * 5_000 + b', "output_toks": 1}\n',
    "infinite.jsonl": b'{"queued_ts": Infinity, "input_toks": 1, "output_toks": 1}\n',
    "deep.jsonl": b'{"queued_ts":' * 100_000,
    "cut.gz": gzip.compress(b"arrival_us,num_prompt_tokens,num_output_tokens\n1,1,1\n")[:-9],
    "changed.gz": gzip.compress(b"arrival_us,num_prompt_tokens,num_output_tokens\n1,1,1\n")[:-8] + bytes(8),
    "binary.jsonl": bytes(range(256)),
    "empty.gz": b"",
    "\x1b[31m.csv": b"\x1b[31m",
}


class TestHostileFiles:
    @pytest.mark.parametrize("name", [*HOSTILE, "fifo", "folder", "line.csv", "/dev/zero"], ids=ascii)
    def test_every_command_refuses_them_in_one_line(self, command: Command, tmp_path: Path, name: str) -> None:
        if name in HOSTILE:
            (tmp_path / name).write_bytes(HOSTILE[name])
        elif name == "fifo":
            os.mkfifo(tmp_path / name)
        elif name == "folder":
            (tmp_path / name).mkdir()
        elif name == "line.csv":
            with (tmp_path / name).open("wb") as file:
                file.truncate(3 << 30)
        for arguments in (
            ["trace", "inspect", name],
            ["trace", "convert", name, "new.csv", "--skip-malformed"],
            ["simulate", "request-ordering", "--trace", name],
            ["simulate", "request-ordering", "--trace", "vllm-rtx4090", "--calibration", name],
            ["simulate", "request-ordering", "--trace", "vllm-rtx4090", "--policy", name],
            ["evolve", "request-ordering", "--trace", name, "--candidates", "1"],
            ["calibrate", name, "--total-blocks", "100"],
        ):
            ran = command(*arguments)
            assert ran.code == 2, (arguments, ran)
            assert ran.err.startswith("error: ") and ran.err.count("\n") == 1
            assert "defect" not in ran.err

    def test_ten_quiet_years_are_inspected_in_little_memory(self, command: Command, tmp_path: Path) -> None:
        rows = "2020-01-01 00:00:00,1,1\n2020-01-01 00:00:00,1,1\n2029-12-01 00:00:00,1,1\n"
        (tmp_path / "quiet.csv").write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
        tracemalloc.start()
        document = command("trace", "inspect", "quiet.csv", "--json").document
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (document["requests"], document["peak_second"]) == (3, 2)
        assert peak < 200_000_000
