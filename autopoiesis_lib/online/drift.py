"""Drift detection: a test for a change of the workload, or of the engine's speed, since the active policy was evolved.

Two windows are compared in four features: arrival rate, prompt lengths, output lengths and the engine's speed (measured
over predicted step time). Each feature is tested by permuting whole time bins between the windows
(`scipy.stats.permutation_test`). The bin is the unit of the test. Bursts and sessions shorter than a bin therefore
raise no false alarms. They do in tests that treat single requests as independent.

Arrivals and prompt lengths are known immediately. Output lengths and the engine's speed are known only for a settled
window. A window is therefore checked more than once: when it has settled, and `early_looks` times before that. An early
check runs each time another part of a window's length has passed, on the requests that arrived in the last window's
length.

**Stated false-alarm rate.** If nothing changed (the bins of both windows are exchangeable), all checks of one window
together raise an alarm with probability at most `false_alarm_rate`. Permutation p-values are exact (Phipson, Smyth
2010: (1+b)/(1+m)). Bonferroni divides the rate by the number of features tested and by the number of checks. Half of
the rate goes to the settled window, half to the early checks, which overlap one another. Over m windows the expected
number of false alarms is at most m times the rate. Correlation over more than a bin, such as a slow daily cycle, breaks
the assumption. Such a cycle is drift, and should be found. A change must be significant and also large enough to matter
(`Effects`), which can only lower the rate.
"""

from collections.abc import Mapping, Sequence
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
"""Lengths in tokens at which distributions are compared: a quarter of an octave apart, from 1 to the view's limit."""


class DriftError(AutopoiesisError):
    """Two windows cannot be compared."""


@dataclass(frozen=True, kw_only=True)
class Effects:
    """The smallest changes that matter. Smaller ones raise no alarm, however significant they are."""

    rate: float = 0.15
    """Relative change of the arrival rate."""
    lengths: float = 0.10
    """Largest difference of the two distribution functions (Kolmogorov, Smirnov)."""
    speed: float = 0.10
    """Relative change of measured over predicted step time."""


