"""What workers take from others on their machine: no more than the process that started them asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

AUTOGROUP = Path("/proc/self/autogroup")
pytestmark = pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel does not schedule sessions as groups")

SESSION = """
import os, sys
from autopoiesis_lib.evolution.priority import give_way, lead_session
{before}
if os.fork() == 0:
    lead_session()
    print(open("/proc/self/autogroup").read())
else:
    os.wait()
"""
WORKER = """
import time
from pathlib import Path
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
        while "nice 19" not in (share := Path(f"/proc/{pid}/autogroup").read_text()) and time.monotonic() < end:
            time.sleep(0.05)
        print(share)
    finally:
        pool.close()
"""


def said(script: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip().rpartition(" ")[2]


@pytest.mark.parametrize(("before", "niceness"), [("", "0"), ("os.nice(7)", "7"), ("give_way()", "19")])
def test_a_session_of_a_workers_own_has_the_priority_of_its_process(tmp_path: Path, before: str, niceness: str) -> None:
    script = tmp_path / "session.py"
    script.write_text(SESSION.format(before=before))
    assert said(script) == niceness


def test_workers_of_a_process_in_the_idle_class_do_not_take_a_full_share(tmp_path: Path) -> None:
    """Each led a session, which the kernel gave as much as everybody else's: `watch --idle` slowed its engine by a fifth."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    assert said(script) == "19"
