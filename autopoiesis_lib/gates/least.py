"""The least value of an invariant's bound: bisection on one incremental solver that jumps to each counterexample's own gap.

What the solver learns for one query serves the next; a fresh solver a query is ten to two hundred times slower. A query asks
for a counterexample at any bound from the probe up, so "none" proves every larger bound too, whether or not the invariant is
monotone in its bound.
"""

from collections.abc import Callable

from .counterexample import Arguments
from .search import Search
from .solving import Answer
from .verdict import LeastBound

__all__ = ["find_least"]

Ask = Callable[[int, int], tuple[Answer, Arguments | None]]


def find_least(search: Search, limit: int) -> LeastBound:
    """Return the tightest bound, given that the invariant is proved at `limit`."""
    bound = search.formula.least
    assert bound is not None and bound.domain is not None
    search.spare()
    low, proved, witness = _bracket(search, bound.domain.lo, limit)
    """Some value of the bound just below `low` is refuted; everything from `proved` to `limit` is proved."""
    for ask in (search.ask_bounded, search.ask_briefly) if search.cut.products else (search.ask_exact,):
        low, proved, witness = _narrowed(ask, search, low, proved, witness)
    tight = low == proved
    example = search.evaluator.counterexample(search.formula, witness) if witness is not None and tight else None
    return LeastBound(parameter=bound.name, value=proved, unit=bound.domain.unit, tight=tight, refuted_below=example)


def _narrowed(
    ask: Ask, search: Search, low: int, proved: int, witness: Arguments | None
) -> tuple[int, int, Arguments | None]:
    """`low`, `proved` and the witness below `low` as far as one way to ask brings them together."""
    undecided = proved
    """Nothing is known from here up to `proved`."""
    probe = low
    while low < undecided:
        answer, values = ask(probe, proved - 1)
        if values is not None:
            low, witness = _stretch(search, values, proved - 1)
            undecided = max(undecided, min(low, proved))
        elif answer == "unsat":
            proved = undecided = probe
        else:
            undecided = probe
        probe = (low + undecided) // 2
    # What cannot be told from `undecided` up may be provable from further up: there is less to look through.
    floor = undecided + 1
    return _lowered(ask, search, low, proved, witness, floor, (floor + proved) // 2)


def _bracket(search: Search, low: int, proved: int) -> tuple[int, int, Arguments | None]:
    """`low`, `proved` and the witness below `low` as far as the encodings without products bring them together."""
    if not search.cut.products:
        return low, proved, None
    return _lowered(search.ask_cut, search, low, proved, None, low, low)


def _lowered(
    ask: Ask, search: Search, low: int, proved: int, witness: Arguments | None, floor: int, probe: int
) -> tuple[int, int, Arguments | None]:
    """`low`, `proved` and the witness below `low`, with `proved` as low as one way to ask brings it; below `floor` it proves
    nothing."""
    while floor < proved:
        answer, values = ask(probe, proved - 1)
        if values is not None:
            low, witness = _stretch(search, values, proved - 1)
            floor = max(floor, low)
        elif answer == "unsat":
            proved = probe
        else:
            floor = probe + 1
        probe = (floor + proved) // 2
    return low, proved, witness


def _stretch(search: Search, values: Arguments, limit: int) -> tuple[int, Arguments]:
    """Return the bound after the largest one, up to `limit`, at which these views still break the invariant, and the views there.

    Bisection finds it, which may miss a larger one where the invariant is not monotone in its bound.
    """
    bound = search.formula.least
    assert bound is not None
    low, high = values[bound.name], limit
    assert isinstance(low, int)
    while low < high:
        middle = (low + high + 1) // 2
        if search.evaluator.holds(search.formula, {**values, bound.name: middle}):
            high = middle - 1
        else:
            low = middle
    return low + 1, {**values, bound.name: low}
