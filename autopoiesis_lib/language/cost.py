"""The worst-case operation count of a decision: loops multiply, branches take the dearer side, calls are paid in full."""

from .errors import unsupported
from .ir import Assign, Call, Const, Field, For, If, Local, Module, Node, Return, Stmt, ViewRef, children

__all__ = ["check_cost", "operations"]


def operations(module: Module, function: str) -> int:
    """Operations `function` executes at most: arithmetic, comparisons, calls, assignments and branches count 1 each."""
    return _Counter(module).function(function)


def check_cost(module: Module, function: str, limit: int) -> None:
    """Refuse a decision that may take more than `limit` operations.

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


class _Counter:
    def __init__(self, module: Module) -> None:
        self.module = module
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
                return 1 + self.expression(test) + max(self.block(then), self.block(orelse))
            case For():
                return len(statement.iterations) * (1 + self.block(statement.body))

    def expression(self, expression: Node) -> int:
        match expression:
            case Const() | Local() | Field() | ViewRef():
                return 0
            case Call(function, arguments):
                below = sum(self.expression(argument) for argument in arguments)
                return 1 + below + (self.function(function) if function in self.module.functions else 0)
            case _:
                return 1 + sum(self.expression(child) for child in children(expression))
