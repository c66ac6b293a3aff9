"""The reference of fitness: the default baseline, and the cut-offs that stop hopeless candidates early."""

from collections.abc import Mapping

from .archive import Archive, Elite
from .compare import pooled
from .errors import EvolutionError
from .evaluator import Window
from .executor import Executor
from .winner import answer
from .work import LOOKS, SCORED, Measure, Reference, Setup, fitness_of

__all__ = ["Yardstick"]

LEADERS, HOPELESS = 8, 1.2
"""Number of best elites and cut-off factor that define a hopeless candidate.

A candidate is hopeless if its fitness on a window is above HOPELESS times that of the last of the LEADERS best elites.
"""


class Yardstick:
    """The reference of fitness, and the fitness from which a window is hopeless, both measured by the workers.

    Raises:
        EvolutionError: the default baseline cannot be measured, or an objective is not a metric of the evaluator.
    """

    def __init__(self, executor: Executor, setup: Setup) -> None:
        self._executor, self._objectives = executor, setup.objectives
        self.reference = _reference(executor, setup)
        self._last: Elite | None = None
        self._cutoffs: Mapping[Window, float] = {}

    def cutoffs(self, archive: Archive) -> Mapping[Window, float]:
        """Return the fitness on each window above which a candidate is not measured on the next windows.

        The result is a function of the archive. The leader is measured on the same window, because its fitness on
        another window says little about this one.
        """
        leaders = archive.elites()[:LEADERS]
        if len(leaders) < LEADERS:
            return {}
        if leaders[-1] is not self._last:
            self._last = leaders[-1]
            self._cutoffs = {window: HOPELESS * self._fitness(self._last, window) for window in self.reference.looks}
        return self._cutoffs

    def _fitness(self, elite: Elite, window: Window) -> float:
        try:
            parts = answer(self._executor, Measure(source=elite.source, window=window), f"elite {elite.id}")
        except EvolutionError:
            return float("inf")  # no candidate is stopped there, which only costs time
        return fitness_of(pooled(parts), self.reference.looks[window], self._objectives)


def _reference(executor: Executor, setup: Setup) -> Reference:
    """Return the default baseline's metrics.

    Without a baseline the reference is empty, and fitness uses the plain metrics.
    """
    source = next(iter(setup.contract.baselines().values()), None)
    if source is None:
        return Reference()
    parts = {
        window: answer(executor, Measure(source=source, window=window), f"the default baseline failed on {window}")
        for window in ("short", *SCORED)
    }
    scored = pooled([part for window in SCORED for part in parts[window]])
    missing = [name for name in setup.objectives if name not in scored]
    if missing:
        raise EvolutionError(f"objective {missing[0]!r} is not measured; there are {', '.join(sorted(scored))}")
    return Reference(scored=scored, looks={window: pooled(parts[window]) for window in LOOKS if parts[window]})
