"""The intermediate representation: the one typed tree from which every semantics of a policy is derived.

Every value is an integer or a boolean. Views appear only as named parameters whose fields are read. Nodes are frozen,
are identified by object identity (`id`), so that a pass can refer to "this division", and carry their source line.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..view import Domain, View

__all__ = [
    "PARTS",
    "Abs",
    "Assign",
    "Binary",
    "Call",
    "Compare",
    "Cond",
    "Const",
    "Expr",
    "Field",
    "For",
    "Function",
    "If",
    "Interface",
    "Local",
    "Logic",
    "MinMax",
    "Module",
    "Negate",
    "Not",
    "Param",
    "Return",
    "Signature",
    "Stmt",
    "ToBool",
    "ToInt",
    "ViewRef",
    "walk",
]

ArithmeticOp = Literal["+", "-", "*", "//", "%", "**"]
CompareOp = Literal["==", "!=", "<", "<=", ">", ">="]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Node:
    """The base of every node: the source line it came from (0 when made by a program)."""

    line: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class Const(Node):
    """An integer or boolean constant (an enum member is its integer)."""

    value: int
    is_bool: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Local(Node):
    """A read of a scalar parameter or local variable."""

    name: str
    is_bool: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Field(Node):
    """A read of `view.field`, where `view` is a parameter of the enclosing function."""

    view: str
    name: str
    is_bool: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Negate(Node):
    """Arithmetic negation."""

    operand: "Expr"
    is_bool: bool = field(default=False, init=False)


@dataclass(frozen=True, eq=False, slots=True)
class Not(Node):
    """`not x`; the operand is taken as a truth value."""

    operand: "Expr"
    is_bool: bool = field(default=True, init=False)


@dataclass(frozen=True, eq=False, slots=True)
class Binary(Node):
    """Integer arithmetic with Python's semantics: `//` floors, `%` takes the divisor's sign.

    `**` has a constant exponent.
    """

    op: ArithmeticOp
    left: "Expr"
    right: "Expr"
    is_bool: bool = field(default=False, init=False)


@dataclass(frozen=True, eq=False, slots=True)
class Compare(Node):
    """A comparison chain: `operands[0] ops[0] operands[1] ops[1] ...`, lazy from left to right."""

    ops: tuple[CompareOp, ...]
    operands: tuple["Expr", ...]
    is_bool: bool = field(default=True, init=False)


@dataclass(frozen=True, eq=False, slots=True)
class Logic(Node):
    """`and` / `or`: lazy, with the value of the operand that decided it."""

    op: Literal["and", "or"]
    operands: tuple["Expr", ...]

    @property
    def is_bool(self) -> bool:
        """True when every operand is a boolean."""
        return all(operand.is_bool for operand in self.operands)


@dataclass(frozen=True, eq=False, slots=True)
class Cond(Node):
    """`then if test else orelse`."""

    test: "Expr"
    then: "Expr"
    orelse: "Expr"

    @property
    def is_bool(self) -> bool:
        """True when both values are booleans."""
        return self.then.is_bool and self.orelse.is_bool


@dataclass(frozen=True, eq=False, slots=True)
class MinMax(Node):
    """`min` or `max` of two or more values; equals keep the first (its value, whichever the type)."""

    op: Literal["min", "max"]
    operands: tuple["Expr", ...]

    @property
    def is_bool(self) -> bool:
        """True when every operand is a boolean."""
        return all(operand.is_bool for operand in self.operands)


@dataclass(frozen=True, eq=False, slots=True)
class Abs(Node):
    """`abs(x)`."""

    operand: "Expr"
    is_bool: bool = field(default=False, init=False)


@dataclass(frozen=True, eq=False, slots=True)
class ToInt(Node):
    """`int(x)` of a boolean or integer."""

    operand: "Expr"
    is_bool: bool = field(default=False, init=False)


@dataclass(frozen=True, eq=False, slots=True)
class ToBool(Node):
    """`bool(x)`."""

    operand: "Expr"
    is_bool: bool = field(default=True, init=False)


@dataclass(frozen=True, eq=False, slots=True)
class ViewRef(Node):
    """A whole view passed to a function: the name of the enclosing function's parameter."""

    name: str