@dataclass(frozen=True, kw_only=True)
class DriftSettings:
    """Settings of drift detection."""

    false_alarm_rate: float = 0.01
    """Greatest probability of an alarm in the time of one window when nothing changed."""
    early_looks: int = 4
    """Number of early checks of arrivals in one window's length, before the window has settled; 0 means none."""
    bins: int = 20
    """Number of time bins of a window. Bins are the units that are permuted."""
    min_requests: int = 60
    """Requests a window needs before it is compared."""
    effects: Effects = field(default_factory=Effects)
    resamples: int = 5_999
    seed: int = 0

    def level(self, *, early: bool) -> float:
        """Return the share of the false-alarm rate that one check may use."""
        if not self.early_looks:
            return 0.0 if early else self.false_alarm_rate
        return self.false_alarm_rate / 2 / (self.early_looks if early else 1)

    def __post_init__(self) -> None:
        if not 0 < self.false_alarm_rate < 1 or self.bins < 8:
            raise DriftError("the false-alarm rate lies between 0 and 1, and a window needs at least 8 bins")
        if self.early_looks < 0:
            raise DriftError(f"{self.early_looks} early looks are fewer than none; give 0 or more")
        finest = min(self.level(early=False) / 4, self.level(early=True) / 2 if self.early_looks else 1.0)
        if finest <= 1 / (self.resamples + 1):
            raise DriftError(
                f"{self.resamples} resamples cannot show a rate of {self.false_alarm_rate:g}; raise resamples"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class Profile:
    """The data that drift detection keeps of a window, one row per time bin."""

    seconds: float
    requests: int
    arrivals: Ints
    """(bins,) arrivals."""
    prompts: Ints
    """(bins, len(LENGTH_EDGES)) requests with a prompt of at most that many tokens."""
    outputs: Ints | None
    """(bins, len(LENGTH_EDGES)) requests with an output of at most that many tokens.

    It is None before the window has settled.
    """
    slowness: Floats | None
    """(k,) mean log of measured over predicted step time, for the bins that had steps; None when fewer than 8 had."""
    replicas: int = 1
    """Engines serving."""

    @property
    def bin_s(self) -> float:
        """Length of a bin in seconds."""
        return self.seconds / len(self.arrivals)


@dataclass(frozen=True, kw_only=True)
class Signal:
    """The result of one feature's test."""

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
    """The result of one drift check."""

    signals: tuple[Signal, ...]
    false_alarm_rate: float
    """The share of the false-alarm rate that this check used."""
    begin_bin: int = 0
    """Bin of the later window in which the most significant change seems to begin."""

    @property
    def drifted(self) -> bool:
        """True when any feature drifted."""
        return bool(self.features)

    @property
    def features(self) -> "frozenset[Feature]":
        """The features that drifted."""
        return frozenset(signal.feature for signal in self.signals if signal.drifted)

    @property
    def statistic(self) -> float:
        """The smallest p-value, times the number of features: the p-value of the whole check, for a metric."""
        tested = [signal.p_value for signal in self.signals if signal.feature != "replicas"]
        return min(1.0, len(tested) * min(tested)) if tested else 1.0

    def __str__(self) -> str:
        found = [signal for signal in self.signals if signal.drifted]
        return "drift: " + ", ".join(map(str, found)) if found else "no drift"

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values for the audit log."""
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


def profile(
    window: Window,
    calibration: Calibration,
    settings: DriftSettings,
    *,
    lengths: int = 1,
    replicas: int = 1,
    early: bool = False,
) -> Profile:
    """Return the profile of a window that is `lengths` windows long; `early` means that it has not settled.

    Only profiles made with the same calibration and settings can be compared.

    Raises:
        DriftError: the window holds too few requests.
    """
    if len(window) < settings.min_requests:
        raise DriftError(
            f"{len(window)} requests in {window.seconds:.0f} s are too few to compare; lengthen the window"
        )
    bins = lengths * settings.bins
    where, left = _bin(window.requests["stamp_us"], window, bins), ~window.unfinished
    at, residuals = step_residuals(window, calibration.engine, calibration.step_time)
    sums = np.bincount(_bin(at, window, bins), weights=residuals, minlength=bins)
    counts = np.bincount(_bin(at, window, bins), minlength=bins)
    slowness = sums[counts > 0] / counts[counts > 0]
    return Profile(
        seconds=window.seconds,
        requests=len(window),
        arrivals=np.bincount(where, minlength=bins),
        prompts=_below(window.requests["num_prompt_tokens"], where, bins),
        outputs=None if early else _below(window.requests["num_output_tokens"][left], where[left], bins),
        slowness=slowness if len(slowness) >= 8 and not early else None,
        replicas=replicas,
    )


def detect(reference: Profile, current: Profile, settings: DriftSettings, *, early: bool = False) -> DriftReport:
    """Compare two windows in bins of equal length; `early` marks one of several checks of the later window.

    Raises:
        DriftError: their bins are of different lengths.
    """
    if abs(reference.bin_s / current.bin_s - 1) > 0.01:
        raise DriftError(f"bins of {reference.bin_s:.3g} s and {current.bin_s:.3g} s cannot be compared")
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
    }
    if reference.outputs is not None and current.outputs is not None:
        tests["output-length"] = (
            *_sizes(reference.outputs, current.outputs),
            _lengths(reference.outputs, current.outputs),
            settings.effects.lengths,
        )
    if reference.slowness is not None and current.slowness is not None:
        tests["speed"] = (
            *_sizes(reference.slowness, current.slowness),
            _speed(reference.slowness, current.slowness),
            settings.effects.speed,
        )
    level = settings.level(early=early) / len(tests)
    signals = [
        _test(feature, first, second, statistic, least, level, settings)
        for feature, (first, second, statistic, least) in tests.items()
    ]
    if reference.replicas != current.replicas:  # a fact, not a test
        change = current.replicas / max(reference.replicas, 1) - 1
        signals.append(Signal(feature="replicas", change=change, p_value=0.0, drifted=True))
    return DriftReport(
        signals=tuple(signals),
        false_alarm_rate=settings.level(early=early),
        begin_bin=_begin(reference, current, [signal for signal in signals if signal.drifted]),
    )


def _test(
    feature: Feature, first: int, second: int, change: Any, least: float, level: float, settings: DriftSettings
) -> Signal:
    """Permute bin numbers between the windows.

    `change` maps two arrays of them (..., n) to a signed change (...) and to the factor that scales it for the test.
    """

    def size(x: Ints, y: Ints, axis: int = -1) -> Floats:
        del axis
        found, weight = change(x.astype(np.int64), y.astype(np.int64))
        return np.asarray(np.abs(found) * weight)

    numbers = (np.arange(first), np.arange(first, first + second))
    result = permutation_test(
        numbers, size, permutation_type="independent", vectorized=True, n_resamples=settings.resamples, batch=256,
        alternative="greater", axis=-1, rng=np.random.default_rng(settings.seed),
    )  # fmt: skip
    found = float(change(*numbers)[0])
    p_value = float(result.pvalue)
    return Signal(feature=feature, change=found, p_value=p_value, drifted=p_value <= level and abs(found) >= least)


def _rate(reference: Profile, current: Profile) -> Any:
    counts = np.concatenate([reference.arrivals, current.arrivals]).astype(np.float64)

    def change(x: Ints, y: Ints) -> tuple[Floats, float]:
        before, now = counts[x].mean(axis=-1), counts[y].mean(axis=-1)
        return np.asarray((now - before) / np.maximum(before, 1e-9)), 1.0

    return change


def _lengths(reference: Ints, current: Ints) -> Any:
    """Return a statistic: the largest difference of the two distribution functions, with its weight.

    The weight is sqrt(n m / (n + m)) for n and m requests (Kolmogorov, Smirnov): with few requests, the difference is
    often large.
    """
    table = np.concatenate([reference, current]).astype(np.float64)
    table = np.unique(
        table, axis=1
    )  # edges with no length between them are one edge; their order stays, as counts rise

    def change(x: Ints, y: Ints) -> tuple[Floats, Floats]:
        del y  # every bin that is not in x
        chosen = np.zeros((*x.shape[:-1], len(table)))
        np.put_along_axis(chosen, x, 1.0, axis=-1)
        before = chosen @ table
        now = table.sum(axis=0) - before
        n, m = before[..., -1], now[..., -1]
        return np.abs(_shares(now) - _shares(before)).max(axis=-1), np.sqrt(n * m / np.maximum(n + m, 1.0))

    return change


def _speed(reference: Floats, current: Floats) -> Any:
    logs = np.concatenate([reference, current])

    def change(x: Ints, y: Ints) -> tuple[Floats, float]:
        return np.asarray(np.expm1(logs[y].mean(axis=-1) - logs[x].mean(axis=-1))), 1.0

    return change


def _begin(reference: Profile, current: Profile, drifted: Sequence[Signal]) -> int:
    """Return the bin in which the most significant of the changes begins; 0 when bins cannot tell.

    It is the bin that best separates what came before it from the rest: by the difference of the two sides in units of
    its standard error, sqrt(1/n + 1/m) (Page 1954 for the mean; Csorgo, Horvath 1997, 2.6, for distributions).
    """
    surest = min(drifted, key=lambda signal: signal.p_value, default=None)
    known = {"arrival-rate": "arrivals", "prompt-length": "prompts", "output-length": "outputs"}
    if surest is None or surest.feature not in known:
        return 0
    before, now = (np.asarray(getattr(part, known[surest.feature]), np.float64) for part in (reference, current))
    sums = now.cumsum(axis=0) - now  # sums of the window before each bin
    left, right = before.sum(axis=0) + sums, now.sum(axis=0) - sums
    if surest.feature == "arrival-rate":
        n, m = len(before) + np.arange(len(now)), len(now) - np.arange(len(now))
        differences = np.abs(right / m - left / n)
    else:
        n, m = left[:, -1], right[:, -1]
        differences = np.abs(_shares(right) - _shares(left)).max(axis=-1)
    return int(np.argmax(differences / np.sqrt(1 / np.maximum(n, 1e-9) + 1 / np.maximum(m, 1e-9))))


def _shares(below: Floats) -> Floats:
    return np.asarray(below / np.maximum(below[..., -1:], 1.0))


def _sizes(reference: NDArray[Any], current: NDArray[Any]) -> tuple[int, int]:
    return len(reference), len(current)


def _bin(at_us: Ints, window: Window, bins: int) -> Ints:
    span = max(window.end_us - window.start_us, 1)
    return np.asarray(np.clip((at_us - window.start_us) * bins // span, 0, bins - 1), dtype=np.int64)


def _below(lengths: Ints, where: Ints, bins: int) -> Ints:
    """Return (bins, edges): how many lengths of each bin are at most each edge."""
    cell = np.searchsorted(LENGTH_EDGES, np.minimum(lengths, LENGTH_EDGES[-1]))
    counts = np.zeros((bins, len(LENGTH_EDGES)), np.int64)
    np.add.at(counts, (where, cell), 1)
    return np.asarray(np.cumsum(counts, axis=1))


def describe(window: Window) -> Mapping[str, Any]:
    """Return aggregate facts about a window for the audit log; never request contents."""
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
