"""What the engine model promises, beyond agreeing with its reference."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from autopoiesis_lib.simulation import (
    ORDERING_LAYOUT,
    EngineConfig,
    Fleet,
    Outage,
    SimulationError,
    Slo,
    SlotError,
    StepTimeModel,
    Trace,
    compare,
    default_workload,
    overload_factor,
    python_policy,
    simulate,
)
from autopoiesis_lib.simulation.generators import Lengths, conversations, poisson
from autopoiesis_lib.simulation.metrics import ComparisonError, comparison_rows

STEP = StepTimeModel(c0=0.01, c1=1e-4, c2=1e-4, c3=1e-7, c4=1e-9)
ENGINE = EngineConfig(total_blocks=1_000, max_num_seqs=8, max_num_batched_tokens=256)


def requests(arrival: list[int], prompt: list[int], output: list[int]) -> Trace:
    columns = [np.array(values, dtype=np.int64) for values in (arrival, prompt, output)]
    return Trace.from_columns(arrival_us=columns[0], num_prompt_tokens=columns[1], num_output_tokens=columns[2])


def test_one_request_takes_exactly_the_sum_of_its_steps() -> None:
    result = simulate(requests([0], [300], [3]), ENGINE, STEP)
    first = STEP.step_seconds(prefill_tokens=256, attention=256 * 128, decodes=0, context=0)
    second = STEP.step_seconds(prefill_tokens=44, attention=44 * (256 + 22), decodes=0, context=0)
    decodes = [STEP.step_seconds(prefill_tokens=0, attention=0, decodes=1, context=c) for c in (300, 301)]
    assert result.ttft.mean == pytest.approx(first + second, abs=1e-9)
    assert result.e2e.mean == pytest.approx(first + second + sum(decodes), abs=1e-9)
    assert result.steps == 4


def test_an_arrival_during_a_step_waits_for_the_next_one() -> None:
    result = simulate(requests([0, 1], [100, 100], [1, 1]), ENGINE, STEP)
    assert result.times.scheduled_ns[1] == result.times.first_token_ns[0]


def test_a_native_policy_of_the_policy_language_orders_the_line() -> None:
    from autopoiesis_contracts.request_ordering import RequestOrdering

    from autopoiesis_lib.policy import Policy

    source = (
        "from autopoiesis_contracts.request_ordering import Engine, Waiting\n\n\n"
        "def score(request: Waiting, engine: Engine) -> int:\n"
        "    return request.waited_us - min(request.num_prompt_tokens, 8_192) * 20_000\n"
    )
    policy = Policy.from_source(source, RequestOrdering()).native(layout=ORDERING_LAYOUT)
    workload = default_workload()
    trace = workload.held_out.split(0.1)[0].scaled(3.0)
    native = simulate(trace, workload.engine, workload.calibration.step_time, {"ordering": policy})
    plain = python_policy("ordering", lambda waited, prompt, *rest: waited - min(prompt, 8_192) * 20_000)
    called = simulate(trace, workload.engine, workload.calibration.step_time, {"ordering": plain})
    assert np.array_equal(native.times.finish_ns, called.times.finish_ns)
    fcfs = simulate(trace, workload.engine, workload.calibration.step_time)
    assert native.ttft.mean < fcfs.ttft.mean


def test_equal_scores_are_served_in_order_of_arrival() -> None:
    trace = poisson(300, 200.0, Lengths.like(Trace.shipped("azure-code")), seed=3)
    constant = python_policy("ordering", lambda *view: 7)
    fcfs = simulate(trace, ENGINE.model_copy(update={"total_blocks": 2_000}), STEP)
    same = simulate(trace, ENGINE.model_copy(update={"total_blocks": 2_000}), STEP, {"ordering": constant})
    assert np.array_equal(fcfs.times.finish_ns, same.times.finish_ns)


def test_a_request_older_than_a_day_goes_before_anything_scored() -> None:
    day = 86_400_000_000
    slow = StepTimeModel(c0=100.0, c1=0, c2=0, c3=0, c4=0)
    engine = EngineConfig(total_blocks=100_000, max_num_seqs=1)
    trace = requests([0, 1, 2, 3], [10, 11, 9, 8], [1_000, 1, 1, 1])
    seen: list[int] = []

    def newest_first(waited: int, *rest: int) -> int:
        seen.append(waited)
        return -waited

    result = simulate(trace, engine, slow, {"ordering": python_policy("ordering", newest_first)})
    assert result.times.finish_ns[0] / 1_000 > day
    order = np.argsort(result.times.scheduled_ns).tolist()
    assert order == [0, 1, 2, 3]
    assert all(waited <= day for waited in seen)


def test_a_preempted_request_keeps_its_wait_and_its_place() -> None:
    engine = EngineConfig(block_size=16, total_blocks=8, max_num_seqs=4, max_num_batched_tokens=256)
    trace = requests([0, 1_000, 2_000], [40, 40, 40], [60, 60, 60])
    waits: dict[int, list[int]] = {}

    def oldest_first(waited: int, *rest: int) -> int:
        if rest[5] > 0:
            waits.setdefault(rest[5], []).append(waited)
        return waited

    result = simulate(trace, engine, STEP, {"ordering": python_policy("ordering", oldest_first)}, checked=True)
    assert result.preemptions > 0
    assert min(min(w) for w in waits.values()) > 100_000
    assert result.num_served == 3


def test_a_request_larger_than_memory_is_rejected_and_counted() -> None:
    engine = EngineConfig(block_size=16, total_blocks=10)
    result = simulate(requests([0, 0], [200, 20], [10, 10]), engine, STEP)
    assert (result.num_rejected, result.num_served) == (1, 1)


def test_no_policy_view_ever_holds_the_true_output_length() -> None:
    outputs = [777, 778, 779]
    seen: set[int] = set()

    def watch(*view: int) -> int:
        seen.update(view)
        return 0

    policies = {slot: python_policy(slot, watch) for slot in ("ordering", "prefill_chunk", "reserve_blocks")}
    simulate(
        requests([0, 0, 0], [50, 60, 70], outputs), EngineConfig(total_blocks=5_000, max_num_seqs=1), STEP, policies
    )
    assert seen and not seen & set(outputs)


def test_a_lost_replica_hands_its_requests_to_the_others_and_none_is_dropped() -> None:
    trace = poisson(400, 40.0, Lengths.like(Trace.shipped("azure-code")), seed=5)
    engine = ENGINE.model_copy(update={"total_blocks": 3_000, "max_num_batched_tokens": 2_048})
    fleet = Fleet(replicas=2, outages=[Outage(replica=0, start_s=2.0, end_s=6.0)])
    calm, struck = simulate(trace, engine, STEP, fleet=Fleet(replicas=2)), simulate(trace, engine, STEP, fleet=fleet)
    assert struck.num_served == 400
    assert struck.e2e.mean > calm.e2e.mean
    away = (struck.times.finish_ns > 2e9) & (struck.times.finish_ns < 6e9)
    assert set(struck.times.replica[away].tolist()) == {1}
    with pytest.raises(SimulationError, match="no replica is left"):
        simulate(trace, engine, STEP, fleet=Fleet(replicas=1, outages=[Outage(replica=0, start_s=1.0)]))


def test_autoscaling_starts_replicas_after_the_delay_and_lowers_latency() -> None:
    trace = poisson(600, 30.0, Lengths.like(Trace.shipped("azure-code")), seed=6)
    engine = ENGINE.model_copy(update={"total_blocks": 3_000, "max_num_batched_tokens": 2_048})
    grow = {"autoscaling": python_policy("autoscaling", lambda active, starting, waiting, *rest: 1 + waiting // 4)}
    fleet = Fleet(replicas=1, max_replicas=4, scale_interval_s=1.0, start_delay_s=3.0)
    scaled, alone = simulate(trace, engine, STEP, grow, fleet=fleet), simulate(trace, engine, STEP)
    assert scaled.ttft.mean < alone.ttft.mean
    assert sum(scaled.served_by_replica) == 600 and sum(n > 0 for n in scaled.served_by_replica) > 1
    late = scaled.times.scheduled_ns[scaled.times.replica > 0]
    assert late.min() >= 4e9
    assert scaled.replica_seconds > alone.replica_seconds


def test_prefix_aware_routing_hits_more_than_the_default() -> None:
    lengths = Lengths.lognormal(prompt_p50=200, prompt_p99=1_000, output_p50=50, output_p99=200)
    trace = conversations(200, 4.0, lengths, turns=5, think_s=5, seed=7)
    engine = EngineConfig(total_blocks=6_000)
    sticky = {"routing": python_policy("routing", lambda *v: 2 * v[10] - v[9] - 100 * v[5])}
    default = simulate(trace, engine, STEP, fleet=Fleet(replicas=4))
    aware = simulate(trace, engine, STEP, sticky, fleet=Fleet(replicas=4))
    assert aware.cached_prompt_tokens > 1.2 * default.cached_prompt_tokens
    none = simulate(trace, engine.model_copy(update={"enable_prefix_caching": False}), STEP, fleet=Fleet(replicas=4))
    assert none.cached_prompt_tokens == 0


def test_a_policy_that_raises_or_does_not_fit_its_slot_is_one_clear_error() -> None:
    trace = requests([0, 0], [10, 10], [2, 2])
    with pytest.raises(SlotError, match="ZeroDivisionError"):
        simulate(trace, ENGINE, STEP, {"ordering": python_policy("ordering", lambda *view: 1 // 0)})
    with pytest.raises(SlotError, match="there is no slot 'order'"):
        simulate(trace, ENGINE, STEP, {"order": python_policy("ordering", lambda *view: 0)})
    with pytest.raises(SlotError, match="compiled for"):
        simulate(trace, ENGINE, STEP, {"ordering": python_policy("routing", lambda *view: 0)})


def test_the_step_log_adds_up_to_the_run() -> None:
    trace = Trace.shipped("azure-conv").split(0.05)[0]
    workload = default_workload()
    result = simulate(trace, workload.engine, workload.calibration.step_time, step_log=True)
    log = result.step_log
    assert log is not None
    assert int(log.steps.sum()) == result.steps
    assert int(log.prefill_tokens.sum()) == int(trace.num_prompt_tokens.sum()) + result.recomputed_tokens
    assert int(log.decodes.sum()) == int((trace.num_output_tokens - 1).sum())
    assert int(log.end_ns.max()) == int(result.times.finish_ns.max())


def test_runs_in_several_threads_at_once_do_not_disturb_each_other() -> None:
    workload = default_workload()
    factors = [1.0, 1.4, 1.8, 2.2]

    def finish_times(factor: float) -> list[object]:
        trace = workload.train.split(0.2)[0].scaled(factor)
        times = simulate(trace, workload.engine, workload.calibration.step_time).times
        return list(times.finish_ns.tolist())

    alone = [finish_times(factor) for factor in factors]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(finish_times, factors)) == alone


def test_the_pinned_rate_is_the_least_that_overloads_fcfs_on_both_halves() -> None:
    workload = default_workload()
    found = overload_factor(Trace.shipped("azure-conv"), workload.calibration, workload.engine)
    assert found == workload.rate_factor
    assert "max_tokens is 2,048" in workload.describe()
    json.dumps(workload.to_dict())


def test_shortest_prompt_with_aging_halves_held_out_ttft_beyond_noise() -> None:
    workload = default_workload()
    ours = python_policy("ordering", lambda waited, prompt, *rest: waited - 20_000 * min(prompt, 8_192))
    trace = workload.held_out
    fcfs = simulate(trace, workload.engine, workload.calibration.step_time)
    sjf = simulate(trace, workload.engine, workload.calibration.step_time, {"ordering": ours})
    comparison = compare(fcfs, sjf)
    assert comparison.reduction > 0.55 and comparison.better
    assert comparison.speedup == pytest.approx(1 / (1 - comparison.reduction))
    assert not compare(fcfs, fcfs).better
    rows = comparison_rows({"fcfs": fcfs, "sjf": sjf}, "fcfs", workload.slo)
    assert rows[1]["ttft_reduction"] == pytest.approx(comparison.reduction)


def test_runs_of_different_requests_are_not_compared() -> None:
    a, b = simulate(requests([0], [10], [2]), ENGINE, STEP), simulate(requests([0, 0], [10, 10], [2, 2]), ENGINE, STEP)
    with pytest.raises(ComparisonError, match="not of the same requests"):
        compare(a, b)


def test_results_export_to_json_and_csv(tmp_path: Path) -> None:
    result = simulate(requests([0, 5_000], [10, 20], [2, 3]), ENGINE, STEP)
    summary = json.loads(result.to_json(Slo(ttft_s=1.0, tpot_s=1.0)))
    assert summary["slo"]["attainment"] == 1.0
    assert summary["ttft"]["p99"] == pytest.approx(result.ttft.p99)
    result.to_csv(tmp_path / "requests.csv")
    lines = (tmp_path / "requests.csv").read_text().splitlines()
    assert len(lines) == 3 and lines[0].startswith("arrival_ns,scheduled_ns")
