"""Workers inherit what they need, and no secret."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib.environment import clean_environment, only_clean_environment_inherited
from autopoiesis_lib.evolution.budget import Limits
from autopoiesis_lib.evolution.executor import Executor
from autopoiesis_lib.evolution.pool import LocalPool
from autopoiesis_lib.evolution.work import Measure, Setup
from tests.evolution.evaluators import Cheap

SECRET = "do-not-tell-9f3a"
SECRETS = {
    "OPENAI_API_KEY": SECRET,
    "ANTHROPIC_API_KEY": SECRET,
    "AWS_ACCESS_KEY_ID": SECRET,
    "AWS_SESSION_TOKEN": SECRET,
    "HF_TOKEN": SECRET,
    "PGPASSWORD": SECRET,
    "MY_SECRETS": SECRET,
    "db_password": SECRET,
    "DATABASE_URL": f"postgresql://me:{SECRET}@host/db",
    "SOMETHING": SECRET,
    "PYTHON_INDEX": f"https://me:{SECRET}@host/simple",
    "AUTOPOIESIS_BASE_URL": f"http://me:{SECRET}@host/v1",
    "XDG_API_KEY": SECRET,
    "RAY_REDIS_PASSWORD": SECRET,
}
NEEDED = {"AUTOPOIESIS_CACHE": "/tmp/cache", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def environ_of(pid: int) -> str:
    """The block that a process was started with."""
    return Path(f"/proc/{pid}/environ").read_bytes().decode()


def secrets_seen_by(make: Callable[[Setup], Executor], pids: Callable[[], list[int]]) -> tuple[list[int], str]:
    """Let workers do a job; their ids and their environments."""
    setup = Setup(contract=RequestOrdering(), evaluator=Cheap(), objectives={"ttft_mean_us": 1.0})
    pool = make(setup)
    try:
        pool.submit(("measure", 0), Measure(source=BASELINES["fcfs"], window="train"))
        done = pool.wait(240)
        assert done and done[0].failure is None
        found = pids()
        return found, "".join(map(environ_of, found))
    finally:
        pool.close()


class TestCleanEnvironment:
    def test_keeps_what_workers_need_and_no_secret(self) -> None:
        assert clean_environment({**NEEDED, **SECRETS, "PATH": "/bin"}) == {**NEEDED, "PATH": "/bin"}

    def test_of_a_block_leaves_this_process_as_it_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in SECRETS.items():
            monkeypatch.setenv(name, value)
        command = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
        with only_clean_environment_inherited():
            inside = json.loads(subprocess.check_output(command))
            assert os.environ["OPENAI_API_KEY"] == SECRET, "other threads still read it"
        after = json.loads(subprocess.check_output(command))
        assert not inside.keys() & SECRETS.keys()
        assert after.items() >= SECRETS.items()


class TestWorkers:
    def test_of_the_local_pool_have_no_secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {**SECRETS, **NEEDED}.items():
            monkeypatch.setenv(name, value)
        found, seen = secrets_seen_by(
            lambda setup: LocalPool(setup, 2, Limits()),
            lambda: [item.pid for item in psutil.Process().children() if "spawn_main" in " ".join(item.cmdline())],
        )
        assert len(found) == 2
        assert SECRET not in seen
        assert "OMP_NUM_THREADS=1" in seen

    @pytest.mark.slow
    def test_on_ray_have_no_secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("ray", reason="install the extra `ray`, as .ci/run does")
        from autopoiesis_lib.evolution.ray_pool import RayPool

        for name, value in SECRETS.items():
            if not name.startswith("RAY_"):
                monkeypatch.setenv(name, value)
        found, seen = secrets_seen_by(
            lambda setup: RayPool(setup, 1, Limits()),
            lambda: [
                item.pid
                for item in psutil.process_iter(["cmdline"])
                if "_Actor" in " ".join(item.info["cmdline"] or ()) and item.pid != os.getpid()
            ],
        )
        assert found
        assert SECRET not in seen
