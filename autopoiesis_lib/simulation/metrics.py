"""Comparison of two runs: the improvement as speed-up and as reduction, with its confidence interval."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.simulation.result import RequestTimes, SimulationResult, Slo

__all__ = ["Comparison", "ComparisonError", "Measure", "Statistic", "compare", "comparison_rows"]

Measure = Literal["ttft", "tpot", "e2e", "queueing"]
Statistic = Literal["mean", "p50", "p90", "p99"]

_BLOCKS: Final = 24
_PERCENTILE: Final[Mapping[str, int]] = {"p50": 50, "p90": 90, "p99": 99}


class ComparisonError(AutopoiesisError):
    """Two runs cannot be compared."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One statistic of one measure for the baseline and for ours, on the same requests. Lower is better."""

    measure: Measure
    statistic: Statistic
    baseline: float
    """Value of the baseline, in seconds."""
    ours: float
    """Value of ours, in seconds."""
    speedup: float
    """baseline / ours."""
    reduction: float
    """1 - ours / baseline."""
    ci95: tuple[float, float]
    """95% confidence interval of the reduction."""
    method: str

    @property
    def better(self) -> bool:
        """True if the whole interval of the reduction is above 0."""
        return self.ci95[0] > 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        low, high = self.ci95
        return (
            f"{self.measure} {self.statistic}: {self.baseline:.3f} s -> {self.ours:.3f} s, "
            f"speed-up {self.speedup:.2f}x, reduction {self.reduction:.1%} (95% interval {low:.1%} to {high:.1%})"
        )


def compare(
    baseline: SimulationResult,
    ours: SimulationResult,
    measure: Measure = "ttft",
    statistic: Statistic = "mean",
    *,
    resamples: int = 1_000,
    seed: int = 0,
) -> Comparison:
    """Compare two runs of the same trace.

    The interval comes from a paired circular block bootstrap (Politis and Romano 1992) with the percentile method.
    Neighbouring requests share a queue, so the bootstrap draws whole blocks of n/24 consecutive arrivals, the same
    blocks for both runs. Draws of single requests would make the interval far too narrow.

    Raises:
        ComparisonError: the runs are not of the same requests, or no request was served.
    """
    a, b = _paired(baseline.times, ours.times, measure)
    point = _reduction(a[None, :], b[None, :], statistic)[0]
    base, mine = _statistic(a[None, :], statistic)[0], _statistic(b[None, :], statistic)[0]
    block = max(1, len(a) // _BLOCKS)
    draws = -(-len(a) // block)
    random = np.random.default_rng(seed)
    found = np.empty(resamples)
    offsets = np.arange(block)
    for start in range(0, resamples, 100):
        rows = min(100, resamples - start)
        begins = random.integers(0, len(a), size=(rows, draws))
        picks = ((begins[:, :, None] + offsets) % len(a)).reshape(rows, -1)[:, : len(a)]
        found[start : start + rows] = _reduction(a[picks], b[picks], statistic)
    low, high = np.percentile(found, [2.5, 97.5])
    return Comparison(
        measure=measure,
        statistic=statistic,
        baseline=float(base),
        ours=float(mine),
        speedup=float(base / mine) if mine > 0 else float("inf"),
        reduction=float(point),
        ci95=(float(low), float(high)),
        method=f"paired circular block bootstrap, blocks of {block} arrivals, {resamples} resamples, seed {seed}",
    )


def comparison_rows(
    results: Mapping[str, SimulationResult], baseline: str, slo: Slo | None = None
) -> list[dict[str, float | str]]:
    """Return one table row per run: the main measures, and mean TTFT against `baseline` in both forms.

    Raises:
        ComparisonError: no run has the name `baseline`.
    """
    if baseline not in results:
        raise ComparisonError(f"no run named {baseline!r} among {', '.join(results)}")
    base = results[baseline]
    rows: list[dict[str, float | str]] = []
    for name, result in results.items():
        row: dict[str, float | str] = {
            "policy": name,
            "ttft_mean_s": result.ttft.mean,
            "ttft_p99_s": result.ttft.p99,
            "tpot_mean_s": result.tpot.mean,
            "e2e_mean_s": result.e2e.mean,
            "e2e_p99_s": result.e2e.p99,
            "worst_wait_s": result.worst_wait_s,
            "preemptions": result.preemptions,
            "ttft_speedup": base.ttft.mean / result.ttft.mean if result.ttft.mean else 1.0,
            "ttft_reduction": 1 - result.ttft.mean / base.ttft.mean if base.ttft.mean else 0.0,
        }
        if slo is not None:
            row["goodput_rps"] = result.goodput(slo)
            row["slo_attainment"] = result.slo_attainment(slo)
        rows.append(row)
    return rows


def _paired(a: RequestTimes, b: RequestTimes, measure: Measure) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not np.array_equal(a.arrival_ns, b.arrival_ns) or not np.array_equal(a.served, b.served):
        raise ComparisonError("the two runs are not of the same requests: simulate both on one trace and one engine")
    if not a.served.any():
        raise ComparisonError("no request was served, so there is nothing to compare")
    if measure == "ttft":
        return a.ttft_s, b.ttft_s
    if measure == "tpot":
        several = a.num_output_tokens[a.served] > 1
        return a.tpot_s[several], b.tpot_s[several]
    if measure == "e2e":
        return a.e2e_s, b.e2e_s
    return a.queueing_s, b.queueing_s


def _statistic(values: NDArray[np.float64], statistic: Statistic) -> NDArray[np.float64]:
    if statistic == "mean":
        return np.asarray(values.mean(axis=1))
    return np.asarray(np.percentile(values, _PERCENTILE[statistic], axis=1))


def _reduction(a: NDArray[np.float64], b: NDArray[np.float64], statistic: Statistic) -> NDArray[np.float64]:
    base = _statistic(a, statistic)
    return np.asarray(1.0 - _statistic(b, statistic) / np.where(base > 0, base, 1.0))
