"""The theorems' kernel, run: whatever happens to it, certified policies keep what the theorems promise, and others do not."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from autopoiesis_contracts.admission import Admission
from autopoiesis_contracts.request_ordering import RequestOrdering
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from autopoiesis_lib import Policy, Verdict
from autopoiesis_lib.gates import check
from autopoiesis_lib.simulation import LAYOUTS, EngineConfig, StepTimeModel, Trace, simulate
from tests.contracts.cases import PROVING, policy_text
from tests.contracts.kernel import (
    DAY_US,
    ClockRunsWhileScoring,
    Deadlocked,
    Kernel,
    LatestWinsTies,
    OverCommitted,
    PassingLedger,
    Starved,
    WaitsRestart,
    run_kernel,
)

SCORE = "def score(request: Waiting, engine: Engine) -> int:\n    return "
ORDERINGS: Mapping[str, str] = {
    **RequestOrdering.baselines(),
    "whole-seconds": policy_text(
        "autopoiesis_contracts.request_ordering", "Engine, Waiting", SCORE + "request.waited_us // 1_000_000"
    ),
    "preempted-wait": policy_text(
        "autopoiesis_contracts.request_ordering",
        "Engine, Waiting",
        SCORE + "request.waited_us - min(request.num_preemptions, 8) * 1_000_000 + engine.num_waiting",
    ),
}
STARVING = {
    "shortest first without aging": "-request.num_prompt_tokens",
    "last come first served": "-request.waited_us",
    "priority alone": "request.priority",
    "waits that stop counting after a minute": "min(request.waited_us, 60_000_000) - request.num_prompt_tokens",
}
ADMIT = """
def blocks(tokens: int) -> int:
    return (tokens + 15) // 16


def reserve_blocks(request: Waiting) -> int:
    return {reserve}


def admit(request: Waiting, memory: Memory) -> bool:
    needed = {needed}
    if memory.num_running == 0:
        return {idle}
    return {busy}
