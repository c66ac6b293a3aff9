"""Recall: a search for remembered windows with a workload similar to the current one.

The most recent arrivals are known by their prompts only. If such prompts are in memory, their output lengths are known.
These tell known policies apart before the first requests finish. A window is short. A similar one from another day
covers cases that the window does not, and keeps an evolution from overfitting it.
"""

from collections.abc import Mapping

from scipy.stats import ks_2samp

from .window import Window

__all__ = ["alike"]

TOLD_APART = 0.001
"""Level of the test that distinguishes the prompts of two windows."""


MOST = 6
"""Greatest number of recalled windows; the newest are taken."""


def alike(window: Window, remembered: Mapping[int, Window], effect: float) -> dict[int, Window]:
    """Return the remembered windows (by number) with prompt lengths similar to this one's.

    Two windows are similar if the two-sample Kolmogorov-Smirnov test does not distinguish them. They are also similar
    if the largest difference of their distribution functions is at most `effect`. A window of this engine that overlaps
    this one is left out.
    """
    prompts = window.requests["num_prompt_tokens"]
    found: dict[int, Window] = {}
    for number in sorted(remembered, reverse=True):
        other = remembered[number]
        same = other.engine == window.engine and other.start_us < window.end_us and window.start_us < other.end_us
        if same or not len(other) or not len(prompts):
            continue
        test = ks_2samp(prompts, other.requests["num_prompt_tokens"])
        if (test.pvalue > TOLD_APART or test.statistic <= effect) and len(found) < MOST:
            found[number] = other
    return found
