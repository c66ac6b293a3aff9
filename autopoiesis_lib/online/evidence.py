"""Shadow and guards: is the candidate better beyond noise on windows nobody trained on, and does it do harm live?

Shadow has no effect on any engine: the candidate and the active policy both replay the same recorded window, and what is
compared is what each would have done. Guards look at the engines themselves while the candidate decides there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from ..contract import Contract
from ..evolution import Measurement, SimulationEvaluator
from ..evolution.compare import improvement
from ..policy import Policy
from ..simulation.calibration import Calibration
from ..simulation.result import Slo
from ..simulation.trace import Trace
from .rollout import Evidence
from .window import Window

__all__ = ["Guards", "Slowdown", "evidence_on", "slowdown", "tripped"]


@dataclass(frozen=True, kw_only=True)
class Guards:
    """What a live policy must not do."""

    max_ttft_increase: float = 0.25
    """Relative increase of the live mean time to first token over what it was before the candidate."""
    max_fallbacks: int = 10
    """Steps dropped to the built-in order, over all engines, since the candidate began to decide."""
    bins: int = 12
    """Time bins that live times are averaged over before they are compared: neighbours share a queue."""


@dataclass(frozen=True, kw_only=True)
class Slowdown:
    """Live mean time to first token, after over before."""

    increase: float
    """after / before - 1."""
    ci95: tuple[float, float]


def evidence_on(
    contract: Contract,
    trace: Trace,
    calibration: Calibration,
    candidates: Sequence[Policy],
    active: Policy,
    *,
    objective: str,
    slo: Slo,
    seed: int = 0,
) -> list[Evidence]:
    """Replay one window under every candidate and under the active policy, and compare with a paired block bootstrap.

    The intervals hold together with 95% (`evolution.compare`), so that the best candidate may be picked by them.
    """
    evaluator = SimulationEvaluator(
        train=(trace,), held_out=(trace,), engine=calibration.engine, step_time=calibration.step_time, slo=slo,
        slots=dict(contract.slots), name=trace.name,
    )  # fmt: skip

    def measured(policy: Policy) -> tuple[Sequence[Measurement], NDArray[np.int64]]:
        admitted = evaluator.replay(policy, trace).times.scheduled_ns
        return evaluator.measure(policy, "held-out", samples=True), np.argsort(admitted, kind="stable")

    theirs, their_order = measured(active)
    evidence: list[Evidence] = []
    for candidate in candidates:
        ours, our_order = measured(candidate)
        found = improvement(objective, active.digest[:12], theirs, ours, seed, comparisons=len(candidates))
        evidence.append(
            Evidence(
                objective=objective,
                reduction=found.reduction,
                ci95=found.ci95,
                requests=len(trace),
                window=trace.name,
                agreement=float(np.mean(our_order == their_order)),
            )
        )
    return evidence


def slowdown(before: Window, after: Window, guards: Guards, seed: int = 0) -> Slowdown | None:
    """How live times to first token changed between two windows of one engine; None when one of them holds too little.

    The interval is a bootstrap of time-bin means (scipy.stats.bootstrap, percentile method).
    """
    first, second = (_bin_means(window, guards.bins) for window in (before, after))
    if len(first) < 4 or len(second) < 4:
        return None

    def change(x: NDArray[np.float64], y: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        return np.asarray(y.mean(axis=axis) / np.maximum(x.mean(axis=axis), 1e-9) - 1.0)

    found = bootstrap(
        (first, second),
        change,
        vectorized=True,
        n_resamples=2_000,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = found.confidence_interval
    return Slowdown(increase=float(change(first, second)), ci95=(float(low), float(high)))


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
        if status.get("refusal") and digest[:12] in str(status["refusal"]):
            return f"{name} refused it: {status['refusal']}"
    fallbacks = fallbacks_of(engines) - fallbacks_before
    if fallbacks > guards.max_fallbacks:
        return f"{fallbacks} steps fell back to the built-in order, {guards.max_fallbacks} are allowed"
    if slower is not None and slower.ci95[0] > guards.max_ttft_increase:
        return (
            f"live mean TTFT rose by {slower.increase:.0%} (95% interval from {slower.ci95[0]:.0%}), "
            f"{guards.max_ttft_increase:.0%} is allowed"
        )
    return None


def fallbacks_of(engines: Mapping[str, Mapping[str, Any]]) -> int:
    """Steps dropped to the built-in order so far, over all engines."""
    return sum(int(dict(status.get("counters") or {}).get("fallbacks", 0)) for status in engines.values())


def _bin_means(window: Window, bins: int) -> NDArray[np.float64]:
    stamps, ttft = window.ttft_s()
    where = np.clip((stamps - window.start_us) * bins // max(window.end_us - window.start_us, 1), 0, bins - 1)
    counts = np.bincount(where, minlength=bins)
    sums = np.bincount(where, weights=ttft, minlength=bins)
    return np.asarray(sums[counts > 0] / counts[counts > 0])
