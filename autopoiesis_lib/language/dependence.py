"""Dependence of a decision on one field: data flow and control flow, cut off where the ranges leave a single value."""

from collections.abc import Sequence
from typing import cast

from .ir import Assign, Call, Expr, Field, For, Function, If, Local, Module, Return, Signature, Stmt, ViewRef, children
from .ranges import Ranges, analyse

__all__ = ["may_depend"]


def may_depend(module: Module, signature: Signature, position: int, field: str) -> bool:
    """Return false when the value of a decision is the same for every value of one field of one of its views.

    The result is safe, not exact: it may be true for a decision in which the field cancels out.

    Args:
        module: the policy.
        signature: the decision.
        position: place of the view among the decision's parameters.
        field: name of the field.
    """
    flow = _Flow(module, field, analyse(module, signature))
    function = module.functions[signature.name]
    return flow.call(function, frozenset({function.params[position].name}))


class _Flow:
    """A search for the names that the field reaches.

    Such a name is a view that has the field, or a value that depends on it.
    """

    def __init__(self, module: Module, field: str, ranges: Ranges) -> None:
        self._module, self._field, self._ranges = module, field, ranges
        self._known: dict[tuple[str, frozenset[str]], bool] = {}

    def call(self, function: Function, names: frozenset[str]) -> bool:
        """Return true when a function's value may depend on the field, given the names that the field reached."""
        key = function.name, names
        if key not in self._known:
            reached = set(names)
            self._known[key] = self._block(function.body, reached, False)
        return self._known[key]

    def _block(self, body: Sequence[Stmt], reached: set[str], decided: bool) -> bool:
        """Return true when a returned value may depend on the field; add the names that the field reaches.

        `decided` means that the field decides whether control gets here. Then every value returned here depends on it.
        """
        returned = False
        for statement in body:
            match statement:
                case Return(value):
                    return returned or decided or self._expression(value, reached)
                case Assign(name, value):
                    if decided or self._expression(value, reached):
                        reached.add(name)
                    else:
                        reached.discard(name)
                case If(test, then, orelse):
                    under = decided or self._expression(test, reached)
                    other = set(reached)
                    returned |= self._block(then, reached, under)
                    returned |= self._block(orelse, other, under)
                    reached |= other
                case For(name=name, body=inner):
                    size = -1
                    while size != len(reached):  # names reached in one iteration are the input of the next
                        size = len(reached)
                        turn = reached - {name}
                        returned |= self._block(inner, turn, decided)
                        reached |= turn
        return returned

    def _expression(self, expression: Expr, reached: set[str]) -> bool:
        interval = self._ranges.intervals.get(id(expression))
        if interval is None or interval.lo == interval.hi:  # never evaluated, or one value
            return False
        match expression:
            case Field(view, name):
                return name == self._field and view in reached
            case Local(name):
                return name in reached
            case Call(name, arguments):
                function = self._module.functions[name]
                inner = {
                    param.name
                    for param, argument in zip(function.params, arguments, strict=True)
                    if (
                        argument.name in reached
                        if isinstance(argument, ViewRef)
                        else self._expression(argument, reached)
                    )
                }
                return self.call(function, frozenset(inner))
        return any(self._expression(cast("Expr", part), reached) for part in children(expression))
