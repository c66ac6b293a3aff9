"""The compiled kernel and the plain-Python reference take the same decisions at the same nanosecond."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopoiesis_lib.simulation import (
    Calibration,
    EngineConfig,
    Fleet,
    Outage,
    Prefixes,
    SimulationResult,
    StepTimeModel,
    Trace,
    python_policy,
    simulate,
)
from autopoiesis_lib.simulation.reference import ReferenceRun, reference_simulate

Policies = Mapping[str, Callable[..., int]]


def sjf_with_aging(waited: int, prompt: int, cached: int, *rest: int) -> int:
    return waited - 3_000 * (prompt - cached)


def restless(waited: int, prompt: int, cached: int, *rest: int) -> int:
    """Its order changes all the time, so nothing may be remembered from one pass to the next."""
    return (waited // 7_000 * 2_654_435_761 + prompt * 40_503) % 1_009


def picky_admission(waited: int, prompt: int, *rest: int) -> int:
    free, total, _, running, reserved = rest[-5:]
    return int(free - reserved > total // 8 or running < 2)


POLICIES: dict[str, list[Callable[..., int]]] = {
    "ordering": [sjf_with_aging, restless],
    "admit": [picky_admission],
    "reserve_blocks": [lambda waited, prompt, *rest: prompt % 5],
    "victim": [lambda waited, prompt, computed, generated, *rest: computed % 17, lambda waited, *rest: -waited],
    "token_budget": [lambda num_waiting, num_running, *rest: 5 + 3 * num_waiting],
    "prefill_chunk": [lambda waited, prompt, *rest: prompt // 3],
    "eviction": [
        lambda idle, hits, depth, blocks, preempted, *rest: hits * 10 - depth - idle // 50_000 + 3 * preempted
    ],
    "routing": [lambda prompt, limit, level, index, waiting, running, free, total, seqs, queued, hit: hit - queued],
}


@st.composite
def workloads(
    draw: st.DrawFn, prefixed: bool = False
) -> tuple[Trace, EngineConfig, StepTimeModel, dict[str, Callable[..., int]], Fleet]:
    n = draw(st.integers(1, 28))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    block = draw(st.sampled_from([1, 2, 4, 16]))
    spread = draw(st.sampled_from([0, 20_000, 400_000]))
    arrival = np.sort(random.integers(0, spread + 1, n)) * draw(st.sampled_from([1, 5]))
    # steps of exactly 1 ms and arrivals on whole ms: ends and arrivals that coincide
    coincide = draw(st.integers(0, 3)) == 0
    if coincide:
        arrival = arrival // 10_000 * 1_000
    prompt = random.integers(1, draw(st.sampled_from([60, 200] if prefixed else [8, 60, 200])) + 1, n)
    output = random.integers(1, draw(st.sampled_from([2, 30, 90])) + 1, n)
    prefixes = None
    if prefixed or draw(st.booleans()):
        tokens = block * draw(st.sampled_from([1, 3]))
        families = random.integers(0, 3, n)
        rows = []
        for i in range(n):
            blocks = -(-int(prompt[i]) // tokens)
            common = min(blocks, int(random.integers(0, 12)))
            rows.append([int(families[i]) * 1_000 + j for j in range(common)])
            rows[-1] += [100_000 + i * 1_000 + j for j in range(common, blocks)]
        ptr = np.cumsum([0] + [len(row) for row in rows])
        prefixes = Prefixes(
            ptr=ptr, ids=np.array([block for row in rows for block in row], dtype=np.int64), block_tokens=tokens
        )
    trace = Trace.from_columns(
        arrival_us=arrival,
        num_prompt_tokens=prompt,
        num_output_tokens=output,
        priority=random.integers(0, 16, n),
        prefixes=prefixes,
    )
    seqs = draw(st.sampled_from([1, 2, 5, 16]))
    largest = int(np.max(prompt + output))
    engine = EngineConfig(
        block_size=block,
        total_blocks=max(1, int(largest * draw(st.sampled_from([0.9, 1.0, 1.5, 4.0]))) // block + 1),
        max_num_seqs=seqs,
        max_num_batched_tokens=draw(st.sampled_from([16, 40, 512])),
        long_prefill_token_threshold=draw(st.sampled_from([0, 7])),
        watermark=draw(st.sampled_from([0.0, 0.1])),
        enable_prefix_caching=prefixed or draw(st.booleans()),
    )
    step_time = StepTimeModel(
        c0=draw(st.sampled_from([1e-9, 0.0013])),
        c1=1.7e-5,
        c2=draw(st.sampled_from([0.0, 2.3e-5])),
        c3=draw(st.sampled_from([0.0, 1.9e-7])),
        c4=draw(st.sampled_from([0.0, 3.1e-9])),
        floor=draw(st.sampled_from([0.0, 0.0007])),
    )
    if coincide:
        step_time = StepTimeModel(c0=0.001, c1=0, c2=0, c3=0, c4=0)
    chosen = draw(st.sets(st.sampled_from(sorted(POLICIES)), max_size=4))
    if prefixed and draw(st.booleans()):
        chosen = chosen | {"eviction"}
    policies = {slot: draw(st.sampled_from(POLICIES[slot])) for slot in sorted(chosen)}
    replicas = draw(st.sampled_from([1, 1, 3]))
    outages = []
    if draw(st.booleans()):
        start = draw(st.sampled_from([0.0, 0.011, 0.2]))
        outages.append(Outage(replica=replicas - 1, start_s=start, end_s=start + draw(st.sampled_from([0.003, 0.5]))))
    return trace, engine, step_time, policies, Fleet(replicas=replicas, outages=outages)


def compiled(
    trace: Trace, engine: EngineConfig, step_time: StepTimeModel, policies: Policies, fleet: Fleet
) -> SimulationResult:
    native: dict[str, Any] = {slot: python_policy(slot, function) for slot, function in policies.items()}
    return simulate(trace, engine, step_time, native, fleet=fleet, checked=True, decision_log=True)


def outcome(run: ReferenceRun) -> list[tuple[int, ...]]:
    return [
        (q.scheduled_ns, q.first_token_ns, q.finish_ns, q.preemptions, q.recomputed, q.cached, q.replica)
        for q in run.requests
    ]


def compiled_outcome(result: SimulationResult) -> list[tuple[int, ...]]:
    t = result.times
    columns = (
        t.scheduled_ns,
        t.first_token_ns,
        t.finish_ns,
        t.num_preemptions,
        t.recomputed_tokens,
        t.cached_tokens,
        t.replica,
    )
    return list(zip(*(column.tolist() for column in columns), strict=True))


Case = tuple[Trace, EngineConfig, StepTimeModel, dict[str, Callable[..., int]], Fleet]
SLOW_DRAWS = [HealthCheck.too_slow, HealthCheck.data_too_large]


def assert_agreement(case: Case) -> SimulationResult:
    trace, engine, step_time, policies, fleet = case
    expected = reference_simulate(trace, engine, step_time, policies, fleet=fleet)
    result = compiled(trace, engine, step_time, policies, fleet)
    assert compiled_outcome(result) == outcome(expected)
    assert result.steps == expected.steps
    assert result.decisions is not None
    for replica in range(fleet.replicas):
        ours = [(t, ("admit", "preempt")[what], i) for t, r, what, i in result.decisions.tolist() if r == replica]
        theirs = [(t, what, i) for t, r, what, i in expected.decisions if r == replica]
        assert ours == theirs
    return result


@given(workloads())
@settings(max_examples=200, deadline=None, suppress_health_check=SLOW_DRAWS)
def test_kernel_and_reference_agree_on_every_decision_and_every_nanosecond(case: Case) -> None:
    assert_agreement(case)


@given(workloads(prefixed=True))
@settings(max_examples=150, deadline=None, suppress_health_check=SLOW_DRAWS)
def test_they_agree_when_requests_share_prefixes_and_blocks_are_evicted(case: Case) -> None:
    assert_agreement(case)


@pytest.mark.slow
@given(st.booleans().flatmap(lambda prefixed: workloads(prefixed=prefixed)))
@settings(max_examples=5_000, deadline=None, suppress_health_check=SLOW_DRAWS)
def test_they_agree_on_thousands_of_workloads(case: Case) -> None:
    assert_agreement(case)


def test_they_agree_on_a_real_overloaded_stretch_with_preemptions() -> None:
    calibration = Calibration.shipped("rtx4090-llama31-8b")
    trace = Trace.shipped("azure-conv").window(600, 700)
    result = assert_agreement((trace, calibration.engine, calibration.step_time, {"ordering": sjf_with_aging}, Fleet()))
    assert result.preemptions > 0


def test_they_agree_on_a_real_trace_with_prefixes_over_four_replicas() -> None:
    calibration = Calibration.shipped("rtxpro6000-llama31-8b")
    trace = Trace.shipped("mooncake").split(0.05)[0]
    engine = calibration.engine.model_copy(update={"max_num_batched_tokens": 8_192, "total_blocks": 9_000})
    routing = {"routing": POLICIES["routing"][0]}
    result = assert_agreement((trace, engine, calibration.step_time, routing, Fleet(replicas=4)))
    assert result.cached_prompt_tokens > 0
