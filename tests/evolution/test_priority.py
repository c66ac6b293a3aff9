"""What workers take from others on their machine: no more than the process that started them asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

AUTOGROUP = Path("/proc/self/autogroup")

GIVES_WAY = """
import os
from autopoiesis_lib.evolution.priority import give_way
give_way()
assert os.sched_getscheduler(0) == os.SCHED_IDLE
print(open("/proc/self/autogroup").read())
"""
WORKER = """
import os
import time
import psutil
from autopoiesis_contracts.request_ordering import RequestOrdering
from autopoiesis_lib.evolution.budget import Limits
from autopoiesis_lib.evolution.pool import LocalPool
from autopoiesis_lib.evolution.priority import give_way
from autopoiesis_lib.evolution.work import Setup
from tests.evolution.evaluators import Cheap

if __name__ == "__main__":
    give_way()
    setup = Setup(contract=RequestOrdering(), evaluator=Cheap(), objectives={"ttft_mean_us": 1.0})
    pool = LocalPool(setup, 1, Limits())
    try:
        pid = next(child.pid for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline()))
        end = time.monotonic() + 60
        while os.getpgid(pid) != pid and time.monotonic() < end:
            time.sleep(0.05)
        print(os.getpgid(pid) == pid, os.getsid(pid) == os.getsid(0), os.sched_getscheduler(pid) == os.SCHED_IDLE)
    finally:
        pool.close()
"""


def said(script: Path, *, session: bool = False) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, script]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, start_new_session=session
    )
    return done.stdout.strip()


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel does not schedule sessions as groups")
@pytest.mark.parametrize("session", [True, False])
@pytest.mark.slow
def test_who_leads_a_session_gives_way_with_all_of_it_and_nobody_else_does(tmp_path: Path, session: bool) -> None:
    script = tmp_path / "gives_way.py"
    script.write_text(GIVES_WAY)
    before = AUTOGROUP.read_text().strip()
    found = said(script, session=session)
    assert found.endswith("nice 19") if session else found == before == AUTOGROUP.read_text().strip()


def test_workers_of_a_process_in_the_idle_class_give_way_to_others_of_its_session(tmp_path: Path) -> None:
    """Each led a session, which the kernel gave as much as everybody else's: `watch --idle` slowed its engine by a fifth."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    assert said(script) == "True True True"
