"""Claims about drift detection: its false-alarm rate is what it states, and it finds what matters."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from autopoiesis_lib.online.drift import DriftError, DriftReport, DriftSettings, Effects, detect, profile
from autopoiesis_lib.online.window import Window
from autopoiesis_lib.simulation import Calibration
from tests.online.streams import ENGINE, STEP_TIME, drawn_window

CALIBRATION = Calibration(name="test", step_time=STEP_TIME, engine=ENGINE, source="test")
ANY = Effects(rate=0.0, lengths=0.0, speed=0.0)
"""Every significant change is an alarm: the worst case for false alarms."""


def report(reference: Window, current: Window, settings: DriftSettings, *, early: bool = False) -> DriftReport:
    before, now = profile(reference, CALIBRATION, settings), profile(current, CALIBRATION, settings, early=early)
    return detect(before, now, settings, early=early)


def stretch(window: Window, begin_s: float, end_s: float) -> Window:
    """What came in a part of a window."""
    stamps = window.requests["stamp_us"]
    rows = (stamps >= begin_s * 1e6) & (stamps < end_s * 1e6)
    requests = {name: column[rows] for name, column in window.requests.items()}
    return replace(window, start_us=int(begin_s * 1e6), end_us=int(end_s * 1e6), requests=requests)


def one_after_the_other(first: Window, second: Window) -> Window:
    """The second window's requests and steps after the first's."""
    later = {**second.requests, "stamp_us": second.requests["stamp_us"] + first.end_us}
    requests = {name: np.concatenate([column, later[name]]) for name, column in first.requests.items()}
    return replace(first, end_us=first.end_us + second.end_us, requests=requests)


def alarms(settings: DriftSettings, checks: int, burstiness: float) -> int:
    raised = 0
    for seed in range(checks):
        draw = np.random.default_rng([seed, 7])
        first, second = (drawn_window(draw, rate=2.0, seconds=100, burstiness=burstiness) for _ in range(2))
        raised += report(first, second, settings).drifted
    return raised


@pytest.mark.parametrize("burstiness", [1.0, 4.0], ids=["poisson", "bursty"])
@pytest.mark.slow
def test_the_false_alarm_rate_is_the_stated_one(burstiness: float) -> None:
    settings = DriftSettings(false_alarm_rate=0.1, resamples=199, effects=ANY)
    checks = 100
    raised = alarms(settings, checks, burstiness)
    # The stated rate is rejected only if this many alarms would come by chance in less than one run in a thousand ...
    assert binomtest(raised, checks, settings.false_alarm_rate, alternative="greater").pvalue > 0.001, raised
    # ... and a detector that never speaks up would not pass either.
    assert raised > 0


@pytest.mark.parametrize("burstiness", [1.0, 4.0], ids=["poisson", "bursty"])
@pytest.mark.slow
def test_the_stated_rate_holds_beside_a_reference_of_several_windows(burstiness: float) -> None:
    settings, checks, raised = DriftSettings(false_alarm_rate=0.1, resamples=199, effects=ANY), 100, 0
    for seed in range(checks):
        draw = np.random.default_rng([seed, 9])
        first, second = (drawn_window(draw, rate=2.0, seconds=s, burstiness=burstiness) for s in (400, 100))
        before, now = profile(first, CALIBRATION, settings, lengths=4), profile(second, CALIBRATION, settings)
        raised += detect(before, now, settings).drifted
    assert binomtest(raised, checks, settings.false_alarm_rate, alternative="greater").pvalue > 0.001, raised
    assert raised > 0


def bursts(draw: np.random.Generator, windows: int, kinds: Sequence[tuple[int, int]]) -> Window:
    """Windows of 10 s, most requests of each in one and a half of them, with prompts of lengths in one of some ranges."""
    window = drawn_window(draw, rate=8.0, seconds=10.0 * windows)
    count = len(window)
    inside = draw.integers(0, windows, count) * 10 + 5 + draw.uniform(0, 1.5, count)
    seconds = np.sort(np.where(draw.random(count) < 0.9, inside, draw.uniform(0, 10 * windows, count)))
    prompts = np.array([draw.integers(*kinds[kind]) for kind in draw.integers(0, len(kinds), count)])
    columns = {"stamp_us": (seconds * 1e6).astype(np.int64), "num_prompt_tokens": prompts}
    return replace(window, requests={**window.requests, **columns})


def test_a_shift_of_work_that_comes_in_bursts_is_told_by_several_bursts_and_not_by_one() -> None:
    settings, found = DriftSettings(min_requests=20), {1: 0, 8: 0}
    for seed in range(6):
        draw = np.random.default_rng([seed, 14])
        now = profile(bursts(draw, 1, [(16, 64), (64, 256), (256, 700)]), CALIBRATION, settings, early=True)
        for windows in found:
            window = bursts(draw, windows, [(16, 64), (256, 700), (256, 700)])
            before = profile(window, CALIBRATION, settings, lengths=windows)
            found[windows] += detect(before, now, settings, early=True).drifted
    assert found[1] <= 2, "or one window would be enough"
    assert found[8] == 6


@pytest.mark.slow
@pytest.mark.parametrize("burstiness", [1.0, 4.0], ids=["poisson", "bursty"])
def test_the_early_looks_at_a_window_raise_a_false_alarm_no_more_often_than_stated_all_together(
    burstiness: float,
) -> None:
    settings = DriftSettings(false_alarm_rate=0.1, resamples=399, effects=ANY)
    windows, raised = 200, 0
    for seed in range(windows):
        draw = np.random.default_rng([seed, 8])
        reference, *parts = (drawn_window(draw, rate=2.0, seconds=100, burstiness=burstiness) for _ in range(3))
        both = one_after_the_other(parts[0], parts[1])
        looks = (stretch(both, begin, begin + 100) for begin in (25, 50, 75, 100))
        raised += any(report(reference, look, settings, early=True).drifted for look in looks)
    assert binomtest(raised, windows, settings.false_alarm_rate / 2, alternative="greater").pvalue > 0.001, raised
    assert raised > 0


@pytest.mark.parametrize(
    ("change", "feature"), [({"rate": 15.0}, "arrival-rate"), ({"prompt": 2_400.0}, "prompt-length")]
)
def test_a_change_is_found_in_what_has_just_come_and_where_it_began_is_told_to_a_bin(
    change: dict[str, float], feature: str
) -> None:
    draw = np.random.default_rng(12)
    reference, before, after = drawn_window(draw), drawn_window(draw), drawn_window(draw, **change)
    last = stretch(one_after_the_other(before, after), 180, 480)  # 180 s of 300 are new: bins 8 and later of 20
    found = report(reference, last, DriftSettings(), early=True)
    assert [signal.feature for signal in found.signals if signal.drifted] == [feature]
    assert abs(found.begin_bin - 8) <= 1
    assert report(reference, before, DriftSettings(), early=True).begin_bin == 0


def test_an_early_look_says_nothing_of_what_is_not_known_yet() -> None:
    draw = np.random.default_rng(13)
    found = report(drawn_window(draw), drawn_window(draw, output=60.0, slowness=1.5), DriftSettings(), early=True)
    assert [signal.feature for signal in found.signals] == ["arrival-rate", "prompt-length"]
    assert not found.drifted


@pytest.mark.slow
@pytest.mark.parametrize("burstiness", [1.0, 4.0], ids=["poisson", "bursty"])
def test_the_default_false_alarm_rate_holds_over_many_checks(burstiness: float) -> None:
    settings = DriftSettings(effects=ANY, resamples=799, early_looks=0)
    checks = 1_000
    raised = alarms(settings, checks, burstiness)
    assert binomtest(raised, checks, settings.false_alarm_rate, alternative="greater").pvalue > 0.001, raised


@pytest.mark.parametrize(
    ("change", "feature"),
    [
        ({"rate": 8.0}, "arrival-rate"),
        ({"rate": 3.0}, "arrival-rate"),
        ({"prompt": 1_200.0}, "prompt-length"),
        ({"output": 60.0}, "output-length"),
        ({"slowness": 1.25}, "speed"),
    ],
)
def test_a_change_that_matters_is_found_in_one_window_and_named(change: dict[str, float], feature: str) -> None:
    draw = np.random.default_rng(3)
    found = report(drawn_window(draw), drawn_window(draw, **change), DriftSettings())
    assert [signal.feature for signal in found.signals if signal.drifted] == [feature]


def test_a_change_too_small_to_matter_is_let_be_even_when_it_is_certain() -> None:
    draw = np.random.default_rng(4)
    windows = drawn_window(draw, rate=50.0), drawn_window(draw, rate=50.0, prompt=680.0)
    lengths = next(s for s in report(*windows, DriftSettings()).signals if s.feature == "prompt-length")
    assert lengths.p_value < 0.0025
    assert not lengths.drifted


def test_a_lost_replica_is_drift_without_any_test() -> None:
    draw = np.random.default_rng(5)
    settings = DriftSettings()
    before = profile(drawn_window(draw), CALIBRATION, settings, replicas=2)
    after = profile(drawn_window(draw), CALIBRATION, settings, replicas=1)
    found = detect(before, after, settings)
    assert [str(signal) for signal in found.signals if signal.drifted] == ["replicas -50% (p 0.0000)"]


def test_the_same_windows_give_the_same_answer_twice() -> None:
    first, second = (drawn_window(np.random.default_rng(seed)) for seed in (1, 2))
    assert report(first, second, DriftSettings()) == report(first, second, DriftSettings())


def test_windows_that_cannot_be_compared_are_refused() -> None:
    draw = np.random.default_rng(6)
    settings = DriftSettings()
    with pytest.raises(DriftError, match="cannot be compared"):
        report(drawn_window(draw), drawn_window(draw, seconds=100), settings)
    with pytest.raises(DriftError, match="too few"):
        profile(drawn_window(draw, seconds=2), CALIBRATION, settings)
    with pytest.raises(DriftError, match="resamples"):
        DriftSettings(false_alarm_rate=0.001, resamples=999)
    with pytest.raises(DriftError, match="fewer than none"):
        DriftSettings(early_looks=-1)
