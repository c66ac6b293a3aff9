"""Moves of the search. Each changes a module at one place, or returns None if it does not apply."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random

from ..contract import Contract
from ..language.ir import (
    ArithmeticOp,
    Binary,
    Compare,
    CompareOp,
    Cond,
    Const,
    Expr,
    Field,
    Function,
    If,
    Logic,
    MinMax,
    Module,
    Not,
    Return,
    walk,
)
from .palette import SIGNS, Palette
from .tree import Site, copy, free_of_locals, rename_views, replace_in, returns, sites, with_function

__all__ = ["MOVES", "Move", "Typical", "Workbench", "decision_palette", "tuned"]


Typical = Mapping[str, Mapping[str, tuple[int, int]]]
"""Decision -> "parameter.field" -> the minimum and the maximum that the workload shows."""


class Workbench:
    """The context of a move.

    It holds the module, the contract, a second parent for crossover, and the run's random numbers.
    """

    def __init__(
        self,
        contract: Contract,
        module: Module,
        rng: Random,
        mate: Module | None = None,
        sigma: float = 0.5,
        typical: Typical | None = None,
    ) -> None:
        self.contract = contract
        self.module = module
        self.mate = mate
        self.rng = rng
        self.sigma = sigma
        """Step size of constant tuning, in the logarithm of the constant."""
        self.decision = rng.choice(list(contract.decisions))
        self.palette = decision_palette(contract, module, self.decision, typical)

    @property
    def function(self) -> Function:
        """The decision that the move changes."""
        return self.module.functions[self.decision]

    def pick(self, wanted: Callable[[Expr], bool]) -> Site | None:
        """Return a random expression of the module for which `wanted` is true; None if there is none."""
        found = [site for site in sites(self.module) if wanted(site.node)]
        return self.rng.choice(found) if found else None

    def ages(self, node: Expr) -> bool:
        """Return True if an expression reads the field that must win in the end.

        A clamp or a condition on that field could prevent it from winning.
        """
        aging = self.palette.aging
        return aging is not None and any(
            isinstance(part, Field) and (part.view, part.name) == (aging.feature.view, aging.feature.name)
            for part in walk(node)
        )

    def put(self, site: Site, new: Expr) -> Module:
        """Return the module with `new` in the place of a site."""
        return with_function(self.module, replace_in(site.function, site.node, new))

    def pick_return(self) -> Site | None:
        """Return the value of a random return statement of the decision; None if there is none."""
        found = returns(self.function)
        return Site(self.function, self.rng.choice(found).value) if found else None


Move = Callable[[Workbench], Module | None]


def decision_palette(contract: Contract, module: Module, decision: str, typical: Typical | None = None) -> Palette:
    """Return a `Palette` with the parameter names of the module's own function."""
    names = tuple(param.name for param in module.functions[decision].params)
    return Palette(contract, decision, names, (typical or {}).get(decision))


def tune(bench: Workbench) -> Module | None:
    """Multiply one to three constants by log-normal factors."""
    return tuned(bench.module, bench.rng, bench.sigma, share=None)


