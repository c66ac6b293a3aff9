"""`autopoiesis trace` and `autopoiesis simulate` on the shipped traces."""

from pathlib import Path

import numpy as np

from autopoiesis_lib.simulation import Trace

from .conftest import Command


def test_inspect_tells_the_numbers_of_the_azure_conversation_trace(command: Command) -> None:
    document = command("trace", "inspect", "azure-conv", "--json").document
    assert document["requests"] == 19_366
    assert document["peak_second"] == 16
    assert document["num_prompt_tokens"]["p50"] == 1_020
    assert document["num_output_tokens"]["p99"] == 601


def test_convert_there_and_back_keeps_arrivals_and_lengths(command: Command, tmp_path: Path) -> None:
    small = Trace.shipped("azure-conv").select(np.arange(500))
    small.write(tmp_path / "small.csv")
    there = command("trace", "convert", "small.csv", "there.jsonl", "--to", "mooncake", "--json")
    assert there.document == {
        "path": "there.jsonl",
        "format": "mooncake",
        "requests": 500,
        "skipped_rows": 0,
        "rate_factor": 1.0,
    }
    assert command("trace", "convert", "there.jsonl", "back.csv.gz").code == 0
    back = Trace.read(tmp_path / "back.csv.gz")
    assert np.array_equal(back.num_prompt_tokens, small.num_prompt_tokens)
    assert np.array_equal(back.num_output_tokens, small.num_output_tokens)
    assert np.abs(back.arrival_us - small.arrival_us).max() <= 1_000  # Mooncake counts milliseconds


def test_malformed_rows_stop_the_conversion_unless_left_out(command: Command, tmp_path: Path) -> None:
    small = Trace.shipped("azure-conv").select(np.arange(20))
    small.write(tmp_path / "small.csv")
    with (tmp_path / "small.csv").open("a") as file:
        file.write("what,is,this,row,now\n")
    stopped = command("trace", "convert", "small.csv", "out.csv")
    assert stopped.code == 2
    assert "line 22" in stopped.err
    skipped = command("trace", "convert", "small.csv", "out.csv", "--skip-malformed", "--json")
    assert skipped.document["skipped_rows"] == 1
    assert skipped.document["requests"] == 20


def test_simulate_compares_policies_with_the_default_on_the_same_requests(command: Command, policies: Path) -> None:
    ran = command(
        "simulate",
        "request-ordering",
        "--trace",
        "azure-conv",
        "--rate",
        "1.7",
        "--baselines",
        "--policy",
        policies / "sjf.py",
        "--json",
    )
    assert ran.code == 0, ran.err
    document = ran.document
    assert document["baseline"] == "fcfs"
    assert {"fcfs", "shortest-prompt-aging", "sjf"} <= set(document["results"])
    fcfs, aging = document["results"]["fcfs"], document["results"]["shortest-prompt-aging"]
    assert fcfs["num_served"] == aging["num_served"] == document["workload"]["requests"] == 19_366
    assert fcfs["comparison"] is None
    gain = aging["comparison"]["ttft_mean"]
    assert gain["baseline"] == fcfs["ttft"]["mean"]
    assert gain["ours"] == aging["ttft"]["mean"] < fcfs["ttft"]["mean"]
    assert gain["reduction"] > 0 < gain["ci95"][0]


def test_more_replicas_shorten_the_wait(command: Command) -> None:
    waits = [
        command(
            "simulate", "request-ordering", "--trace", "azure-conv", "--rate", "3", "--replicas", count, "--json"
        ).document
        for count in ("1", "2")
    ]
    one, two = (document["results"]["fcfs"]["ttft"]["mean"] for document in waits)
    assert two < one
