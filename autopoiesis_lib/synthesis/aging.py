"""Scaling of a candidate's weights down to the contract's aging bound.

Consider a score `a * w + E`, where w is the field that must win in the end and E lies between lo and hi. It never ranks
an item behind one whose w is smaller by (hi - lo) / a or more. This quotient is an upper bound on the tightest T that
the proof can find. Interval analysis computes it in microseconds. The search can then move along the contract's limit
instead of losing a candidate at each step beyond it. The result is not trusted: it passes the same gates as any other
candidate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

from ..language.ir import (
    Binary,
    Call,
    Compare,
    Cond,
    Const,
    Expr,
    Field,
    Function,
    Local,
    MinMax,
    Module,
    Return,
    walk,
)
from ..language.ranges import Interval, Orders, Ranges, analyse
from .palette import Aging, Palette
from .tree import with_function

__all__ = ["bound", "orders", "within_limit"]

FINE = 16
"""Minimum weight that is reduced by a smaller constant instead of a division, because rounding then costs little."""
ROUNDS = 3
"""Maximum number of scalings, which repeat because rounding may leave the weights above the limit."""
NOTHING = Interval(0, 0)


def within_limit(module: Module, palette: Palette) -> Module:
    """Return the module with all weights but the aging field's scaled down to the contract's limit.

    If the aging field is not read at all, it is added, because nothing could be proved otherwise. Fields without a
    ceiling are first clamped to the maximum that the workload shows, because their domain would leave them no weight. A
    module of another shape, or one within the limit, is returned unchanged.
    """
    aging = palette.aging
    function = module.functions[palette.signature.name]
    value = _value(function)
    if aging is None or value is None:
        return module
    if not any(isinstance(node, Field) and _ages(node, aging) for node in walk(value)):
        value = Binary("+", aging.feature.read(), value)
        module = with_function(module, replace(function, body=(Return(value),)))
    first = bound(module, palette, aging)
    if first is None or first <= aging.limit:
        return module
    reaches = {
        (feature.view, feature.name): feature.reach
        for feature in palette.features
        if feature.reach < feature.domain.hi and feature != aging.feature
    }
    value = _clamped(value, reaches)
    for _ in range(ROUNDS):
        changed = with_function(module, replace(function, body=(Return(value),)))
        found = bound(changed, palette, aging)
        if found is None:
            return module
        if found <= aging.limit:
            return changed
        value = _scaled(value, Fraction(aging.limit) / found, aging)
    return module


def bound(module: Module, palette: Palette, aging: Aging) -> Fraction | None:
    """Return an upper bound on the tightest T for which the aging field wins.

    The result is None if the shape of the module gives no bound.
    """
    value = _value(module.functions[palette.signature.name])
    if value is None:
        return None
    own = frozenset(feature.view for feature in palette.features if not feature.shared)
    weight, rest = _split(value, _Scope(analyse(module, palette.signature, orders(palette)), own, aging))
    return (rest.hi - rest.lo) / weight if weight > 0 else None


def orders(palette: Palette) -> Orders:
    """Return the pairs of fields that the contract's assumptions put in order.

    The pairs use the parameter names of the function that `palette` was made for.
    """
    names = {view: name for name, view in palette.views.items()}
    found = set()
    for formula in palette.contract.assumptions:
        holders = {param.name: names.get(param.view) for param in formula.params if param.view is not None}
        match formula.function.body:
            case (Return(Compare(("<=",), (Field(a, x), Field(b, y)))),):
                smaller, larger = holders.get(a), holders.get(b)
                if smaller is not None and larger is not None:
                    found.add(((smaller, x), (larger, y)))
    return frozenset(found)


def _value(function: Function) -> Expr | None:
    """Return the value that a function of one statement returns; None for any other function."""
    match function.body:
        case (Return(value),):
            return value
    return None


@dataclass(frozen=True)
class _Scope:
    """The context in which an expression is split."""

    ranges: Ranges
    own: frozenset[str]
    """The parameters that differ between two compared items."""
    aging: Aging
    cancels: bool = True
    """True if an expression that reads none of them is equal for both items.

    It is False in a branch that only one of the two items may take.
    """

    def shared(self, value: Expr) -> bool:
        """Return True if an expression has the same value for two compared items."""
        return not any(
            isinstance(node, (Call, Local)) or (isinstance(node, Field) and node.view in self.own)
            for node in walk(value)
        )


def _split(value: Expr, scope: _Scope) -> tuple[Fraction, Interval]:
    """Split an expression into a weight of the aging field and the interval of the rest.

    The interval covers only the parts that differ between two items.
    """
    match value:
        case Field() if _ages(value, scope.aging):
            return Fraction(1), NOTHING
        case Binary("*", Field() as item, Const(weight)) if _ages(item, scope.aging):
            return Fraction(weight), NOTHING
        case Binary("+", left, right):
            (a, one), (b, other) = _split(left, scope), _split(right, scope)
            return a + b, Interval(one.lo + other.lo, one.hi + other.hi)
        case Binary("-", left, right):
            (a, one), (b, other) = _split(left, scope), _split(right, scope)
            return a - b, Interval(one.lo - other.hi, one.hi - other.lo)
        case Binary("//", inner, Const(divisor)) if divisor > 0:
            a, one = _split(inner, scope)
            if a:  # rounding down removes less than 1 from each
                return a / divisor, Interval(one.lo // divisor - 1, one.hi // divisor + 1)
        case Cond(test, then, orelse):
            branch = replace(scope, cancels=scope.cancels and scope.shared(test))
            (a, one), (b, other) = _split(then, branch), _split(orelse, branch)
            if a == b != 0:
                return a, one.join(other)
    if scope.cancels and scope.shared(value):
        return Fraction(0), NOTHING
    return Fraction(0), scope.ranges.intervals.get(id(value), NOTHING)


def _ages(node: Field, aging: Aging) -> bool:
    return (node.view, node.name) == (aging.feature.view, aging.feature.name)


def _clamped(value: Expr, reaches: Mapping[tuple[str, str], int]) -> Expr:
    """Return the expression with a ceiling on each field that has none."""
    match value:
        case Field(view, name) if (view, name) in reaches:
            return MinMax("min", (value, Const(reaches[view, name])))
        case MinMax("min", operands) if any(isinstance(operand, Const) for operand in operands):
            return value
        case Binary(op, left, right) if op != "**":
            return replace(value, left=_clamped(left, reaches), right=_clamped(right, reaches))
        case MinMax(_, operands):
            return replace(value, operands=tuple(_clamped(operand, reaches) for operand in operands))
        case Cond(_, then, orelse):
            return replace(value, then=_clamped(then, reaches), orelse=_clamped(orelse, reaches))
    return value


def _scaled(value: Expr, ratio: Fraction, aging: Aging) -> Expr:
    """Return about `ratio` times an expression, for a ratio below 1.

    Terms in the aging field are not changed.
    """
    match value:
        case (Field() as item) | Binary("*", Field() as item, Const()) if _ages(item, aging):
            return value
        case Const(constant):
            return Const(int(constant * ratio))
        case Binary("+" | "-", left, right):
            return replace(value, left=_scaled(left, ratio, aging), right=_scaled(right, ratio, aging))
        case MinMax(_, operands):
            return replace(value, operands=tuple(_scaled(operand, ratio, aging) for operand in operands))
        case Cond(_, then, orelse):
            return replace(value, then=_scaled(then, ratio, aging), orelse=_scaled(orelse, ratio, aging))
        case Binary("*", _, Const(weight)) if abs(weight * ratio) >= FINE:
            return replace(value, right=Const(int(weight * ratio)))
        case Binary("//", _, Const(divisor)) if divisor > 0:
            return replace(value, right=Const(ceil(divisor / ratio)))
    return Binary("//", value, Const(ceil(1 / ratio)))
