"""Live guards: tests for harm that a policy does in the engines while it runs there.

Load changes all the time, so live times before and after a policy's start say little by themselves. A burst would
reject a good policy, and a lull would excuse a bad one. The guard therefore compares ratios: live times over the times
of a replay of the same arrivals under the policy that was active, before and after. The replay's own error and a slow
machine are in both ratios. Harm that the replay does not model is in the second ratio only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from ..evolution import SimulationEvaluator
from ..policy import Policy
from ..protocol.status import SILENT_S
from .window import Window

__all__ = [
    "Guards",
    "LiveTimes",
    "Slowdown",
    "ended_by_engine",
    "fallbacks_of",
    "heard_since",
    "live_times",
    "slowdown",
    "tripped",
]

Floats = NDArray[np.float64]
LEAST_BINS = 4


@dataclass(frozen=True, kw_only=True)
class Guards:
    """Limits on the harm of a live policy."""

    max_ttft_increase: float = 0.25
    """Greatest relative increase of live over replayed mean time to first token.

    The increase is against the ratio before the candidate.
    """
    max_fallbacks: int = 10
    """Steps dropped to the built-in order, over all engines, since the candidate started."""
    bins: int = 12
    """Number of time bins in which times are summed before they are compared; neighbouring requests share a queue."""


@dataclass(frozen=True, kw_only=True)
class Slowdown:
    """Live over replayed mean time to first token: the change from before the candidate to after."""

    increase: float
    """(live / replayed after) / (live / replayed before) - 1."""
    ci95: tuple[float, float]


@dataclass(frozen=True, eq=False, kw_only=True)
class LiveTimes:
    """Times to first token of the requests of one stretch, in bins of equal length.

    Bins without requests are left out.
    """

    live_s: Floats
    """(k,) sums of the engine's times, in seconds."""
    replayed_s: Floats
    """(k,) sums of the replay's times for the same requests, in seconds."""


def live_times(window: Window, policy: Policy, replays: SimulationEvaluator, bins: int) -> LiveTimes:
    """Return the times to first token of a window's arrivals, in the engine and in a replay under `policy`.

    Times count up to the window's end, because another policy may run after it. A request that still waits counts until
    that end. Requests from before the window are only replayed: a window that was `Window.resumed` begins with the
    queue as it was.

    Raises:
        WindowError: the window holds fewer than two requests.
    """
    replayed = replays.replay(policy, window.trace()).times.ttft_s
    stamps, first = (window.requests[name][window.usable] for name in ("stamp_us", "first_token_us"))
    kept = stamps >= window.start_us
    left_s = (window.end_us - stamps[kept]) / 1e6
    where = np.clip((stamps[kept] - window.start_us) * bins // max(window.end_us - window.start_us, 1), 0, bins - 1)
    used = np.bincount(where, minlength=bins) > 0
    live, again = (
        np.bincount(where, weights=np.minimum(seconds, left_s), minlength=bins).astype(np.float64)[used]
        for seconds in (
            np.where(first[kept] > 0, (first[kept] - stamps[kept]) / 1e6, np.inf),
            np.nan_to_num(replayed[kept], nan=np.inf),
        )
    )
    return LiveTimes(live_s=live, replayed_s=again)


def slowdown(before: LiveTimes, after: LiveTimes, seed: int = 0) -> Slowdown | None:
    """Return the change of the ratio of live to replayed times between two stretches.

    The result is None when one of them has too few bins.

    The interval is a bootstrap over time bins (scipy.stats.bootstrap, percentile method).
    """
    if min(len(before.live_s), len(after.live_s)) < LEAST_BINS:
        return None

    def ratio(times: LiveTimes, rows: NDArray[np.int64]) -> Floats:
        live, replayed = times.live_s[rows].sum(axis=-1), times.replayed_s[rows].sum(axis=-1)
        return np.asarray(live / np.maximum(replayed, 1e-6))

    def change(x: NDArray[np.int64], y: NDArray[np.int64], axis: int = -1) -> Floats:
        del axis  # always the last
        return np.asarray(ratio(after, y) / np.maximum(ratio(before, x), 1e-9) - 1.0)

    rows = (np.arange(len(before.live_s)), np.arange(len(after.live_s)))
    found = bootstrap(
        rows, change, vectorized=True, n_resamples=2_000, method="percentile", rng=np.random.default_rng(seed)
    )
    low, high = found.confidence_interval
    return Slowdown(increase=float(change(*rows)), ci95=(float(low), float(high)))


def heard_since(engines: Mapping[str, Mapping[str, Any]], wall_s: float) -> dict[str, Mapping[str, Any]]:
    """Return the engines with a heartbeat after a moment, minus `SILENT_S` seconds of tolerance.

    The status of an engine that ended long ago stays in the channel; it says nothing about the current engines.
    """
    return {
        name: status for name, status in engines.items() if float(status.get("heartbeat") or 0.0) >= wall_s - SILENT_S
    }


def tripped(
    engines: Mapping[str, Mapping[str, Any]],
    digest: str,
    guards: Guards,
    *,
    fallbacks_before: int = 0,
    slower: Slowdown | None = None,
) -> str | None:
    """Return why the policy must stop, in one line; None when no guard tripped."""
    for name, status in engines.items():
        reason = dict(status.get("quarantined") or {}).get(digest)
        if reason is not None:
            return f"{name} quarantined it: {reason}"
        if status.get("refusal") and status.get("wanted") == digest:
            return f"{name} refused it: {status['refusal']}"
    fallbacks = fallbacks_of(engines) - fallbacks_before
    if fallbacks > guards.max_fallbacks:
        return f"{fallbacks} steps fell back to the built-in order, {guards.max_fallbacks} are allowed"
    if slower is not None and slower.ci95[0] > guards.max_ttft_increase:
        return (
            f"live mean TTFT rose by {slower.increase:.0%} against its replay (95% interval from {slower.ci95[0]:.0%}), "
            f"{guards.max_ttft_increase:.0%} is allowed"
        )
    return None


def ended_by_engine(engines: Mapping[str, Mapping[str, Any]], digest: str) -> str | None:
    """Return why an engine ended the canary, in one line; None while no engine has."""
    for name, status in engines.items():
        trial = status.get("trial")
        if isinstance(trial, Mapping) and trial.get("digest") == digest and trial.get("ended"):
            return f"{name} ended the canary: {trial['ended']}"
    return None


def fallbacks_of(engines: Mapping[str, Mapping[str, Any]]) -> int:
    """Return the number of steps dropped to the built-in order so far, over all engines."""
    return sum(int(dict(status.get("counters") or {}).get("fallbacks", 0)) for status in engines.values())
