"""Comparison of policies on held-out windows: the size of an improvement and its confidence interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .evaluator import HIGHER_IS_BETTER, Measurement

__all__ = ["Improvement", "curves", "improvement", "pooled"]

BLOCKS = 24
RESAMPLES = 1_000
STATISTICS = {"mean": None, "p50": 50.0, "p90": 90.0, "p99": 99.0}


@dataclass(frozen=True, kw_only=True)
class Improvement:
    """One metric of a policy against a baseline, as a speedup and as a reduction."""

    objective: str
    over: str
    speedup: float
    """baseline / ours; for a metric that is maximised, ours / baseline."""
    reduction: float
    """1 - 1 / speedup. For a metric that is minimised this is 1 - ours / baseline."""
    ci95: tuple[float, float]
    """95% confidence interval of the reduction.

    The interval is wider if the comparison was picked out of several. Its ends are equal if the evaluator gives no
    per-request samples.
    """

    @property
    def better(self) -> bool:
        """True if the whole interval is above 0."""
        return self.ci95[0] > 0


def pooled(parts: Sequence[Measurement]) -> dict[str, float]:
    """Return the unweighted mean of each metric over the parts of a window."""
    return {name: sum(part.metrics[name] for part in parts) / len(parts) for name in parts[0].metrics}


def improvement(
    objective: str,
    over: str,
    baseline: Sequence[Measurement],
    ours: Sequence[Measurement],
    seed: int = 0,
    *,
    comparisons: int = 1,
) -> Improvement:
    """Compare two policies measured on the same windows.

    The interval comes from a paired circular block bootstrap (Politis and Romano 1992) with the percentile method.
    Neighbouring requests share a queue, so the bootstrap draws blocks of n/24 consecutive arrivals, the same blocks for
    both policies. `comparisons` is the number of comparisons from which this one may be picked out. The interval is
    widened so that all of them hold together (Bonferroni).
    """
    base, mine = pooled(baseline)[objective], pooled(ours)[objective]
    higher = objective in HIGHER_IS_BETTER
    reduction = float(_reduction(np.asarray(base), np.asarray(mine), higher))
    name, statistic = _samples_of(objective)
    pairs = [
        (a.samples[name], b.samples[name])
        for a, b in zip(baseline, ours, strict=True)
        if name in a.samples and name in b.samples and len(a.samples[name]) == len(b.samples[name]) > 0
    ]
    ci95 = (reduction, reduction)
    if pairs and len(pairs) == len(ours):
        draws = _bootstrap(pairs, statistic, RESAMPLES * comparisons, np.random.default_rng(seed))
        low, high = np.percentile(
            _reduction(draws[:, 0], draws[:, 1], higher), [2.5 / comparisons, 100.0 - 2.5 / comparisons]
        )
        ci95 = (float(low), float(high))
    return Improvement(
        objective=objective,
        over=over,
        speedup=1.0 / (1.0 - reduction) if reduction < 1.0 else float("inf"),
        reduction=reduction,
        ci95=ci95,
    )


def _reduction(base: NDArray[np.float64], mine: NDArray[np.float64], higher: bool) -> NDArray[np.float64]:
    if higher:
        base, mine = mine, base
    return np.asarray(1.0 - np.divide(mine, base, out=np.ones(base.shape), where=base != 0))


def _samples_of(objective: str) -> tuple[str, float | None]:
    """Return the sample and the percentile that a metric is computed from: "ttft_p99_us" -> ("ttft", 99.0)."""
    for word, percentile in STATISTICS.items():
        head, found, _ = objective.partition(f"_{word}_")
        if found:
            return head, percentile
    return objective, None


def _bootstrap(
    pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    percentile: float | None,
    resamples: int,
    draw: np.random.Generator,
) -> NDArray[np.float64]:
    """Return resampled statistics of shape (resamples, 2), each the mean over the windows."""
    total = np.zeros((resamples, 2))
    for a, b in pairs:
        block = max(1, len(a) // BLOCKS)
        count = -(-len(a) // block)
        if percentile is None:
            begins = draw.integers(0, len(a), size=(resamples, count))
            total += np.stack([_block_means(values, begins, block) for values in (a, b)], axis=1)
            continue
        offsets = np.arange(block)
        for row in range(resamples):
            begins = draw.integers(0, len(a), size=count)
            picks = ((begins[:, None] + offsets) % len(a)).ravel()[: len(a)]
            total[row] += (np.percentile(a[picks], percentile), np.percentile(b[picks], percentile))
    return total / len(pairs)


def _block_means(values: NDArray[np.float64], begins: NDArray[np.int64], block: int) -> NDArray[np.float64]:
    """Return the mean of each resample (row of `begins`).

    A resample consists of whole circular blocks; the last block is cut to the sample's length.
    """
    size = len(values)
    sums = np.concatenate(([0.0], np.cumsum(np.concatenate((values, values[:block])))))
    last = size - (begins.shape[1] - 1) * block
    whole = (sums[begins[:, :-1] + block] - sums[begins[:, :-1]]).sum(axis=1)
    found: NDArray[np.float64] = (whole + sums[begins[:, -1] + last] - sums[begins[:, -1]]) / size
    return found


def curves(parts: Sequence[Measurement]) -> dict[str, list[float]]:
    """Return 101 quantiles, from 0% to 100%, of each kind of sample over all parts."""
    names = [name for name in parts[0].samples if all(name in part.samples for part in parts)]
    steps = np.linspace(0.0, 1.0, 101)
    pooled_samples = {name: np.concatenate([part.samples[name] for part in parts]) for name in names}
    return {name: np.quantile(values, steps).tolist() for name, values in pooled_samples.items() if len(values)}
