"""Claims about the control plane, on an engine that is the simulator behind the real channel, loader and telemetry."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Certificate, Policy, verify
from autopoiesis_lib.evolution import Budget, Limits
from autopoiesis_lib.online.controller import Controller, ControllerError
from autopoiesis_lib.online.drift import DriftSettings
from autopoiesis_lib.online.lookout import REFERENCE
from autopoiesis_lib.online.rollout import Rollout
from autopoiesis_lib.online.settings import WatchSettings
from autopoiesis_lib.online.state import Stage
from autopoiesis_lib.online.window import Window
from autopoiesis_lib.simulation import Calibration, StepTimeModel, Trace
from autopoiesis_lib.store import Store
from tests.online.live import LiveEngine
from tests.online.streams import ENGINE, STEP_TIME, poisson_trace
from tests.support.fleet import Fleet

CALIBRATION = Calibration(name="test", step_time=STEP_TIME, engine=ENGINE, source="test")
SETTINGS = WatchSettings(
    window_s=60.0,
    drift=DriftSettings(bins=10),
    budget=Budget(candidates=24, generation_size=12, islands=2),
    workers=1,
    canary_s=60.0,
    poll_s=0.05,
    known_first=False,
)
"""Nothing is answered with a known policy, unless a test asks for it: most are about evolution."""


def quiet(seed: int) -> Trace:
    """Short prompts that the engine keeps up with."""
    return poisson_trace(seed, rate=4.0, seconds=130, prompts=(40, 200))


def crowded(seed: int) -> Trace:
    """Three short prompts to one long, more than it keeps up with: the order matters."""
    return poisson_trace(seed, rate=15.0, seconds=130, prompts=(40, 40, 40, 6_000))


@contextmanager
def controlling(
    folder: Path,
    settings: WatchSettings = SETTINGS,
    *,
    require_approval: bool = False,
    known: Sequence[Policy] = (),
) -> Iterator[Controller]:
    store = Store.open(folder / "store.db")
    rollout = Rollout(
        store,
        Fleet(folder).publisher(folder / "channel"),
        contract="request-ordering",
        actor="test",
        require_approval=require_approval,
    )
    with Controller(
        RequestOrdering(), rollout, store, CALIBRATION, folder / "state", settings, known=known
    ) as controller:
        yield controller
    store.close()


def engine(folder: Path) -> LiveEngine:
    return LiveEngine(channel=Fleet(folder).reader(folder / "channel"), keys=Fleet(folder).keys)


def log(folder: Path) -> list[str]:
    return [row.action for row in Store.open(folder / "store.db").deployments()]


def served_and_settled(controller: Controller, live: LiveEngine, trace: Trace) -> Window:
    live.serve(trace)
    controller.observer.look()
    window = controller.observer.settled()
    assert window is not None
    return window


def ticks(controller: Controller, live: LiveEngine, work: "list[Trace]", until: str) -> str:
    """Serve and tick in turn until the controller says something that begins with `until`."""
    said = ""
    for trace in work:
        live.serve(trace)
        for _ in range(3):
            said = controller.tick()
            if said.startswith(until):
                return said
    raise AssertionError(f"never {until!r}, but {said!r}")


@pytest.mark.slow
def test_a_shift_is_noticed_answered_by_evolution_and_rolled_out_and_serving_gets_faster(tmp_path: Path) -> None:
    with controlling(tmp_path) as controller:
        live = engine(tmp_path)
        work = [quiet(1), quiet(2)]
        for trace in work:
            live.serve(trace)
            assert controller.tick().startswith("watching")
        before = live.serve(crowded(3))
        assert ticks(controller, live, [crowded(4)], "shadow").startswith("shadow")
        candidate = controller.rollout.state.candidate
        assert candidate is not None
        assert set(live.decided_by) == {None}, "shadow has no effect on the engine"
        ticks(controller, live, [crowded(5), crowded(6)], "canary")
        assert Fleet(tmp_path).publisher(tmp_path / "channel").read().digest == candidate  # type: ignore[union-attr]
        ticks(controller, live, [crowded(7), crowded(8), crowded(9)], "promoted")
        assert live.decided_by[-1] == candidate, live.refusal
        after = live.serve(crowded(3))
    assert after < 0.7 * before
    assert controller.rollout.state.active == candidate
    assert live.completed == sum(len(quiet(s)) for s in (1, 2)) + len(crowded(3)) * (len(live.decided_by) - 2)
    actions = log(tmp_path)
    order = ["drift", "calibrate", "evolve", "evolved", "propose", "canary", "promote"]
    assert [actions.index(name) for name in order] == sorted(actions.index(name) for name in order)


@pytest.mark.slow
def test_a_shift_is_answered_at_once_by_the_best_known_policy_and_evolution_follows_once_it_is_promoted(
    tmp_path: Path,
) -> None:
    with controlling(tmp_path, replace(SETTINGS, known_first=True)) as controller:
        live = engine(tmp_path)
        for trace in (quiet(1), quiet(2)):
            live.serve(trace)
            assert controller.tick().startswith("watching")
        before = live.serve(crowded(3))
        said = ticks(controller, live, [crowded(4)], "canary")
        assert "known" in said and "evolve" not in log(tmp_path)
        shortest = Policy.from_source(BASELINES["shortest-prompt-aging"], RequestOrdering())
        assert Fleet(tmp_path).publisher(tmp_path / "channel").read().digest == shortest.digest  # type: ignore[union-attr]
        ticks(controller, live, [crowded(seed) for seed in (5, 6, 7)], "promoted")
        assert controller.rollout.state.active == shortest.digest
        assert live.serve(crowded(3)) < 0.7 * before
        for seed in range(8, 11):
            live.serve(crowded(seed))
            controller.tick()
        assert not (tmp_path / "state" / "due.json").exists()
    actions = log(tmp_path)
    order = ["drift", "calibrate", "evidence", "propose", "canary", "promote", "evolve", "evolved"]
    assert [actions.index(name) for name in order] == sorted(actions.index(name) for name in order)


@pytest.mark.slow
def test_a_known_policy_that_was_quarantined_or_would_not_help_is_not_tried(tmp_path: Path) -> None:
    shortest = Policy.from_source(BASELINES["shortest-prompt-aging"], RequestOrdering())
    starved = Budget(candidates=4, limits=Limits(memory_mib=1))
    settings = replace(SETTINGS, budget=starved, back_to_back=True, known_first=True)
    with controlling(tmp_path, settings) as controller:
        live = engine(tmp_path)
        live.serve(quiet(1))
        assert controller.tick().startswith("no candidate"), "nobody waits, so no order is better than another"
        for name, source in BASELINES.items():
            if name != "fcfs":
                digest = Policy.from_source(source, RequestOrdering()).digest
                controller.rollout.quarantine(digest, "seen to do harm")
        live.serve(crowded(2))
        assert controller.tick().startswith("no candidate")
        controller.rollout.release(shortest.digest)
        live.serve(crowded(3))
        assert controller.tick().startswith(f"canary: {shortest.digest[:12]}, known")


def test_a_policy_given_to_the_control_plane_is_among_the_known(tmp_path: Path) -> None:
    given = Policy.from_source(BASELINES["shortest-prompt-aging"].replace("10_000", "9_000"), RequestOrdering())
    assert given.digest not in {Policy.from_source(text, RequestOrdering()).digest for text in BASELINES.values()}
    settings = replace(SETTINGS, evolve_first=True, known_first=True)
    with controlling(tmp_path, settings, known=[given]) as controller:
        live = engine(tmp_path)
        live.serve(crowded(1))
        controller.tick()
        (row,) = [row for row in controller.store.deployments() if row.action == "evidence"]
        assert row.detail["among"] == len(BASELINES) - 1 + 1


def test_a_change_is_answered_before_a_window_has_settled_by_what_is_remembered_of_like_work(tmp_path: Path) -> None:
    settings = replace(SETTINGS, known_first=True)
    with controlling(tmp_path, settings) as controller:
        live = engine(tmp_path)
        day_before = served_and_settled(controller, live, crowded(1))
        for seed in (2, 3):
            live.serve(quiet(seed))
        assert controller.tick().startswith("watching")
        # What has come up to now: most of it waits, and nobody knows what it will cost.
        live.serve(crowded(4), leave_first_s=70.0)
        said = controller.tick()
        assert said.startswith("watching: evolution waits"), said
        (drift,) = [row for row in controller.store.deployments() if row.action == "drift"]
        assert drift.detail["early"]
        due = controller.memory.due()
        assert due is not None and due.looks == 0
        controller.memory.remember(day_before)
        assert controller.tick().startswith("canary"), "likewise work is remembered now"
        stages = [row.detail["stage"] for row in controller.store.deployments() if row.action == "evidence"]
        assert stages == ["known", "since the change"]


def test_a_control_plane_begins_with_what_was_best_on_the_work_it_remembers(tmp_path: Path) -> None:
    with controlling(tmp_path, replace(SETTINGS, known_first=True)) as controller:
        live = engine(tmp_path)
        day_before = served_and_settled(controller, live, crowded(1))
        controller.memory.remember(day_before)
        shortest = Policy.from_source(BASELINES["shortest-prompt-aging"], RequestOrdering())
        assert controller.tick().startswith(f"canary: {shortest.digest[:12]}, known")
        (row,) = [row for row in controller.store.deployments() if row.action == "evidence"]
        assert row.detail["stage"] == "remembered"
        live.serve(crowded(2))
        assert live.decided_by[-1] == shortest.digest


@pytest.mark.slow
def test_a_change_is_answered_by_evolutions_on_ever_longer_windows(tmp_path: Path) -> None:
    settings = replace(SETTINGS, evolve_window_s=180.0, evolve_first=True)
    with controlling(tmp_path, settings) as controller:
        live = engine(tmp_path)
        for seed in range(1, 12):
            live.serve(crowded(seed))
            for _ in range(3):
                controller.tick()
        assert not (tmp_path / "state" / "due.json").exists()
        rows = controller.store.deployments()
    lengths = [row.detail["window"]["seconds"] for row in rows if row.action == "evolve"]
    assert lengths[:3] == [60.0, 120.0, 180.0]


@pytest.mark.slow
def test_work_that_changes_while_something_is_evolved_for_it_ends_that_and_is_answered_at_once(tmp_path: Path) -> None:
    much = Budget(candidates=2_000, generation_size=12, islands=2)
    settings = replace(SETTINGS, budget=much, evolve_first=True, known_first=True)
    with controlling(tmp_path, settings) as controller:
        live = engine(tmp_path)
        live.serve(quiet(1))
        look, changed = controller.observer.look, iter([crowded(2)])

        def look_on() -> None:
            for trace in changed if controller.memory.evolving else ():
                live.serve(trace)
            look()

        controller.observer.look = look_on  # type: ignore[method-assign]
        assert controller.tick().startswith("stopped evolving, because work changed again")
        assert not controller.memory.evolving
        said = controller.tick()
        assert said.startswith("canary") and "known" in said
        rows = controller.store.deployments()
    (outdated,) = [row for row in rows if row.action == "outdated"]
    assert outdated.detail["reason"].startswith("drift")
    assert len(controller.store.candidates(outdated.detail["run"])) < 2_000


@pytest.mark.slow
def test_work_like_what_is_remembered_is_evolved_for_on_the_longest_window_only(tmp_path: Path) -> None:
    settings = replace(SETTINGS, evolve_window_s=120.0, evolve_first=True, known_first=True)
    with controlling(tmp_path, settings) as controller:
        live = engine(tmp_path)
        day_before = served_and_settled(controller, live, crowded(1))
        controller.memory.remember(replace(day_before, engine="of the day before"))
        for seed in range(2, 8):
            live.serve(crowded(seed))
            for _ in range(3):
                controller.tick()
        rows = controller.store.deployments()
    assert [row.detail["window"]["seconds"] for row in rows if row.action == "evolve"] == [120.0]


@pytest.mark.parametrize("gives_way", [True, False])
@pytest.mark.slow
def test_an_evolution_rests_while_requests_wait_in_an_engine_but_not_for_good(tmp_path: Path, gives_way: bool) -> None:
    with controlling(tmp_path, replace(SETTINGS, give_way=gives_way, evolve_first=True)) as controller:
        live = engine(tmp_path)
        live.serve(quiet(1))
        live.serve(crowded(2), leave_first_s=20.0)
        look, rests = controller.observer.look, 0
        controller.observer._clock_s = lambda: 0.0  # however long this takes here, the engine is heard

        def look_on() -> None:
            nonlocal rests
            rests += controller.memory.evolving and controller.observer.num_waiting > 0
            look()

        controller.observer.look = look_on  # type: ignore[method-assign]
        assert controller.tick().startswith(("shadow", "no candidate")), "it came to its end"
        assert controller.observer.num_waiting > 0, "and so did nobody's wait"
        assert (rests > 2 * len(controller.store.candidates(controller.store.runs()[0].id))) is gives_way


@pytest.mark.slow
def test_without_drift_nothing_is_evolved_and_back_to_back_evolves_anyway(tmp_path: Path) -> None:
    with controlling(tmp_path) as controller:
        live = engine(tmp_path)
        for seed in range(1, 6):
            live.serve(quiet(seed))
            assert controller.tick().startswith("watching")
    assert set(log(tmp_path)) <= {"drift"}
    assert "drift" not in log(tmp_path)
    with controlling(tmp_path, replace(SETTINGS, back_to_back=True)) as controller:
        live.serve(quiet(9))
        controller.tick()
    assert "evolve" in log(tmp_path)


@pytest.mark.slow
def test_approval_freeze_and_an_engines_quarantine_each_hold_a_policy_back(tmp_path: Path) -> None:
    settings = replace(SETTINGS, back_to_back=True)
    with controlling(tmp_path, settings, require_approval=True) as controller:
        live = engine(tmp_path)
        ticks(controller, live, [crowded(1)], "shadow")
        candidate = controller.rollout.state.candidate
        assert candidate is not None
        ticks(controller, live, [crowded(2)], "held")
        assert controller.tick().startswith("held")
        assert set(live.decided_by) == {None}
        controller.rollout.freeze("an incident")
        controller.rollout.approve()
        assert controller.tick().startswith("frozen")
        controller.rollout.unfreeze()
        assert controller.tick().startswith("canary")
        live.serve(crowded(3))
        assert live.decided_by[-1] == candidate
        live.quarantined[candidate] = "pick-rule: seen in a test"
        live.serve(crowded(4))
        assert controller.tick().startswith("rolled back")
        live.serve(crowded(5))
        assert live.decided_by[-1] is None
        assert "pick-rule" in controller.rollout.state.quarantined[candidate]


@pytest.mark.slow
def test_a_canary_that_its_engine_ended_is_rolled_back_and_may_come_again(tmp_path: Path) -> None:
    with controlling(tmp_path, replace(SETTINGS, back_to_back=True)) as controller:
        live = engine(tmp_path)
        ticks(controller, live, [crowded(1), crowded(2), crowded(3)], "canary")
        candidate = controller.rollout.state.candidate
        assert candidate is not None
        notice = Fleet(tmp_path).publisher(tmp_path / "channel").read()
        assert notice is not None and (notice.mode, notice.base) == ("canary", None)
        live.ended[candidate] = "its time is over"
        live.serve(crowded(4))
        assert controller.tick() == f"rolled back: {candidate[:12]}: engine-0 ended the canary: its time is over"
        assert candidate not in controller.rollout.state.quarantined
        live.serve(crowded(5))
        assert live.decided_by[-1] is None


@pytest.mark.slow
def test_an_evolution_that_failed_is_tried_again_on_the_next_window(tmp_path: Path) -> None:
    starved = Budget(candidates=4, limits=Limits(memory_mib=1))
    with controlling(tmp_path, replace(SETTINGS, budget=starved)) as controller:
        live = engine(tmp_path)
        said = []
        for trace in (quiet(1), crowded(2), crowded(3)):
            live.serve(trace)
            said.append(controller.tick())
    assert [line.partition(":")[0] for line in said[1:]] == ["no candidate", "no candidate"]
    assert "a worker cannot start" in said[1], "it is warmed up, and has no memory for that"
    assert log(tmp_path).count("evolve") == 2


WATCH = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from dataclasses import replace
from tests.online.test_controller import SETTINGS, controlling
if __name__ == "__main__":
    with controlling(Path(sys.argv[1]), replace(SETTINGS, back_to_back=True)) as controller:
        print("watching", flush=True)
        controller.run()
"""


