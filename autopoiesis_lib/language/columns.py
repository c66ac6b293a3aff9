"""The IR over columns: numpy evaluates a function on many inputs at once, for searches with thousands of queries.

The result is exact only where intervals show that nothing overflows or divides by zero (`Policy.settled`), and for
inputs in their domains. Both sides of a branch are computed on every input. On the side that an input does not take,
numpy may wrap or return 0 for a quotient by zero; these values are never picked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ir import (
    Abs,
    Assign,
    Binary,
    Call,
    Compare,
    Cond,
    Const,
    Expr,
    Field,
    For,
    Function,
    If,
    Local,
    Logic,
    MinMax,
    Negate,
    Not,
    Return,
    Stmt,
    ToBool,
    ToInt,
    ViewRef,
)

__all__ = ["Column", "Rows", "evaluate_columns"]

Column = NDArray[np.int64]
Rows = Mapping[str, Column]
"""One view on every input: a map from a field name to its column."""
Value = Any
"""A column, or one integer that holds for every input."""
Mask = Any
"""Selected inputs: a column of booleans, or one boolean for all."""
Environment = dict[str, Value]

_ARITHMETIC: Mapping[str, np.ufunc] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "//": np.floor_divide,
    "%": np.remainder,
    "**": np.power,
}
_COMPARE: Mapping[str, np.ufunc] = {
    "==": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}


def evaluate_columns(
    functions: Mapping[str, Function], function: Function, arguments: Sequence[Rows | Column | int], length: int
) -> Column:
    """Return the value of `function` on each of `length` inputs (a bool result is 0 or 1).

    `functions` are those that it may call.
    """
    with np.errstate(all="ignore"):
        result = _Evaluator(functions).call(function, arguments)
    return np.broadcast_to(np.asarray(result, dtype=np.int64), (length,))


class _Evaluator:
    def __init__(self, functions: Mapping[str, Function]) -> None:
        self.functions = functions

    def call(self, function: Function, arguments: Sequence[Any]) -> Value:
        environment: Environment = {
            param.name: argument for param, argument in zip(function.params, arguments, strict=True)
        }
        match function.body:
            case (Return(value),):
                return self.number(value, environment)
        run = _Run(self, environment)
        run.block(function.body)
        return run.result

    def number(self, expression: Expr, environment: Environment) -> Value:
        match expression:
            case Const(value):
                return value
            case Field(view, name):
                return environment[view][name]
            case Local(name):
                return environment[name]
            case Binary(op, left, right):
                return _ARITHMETIC[op](self.number(left, environment), self.number(right, environment))
            case MinMax(op, operands):
                pick = np.minimum if op == "min" else np.maximum
                result = self.number(operands[0], environment)
                for operand in operands[1:]:
                    result = pick(result, self.number(operand, environment))
                return result
            case Cond(test, then, orelse):
                return np.where(
                    self.truth(test, environment), self.number(then, environment), self.number(orelse, environment)
                )
            case Negate(operand):
                return np.negative(self.number(operand, environment))
            case Abs(operand):
                return np.absolute(self.number(operand, environment))
            case ToInt(operand):
                return self.number(operand, environment)
            case Logic(op, operands):
                *first, last = (self.number(operand, environment) for operand in operands)
                result = last
                for value in reversed(first):
                    true = np.not_equal(value, 0)
                    result = np.where(true, result, value) if op == "and" else np.where(true, value, result)
                return result
            case Call(name, arguments):
                passed = [
                    environment[item.name] if isinstance(item, ViewRef) else self.number(item, environment)
                    for item in arguments
                ]
                return self.call(self.functions[name], passed)
            case Compare() | Not() | ToBool():
                return np.asarray(self.truth(expression, environment)).astype(np.int64)

    def truth(self, expression: Expr, environment: Environment) -> Mask:
        match expression:
            case Compare(ops, operands):
                values = [self.number(operand, environment) for operand in operands]
                result = _COMPARE[ops[0]](values[0], values[1])
                for op, left, right in zip(ops[1:], values[1:], values[2:], strict=False):
                    result = np.logical_and(result, _COMPARE[op](left, right))
                return result
            case Not(operand):
                return np.logical_not(self.truth(operand, environment))
            case Logic(op, operands):
                combine = np.logical_and if op == "and" else np.logical_or
                result = self.truth(operands[0], environment)
                for operand in operands[1:]:
                    result = combine(result, self.truth(operand, environment))
                return result
            case ToBool(operand):
                return self.truth(operand, environment)
        return np.not_equal(self.number(expression, environment), 0)


class _Run:
    """The evaluation of a body with several statements: the inputs that still run, and the results of the others."""

    def __init__(self, evaluator: _Evaluator, environment: Environment) -> None:
        self.evaluator = evaluator
        self.environment = environment
        self.live: Mask = True
        self.result: Value = 0

    def block(self, body: tuple[Stmt, ...]) -> None:
        for statement in body:
            if not np.any(self.live):
                return
            self.statement(statement)

    def statement(self, statement: Stmt) -> None:
        match statement:
            case Assign(name, value):
                self.assign(name, self.evaluator.number(value, self.environment))
            case Return(value):
                self.result = self.where_live(self.evaluator.number(value, self.environment), self.result)
                self.live = False
            case If(test, then, orelse):
                true, before = self.evaluator.truth(test, self.environment), self.live
                self.live = np.logical_and(before, true)
                self.block(then)
                after_then, self.live = self.live, np.logical_and(before, np.logical_not(true))
                self.block(orelse)
                self.live = np.logical_or(after_then, self.live)
            case For():
                for turn in statement.iterations:
                    if not np.any(self.live):
                        return
                    self.assign(statement.name, turn)
                    self.block(statement.body)

    def assign(self, name: str, value: Value) -> None:
        self.environment[name] = self.where_live(value, self.environment.get(name, 0))

    def where_live(self, value: Value, other: Value) -> Value:
        return value if self.live is True else np.where(self.live, value, other)
