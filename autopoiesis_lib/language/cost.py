"""The worst-case operation count of a decision: loops multiply, branches take the dearer side, calls are paid in full.

What walks a decision without running it (interval analysis, the encoding) goes down both sides of every branch, and down every
call: how much and how deep that is has a bound as well.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from .errors import unsupported
from .ir import (
    Assign,
    Call,
    Compare,
    Const,
    Field,
    For,
    If,
    Local,
    Logic,
    MinMax,
    Module,
    Node,
    Return,
    Stmt,
    ViewRef,
    children,
)

__all__ = ["check_cost", "check_depth", "operations"]

BOTH_SIDES = 16
"""Both sides of every branch together may have this many times the operations a decision may take."""

MAX_DEPTH = 200
"""How deeply a decision may nest, the helpers it calls included. Python's own limit is 1,000 calls, and a level takes up to 3."""


def operations(module: Module, function: str) -> int:
    """Operations `function` executes at most: arithmetic, comparisons, calls, assignments and branches count 1 each.

    `min` and `max`, `and` and `or`, and chains of comparisons count 1 for every operand after the first.
    """
    return _Counter(module, max).function(function)


def check_cost(module: Module, function: str, limit: int) -> None:
    """Refuse a decision that may take more than `limit` operations, or has far more of them on all its paths.

    Raises:
        LanguageError: UNSUPPORTED, naming the count and the bound.
    """
    count = operations(module, function)
    if count > limit:
        raise unsupported(
            module.functions[function].line,
            f"`{function}` may take {count:,} operations, and over {limit:,}",
            "shorten its loops or helpers",
        )
    count = _Counter(module, sum).function(function)
    if count > BOTH_SIDES * limit:
        raise unsupported(
            module.functions[function].line,
            f"`{function}` has {count:,} operations on both sides of its branches, and over {BOTH_SIDES * limit:,}",
            "call a helper before or after a branch instead of on both sides",
        )


def check_depth(module: Module, callees_first: Sequence[str], decisions: Iterable[str]) -> None:
    """Refuse decisions that nest deeper than `MAX_DEPTH` through their helpers.

    Raises:
        LanguageError: UNSUPPORTED, naming the depth.
    """
    known: dict[str, int] = {}
    for name in callees_first:
        known[name] = _depth(module.functions[name], known)
    for name in decisions:
        if known[name] > MAX_DEPTH:
            raise unsupported(
                module.functions[name].line,
                f"`{name}` nests {known[name]:,} levels with its helpers, deeper than {MAX_DEPTH}, and so",
                "let helpers call fewer others",
            )


def _depth(node: Node, known: Mapping[str, int]) -> int:
    called = known[node.function] if isinstance(node, Call) else 0
    return 1 + max([called, *(_depth(child, known) for child in children(node))])


class _Counter:
    def __init__(self, module: Module, sides: Callable[[Iterable[int]], int]) -> None:
        self.module = module
        self.sides = sides
        self.known: dict[str, int] = {}

    def function(self, name: str) -> int:
        if name not in self.known:
            self.known[name] = self.block(self.module.functions[name].body)
        return self.known[name]

    def block(self, body: tuple[Stmt, ...]) -> int:
        return sum(self.statement(statement) for statement in body)

    def statement(self, statement: Stmt) -> int:
        match statement:
            case Assign(_, value) | Return(value):
                return 1 + self.expression(value)
            case If(test, then, orelse):
                return 1 + self.expression(test) + self.sides((self.block(then), self.block(orelse)))
            case For():
                return len(statement.iterations) * (1 + self.block(statement.body))

    def expression(self, expression: Node) -> int:
        match expression:
            case Const() | Local() | Field() | ViewRef():
                return 0
            case Call(function, arguments):
                below = sum(self.expression(argument) for argument in arguments)
                return 1 + below + (self.function(function) if function in self.module.functions else 0)
            case Compare(_, operands) | Logic(_, operands) | MinMax(_, operands):
                return len(operands) - 1 + sum(self.expression(operand) for operand in operands)
            case _:
                return 1 + sum(self.expression(child) for child in children(expression))
