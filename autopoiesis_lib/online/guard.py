"""Guards: does a policy do harm in the engines while it decides there?

Load changes all the time, so live times before and after a policy began say little by themselves: a burst would take out a good
policy, and a lull would excuse a bad one. What is compared is, before and after, how much slower the engine was than the
replay of the same arrivals under the policy that was deciding. What the replay cannot know (its own error, a slow machine) is
in both ratios; what the policy does to the engine beyond what it was judged on is only in the second.
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
    """What a live policy must not do."""

    max_ttft_increase: float = 0.25
    """Relative increase of the live over the replayed mean time to first token, against what that ratio was before the
    candidate."""
    max_fallbacks: int = 10
    """Steps dropped to the built-in order, over all engines, since the candidate began to decide."""
    bins: int = 12
    """Time bins that times are added up over before they are compared: neighbours share a queue."""


@dataclass(frozen=True, kw_only=True)
class Slowdown:
    """Live mean time to first token over the replayed one, after against before."""

    increase: float
    """(live / replayed after) / (live / replayed before) - 1."""
    ci95: tuple[float, float]


@dataclass(frozen=True, eq=False, kw_only=True)
class LiveTimes:
    """Waits for the first token of the requests of one stretch, in bins of equal length; bins without requests are left out."""

    live_s: Floats
    """(k,) sums of what the engine took, in seconds."""
    replayed_s: Floats
    """(k,) sums of what the replay took for the same requests."""


def live_times(window: Window, policy: Policy, replays: SimulationEvaluator, bins: int) -> LiveTimes:
    """What the requests that came in a window waited for their first token in the engine, and in a replay under `policy`.

    Times count up to the window's end: what another policy did after that is not this one's, and whoever still waits is not left
    out. What came before the window is only replayed: one that was `Window.resumed` begins with the queue as it was.

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
    """How the ratio of live to replayed times changed between two stretches; None when one of them holds too little.

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
    """Return the engines with a heartbeat after a moment, less the time that a heartbeat may take.

    The status of an engine that ended long ago stays in the channel; it says nothing about what runs now.
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
    """Why the policy must not go on, in one line; None when nothing is wrong."""
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
    """Why an engine no longer lets a canary decide, in one line; None while all of them do."""
    for name, status in engines.items():
        trial = status.get("trial")
        if isinstance(trial, Mapping) and trial.get("digest") == digest and trial.get("ended"):
            return f"{name} ended the canary: {trial['ended']}"
    return None


def fallbacks_of(engines: Mapping[str, Mapping[str, Any]]) -> int:
    """Steps dropped to the built-in order so far, over all engines."""
    return sum(int(dict(status.get("counters") or {}).get("fallbacks", 0)) for status in engines.values())
