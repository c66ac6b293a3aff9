"""Values worth trying first: for each decision and invariant a fixed pool of admissible arguments that could break something.

A pool is drawn once per contract from a fixed seed: domain ends, powers of two and random values, repaired until the assumptions
hold, and kept for an invariant only if some policy could break it there (decisions answered at random).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

from ..contract import Contract, Unhashed
from ..formula import Formula, FormulaParam
from ..language.ir import Field, walk
from ..view import Domain
from .counterexample import Arguments, admissible, decision_params, instances

__all__ = ["Pool", "falsifiable", "pool_of"]

SEED = 20_260_407
POOL_SIZE = 96
TRIES = 6_000


@dataclass(frozen=True)
class Pool:
    """Arguments to try, by decision and by invariant."""

    decisions: dict[str, tuple[Arguments, ...]]
    invariants: dict[str, tuple[Arguments, ...]]


def pool_of(contract: Contract) -> Pool:
    """Return the pool of a contract; made once per process."""
    return _pool(contract.digest, Unhashed(contract))


@cache
def _pool(digest: str, handle: Unhashed) -> Pool:
    contract = handle.contract
    draw = random.Random(SEED)
    decisions = {
        name: tuple(draw_arguments(contract, decision_params(contract, name), draw) for _ in range(POOL_SIZE))
        for name in contract.decisions
    }
    return Pool(decisions, {formula.name: tuple(_relevant(contract, formula, draw)) for formula in contract.invariants})


def _relevant(contract: Contract, formula: Formula, draw: random.Random) -> list[Arguments]:
    found: list[Arguments] = []
    free = contract.stand_in(
        {name: _random_answers(draw, signature.result) for name, signature in contract.decisions.items()}
    )
    for _ in range(TRIES):
        if len(found) == POOL_SIZE:
            break
        arguments = draw_arguments(contract, formula.params, draw)
        if formula.least is not None:
            assert formula.least.least_limit is not None
            arguments[formula.least.name] = formula.least.least_limit
        if any(not _evaluate(formula, free, arguments) for _ in range(4)):
            found.append(arguments)
    return found


def _random_answers(draw: random.Random, domain: Domain) -> Callable[..., int]:
    return lambda *views: draw_value(domain, draw)


def _evaluate(formula: Formula, stand_in: object, arguments: Arguments) -> bool:
    values = [
        SimpleNamespace(**value) if isinstance(value, dict) else value
        for value in (arguments[param.name] for param in formula.params)
    ]
    try:
        return bool(formula.method(stand_in, *values))
    except ArithmeticError:
        return False


def falsifiable(contract: Contract, formula: Formula, bound: int | None) -> bool:
    """Return whether the pool, with decisions answered at random, shows that some policy could break an invariant at a bound.

    False proves nothing: the solver then has to say.
    """
    draw = random.Random(SEED)
    free = contract.stand_in(
        {name: _random_answers(draw, signature.result) for name, signature in contract.decisions.items()}
    )
    for arguments in pool_of(contract).invariants[formula.name]:
        values = arguments if formula.least is None or bound is None else {**arguments, formula.least.name: bound}
        if admissible(contract, free, formula.params, values) and any(
            not _evaluate(formula, free, values) for _ in range(8)
        ):
            return True
    return False


def draw_value(domain: Domain, draw: random.Random) -> int:
    """Draw a value of a domain: an end, near one, a random magnitude, or uniform."""
    if domain.values is not None:
        return draw.choice(domain.values)
    kind = draw.randrange(6)
    if kind == 0:
        return domain.lo
    if kind == 1:
        return domain.hi
    if kind == 2:
        return draw.randint(domain.lo, domain.hi)
    span = domain.hi - domain.lo
    offset = min(span, draw.getrandbits(draw.randint(0, max(1, span.bit_length()))))
    return domain.lo + offset if kind < 5 else domain.hi - offset


def draw_arguments(contract: Contract, params: Sequence[FormulaParam], draw: random.Random) -> Arguments:
    """Arguments in their domains that satisfy every assumption (as far as a bounded repair gets)."""
    arguments: Arguments = {}
    for param in params:
        if param.view is not None:
            arguments[param.name] = {spec.name: draw_value(spec.domain, draw) for spec in param.view.fields()}
        elif param.domain is not None:
            arguments[param.name] = draw_value(param.domain, draw)
    return repair(contract, params, arguments, draw)


def repair(contract: Contract, params: Sequence[FormulaParam], arguments: Arguments, draw: random.Random) -> Arguments:
    """Move fields that take part in a broken assumption onto one another or their bounds until all assumptions hold."""
    views = {param.name: param.view for param in params if param.view is not None}
    stand_in = contract.stand_in({})
    for _ in range(40):
        clean = True
        for formula in contract.assumptions:
            for names in instances(formula.params, views):
                bound = {param.name: arguments[name] for param, name in zip(formula.params, names, strict=True)}
                if _evaluate(formula, stand_in, bound):
                    continue
                clean = False
                fields = [node for node in walk(formula.function) if isinstance(node, Field)]
                target, other = draw.choice(fields), draw.choice(fields)
                row, source = bound[target.view], bound[other.view]
                assert isinstance(row, dict) and isinstance(source, dict)
                view = next(param.view for param in formula.params if param.name == target.view)
                assert view is not None
                domain = view.field(target.name).domain
                row[target.name] = min(max(source[other.name], domain.lo), domain.hi)
        if clean:
            break
    return arguments
