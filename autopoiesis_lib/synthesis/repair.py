"""Proof-aware moves, which change a rejected policy so that the failed obligation can hold.

Each move is sound by construction for the shape that it makes. The result is still not trusted: it passes the same
gates as any other candidate.
"""

from collections.abc import Mapping
from dataclasses import replace
from random import Random

from ..binding import range_name
from ..contract import Contract
from ..gates.verdict import Reason
from ..language.ir import Binary, Const, Expr, Field, Function, MinMax, Module, Return, walk
from ..language.ranges import analyse
from .moves import decision_palette
from .palette import Aging, Palette
from .proposer import Parent
from .tree import replace_in, returns, with_function

__all__ = ["repair", "repaired_aging"]


def repair(contract: Contract, module: Module, rng: Random, rejected: Parent) -> tuple[Module, str] | None:
    """Return a module that should pass where `rejected` failed, and the move's name.

    `module` is the parsed source of `rejected`.
    """
    decision = next(iter(contract.decisions))
    palette = decision_palette(contract, module, decision)
    if rejected.reason == Reason.DIVISION:
        fixed = _nonzero_divisors(module)
        if fixed is not None:
            return fixed, "repair-division"
    aging = palette.aging
    too_large = rejected.reason in (Reason.OVERFLOW, Reason.RANGE) or rejected.obligation == range_name(decision)
    if too_large or rejected.gate == "ranges":
        return _clamped(contract, module, palette), "repair-range"
    if aging is not None:
        return repaired_aging(module, decision, palette, aging, rng), "repair-aging"
    return _clamped(contract, module, palette), "repair-range"


def repaired_aging(module: Module, decision: str, palette: Palette, aging: Aging, rng: Random) -> Module:
    """Return the module with `aging * a + clamp(E, -K, K)` in the place of each returned E, with 2 K <= a * limit.

    Two results then differ by at least `a * (difference of the aging field) - 2 K`. This is not negative once the
    difference reaches 2 K / a, so the tightest bound is at most the contract's limit.
    """
    function = module.functions[decision]
    fields = {feature.name: feature for feature in palette.features if not feature.shared}
    weight = rng.choice((1, 1, 1, 2, 8))
    if rng.random() < 0.5:
        function = _clamp_fields(function, fields, aging, rng)
    half = max(1, int(aging.limit * weight / 2 * rng.choice((1.0, 0.5, 0.1))))
    for statement in returns(function):
        bounded = _between(_without(statement.value, aging), -half, half)
        term: Expr = aging.feature.read()
        if weight > 1:
            term = Binary("*", term, Const(weight))
        function = replace_in(function, statement, Return(Binary("+", term, bounded)))
    return with_function(module, function)


def _without(expression: Expr, aging: Aging) -> Expr:
    """Return the expression without a leading `aging field +/-`, so that a second repair does not add it again."""
    match expression:
        case Binary("+", Field(view, name), right) if (view, name) == (aging.feature.view, aging.feature.name):
            return right
        case Binary("-", Field(view, name), right) if (view, name) == (aging.feature.view, aging.feature.name):
            return Binary("*", right, Const(-1))
    return expression


def _clamp_fields(function: Function, fields: Mapping[str, object], aging: Aging, rng: Random) -> Function:
    for node in [node for node in walk(function) if isinstance(node, Field)]:
        if node.name in fields and node.name != aging.feature.name and not node.is_bool:
            function = replace_in(
                function, node, MinMax("min", (node, Const(rng.choice((2_048, 4_096, 8_192, 16_384)))))
            )
    return function


def _nonzero_divisors(module: Module) -> Module | None:
    changed = None
    for function in module.functions.values():
        for node in [node for node in walk(function) if isinstance(node, Binary) and node.op in ("//", "%")]:
            if isinstance(node.right, Const):
                continue
            safe = replace(node, right=MinMax("max", (node.right, Const(1))))
            current = (changed or module).functions[function.name]
            changed = with_function(changed or module, replace_in(current, node.right, safe.right))
    return changed


def _clamped(contract: Contract, module: Module, palette: Palette) -> Module:
    """Return the module with operands clamped where int64 may overflow, and the result clamped to its range.

    Each ceiling is the field's usual maximum, or less if that is not enough.
    """
    signature = contract.decisions[palette.signature.name]
    original = module.functions[signature.name]
    reach = {feature.name: feature.reach for feature in palette.features}
    before = analyse(module, signature)
    unsafe = {
        id(operand): operand
        for node in walk(original)
        if isinstance(node, Binary) and not before.discharged(node)
        for operand in walk(node)
        if isinstance(operand, Field) and not operand.is_bool
    }
    for shrink in (1, 16, 256, 4_096, 65_536):
        function = original
        for operand in unsafe.values():
            ceiling = Const(max(1, reach.get(operand.name, 8_192) // shrink))
            function = replace_in(function, operand, MinMax("min", (operand, ceiling)))
        module = with_function(module, function)
        if not analyse(module, signature).open:
            break
    ranges, domain = analyse(module, signature), signature.result
    if domain.kind == "int" and not (ranges.result.lo >= domain.lo and ranges.result.hi <= domain.hi):
        for statement in returns(function):
            function = replace_in(function, statement, Return(_between(statement.value, domain.lo, domain.hi)))
    return with_function(module, function)


def _between(expression: Expr, lo: int, hi: int) -> Expr:
    return MinMax("min", (MinMax("max", (expression, Const(lo))), Const(hi)))
