"""The least value of an invariant's bound: bisection on one incremental solver that jumps to each counterexample's own gap.

What the solver learns for one query serves the next; a fresh solver a query is ten to two hundred times slower. A query asks
for a counterexample at any bound from the probe up, so "none" proves every larger bound too, whether or not the invariant is
monotone in its bound.
"""

from typing import TYPE_CHECKING

from .counterexample import Arguments, Evaluator
from .solving import IncrementalSolver, values_of
from .verdict import LeastBound

if TYPE_CHECKING:
    from .proof import Violation

__all__ = ["find_least"]


def find_least(violation: "Violation", solver: IncrementalSolver, evaluator: Evaluator, limit: int) -> LeastBound:
    """The least bound, given that the invariant is proved at `limit`; `solver` holds the violation's own constraints."""
    formula = violation.formula
    bound = formula.least
    assert bound is not None and bound.domain is not None
    low, proved = bound.domain.lo, limit
    """Some value of the bound just below `low` is refuted; everything from `proved` to `limit` is proved."""
    undecided = limit
    """Nothing is known from here up to `proved`."""
    witness: Arguments | None = None
    probe = low
    while low < undecided:
        answer, model = solver.ask(violation.between(probe, proved - 1))
        if answer == "sat" and model is not None:
            witness = _stretch(evaluator, violation, values_of(model, violation.scope.symbols), proved - 1)
            found = witness[bound.name]
            assert isinstance(found, int)
            low = found + 1
            undecided = max(undecided, min(low, proved))
        elif answer == "unsat":
            proved = undecided = probe
        else:
            undecided = probe
        probe = (low + undecided) // 2
    tight = low == proved
    example = evaluator.counterexample(formula, witness) if witness is not None and tight else None
    return LeastBound(parameter=bound.name, value=proved, unit=bound.domain.unit, tight=tight, refuted_below=example)


def _stretch(evaluator: Evaluator, violation: "Violation", values: Arguments, limit: int) -> Arguments:
    """The same views at the largest bound up to `limit` at which they still break the invariant, as far as bisection sees."""
    formula = violation.formula
    bound = formula.least
    assert bound is not None
    low, high = values[bound.name], limit
    assert isinstance(low, int)
    while low < high:
        middle = (low + high + 1) // 2
        if evaluator.holds(formula, {**values, bound.name: middle}):
            high = middle - 1
        else:
            low = middle
    return {**values, bound.name: low}
