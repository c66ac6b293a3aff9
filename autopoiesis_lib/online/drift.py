"""Drift detection: has the workload, or the engine's speed, changed since the policy in use was evolved?

Two windows are compared in four features: arrival rate, prompt lengths, output lengths and the engine's speed (measured over
predicted step time). Each feature is tested by permuting whole time bins between the windows (`scipy.stats.permutation_test`):
a bin is the unit, whatever happens inside it, so bursts and sessions shorter than a bin do not make false alarms, as they do in
tests that take single requests for independent.

**Stated false-alarm rate.** If nothing changed (the bins of both windows are exchangeable), a check raises an alarm with
probability at most `false_alarm_rate`: permutation p-values are exact (Phipson, Smyth 2010: (1 + b) / (1 + m)), and Bonferroni
divides the rate by the number of features tested. Over m checks the expected number of false alarms is at most m times that.
What breaks the assumption is correlation over more than a bin, such as a slow daily cycle: that is drift, and is meant to be
found. Besides being significant a change must be large enough to matter (`Effects`), which can only lower the rate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import permutation_test

from ..errors import AutopoiesisError
from ..simulation.calibration import Calibration
from .recalibration import step_residuals
from .window import Window

__all__ = ["DriftError", "DriftReport", "DriftSettings", "Effects", "Feature", "Profile", "Signal", "detect", "profile"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Feature = Literal["arrival-rate", "prompt-length", "output-length", "speed", "replicas"]

LENGTH_EDGES = np.unique(np.rint(2 ** np.arange(0, 20.01, 0.25)).astype(np.int64))
"""Where the distributions of lengths are compared: a quarter of an octave apart, from one token to the view's limit."""


class DriftError(AutopoiesisError):
    """Two windows cannot be compared."""


@dataclass(frozen=True, kw_only=True)
class Effects:
    """The least changes that matter; smaller ones raise no alarm however sure they are."""

    rate: float = 0.15
    """Relative change of the arrival rate."""
    lengths: float = 0.10
    """Largest difference of the two distribution functions (Kolmogorov, Smirnov)."""
    speed: float = 0.10
    """Relative change of measured over predicted step time."""


