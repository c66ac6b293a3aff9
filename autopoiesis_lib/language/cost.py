"""The worst-case operation count of a decision: loops multiply, branches take the costlier side, calls count in full.

Passes that walk a decision without running it (interval analysis, the encoding) visit both sides of every branch, and
every call. The size and the depth of that walk are bounded as well.
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
"""Greatest ratio of the operations on both sides of every branch to the operations that a decision may execute."""

MAX_DEPTH = 200
"""Greatest nesting depth of a decision with its helpers. Python's limit is 1,000 calls, and a level takes up to 3."""


def operations(module: Module, function: str) -> int:
    """Return the largest number of operations that `function` executes.

    Arithmetic, comparisons, calls, assignments and branches count 1 each. `min` and `max`, `and` and `or`, and chains
    of comparisons count 1 for every operand after the first.
    """
    return _Counter(module, max).function(function)


def check_cost(module: Module, function: str, limit: int) -> None:
    """Refuse a decision that may execute more than `limit` operations, or that has far more on all its paths together.

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
