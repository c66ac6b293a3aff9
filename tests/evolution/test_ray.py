"""The Ray executor on a real local cluster of several worker processes."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from autopoiesis_lib.evolution import Budget, Limits
from autopoiesis_lib.store import Store
from tests.evolution.evaluators import Cheap, Misbehaving
from tests.evolution.test_loop import run, story

pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="install the extra `ray`, as .ci/run does")


def actors() -> list[int]:
    """Processes that Ray runs our actors in."""
    found = [
        process for process in psutil.process_iter(["cmdline"]) if "_Actor" in " ".join(process.info["cmdline"] or ())
    ]
    return [process.pid for process in found]


def test_a_run_on_ray_equals_a_local_one(tmp_path: Path) -> None:
    budget = Budget(candidates=60, generation_size=16)
    remote = run(tmp_path / "ray.db", budget=budget, executor="ray", workers=3)
    local = run(tmp_path / "local.db", budget=budget)
    assert story(tmp_path / "ray.db", remote.run) == story(tmp_path / "local.db", local.run)


def test_a_ray_worker_killed_in_the_middle_costs_at_most_its_own_candidate(tmp_path: Path) -> None:
    killed: list[int] = []
    seen = threading.Event()

    def assassin() -> None:
        seen.wait(60)
        time.sleep(0.05)
        for pid in actors()[:1]:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    thread = threading.Thread(target=assassin)
    thread.start()
    budget = Budget(candidates=120, generation_size=40)
    workload = Cheap(requests=2_000)
    result = run(
        tmp_path / "s.db",
        budget=budget,
        workload=workload,
        executor="ray",
        workers=3,
        progress=lambda item: seen.set() if item.done > 8 else None,
    )
    thread.join()
    assert killed
    rows = Store.open(tmp_path / "s.db").candidates(result.run)
    assert len(rows) == 120
    lost = [row for row in rows if row.verdict == "UNKNOWN"]
    assert len(lost) <= 1
    assert all(row.reason == "died" for row in lost)


@pytest.mark.parametrize(
    ("deed", "kind"), [("loop", "died"), ("sleep", "time"), ("eat", "memory"), ("raise", "raised")]
)
def test_a_misbehaving_evaluation_costs_only_its_own_candidate_on_ray(tmp_path: Path, deed: str, kind: str) -> None:
    limits = Limits(wall_s=3.0 if deed == "sleep" else 60.0, cpu_s=1.0 if deed == "loop" else 30.0, memory_mib=2_000)
    budget = Budget(candidates=20, generation_size=8, limits=limits)
    result = run(tmp_path / "s.db", workload=Misbehaving(deed=deed), budget=budget, executor="ray", workers=2)
    rows = Store.open(tmp_path / "s.db").candidates(result.run)
    lost = [row for row in rows if row.verdict == "UNKNOWN"]
    assert len(rows) == 20
    assert lost
    assert {row.reason for row in lost} == {kind}