@pytest.mark.slow
def test_a_killed_controller_leaves_serving_untouched_and_resumes_its_evolution(tmp_path: Path) -> None:
    live = engine(tmp_path)
    live.serve(crowded(1))
    script = tmp_path / "watch.py"
    script.write_text(WATCH)
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path), str(root)], start_new_session=True)
    try:
        evolving = tmp_path / "state" / "evolving.json"
        _wait(lambda: evolving.is_file() and '"run": "' in evolving.read_text(), process)
        store = Store.open(tmp_path / "store.db")
        (run,) = store.runs()
        _wait(lambda: len(store.candidates(run.id)) >= 6, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = len(store.candidates(run.id))
    live.serve(crowded(2))  # serving goes on
    assert live.decided_by == [None, None]
    assert live.completed == len(crowded(1)) + len(crowded(2))
    with controlling(tmp_path, replace(SETTINGS, back_to_back=True)) as controller:
        said = controller.tick()
    assert [row.id for row in store.runs()] == [run.id], "the interrupted run was resumed, not begun anew"
    assert store.run(run.id).status == "done"
    assert len(store.candidates(run.id)) > done
    assert said.startswith(("shadow", "no candidate"))
    assert not evolving.exists()


def _wait(condition, process: "subprocess.Popen[bytes]") -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "the controller died by itself"
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_controllers_do_not_share_a_channel(tmp_path: Path) -> None:
    with controlling(tmp_path) as controller:
        assert controller.rollout.state.stage is Stage.IDLE
        with pytest.raises(ControllerError, match="another control plane"), controlling(tmp_path):
            pass
    with controlling(tmp_path):
        pass


def test_damaged_memory_costs_a_reference_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    for name in ("reference.json", "checked.json", "canary.json", "calibration.json", "reference.npz"):
        (tmp_path / "state" / name).write_bytes(b"\x00 rubbish")
    (tmp_path / "state" / "evolving.json").write_text("{}")
    with controlling(tmp_path) as controller:
        with pytest.raises(ControllerError, match="cannot be resumed"):
            controller.tick()
        live = engine(tmp_path)
        live.serve(quiet(1))
        assert "reference from now on" in controller.tick()
        assert controller.calibration == CALIBRATION


def test_a_slower_engine_is_drift_in_speed(tmp_path: Path) -> None:
    slower = StepTimeModel(**{**STEP_TIME.model_dump(), "c0": STEP_TIME.c0 * 1.5})
    with controlling(tmp_path) as controller:
        live = engine(tmp_path)
        live.serve(quiet(1))
        controller.tick()
        controller.rollout.freeze("only look")
        live.step_time = slower
        live.serve(quiet(2))
        live.serve(quiet(3))
        said = controller.tick()
    assert said.startswith("frozen: drift: speed +"), said
    assert "no drift" not in said
    assert controller.lookout.last_drift is not None
    assert np.isclose(controller.lookout.last_drift.statistic, 4 / 2_000, atol=0.01)


def test_an_engine_that_became_slower_does_not_make_the_work_of_that_moment_the_usual(tmp_path: Path) -> None:
    """It did: a shift that began within the same window was answered 50 s late, or never."""
    slower = StepTimeModel(**{**STEP_TIME.model_dump(), "c0": STEP_TIME.c0 * 1.5})
    with controlling(tmp_path) as controller:
        live = engine(tmp_path)

        def look(*work: Trace) -> str:
            for trace in work:
                live.serve(trace)
            controller.observer.look()
            found = controller.lookout.look(CALIBRATION)
            return found.reason or found.said

        assert "reference from now on" in look(quiet(1))
        usual = controller.lookout.reference
        live.step_time = slower
        assert look(quiet(2), quiet(3)).startswith("drift: speed +")
        assert controller.lookout.reference is usual
        assert look(quiet(4), quiet(5)) == "watching: no drift"
        assert "prompt-length" in look(crowded(6))


def test_a_proof_that_only_one_solver_finished_is_not_published_unless_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, evolve_first=True, known_first=True)
    monkeypatch.setattr("autopoiesis_lib.online.controller.verify", _by_one_solver)
    with controlling(tmp_path, settings) as controller:
        live = engine(tmp_path)
        live.serve(crowded(1))
        assert "only one solver proved" in controller.tick()
        assert Fleet(tmp_path).publisher(tmp_path / "channel").read() is None
        assert controller.rollout.state.stage is Stage.IDLE