def tuned(module: Module, rng: Random, sigma: float, share: float | None) -> Module | None:
    """Return a module with some constants multiplied by exp(N(0, sigma)).

    `share` is the share of constants to change; None changes one to three.
    """
    found = _constants(module, least=1)
    if not found:
        return None
    count = min(len(found), rng.choice((1, 1, 2, 3))) if share is None else max(1, round(share * len(found)))
    for site, value in rng.sample(found, count):
        new = round(value * math.exp(rng.gauss(0.0, sigma)))
        if new == value:
            new = value + rng.choice((-1, 1)) * max(1, abs(value) // 50)
        module = _with_constant(module, site, new or (1 if value > 0 else -1))
    return module


def add_term(bench: Workbench) -> Module | None:
    """Add a new term to the value that the decision returns, or subtract it."""
    site = bench.pick_return()
    if site is None or site.node.is_bool:
        return None
    aging = bench.palette.aging
    currency = aging.limit if aging is not None else max(1, min(bench.palette.signature.result.hi, 1_000_000_000))
    return bench.put(site, Binary(bench.rng.choice(SIGNS), site.node, bench.palette.term(bench.rng, currency)))


def trade(bench: Workbench) -> Module | None:
    """Multiply one constant and divide another by the same factor, such as a slope and the length of its range.

    The move keeps a bound that depends on the product of the two, so a policy can move along it. A change of one
    constant alone cannot do so.
    """
    found = _constants(bench.module, least=2)
    if len(found) < 2:
        return None
    module, exponent = bench.module, bench.rng.gauss(0.0, bench.sigma)
    for (site, value), sign in zip(bench.rng.sample(found, 2), (1, -1), strict=True):
        # rounded towards zero, so that the product does not grow, unless a constant would become 0
        module = _with_constant(module, site, int(value * math.exp(sign * exponent)) or (1 if value > 0 else -1))
    return module


def _constants(module: Module, least: int) -> list[tuple[Site, int]]:
    """Return the integer constants of at least the given magnitude, with their values."""
    return [
        (site, site.node.value)
        for site in sites(module)
        if isinstance(site.node, Const) and not site.node.is_bool and abs(site.node.value) >= least
    ]


def _with_constant(module: Module, site: Site, value: int) -> Module:
    """Return the module with another constant at a site, limited so that sums of constants stay in int64."""
    function = module.functions[site.function.name]
    return with_function(module, replace_in(function, site.node, Const(max(-(2**53), min(2**53, value)))))


def stretch(bench: Workbench) -> Module | None:
    """Extend a weighted clamp to the range of the workload, with the same product.

    `min(q, K) * w` becomes `min(q, K') * w'`, where K' is the usual maximum of q or twice that, and K' w' = K w. A
    clamp does not separate requests above its ceiling. The order there may not matter in the train window, but it does
    in a heavier one.
    """
    site = bench.pick(
        lambda node: (
            isinstance(node, Binary)
            and node.op == "*"
            and isinstance(node.left, MinMax)
            and node.left.op == "min"
            and _clamps(node.left)
            and isinstance(node.right, Const)
        )
    )
    if site is None:
        return None
    assert isinstance(site.node, Binary) and isinstance(site.node.left, MinMax) and isinstance(site.node.right, Const)
    quantity, ceiling = site.node.left.operands
    assert isinstance(ceiling, Const)
    reach = bench.palette.usual(quantity) * bench.rng.choice((1, 2))
    weight = int(site.node.right.value * ceiling.value / max(1, reach))
    if reach <= ceiling.value or weight == 0:
        return None
    return bench.put(site, Binary("*", MinMax("min", (quantity, Const(reach))), Const(weight)))


def bend(bench: Workbench) -> Module | None:
    """Change the slope of a clamped quantity within its range.

    `min(q, K)` becomes `min(q, K) + min(max(q - a, 0), b)`, or its square over a constant. The middle and the end of
    the range can then have different weights.
    """
    site = bench.pick(lambda node: isinstance(node, MinMax) and node.op == "min" and _clamps(node))
    if site is None:
        return None
    assert isinstance(site.node, MinMax)
    quantity, ceiling = site.node.operands
    assert isinstance(ceiling, Const)
    reach = max(2, min(ceiling.value, bench.palette.usual(quantity)))
    if bench.rng.random() < 0.4:
        scale = max(1, round(reach * math.exp(bench.rng.gauss(0.0, 0.7))))
        square = Binary("//", Binary("*", site.node, copy(site.node)), Const(scale))
        return bench.put(site, square)
    start = max(1, round(reach * bench.rng.random()))
    beyond = MinMax("max", (Binary("-", copy(quantity), Const(start)), Const(0)))
    extra: Expr = MinMax("min", (beyond, Const(max(1, reach - start))))
    factor = bench.rng.choice((1, 2, 4))
    if factor > 1:
        extra = Binary("*", extra, Const(factor))
    return bench.put(site, Binary(bench.rng.choice(SIGNS), site.node, extra))


def _clamps(node: MinMax) -> bool:
    return (
        len(node.operands) == 2
        and isinstance(node.operands[1], Const)
        and node.operands[1].value > 1
        and not isinstance(node.operands[0], Const)
    )


def drop_term(bench: Workbench) -> Module | None:
    """Replace an operation by one of its operands."""
    site = bench.pick(lambda node: isinstance(node, (Binary, MinMax, Cond)) and not _is_power(node))
    if site is None:
        return None
    match site.node:
        case Binary(_, left, right):
            return bench.put(site, bench.rng.choice((left, left, right)))
        case MinMax(_, operands):
            return bench.put(site, bench.rng.choice(operands))
        case Cond(_, then, orelse):
            return bench.put(site, bench.rng.choice((then, orelse)))
    return None


def swap_field(bench: Workbench) -> Module | None:
    """Read another field, most often one of the same unit, or combine the field with one of the same unit.

    Uncached tokens, for example, are a difference; the tokens that a request may occupy are a sum. The surrounding
    constants stay.
    """
    site = bench.pick(lambda node: isinstance(node, Field) and not node.is_bool)
    if site is None or site.function.name != bench.decision:
        return None
    assert isinstance(site.node, Field)
    here = next((f for f in bench.palette.features if (f.view, f.name) == (site.node.view, site.node.name)), None)
    if here is None:
        return None
    roll = bench.rng.random()
    other = bench.palette.feature(bench.rng, unit=here.domain.unit if roll < 0.8 else None)
    if other is None or other == here:
        return None
    if roll < 0.2:
        return bench.put(site, Binary("+", site.node, other.read()))
    if roll < 0.4:
        return bench.put(site, MinMax("max", (Binary("-", site.node, other.read()), Const(0))))
    return bench.put(site, other.read())


def swap_operator(bench: Workbench) -> Module | None:
    """Replace an operator by a related one."""
    site = bench.pick(lambda node: isinstance(node, (Binary, MinMax, Compare, Logic)) and not _is_power(node))
    if site is None:
        return None
    match site.node:
        case Binary(op):
            other: ArithmeticOp = _RELATED[op]
            return bench.put(site, replace(site.node, op=other))
        case MinMax(op, _):
            return bench.put(site, replace(site.node, op="max" if op == "min" else "min"))
        case Compare(ops, _):
            return bench.put(site, replace(site.node, ops=tuple(_FLIPPED[op] for op in ops)))
        case Logic(op, _):
            return bench.put(site, replace(site.node, op="or" if op == "and" else "and"))
    return None


def wrap(bench: Workbench) -> Module | None:
    """Clamp an integer expression by a constant, square it over a constant, or take its excess over a constant.

    The constant is at most the field's usual maximum, or 8,192 for any other expression.
    """
    site = bench.pick(lambda node: not node.is_bool and not isinstance(node, Const) and not bench.ages(node))
    if site is None:
        return None
    reach = 8_192
    if isinstance(site.node, Field) and site.function.name == bench.decision:
        feature = next((f for f in bench.palette.features if f.name == site.node.name), None)
        reach = feature.reach if feature is not None else reach
    roll = bench.rng.random()
    constant = bench.palette.constant(bench.rng, reach)
    if roll < 0.5:
        return bench.put(site, MinMax("min", (site.node, constant)))
    if roll < 0.7:
        return bench.put(site, MinMax("max", (Binary("-", site.node, constant), Const(0))))
    if roll < 0.85:
        return bench.put(site, Binary("//", Binary("*", site.node, copy(site.node)), constant))
    return bench.put(site, MinMax("max", (site.node, constant)))


def guard(bench: Workbench) -> Module | None:
    """Replace an expression by a conditional choice between itself and a variant."""
    site = (
        bench.pick_return()
        if bench.rng.random() < 0.5
        else bench.pick(lambda node: not node.is_bool and not isinstance(node, Const))
    )
    if site is None or site.function.name != bench.decision:
        return None
    variant = copy(site.node)
    inner = sites(Module({site.function.name: replace(site.function, body=(Return(variant),))}, {}))
    constants = [item.node for item in inner if isinstance(item.node, Const) and not item.node.is_bool]
    other: Expr = Const(0)
    if constants:
        chosen = bench.rng.choice(constants)
        factor = math.exp(bench.rng.gauss(0.0, 1.5))
        other = replace_in(variant, chosen, Const(round(chosen.value * factor) or 1))
    elif site.node.is_bool:
        other = Not(variant)
    elif bench.ages(site.node):
        return None
    test = bench.palette.test(bench.rng)
    return bench.put(site, Cond(test, site.node, other))


def change_guard(bench: Workbench) -> Module | None:
    """Replace the condition of an existing conditional by a new one."""
    found = [
        site for site in sites(bench.module) if isinstance(site.node, Cond) and site.function.name == bench.decision
    ]
    tests = _ifs(bench.function)
    if found and (not tests or bench.rng.random() < 0.5):
        site = bench.rng.choice(found)
        assert isinstance(site.node, Cond)
        return bench.put(site, replace(site.node, test=bench.palette.test(bench.rng)))
    if tests:
        return bench.put(Site(bench.function, bench.rng.choice(tests).test), bench.palette.test(bench.rng))
    return None


def crossover(bench: Workbench) -> Module | None:
    """Replace a part of the first parent by a part of the second.

    Sometimes the move instead averages the two results or chooses between them by a condition.
    """
    if bench.mate is None or bench.decision not in bench.mate.functions:
        return None
    theirs = bench.mate.functions[bench.decision]
    names = {
        theirs_param.name: ours.name for theirs_param, ours in zip(theirs.params, bench.function.params, strict=True)
    }
    donors = [
        site.node
        for site in sites(Module({theirs.name: theirs}, {}))
        if free_of_locals(site.node) and not isinstance(site.node, Const)
    ]
    if not donors:
        return None
    whole = [node.value for node in returns(theirs) if free_of_locals(node.value)]
    site = bench.pick_return()
    if site is not None and whole and bench.rng.random() < 0.3:
        other = rename_views(bench.rng.choice(whole), names)
        if bench.rng.random() < 0.5 and not site.node.is_bool and not other.is_bool:
            return bench.put(site, Binary("//", Binary("+", site.node, other), Const(2)))
        return bench.put(site, Cond(bench.palette.test(bench.rng), site.node, other))
    donor = rename_views(bench.rng.choice(donors), names)
    place = bench.pick(lambda node: node.is_bool == donor.is_bool and not isinstance(node, Const))
    if place is None or place.function.name != bench.decision:
        return None
    return bench.put(place, donor)


def renew(bench: Workbench) -> Module | None:
    """Replace the decision's body by a new random expression."""
    body = (Return(bench.palette.result(bench.rng)),)
    return with_function(bench.module, replace(bench.function, body=body))


_RELATED: Mapping[ArithmeticOp, ArithmeticOp] = {"+": "-", "-": "+", "*": "//", "//": "*", "%": "//"}
_FLIPPED: Mapping[CompareOp, CompareOp] = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "!=", "!=": "=="}


def _is_power(node: Expr) -> bool:
    return isinstance(node, Binary) and node.op == "**"


def _ifs(function: Function) -> list[If]:
    return [node for node in walk(function) if isinstance(node, If)]


MOVES: Mapping[str, tuple[Move, float]] = {
    "tune": (tune, 0.34),
    "add-term": (add_term, 0.14),
    "trade": (trade, 0.20),
    "bend": (bend, 0.08),
    "stretch": (stretch, 0.05),
    "drop-term": (drop_term, 0.05),
    "swap-field": (swap_field, 0.15),
    "swap-operator": (swap_operator, 0.04),
    "wrap": (wrap, 0.05),
    "guard": (guard, 0.05),
    "change-guard": (change_guard, 0.03),
    "crossover": (crossover, 0.06),
    "renew": (renew, 0.02),
}
"""Name -> (move, relative frequency of the move)."""
