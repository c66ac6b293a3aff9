"""No verdict of the solvers depends on the clock: what stops a query is the resources it used."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import z3
from autopoiesis_contracts.request_ordering import RequestOrdering

from autopoiesis_lib import Policy
from autopoiesis_lib.gates import Verdict, proof, solving
from tests.gates.conftest import HEADER, SIGNATURE

HARD = f"""\
{HEADER}{SIGNATURE}\
    prompt = min(request.num_prompt_tokens, 8192)
    longest = min(request.max_tokens, 8000)
    base = request.waited_us + min(max(request.num_cached_tokens - request.max_tokens, 0), 31) * 76700 \
- min(request.num_output_tokens, 529) * (min(max(request.num_output_tokens - 307, 0), 222) * 4) // 498 * 6670 \
+ min(request.num_prompt_tokens, 8192) * 152 if request.num_preemptions >= engine.num_running else request.waited_us \
+ min(max(request.num_cached_tokens - request.max_tokens, 0), 31) * 12916 - min(request.num_output_tokens, 529) \
* (min(request.num_output_tokens, 181) - min(max(max(request.num_output_tokens - 307, 0) - 100, 0), 222) * 4) // 498 * 6670 \
+ min(request.num_prompt_tokens, 8192) * 152
    return base + prompt * longest * 9 - prompt * (longest + 3) * 9 + prompt * 27
"""
"""A second of Z3: what the search once found, and nothing added in a form in which the bounds of products do not see that it is
nothing. Once a query ended after three seconds on the clock, and Z3's default strategy took over, which goes on to its next
tactic after two: how this one came out depended on how busy the machine was."""

CHILD = """
import sys
from autopoiesis_contracts.request_ordering import RequestOrdering
from autopoiesis_lib import Policy
from autopoiesis_lib.gates import proof, solving
policy = Policy.from_source(sys.stdin.read(), RequestOrdering())
queries, check = [], solving.IncrementalSolver._check
def counted(self, solver, *limit):
    before = solving._resources(solver)
    answer = check(self, solver, *limit)
    queries.append((answer[0], solving._resources(solver) - before))
    return answer
solving.IncrementalSolver._check = counted
print("ready", flush=True)
print(proof.check(policy, least=False).verdict, queries, flush=True)
"""


def course(stand_still_s: float) -> str:
    """The verdict on `HARD`, and each query's answer and resources, of a process that is stopped for a while in the middle."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(HARD)
        child.stdin.close()
        assert child.stdout.readline() == "ready\n"
        if stand_still_s:
            time.sleep(0.15)
            child.send_signal(signal.SIGSTOP)
            time.sleep(stand_still_s)
            child.send_signal(signal.SIGCONT)
        return child.stdout.readline().strip()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="needs SIGSTOP")
def test_a_process_that_stands_still_for_seconds_comes_to_the_same_verdict_the_same_way() -> None:
    undisturbed = course(0.0)
    assert undisturbed.startswith("PROVED")
    assert course(5.0) == undisturbed


NEWTON = f"""\
{HEADER}{SIGNATURE}\
    n = min(request.num_prompt_tokens, 65_536)
    r = n
    for _ in range(20):
        if r * r > n:
            r = (r + n // max(r, 1)) // 2
    return request.waited_us - r * 50_000
"""
"""An integer square root by Newton's method: what a clock ended after a minute on one run, and the resource limit on the next."""


class TestNoClock:
    """No query has a time limit, so that no verdict can depend on one."""

    def test_no_solver_is_given_a_time_limit(self) -> None:
        for path in Path(solving.__file__).parent.glob("*.py"):
            assert '"timeout"' not in path.read_text(), path

    def test_newtons_square_root_gets_the_same_verdict_by_resources(self, contract: RequestOrdering) -> None:
        first, second = (proof.check(Policy.from_source(NEWTON, contract)) for _ in range(2))
        assert first.verdict is second.verdict is Verdict.UNKNOWN
        assert first.detail == second.detail and "resource units" in first.detail

    def test_nlsat_gets_a_small_limit_after_all_else(
        self, contract: RequestOrdering, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At the limits of a certificate: a finer bound is asked for with nlsat, and under a smaller limit yet."""
        limits: list[tuple[int, bool]] = []
        limited = solving._limited

        def recorded(solver: z3.Solver, rlimit: int, *, nlsat: bool = False) -> z3.Solver:
            limits.append((rlimit, nlsat))
            return limited(solver, rlimit, nlsat=nlsat)

        monkeypatch.setattr(solving, "_limited", recorded)
        square = f"{HEADER}{SIGNATURE}    return (request.waited_us // 1_000) ** 2 - request.num_prompt_tokens\n"
        assert proof.check(Policy.from_source(square, contract), least=False).verdict is Verdict.PROVED
        assert any(nlsat for _, nlsat in limits)
        assert all(limit <= solving.DEFAULT_RLIMIT // solving.NLSAT_PART for limit, nlsat in limits if nlsat)


def test_a_verdict_that_the_resource_limit_decided_repeats_and_says_so(contract: RequestOrdering) -> None:
    policy = Policy.from_source(HARD, contract)
    first, second = (proof.check(policy, least=False, rlimit=100_000) for _ in range(2))
    assert first.verdict is second.verdict is Verdict.UNKNOWN
    assert "resource units" in first.detail and first.detail == second.detail
