"""Recall: which of the windows that are remembered show work like that of now?

What has just come is known by its prompts alone. Where work with such prompts was seen before, it is known what its answers cost,
and that tells known policies apart before the first answers are there. A window is short, and one like it from another day tells
policies apart that it cannot, and keeps an evolution from fitting its coincidences.
"""

from collections.abc import Mapping

from scipy.stats import ks_2samp

from .window import Window

__all__ = ["alike"]

TOLD_APART = 0.001
"""Level of the test that two windows' prompts are told apart by."""


MOST = 6
"""So many windows are recalled at most, the newest."""


def alike(window: Window, remembered: Mapping[int, Window], effect: float) -> dict[int, Window]:
    """The remembered windows (by number, oldest first) whose prompt lengths are not told apart from this one's (two-sample
    Kolmogorov-Smirnov test), or by less than matters (`effect`, the largest difference of the distribution functions).

    One that overlaps this window, or begins after it, is not another one.
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