@dataclass(frozen=True, kw_only=True)
class DriftSettings:
    """How drift is looked for."""

    false_alarm_rate: float = 0.01
    """Greatest probability of an alarm at one check when nothing changed."""
    bins: int = 20
    """Time bins a window is cut into; the units that are permuted."""
    min_requests: int = 60
    """Requests a window needs before it is compared."""
    effects: Effects = field(default_factory=Effects)
    resamples: int = 1_999
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.false_alarm_rate < 1 or self.bins < 8:
            raise DriftError("the false-alarm rate lies between 0 and 1, and a window needs at least 8 bins")
        if self.false_alarm_rate / 4 <= 1 / (self.resamples + 1):
            raise DriftError(
                f"{self.resamples} resamples cannot show a rate of {self.false_alarm_rate:g}; raise resamples"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class Profile:
    """What drift detection keeps of a window: one row a time bin."""

    seconds: float
    requests: int
    arrivals: Ints
    """(bins,) arrivals."""
    prompts: Ints
    """(bins, len(LENGTH_EDGES)) requests with a prompt of at most that many tokens."""
    outputs: Ints
    """(bins, len(LENGTH_EDGES)) likewise for outputs."""
    slowness: Floats | None
    """(k,) mean log of measured over predicted step time of the bins that had steps; None when fewer than 8 had."""
    replicas: int = 1
    """Engines serving."""


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One feature's answer."""

    feature: Feature
    change: float
    """Relative change (rate, speed, replicas), or largest difference of the distribution functions (lengths)."""
    p_value: float
    drifted: bool

    def __str__(self) -> str:
        size = f"{self.change:.2f}" if self.feature.endswith("length") else f"{self.change:+.0%}"
        return f"{self.feature} {size} (p {self.p_value:.4f})"


@dataclass(frozen=True, kw_only=True)
class DriftReport:
    """What a check found."""

    signals: tuple[Signal, ...]
    false_alarm_rate: float

    @property
    def drifted(self) -> bool:
        """Whether any feature drifted."""
        return any(signal.drifted for signal in self.signals)

    @property
    def statistic(self) -> float:
        """The least p-value, times the number of features: the check's own p-value, for a metric."""
        tested = [signal.p_value for signal in self.signals if signal.feature != "replicas"]
        return min(1.0, len(tested) * min(tested)) if tested else 1.0

    def __str__(self) -> str:
        found = [signal for signal in self.signals if signal.drifted]
        return "drift: " + ", ".join(map(str, found)) if found else "no drift"

    def to_json(self) -> dict[str, Any]:
        """For the audit log."""
        return {
            "drifted": self.drifted,
            "false_alarm_rate": self.false_alarm_rate,
            "signals": [
                {
                    "feature": s.feature,
                    "change": round(s.change, 5),
                    "p_value": round(s.p_value, 5),
                    "drifted": s.drifted,
                }
                for s in self.signals
            ],
        }


def profile(window: Window, calibration: Calibration, settings: DriftSettings, *, replicas: int = 1) -> Profile:
    """The profile of a window. Compare only profiles made with the same calibration and settings.

    Raises:
        DriftError: the window holds too few requests.
    """
    if len(window) < settings.min_requests:
        raise DriftError(
            f"{len(window)} requests in {window.seconds:.0f} s are too few to compare; lengthen the window"
        )
    bins = settings.bins
    where = _bin(window.requests["stamp_us"], window, bins)
    at, residuals = step_residuals(window, calibration.engine, calibration.step_time)
    sums = np.bincount(_bin(at, window, bins), weights=residuals, minlength=bins)
    counts = np.bincount(_bin(at, window, bins), minlength=bins)
    slowness = sums[counts > 0] / counts[counts > 0]
    return Profile(
        seconds=window.seconds,
        requests=len(window),
        arrivals=np.bincount(where, minlength=bins),
        prompts=_below(window.requests["num_prompt_tokens"], where, bins),
        outputs=_below(window.requests["num_output_tokens"], where, bins),
        slowness=slowness if len(slowness) >= 8 else None,
        replicas=replicas,
    )


def detect(reference: Profile, current: Profile, settings: DriftSettings) -> DriftReport:
    """Compare two windows of one length.

    Raises:
        DriftError: they are of different lengths.
    """
    if abs(reference.seconds / current.seconds - 1) > 0.01:
        raise DriftError(f"windows of {reference.seconds:.0f} s and {current.seconds:.0f} s cannot be compared")
    tests: dict[Feature, tuple[int, int, Any, float]] = {
        "arrival-rate": (
            *_sizes(reference.arrivals, current.arrivals),
            _rate(reference, current),
            settings.effects.rate,
        ),
        "prompt-length": (
            *_sizes(reference.prompts, current.prompts),
            _lengths(reference.prompts, current.prompts),
            settings.effects.lengths,
        ),
        "output-length": (
            *_sizes(reference.outputs, current.outputs),
            _lengths(reference.outputs, current.outputs),
            settings.effects.lengths,
        ),
    }
    if reference.slowness is not None and current.slowness is not None:
        tests["speed"] = (
            *_sizes(reference.slowness, current.slowness),
            _speed(reference.slowness, current.slowness),
            settings.effects.speed,
        )
    level = settings.false_alarm_rate / len(tests)
    signals = [
        _test(feature, first, second, statistic, least, level, settings)
        for feature, (first, second, statistic, least) in tests.items()
    ]
    if reference.replicas != current.replicas:  # a fact, not a test
        change = current.replicas / max(reference.replicas, 1) - 1
        signals.append(Signal(feature="replicas", change=change, p_value=0.0, drifted=True))
    return DriftReport(signals=tuple(signals), false_alarm_rate=settings.false_alarm_rate)


def _test(
    feature: Feature, first: int, second: int, change: Any, least: float, level: float, settings: DriftSettings
) -> Signal:
    """Permute bin numbers between the windows; `change` maps two arrays of them (..., n) to a signed change (...)."""

    def size(x: Ints, y: Ints, axis: int = -1) -> Floats:
        del axis
        return np.asarray(np.abs(change(x.astype(np.int64), y.astype(np.int64))))

    numbers = (np.arange(first), np.arange(first, first + second))
    result = permutation_test(
        numbers, size, permutation_type="independent", vectorized=True, n_resamples=settings.resamples, batch=256,
        alternative="greater", axis=-1, rng=np.random.default_rng(settings.seed),
    )  # fmt: skip
    found = float(change(*numbers))
    p_value = float(result.pvalue)
    return Signal(feature=feature, change=found, p_value=p_value, drifted=p_value <= level and abs(found) >= least)


def _rate(reference: Profile, current: Profile) -> Any:
    counts = np.concatenate([reference.arrivals, current.arrivals]).astype(np.float64)

    def change(x: Ints, y: Ints) -> Floats:
        before, now = counts[x].mean(axis=-1), counts[y].mean(axis=-1)
        return np.asarray((now - before) / np.maximum(before, 1e-9))

    return change


def _lengths(reference: Ints, current: Ints) -> Any:
    table = np.concatenate([reference, current]).astype(np.float64)

    def change(x: Ints, y: Ints) -> Floats:
        before, now = table[x].sum(axis=-2), table[y].sum(axis=-2)
        return np.asarray(np.abs(_shares(now) - _shares(before)).max(axis=-1))

    return change


def _speed(reference: Floats, current: Floats) -> Any:
    logs = np.concatenate([reference, current])

    def change(x: Ints, y: Ints) -> Floats:
        return np.asarray(np.expm1(logs[y].mean(axis=-1) - logs[x].mean(axis=-1)))

    return change


def _shares(below: Floats) -> Floats:
    return np.asarray(below / np.maximum(below[..., -1:], 1.0))


def _sizes(reference: NDArray[Any], current: NDArray[Any]) -> tuple[int, int]:
    return len(reference), len(current)


def _bin(at_us: Ints, window: Window, bins: int) -> Ints:
    span = max(window.end_us - window.start_us, 1)
    return np.asarray(np.clip((at_us - window.start_us) * bins // span, 0, bins - 1), dtype=np.int64)


def _below(lengths: Ints, where: Ints, bins: int) -> Ints:
    """(bins, edges) how many lengths of each bin are at most each edge."""
    cell = np.searchsorted(LENGTH_EDGES, np.minimum(lengths, LENGTH_EDGES[-1]))
    counts = np.zeros((bins, len(LENGTH_EDGES)), np.int64)
    np.add.at(counts, (where, cell), 1)
    return np.asarray(np.cumsum(counts, axis=1))


def describe(window: Window) -> Mapping[str, Any]:
    """Aggregate facts about a window for the audit log; never request contents."""
    lengths = {
        name: [int(value) for value in np.percentile(window.requests[name], [50, 90, 99])] if len(window) else []
        for name in ("num_prompt_tokens", "num_output_tokens")
    }
    _, ttft = window.ttft_s()
    return {
        "engine": window.engine,
        "seconds": round(window.seconds, 3),
        "requests": len(window),
        "rate_rps": round(window.rate, 3),
        "ttft_mean_s": round(float(ttft.mean()), 6) if len(ttft) else None,
        **{f"{name}_p50_p90_p99": values for name, values in lengths.items()},
    }