"""
SOUND = {
    "reserve": "0",
    "needed": "blocks(request.num_prompt_tokens + request.num_output_tokens)",
    "idle": "needed <= memory.total_blocks",
    "busy": "needed + memory.watermark_blocks <= memory.free_blocks",
}
OVERCOMMITTING = {
    "everything is admitted": {"busy": "True"},
    "the last block is not counted": {"needed": "(request.num_prompt_tokens + request.num_output_tokens) // 16"},
    "the generated tokens are forgotten": {"needed": "blocks(request.num_prompt_tokens)"},
    "the reservation is not counted": {"reserve": "(request.max_tokens - request.num_output_tokens) // 16"},
    "one block of the watermark is spent": {"busy": "needed + memory.watermark_blocks <= memory.free_blocks + 1"},
}
DEADLOCKING = {
    "the watermark is kept by an idle engine": {"idle": "needed + memory.watermark_blocks <= memory.total_blocks"},
    "an idle engine keeps one block": {"idle": "needed < memory.total_blocks"},
    "low priorities are never admitted": {"idle": "needed <= memory.total_blocks and request.priority > 0"},
}

FORGETFUL = [(WaitsRestart, "fcfs"), (LatestWinsTies, "whole-seconds"), (ClockRunsWhileScoring, "fcfs")]


@cache
def ordering(name: str) -> tuple[Policy, int]:
    """A certified policy with its least T in microseconds."""
    report = check(ORDERINGS[name], RequestOrdering(), gates=PROVING)
    assert report.verdict is Verdict.PASSED, report.failed
    return Policy.from_source(ORDERINGS[name], RequestOrdering()), report.least()["ages"]


@cache
def admission(name: str) -> Policy:
    """A certified baseline."""
    report = check(Admission.baselines()[name], Admission(), gates=PROVING)
    assert report.verdict is Verdict.PASSED, report.failed
    return Policy.from_source(Admission.baselines()[name], Admission())


def uncertified_ordering(score: str) -> Policy:
    text = policy_text("autopoiesis_contracts.request_ordering", "Engine, Waiting", SCORE + score)
    assert check(text, RequestOrdering(), gates=PROVING).verdict is Verdict.REFUTED
    return Policy.from_source(text, RequestOrdering())


def uncertified_admission(change: Mapping[str, str]) -> Policy:
    text = policy_text("autopoiesis_contracts.admission", "Memory, Waiting", ADMIT.format(**{**SOUND, **change}))
    assert check(text, Admission(), gates=PROVING).verdict is Verdict.REFUTED
    return Policy.from_source(text, Admission())


class KernelMachine(RuleBasedStateMachine):
    """What both machines share: a kernel to which things happen."""

    def __init__(self, kernel: Kernel, bound_us: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.ledger = PassingLedger(bound_us=bound_us)

    def enqueue(self, **arrival: int) -> None:
        present = [*self.kernel.waiting, *self.kernel.running]
        request = self.kernel.arrive(**arrival)
        if request is not None:
            self.ledger.arrived(request, present)

    @rule(limit=st.integers(1, 4))
    def pick(self, limit: int) -> None:
        picked = self.kernel.pick(limit)
        for i, request in enumerate(picked):
            self.ledger.admitted(request, [*picked[i + 1 :], *self.kernel.waiting])

    @precondition(lambda self: self.kernel.running)
    @rule(which=st.integers(0, 63))
    def finish(self, which: int) -> None:
        self.kernel.finish(self.kernel.running[which % len(self.kernel.running)])

    @precondition(lambda self: self.kernel.running)
    @rule(which=st.integers(0, 63))
    def preempt(self, which: int) -> None:
        self.kernel.preempt(self.kernel.running[which % len(self.kernel.running)])

    @precondition(lambda self: self.kernel.running)
    @rule(tokens=st.sampled_from([1, 5, 17]))
    def decode(self, tokens: int) -> None:
        for _ in range(tokens):
            self.kernel.decode()

    @invariant()
    def blocks_are_conserved(self) -> None:
        self.kernel.audit()


class OrderingMachine(KernelMachine):
    """Requests come and go around a score."""

    @rule(
        after=st.sampled_from(["nothing", "a while", "T - 1", "T", "T + 1"]),
        us=st.integers(0, 20_000_000),
        num_prompt_tokens=st.sampled_from([1, 700, 9_000]),
        cached=st.booleans(),
        max_tokens=st.sampled_from([1, 40]),
        priority=st.sampled_from([0, 8, 15]),
    )
    def arrive(self, after: str, us: int, num_prompt_tokens: int, cached: bool, max_tokens: int, priority: int) -> None:
        """What comes about T after the one before it is what a bound must decide on."""
        bound_us = self.ledger.bound_us
        passed = {"nothing": 0, "a while": us, "T - 1": max(0, bound_us - 1), "T": bound_us, "T + 1": bound_us + 1}
        self.kernel.pass_time(passed[after])
        self.enqueue(
            num_prompt_tokens=num_prompt_tokens,
            num_cached_tokens=num_prompt_tokens if cached else 0,
            max_tokens=max_tokens,
            priority=priority,
        )

    @rule(us=st.one_of(st.integers(0, 3_000), st.integers(0, 20_000_000), st.just(DAY_US)))
    def time_passes(self, us: int) -> None:
        self.kernel.pass_time(us)


class AdmissionMachine(KernelMachine):
    """Requests come and go in a small memory, first come first served, so that the head of the line is often too large."""

    @rule(
        num_prompt_tokens=st.one_of(st.integers(1, 80), st.sampled_from([16, 17, 113, 127, 128])),
        max_tokens=st.sampled_from([1, 20, 60]),
        priority=st.integers(0, 15),
    )
    def arrive(self, num_prompt_tokens: int, max_tokens: int, priority: int) -> None:
        self.enqueue(num_prompt_tokens=num_prompt_tokens, max_tokens=max_tokens, priority=priority)

    @precondition(lambda self: len(self.kernel.waiting) + len(self.kernel.running) >= 6)
    @rule()
    def everybody_finishes(self) -> None:
        """The oldest running request is never preempted for memory, so no step is without a token that stays."""
        present = [*self.kernel.waiting, *self.kernel.running]
        for _ in range(sum(q.output_tokens - q.num_output_tokens for q in present)):
            self.kernel.pick()
            self.kernel.decode()
            self.kernel.audit()
        if self.kernel.waiting or self.kernel.running:
            raise Deadlocked("requests are left although every step could have generated a token")


def run_ordering(kernel_type: type[Kernel], policy: Policy, bound_us: int, how: settings) -> None:
    class Machine(OrderingMachine):
        def __init__(self) -> None:
            engine = EngineConfig(total_blocks=1_200, max_num_seqs=3)
            super().__init__(kernel_type(engine, ordering=policy), bound_us)

    run_state_machine_as_test(Machine, settings=how)


def run_admission(policy: Policy, how: settings) -> None:
    class Machine(AdmissionMachine):
        def __init__(self) -> None:
            engine = EngineConfig(total_blocks=8, max_num_seqs=8, watermark=0.25)
            super().__init__(Kernel(engine, admission=policy), 0)

    run_state_machine_as_test(Machine, settings=how)


def effort(examples: int, steps: int) -> settings:
    """The same runs every time; a run that fails is not made smaller where it is meant to fail."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )


