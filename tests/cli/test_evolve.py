"""`autopoiesis evolve`: the main job, by the real command in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autopoiesis_lib.certificate import Certificate
from autopoiesis_lib.gates.verdict import Reason
from autopoiesis_lib.policy import read_policy_text
from autopoiesis_lib.registry import contract_named
from autopoiesis_lib.store import Store
from autopoiesis_lib.store.opening import DEFAULT_STORE

from .conftest import Command

EVOLVE = ("evolve", "request-ordering", "--trace", "azure-conv", "--proposer", "search")


@pytest.mark.slow
def test_a_language_model_that_cannot_be_reached_is_told_in_the_notes(command: Command) -> None:
    model = ("--proposer", "llm", "--model", "local/any", "--base-url", "http://127.0.0.1:9/v1")
    ran = command(*EVOLVE[:-2], *model, "--candidates", "12", "--rate", "1.7", "--json")
    assert ran.code == 0, ran.err
    assert ran.document["notes"] == ["local/any: it cannot be reached; search carries on"]


def test_a_small_run_certifies_its_winner_and_states_its_gain(process: Command, tmp_path: Path) -> None:
    ran = process(*EVOLVE, "--candidates", "40", "--seed", "1", "--rate", "1.7", "--out", "won", "--json")
    assert ran.code == 0, ran.err
    document = ran.document
    candidates = document["candidates"]
    assert candidates["proposed"] == 40 == candidates["evaluated"] + sum(candidates["rejected"].values())
    certificate = Certificate.read(tmp_path / "won" / "certificate.json")
    policy = certificate.check_binding(
        contract_named("request-ordering"), read_policy_text(tmp_path / "won" / "policy.py")
    )
    assert policy.digest == document["best"]["digest"]
    assert document["bounds"] == dict(certificate.bounds)
    assert set(document["baselines"]) >= {"fcfs", "shortest-prompt-aging"}
    improvement = document["improvement"]
    ours = document["best"]["held_out"]["ttft_mean_us"]
    fcfs = document["baselines"]["fcfs"]["held_out"]["ttft_mean_us"]
    assert improvement["reduction"] == pytest.approx(1 - ours / fcfs)
    assert improvement["speedup"] == pytest.approx(fcfs / ours)
    assert improvement["best_baseline"]["over"] in document["baselines"]
    assert document["workload"][0]["rate_factor"] == 1.7


@pytest.mark.slow
def test_a_minute_of_search_gains_at_least_forty_percent_over_fcfs_on_held_out_traffic(process: Command) -> None:
    ran = process(*EVOLVE, "--seconds", "60", "--seed", "1", "--json")
    assert ran.code == 0, ran.err
    document = ran.document
    assert document["workload"][0]["rate_factor"] == 1.7
    assert document["improvement"]["over"] == "fcfs"
    assert document["improvement"]["objective"] == "ttft_mean_us"
    assert document["improvement"]["reduction"] >= 0.40
    assert document["improvement"]["ci95"][0] > 0
    assert 0 <= document["bounds"]["ages"] <= 600_000_000
    assert Path(document["report"]).name == "report.html"


@dataclass(frozen=True)
class Ran:
    """Output of a run, and the content of its store of each candidate, times aside."""

    document: dict[str, Any]
    fates: list[tuple[object, ...]]


@pytest.fixture(scope="module")
def by_one_and_two_workers(tmp_path_factory: pytest.TempPathFactory) -> list[Ran]:
    """The same run twice: with one worker and with two, other hash seeds, and every proof made anew."""
    found = []
    for workers in ("1", "2"):
        folder = tmp_path_factory.mktemp("run")
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "autopoiesis_cli",
                *EVOLVE,
                "--candidates",
                "120",
                "--seed",
                "7",
                "--workers",
                workers,
                "--json",
            ],
            cwd=folder,
            env={**os.environ, "AUTOPOIESIS_CACHE": str(folder / "cache"), "PYTHONHASHSEED": workers},
            capture_output=True,
            text=True,
            check=True,
        )
        document = json.loads(done.stdout)
        store = Store.open(folder / DEFAULT_STORE)
        rows = zip(store.proposals(document["run"]), store.candidates(document["run"]), strict=True)
        fates = [
            (
                p.id,
                p.source,
                p.parents,
                c.verdict,
                c.gate,
                c.reason,
                c.detail,
                c.fingerprint,
                c.counterexample,
                c.fitness,
            )
            for p, c in rows
        ]
        store.close()
        found.append(Ran(document, fates))
    return found


@pytest.mark.slow
def test_the_same_seed_and_candidates_give_the_same_winner_twice(by_one_and_two_workers: list[Ran]) -> None:
    one, two = (ran.document for ran in by_one_and_two_workers)
    assert one["best"]["digest"] == two["best"]["digest"]
    assert one["best"]["held_out"] == two["best"]["held_out"]


@pytest.mark.slow
def test_every_candidate_meets_the_same_fate_whatever_the_number_of_workers(by_one_and_two_workers: list[Ran]) -> None:
    """It did not once, on a busy machine, when Z3 still went by the clock (`tests/gates/test_clock.py`)."""
    one, two = by_one_and_two_workers
    stopped = [fate for ran in by_one_and_two_workers for fate in ran.fates if fate[5] == Reason.TIME]
    assert not stopped, f"too slow a machine to tell, a limit on the clock ended a job: {stopped[0]}"
    assert one.fates == two.fates
    assert one.document["candidates"] == two.document["candidates"]


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_goes_on(process: Command, tmp_path: Path) -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", "autopoiesis_cli", *EVOLVE, "--candidates", "100000", "--seed", "3", "--rate", "1.7"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert started.stderr is not None
    for line in started.stderr:
        if "search:" in line:
            break
    time.sleep(1.0)
    os.killpg(started.pid, signal.SIGINT)
    _, err = started.communicate(timeout=600)
    assert started.returncode == 130, err
    assert "Traceback" not in err
    run = err.rsplit("--resume ", 1)[1].split()[0]
    finished = process(*EVOLVE, "--rate", "1.7", "--resume", run, "--candidates", "1000", "--json")
    assert finished.code == 0, finished.err
    assert finished.document["run"] == run
    assert finished.document["candidates"]["proposed"] == 1000