@pytest.mark.slow
def test_when_the_gates_refuse_the_winner_of_an_evolution_the_next_best_goes_into_shadow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def refusing_the_first(policy: Policy) -> Certificate:
        asked.append(policy.digest)
        return _by_one_solver(policy) if len(asked) == 1 else verify(policy)

    monkeypatch.setattr("autopoiesis_lib.online.controller.verify", refusing_the_first)
    with controlling(tmp_path, replace(SETTINGS, back_to_back=True)) as controller:
        live = engine(tmp_path)
        live.serve(crowded(1))
        assert controller.tick().startswith("shadow")
        assert len(asked) == 2
        assert controller.rollout.state.candidate == asked[1]
        (refused,) = [row for row in controller.store.deployments() if row.action == "refused"]
        assert refused.policy_digest == asked[0] != asked[1]


def _by_one_solver(policy: Policy) -> Certificate:
    return verify(policy).model_copy(update={"single_solver": ("ages",)})


def test_the_reference_grows_while_work_stays_as_it_is_and_outlives_a_restart(tmp_path: Path) -> None:
    live = engine(tmp_path)
    with controlling(tmp_path) as controller:
        seconds = []
        for seed in range(1, 9):
            live.serve(quiet(seed))
            controller.observer.look()
            controller.lookout.look(CALIBRATION)
            assert controller.lookout.reference is not None
            seconds.append(controller.lookout.reference.window.seconds)
        newest = controller.memory.checked()
        assert newest is not None and controller.lookout.reference is not None
        assert controller.lookout.reference.window.end_us <= newest[1] - 60_000_000, "a window is compared with others"
    assert seconds == sorted(seconds) and seconds[0] == 60.0 and seconds[-1] == 60.0 * REFERENCE
    assert not any(length % 60.0 for length in seconds)
    with controlling(tmp_path) as controller:
        controller.observer.look()
        assert controller.lookout.reference is not None
        assert controller.lookout.reference.window.seconds == 60.0 * REFERENCE
    with controlling(tmp_path, replace(SETTINGS, window_s=50.0)) as controller:
        live.serve(quiet(9))
        assert "reference from now on" in controller.tick(), "windows of another length are not compared"
