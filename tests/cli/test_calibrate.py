"""`calibrate` fits a real vLLM run, and `simulate` takes the result."""

import gzip
from importlib.resources import files
from pathlib import Path

from .conftest import Command


def test_a_real_run_is_fitted_within_three_percent_and_the_result_is_usable(command: Command, tmp_path: Path) -> None:
    shipped = files("autopoiesis_lib") / "data" / "vllm_rtxpro6000_llama31_8b.jsonl.gz"
    (tmp_path / "run.jsonl").write_bytes(gzip.decompress(shipped.read_bytes()))
    arguments = ("--total-blocks", "33000", "--max-num-seqs", "128", "--out", "mine.json", "--json")
    answer = command("calibrate", "run.jsonl", *arguments)
    assert answer.code == 0, answer.err
    errors = answer.document["calibration"]["errors"]
    assert all(abs(errors[name]) <= 0.03 for name in ("ttft_mean", "e2e_mean"))
    assert all(abs(errors[name]) <= 0.05 for name in ("ttft_p99", "e2e_p99"))
    replay = command(
        "simulate",
        "request-ordering",
        "--trace",
        "azure-conv",
        "--calibration",
        "mine.json",
        "--csv",
        "times",
        "--json",
    )
    assert replay.code == 0, replay.err
    assert replay.document["workload"]["calibration"] == "mine"
    assert (tmp_path / "times" / "fcfs.csv").stat().st_size > 100_000


def test_a_file_that_is_no_run_is_one_clear_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text("{}\n", encoding="utf-8")
    answer = command("calibrate", "run.jsonl", "--total-blocks", "100")
    assert answer.code == 2
    assert "line 1" in answer.err and len(answer.err.strip().splitlines()) == 1