KEEPING, DEEP, FINDING = effort(25, 30), effort(600, 60), effort(1_000, 40)


@pytest.mark.parametrize("name", ORDERINGS)
def test_bypass_is_bounded_under_certified_orderings(name: str) -> None:
    run_ordering(Kernel, *ordering(name), KEEPING)


@pytest.mark.slow
@pytest.mark.parametrize("name", ORDERINGS)
def test_bypass_is_bounded_in_long_runs_too(name: str) -> None:
    run_ordering(Kernel, *ordering(name), DEEP)


@pytest.mark.parametrize("why", STARVING)
def test_the_machine_finds_who_starves_under_orderings_without_aging(why: str) -> None:
    policy = uncertified_ordering(STARVING[why])
    with pytest.raises(Starved):
        run_ordering(Kernel, policy, RequestOrdering().max_aging_us, FINDING)


@pytest.mark.parametrize(
    "name",
    [
        "priority-aging",
        "shortest-prompt-aging",
        pytest.param("longest-cached-prefix-aging", marks=pytest.mark.slow),
    ],
)
def test_no_smaller_bound_than_the_least_would_do(name: str) -> None:
    policy, least_us = ordering(name)
    with pytest.raises(Starved):  # who comes T - 1 later may pass, so T - 2 is the first bound that is too small
        run_ordering(Kernel, policy, least_us - 2, FINDING)


@pytest.mark.parametrize(("kernel_type", "name"), FORGETFUL)
def test_a_certified_ordering_starves_requests_in_a_kernel_that_forgets_age(
    kernel_type: type[Kernel], name: str
) -> None:
    with pytest.raises(Starved):
        run_ordering(kernel_type, *ordering(name), FINDING)


@pytest.mark.parametrize("name", Admission.baselines())
def test_blocks_are_conserved_and_nobody_deadlocks_under_certified_admission(name: str) -> None:
    run_admission(admission(name), KEEPING)


@pytest.mark.slow
@pytest.mark.parametrize("name", Admission.baselines())
def test_blocks_are_conserved_in_long_runs_too(name: str) -> None:
    run_admission(admission(name), DEEP)


@pytest.mark.parametrize("why", OVERCOMMITTING)
def test_the_machine_catches_admission_that_overcommits(why: str) -> None:
    policy = uncertified_admission(OVERCOMMITTING[why])
    with pytest.raises(OverCommitted):
        run_admission(policy, FINDING)


@pytest.mark.parametrize("why", DEADLOCKING)
def test_the_machine_catches_admission_that_deadlocks(why: str) -> None:
    policy = uncertified_admission(DEADLOCKING[why])
    with pytest.raises(Deadlocked):
        run_admission(policy, FINDING)


class Drifted(AssertionError):
    """Two models of one kernel decide otherwise."""