@dataclass(frozen=True, eq=False, slots=True)
class Call(Node):
    """A call of a helper or decision; views are passed by reference, scalars by value."""

    function: str
    arguments: tuple["Expr | ViewRef", ...]
    is_bool: bool = False


Expr = Const | Local | Field | Negate | Not | Binary | Compare | Logic | Cond | MinMax | Abs | ToInt | ToBool | Call


@dataclass(frozen=True, eq=False, slots=True)
class Assign(Node):
    """`name = value`."""

    name: str
    value: Expr


@dataclass(frozen=True, eq=False, slots=True)
class If(Node):
    """`if test: then else: orelse`."""

    test: Expr
    then: tuple["Stmt", ...]
    orelse: tuple["Stmt", ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Return(Node):
    """`return value`."""

    value: Expr


@dataclass(frozen=True, eq=False, slots=True)
class For(Node):
    """`for name in range(start, stop, step)` with constant bounds."""

    name: str
    start: int
    stop: int
    step: int
    body: tuple["Stmt", ...]

    @property
    def iterations(self) -> range:
        """The values the loop variable takes."""
        return range(self.start, self.stop, self.step)


Stmt = Assign | If | Return | For


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter: a view (by its class name), or a scalar `int` / `bool`."""

    name: str
    type: str

    @property
    def is_view(self) -> bool:
        """True when the parameter is a view."""
        return self.type not in ("int", "bool")


@dataclass(frozen=True, eq=False, slots=True)
class Function(Node):
    """A function that returns on every path, and assigns every local before reading it."""

    name: str
    params: tuple[Param, ...]
    body: tuple[Stmt, ...]
    returns_bool: bool = False
    doc: str = ""


@dataclass(frozen=True, eq=False, slots=True)
class Module:
    """A policy: its functions in source order (callees may come later; there is no recursion)."""

    functions: Mapping[str, Function]
    views: Mapping[str, type[View]]
    """View classes by the name they have in the text."""
    enums: Mapping[str, type] = field(default_factory=dict)


@dataclass(frozen=True)
class Signature:
    """A decision as the contract declares it: parameters in order, and the domain of the result."""

    name: str
    params: tuple[Param, ...]
    result: Domain
    doc: str = ""


@dataclass(frozen=True)
class Interface:
    """The names of a policy text: decisions it must define, views and enums it may import, and their modules."""

    decisions: Mapping[str, Signature]
    views: Mapping[str, type[View]]
    enums: Mapping[str, type]
    modules: tuple[str, ...]
    """Modules from which the views may be imported; the first is shown in examples."""
    max_operations: int = 1_024
    """Greatest worst-case operation count of a decision."""


PARTS: Mapping[type[Node], tuple[str, ...]] = {
    **dict.fromkeys((Const, Local, Field, ViewRef), ()),
    **dict.fromkeys((Negate, Not, Abs, ToInt, ToBool), ("operand",)),
    **dict.fromkeys((Compare, Logic, MinMax), ("operands",)),
    **dict.fromkeys((Cond, If), ("test", "then", "orelse")),
    **dict.fromkeys((Assign, Return), ("value",)),
    **dict.fromkeys((For, Function), ("body",)),
    Binary: ("left", "right"),
    Call: ("arguments",),
}
"""Map from a kind of node to its fields that hold other nodes, in source order."""


def children(node: Node) -> list[Node]:
    """Return the nodes directly below one, in source order."""
    found: list[Node] = []
    for name in PARTS[type(node)]:
        value = getattr(node, name)
        if isinstance(value, Node):
            found.append(value)
        elif isinstance(value, tuple):
            found += value
    return found


def walk(node: Node) -> Iterator[Node]:
    """Yield every node below and including `node`, outer ones first."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        below = children(current)
        below.reverse()
        stack += below
