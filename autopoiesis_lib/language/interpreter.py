"""The reference semantics: a direct evaluator of the IR that checks every obligation.

It is the executable specification that the SMT, Python and native semantics are tested against. It also names the
operation that failed, which counterexamples show.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from ..view import INT64_MAX, INT64_MIN
from .ir import (
    Abs,
    Assign,
    Binary,
    Call,
    Compare,
    CompareOp,
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
    Module,
    Negate,
    Node,
    Not,
    Return,
    Stmt,
    ToBool,
    ToInt,
    ViewRef,
)

__all__ = ["Fault", "Rows", "evaluate", "evaluate_constant"]

SHOWN_IN_FULL = 10**40
"""Bound on values shown in full: a power may have hundreds of digits, which help nobody."""

Rows = Mapping[str, int]
"""One view: a map from a field name to its integer."""


class Fault(ArithmeticError):
    """An operation that a policy must never reach, at `node`."""

    def __init__(self, kind: Literal["division by zero", "int64 overflow"], node: Node, detail: str) -> None:
        super().__init__(f"{kind} on line {node.line}: {detail}")
        self.kind: Literal["division by zero", "int64 overflow"] = kind
        self.node = node


def evaluate(module: Module, function: str, arguments: Sequence[Rows | int]) -> int:
    """Return the value of a function for views given as rows and scalars given as ints (a bool result is 0 or 1).

    Raises:
        Fault: a zero divisor, or an intermediate outside int64.
    """
    return _Evaluator(module).call(module.functions[function], arguments)


def evaluate_constant(expression: Expr) -> int:
    """Return the value of an expression that reads nothing.

    Raise `LookupError` if it does read something, `Fault` if it fails.
    """
    return _Evaluator(Module({}, {})).expression(expression, {})


_COMPARE: Mapping[CompareOp, Callable[[int, int], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}

Environment = dict[str, "int | Rows"]


class _Evaluator:
    def __init__(self, module: Module) -> None:
        self.module = module

    def call(self, function: Function, arguments: Sequence[Rows | int]) -> int:
        environment: Environment = {
            param.name: argument for param, argument in zip(function.params, arguments, strict=True)
        }
        result = self.block(function.body, environment)
        if result is None:
            raise LookupError(f"`{function.name}` ended without returning")
        return result

    def block(self, body: tuple[Stmt, ...], environment: Environment) -> int | None:
        for statement in body:
            match statement:
                case Assign(name, value):
                    environment[name] = self.expression(value, environment)
                case Return(value):
                    return self.expression(value, environment)
                case If(test, then, orelse):
                    result = self.block(then if self.expression(test, environment) else orelse, environment)
                    if result is not None:
                        return result
                case For():
                    for turn in statement.iterations:
                        environment[statement.name] = turn
                        result = self.block(statement.body, environment)
                        if result is not None:
                            return result
        return None

    def expression(self, expression: Expr, environment: Environment) -> int:
        match expression:
            case Const(value):
                return value
            case Local(name):
                local = environment[name]
                assert isinstance(local, int)
                return local
            case Field(view, name):
                row = environment[view]
                assert not isinstance(row, int)
                return row[name]
            case Negate(operand):
                return self._fits(-self.expression(operand, environment), expression)
            case Not(operand):
                return int(not self.expression(operand, environment))
            case Abs(operand):
                return self._fits(abs(self.expression(operand, environment)), expression)
            case ToInt(operand):
                return self.expression(operand, environment)
            case ToBool(operand):
                return int(bool(self.expression(operand, environment)))
            case Binary():
                return self._binary(expression, environment)
            case Compare(ops, operands):
                left = self.expression(operands[0], environment)
                for op, operand in zip(ops, operands[1:], strict=True):
                    right = self.expression(operand, environment)
                    if not _COMPARE[op](left, right):
                        return 0
                    left = right
                return 1
            case Logic(op, operands):
                value = 0
                for operand in operands:
                    value = self.expression(operand, environment)
                    if bool(value) == (op == "or"):
                        return value
                return value
            case Cond(test, then, orelse):
                return self.expression(then if self.expression(test, environment) else orelse, environment)
            case MinMax(op, operands):
                values = [self.expression(operand, environment) for operand in operands]
                return min(values) if op == "min" else max(values)
            case Call(name, arguments):
                passed = [
                    environment[argument.name]
                    if isinstance(argument, ViewRef)
                    else self.expression(argument, environment)
                    for argument in arguments
                ]
                return self.call(self.module.functions[name], passed)

    def _binary(self, node: Binary, environment: Environment) -> int:
        left = self.expression(node.left, environment)
        right = self.expression(node.right, environment)
        match node.op:
            case "+":
                value = left + right
            case "-":
                value = left - right
            case "*":
                value = left * right
            case "**":
                value = left**right
            case "//" | "%":
                if right == 0:
                    raise Fault("division by zero", node, f"{left} {node.op} 0")
                value = left // right if node.op == "//" else left % right
        return self._fits(value, node)

    @staticmethod
    def _fits(value: int, node: Node) -> int:
        if not INT64_MIN <= value <= INT64_MAX:
            shown = (
                f"the value {value:,}" if abs(value) < SHOWN_IN_FULL else f"a value of {len(str(abs(value)))} digits"
            )
            raise Fault("int64 overflow", node, f"{shown} does not fit")
        return value