@st.composite
def workloads(draw: st.DrawFn) -> tuple[Trace, EngineConfig, int]:
    """Arrivals in a memory too small for them, and the microseconds of a step."""
    n = draw(st.integers(2, 16))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    step_us = draw(st.sampled_from([1_000, 40_000, 1_000_000]))
    # arrivals on whole steps coincide with their ends; several arrive at once
    unit = draw(st.sampled_from([1, step_us]))
    arrival = np.sort(random.integers(0, draw(st.sampled_from([1, 40, 150])) * step_us, n)) // unit * unit
    prompt = random.integers(1, draw(st.sampled_from([40, 400])) + 1, n)
    output = random.integers(1, draw(st.sampled_from([2, 40])) + 1, n)
    trace = Trace.from_columns(
        arrival_us=arrival,
        num_prompt_tokens=prompt,
        num_output_tokens=output,
        max_tokens=output + random.integers(0, 20, n),
        priority=random.integers(0, 16, n),
    )
    largest = int(np.max(prompt + output))
    engine = EngineConfig(
        total_blocks=int(largest * draw(st.sampled_from([0.9, 1.0, 1.5, 3.0]))) // 16 + 1,
        max_num_seqs=draw(st.sampled_from([1, 3, 16])),
        max_num_batched_tokens=1_048_576,
        watermark=draw(st.sampled_from([0.0, 0.1])),
        enable_prefix_caching=False,
    )
    return trace, engine, step_us


def assert_same_decisions(
    kernel_type: type[Kernel], orders: Policy | None, admits: Policy | None, workload: tuple[Trace, EngineConfig, int]
) -> None:
    """Every admission and preemption of the kernel and of the simulator, which runs the same policies as machine code."""
    trace, engine, step_us = workload
    native: dict[str, Any] = {}
    if orders is not None:
        native["ordering"] = orders.native("score", LAYOUTS["ordering"])
    if admits is not None:
        native["admit"] = admits.native("admit", LAYOUTS["admit"])
        native["reserve_blocks"] = admits.native("reserve_blocks", LAYOUTS["reserve_blocks"])
    step_time = StepTimeModel(c0=step_us / 1e6, c1=0, c2=0, c3=0, c4=0)
    result = simulate(trace, engine, step_time, native, checked=True, decision_log=True)
    assert result.decisions is not None
    kernel = kernel_type(engine, ordering=orders, admission=admits)
    run_kernel(kernel, trace, step_us)
    decided = [(ns // 1_000, kind, index) for ns, _, kind, index in result.decisions.tolist()]
    if kernel.log != decided:
        differing = next((pair for pair in zip(kernel.log, decided, strict=False) if pair[0] != pair[1]), "in length")
        raise Drifted(f"kernel and simulator differ: {differing}")


def compare(kernel_type: type[Kernel], orders: Policy | None, admits: Policy | None, examples: int) -> None:
    @effort(examples, 1)
    @given(workloads())
    def compared(workload: tuple[Trace, EngineConfig, int]) -> None:
        assert_same_decisions(kernel_type, orders, admits, workload)

    compared()


@pytest.mark.parametrize("name", ORDERINGS)
def test_kernel_and_simulator_admit_in_the_same_order(name: str) -> None:
    compare(Kernel, ordering(name)[0], None, 15)


@pytest.mark.parametrize("name", Admission.baselines())
def test_a_kernel_that_trusts_certified_admission_admits_as_the_simulator_that_checks_it(name: str) -> None:
    compare(Kernel, None, admission(name), 15)
    compare(Kernel, ordering("shortest-prompt-aging")[0], admission(name), 15)


@pytest.mark.slow
@pytest.mark.parametrize("orders", ORDERINGS)
@pytest.mark.parametrize("admits", Admission.baselines())
def test_kernel_and_simulator_agree_on_every_pair_of_baselines(orders: str, admits: str) -> None:
    compare(Kernel, ordering(orders)[0], admission(admits), 150)


@pytest.mark.parametrize(("kernel_type", "name"), FORGETFUL)
def test_a_kernel_that_forgets_age_is_told_apart_from_the_simulator(kernel_type: type[Kernel], name: str) -> None:
    with pytest.raises(Drifted):
        compare(kernel_type, ordering(name)[0], None, 300)
