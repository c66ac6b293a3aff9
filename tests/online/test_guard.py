"""Claims about the live guard: it tells a policy that does harm from a load that has changed."""

from dataclasses import replace

import numpy as np
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Policy
from autopoiesis_lib.online.evidence import replayer
from autopoiesis_lib.online.guard import Guards, ended_by_engine, live_times, slowdown, tripped
from autopoiesis_lib.online.window import SlidingWindow, Window
from autopoiesis_lib.simulation import Calibration, StepTimeModel
from autopoiesis_lib.simulation.result import Slo
from tests.online.streams import ENGINE, STEP_TIME, poisson_trace, recorded, served

CONTRACT = RequestOrdering()
SLO = Slo(ttft_s=2.0, tpot_s=0.1)
CALIBRATION = Calibration(name="test", step_time=STEP_TIME, engine=ENGINE, source="test")
FCFS = Policy.from_source(BASELINES["fcfs"], CONTRACT)
SLOWER = StepTimeModel(**{**STEP_TIME.model_dump(), "c0": 2 * STEP_TIME.c0, "c1": 2 * STEP_TIME.c1})


def stretch(seed: int, rate: float, step_time: StepTimeModel = STEP_TIME) -> Window:
    """Two minutes of an engine that takes `step_time` a step."""
    trace = poisson_trace(seed, rate=rate, seconds=120, prompts=(40, 40, 40, 6_000))
    window = SlidingWindow("engine-0", 60.0)
    window.add(recorded(served(trace, step_time=step_time), trace))
    return window.between(0, 120_000_000)


def harm(before: Window, after: Window) -> str | None:
    replays = replayer(CONTRACT, [before.trace()], CALIBRATION, SLO)
    times = [live_times(window.resumed(30_000_000), FCFS, replays, Guards().bins) for window in (before, after)]
    return tripped({}, "candidate", Guards(), slower=slowdown(times[0], times[1]))


def test_four_times_the_load_is_not_the_policys_harm() -> None:
    quiet, crowded = stretch(1, 3.0), stretch(2, 12.0)
    ttft = [window.ttft_s()[1].mean() for window in (quiet, crowded)]
    assert ttft[1] > 4 * ttft[0], "live times alone would have taken the policy out"
    assert harm(quiet, crowded) is None


def test_an_engine_that_got_slower_than_its_replay_says_is_harm_even_in_a_lull() -> None:
    crowded, quiet = stretch(1, 12.0), stretch(2, 3.0, SLOWER)
    ttft = [window.ttft_s()[1].mean() for window in (crowded, quiet)]
    assert ttft[1] < ttft[0], "live times alone would have excused it"
    why = harm(crowded, quiet)
    assert why is not None and "against its replay" in why


def test_a_replay_that_begins_in_a_backlog_goes_on_with_the_queue_as_it_was() -> None:
    """A canary that takes over a backlog did not make it: to replay the time before in the canary's own order would say so."""
    backlog = stretch(3, 20.0)
    since = backlog.resumed(60_000_000)
    before = since.requests["stamp_us"] < since.start_us
    assert before.sum() > 500 and int(since.requests["num_prompt_tokens"][before].min()) == 1, "some were decoding"
    assert (np.diff(since.requests["stamp_us"]) >= 0).all()
    replays = replayer(CONTRACT, [backlog.trace()], CALIBRATION, SLO)
    live, again = (sums.sum() for sums in vars(live_times(since, FCFS, replays, 12)).values())
    rows = {name: column[~before] for name, column in since.requests.items()}
    forgotten = live_times(replace(since, requests=rows), FCFS, replays, 12).replayed_s.sum()
    assert abs(again / live - 1) < 0.05
    assert forgotten < 0.5 * live


def test_what_came_after_a_stretch_is_not_in_it() -> None:
    """Whoever waits when a canary takes over is served in its order: that is not what the policy before it did."""
    start_us, end_us = 30_000_000, 60_000_000
    backlog = stretch(3, 20.0)
    inside = {name: column[backlog.requests["stamp_us"] < end_us] for name, column in backlog.requests.items()}
    window = replace(backlog, end_us=end_us, requests=inside).resumed(start_us)
    first = window.requests["first_token_us"]
    assert (first > end_us).sum() > 100
    sooner = replace(window, requests={**window.requests, "first_token_us": np.minimum(first, end_us + 1)})
    never = replace(window, requests={**window.requests, "first_token_us": np.where(first > end_us, 0, first)})
    replays = replayer(CONTRACT, [window.trace()], CALIBRATION, SLO)
    times = [live_times(some, FCFS, replays, 12) for some in (window, sooner, never)]
    assert np.allclose(times[0].live_s, times[1].live_s) and np.allclose(times[0].live_s, times[2].live_s)
    assert np.allclose(times[0].live_s, times[0].replayed_s, rtol=0.05)


def test_a_stretch_with_next_to_nothing_in_it_says_nothing() -> None:
    some = stretch(1, 3.0)
    replays = replayer(CONTRACT, [some.trace()], CALIBRATION, SLO)
    whole, end = (live_times(some.resumed(start), FCFS, replays, 12) for start in (0, 118_000_000))
    assert slowdown(whole, end) is None
    assert np.allclose(whole.live_s, whole.replayed_s, rtol=0.02), "an engine that is the simulator is as fast as it"


def test_a_canary_that_an_engine_ended_is_known_by_its_status() -> None:
    trial = {"digest": "candidate", "ended": "its time is over"}
    assert ended_by_engine({"engine-0": {"trial": trial}}, "candidate") == "engine-0 ended the canary: its time is over"
    assert ended_by_engine({"engine-0": {"trial": {**trial, "ended": ""}}}, "candidate") is None
    assert ended_by_engine({"engine-0": {"trial": trial}, "engine-1": {"trial": None}}, "another") is None
