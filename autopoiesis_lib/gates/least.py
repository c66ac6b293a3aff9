"""The least value of an invariant's bound: few solver calls, because each counterexample is pushed as far as it goes first.

A counterexample at some bound is climbed on concrete values (each field to the ends of its domain) until no move breaks the
invariant at a larger bound; the solver is then asked only whether anything breaks it beyond that. Usually it is not, and one
query settles both ends: everything from there to the limit is proved, and the value below is refuted.
"""

from typing import TYPE_CHECKING

from .counterexample import Arguments, Evaluator
from .solving import ask, values_of
from .verdict import LeastBound

if TYPE_CHECKING:
    from .proof import Violation

__all__ = ["find_least"]

MAX_QUERIES = 80


def find_least(violation: "Violation", evaluator: Evaluator, limit: int, rlimit: int) -> LeastBound:
    """The least bound, given that the invariant is proved at `limit`."""
    formula = violation.formula
    bound = formula.least
    assert bound is not None and bound.domain is not None
    low, high = bound.domain.lo, limit
    """Everything below `low` is refuted, everything from `high` to `limit` is proved."""
    witness: Arguments | None = None
    probe = low
    gave_up = False
    for _ in range(MAX_QUERIES):
        if low >= high:
            break
        answer, model = ask(violation.at_least(probe, high - 1), rlimit)
        if answer == "sat" and model is not None:
            witness = _climb(evaluator, violation, values_of(model, violation.scope.symbols), high - 1)
            found = witness[bound.name]
            assert isinstance(found, int)
            creeping = found + 1 - low < (high - low) // 8
            low = found + 1
            probe = (low + high) // 2 if creeping else low
        elif answer == "unsat":
            high = probe
            probe = low
        elif probe > low + 1:
            gave_up = True
            probe = low + (probe - low) // 2
        else:
            gave_up = True
            break
    tight = low >= high and not gave_up or low >= high
    example = evaluator.counterexample(formula, witness) if witness is not None and low >= high else None
    return LeastBound(parameter=bound.name, value=high, unit=bound.domain.unit, tight=tight, refuted_below=example)


def _climb(evaluator: Evaluator, violation: "Violation", start: Arguments, limit: int) -> Arguments:
    """Values that break the invariant at as large a bound as moves of single fields reach."""
    formula = violation.formula
    bound = formula.least
    assert bound is not None

    def reach(arguments: Arguments, known: int) -> int:
        """The largest bound up to `limit` at which these values break the invariant; `known` - 1 if not even at `known`."""
        if evaluator.holds(formula, {**arguments, bound.name: known}):
            return known - 1
        low, high = known, limit
        while low < high:
            middle = (low + high + 1) // 2
            if evaluator.holds(formula, {**arguments, bound.name: middle}):
                high = middle - 1
            else:
                low = middle
        return low

    current: Arguments = {name: dict(value) if isinstance(value, dict) else value for name, value in start.items()}
    known = current[bound.name]
    assert isinstance(known, int)
    best = reach(current, known)
    for _ in range(3):
        improved = False
        for param in formula.params:
            if param.view is None:
                continue
            for spec in param.view.fields():
                row = current[param.name]
                assert isinstance(row, dict)
                for value in (spec.domain.lo, spec.domain.hi):
                    if value == row[spec.name]:
                        continue
                    moved: Arguments = {**current, param.name: {**row, spec.name: value}}
                    if not evaluator.admissible(formula.params, {**moved, bound.name: best}):
                        continue
                    reached = reach(moved, best + 1)
                    if reached > best:
                        current, best, improved = moved, reached, True
                        break
        if not improved:
            break
    return {**current, bound.name: best}
