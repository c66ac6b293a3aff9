"""Rewriting of the policy IR: find and replace expressions, insert foreign ones, and keep the result small."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from ..language.ir import (
    PARTS,
    Binary,
    Call,
    Cond,
    Const,
    Expr,
    Field,
    Function,
    If,
    Local,
    MinMax,
    Module,
    Node,
    Return,
    ViewRef,
    children,
    walk,
)
from ..view import INT64_MAX, INT64_MIN

N = TypeVar("N", bound=Node)

__all__ = ["Site", "copy", "rename_views", "replace_in", "returns", "simplify", "sites", "size", "with_function"]


@dataclass(frozen=True, eq=False)
class Site:
    """An expression and the function that contains it."""

    function: Function
    node: Expr

    @property
    def views(self) -> Mapping[str, str]:
        """The views that can be read in the function: parameter name -> view class name."""
        return {param.name: param.type for param in self.function.params if param.is_view}


def size(node: Node | Module) -> int:
    """Return the number of nodes of a tree."""
    if isinstance(node, Module):
        return sum(size(function) for function in node.functions.values())
    return sum(1 for _ in walk(node))


def sites(module: Module) -> list[Site]:
    """Return every expression of a module in source order.

    The exponent of a `**` is left out, because it must stay constant.
    """
    found: list[Site] = []
    for function in module.functions.values():
        fixed = {id(node.right) for node in walk(function) if isinstance(node, Binary) and node.op == "**"}
        found += [Site(function, node) for node in walk(function) if isinstance(node, Expr) and id(node) not in fixed]
    return found


def returns(function: Function) -> list[Return]:
    """Return the return statements of a function in source order."""
    return [node for node in walk(function) if isinstance(node, Return)]


def replace_in(root: N, target: Node, new: Node) -> N:
    """Return the tree with one node (by identity) replaced.

    Unchanged branches are shared with the original.
    """
    result = _replace(root, target, new)
    assert type(result) is type(root) or root is target
    return result  # type: ignore[return-value]


def copy(node: N) -> N:
    """Return the same tree with new identities, so that it may occur twice in one module."""
    return _map(node, {})


def rename_views(node: N, names: Mapping[str, str]) -> N:
    """Return a copy in which reads of view parameters use other parameter names."""
    return _map(node, names)


def with_function(module: Module, function: Function) -> Module:
    """Return the module with one function replaced by another of the same name."""
    return replace(module, functions={**module.functions, function.name: function})


def simplify(node: N) -> N:
    """Return the tree without redundant operations: folded constants, neutral elements, equal branches.

    A tree that is already simple is returned unchanged.
    """
    changes: dict[str, Any] = {}
    for name in PARTS[type(node)]:
        value = getattr(node, name)
        changed = _simplified(value)
        if changed is not value:
            changes[name] = changed
    result: Node = replace(node, **changes) if changes else node
    if not isinstance(result, (Binary, MinMax, Cond, If)):
        return result  # type: ignore[return-value]
    match result:
        case Binary(op, Const(a), Const(b)) if op in "+-*" or (op == "//" and b != 0):
            value = {"+": a + b, "-": a - b, "*": a * b, "//": a // b if b else 0}[op]
            return Const(value) if INT64_MIN <= value <= INT64_MAX else result  # type: ignore[return-value]
        case (
            Binary("+", left, Const(0))
            | Binary("-", left, Const(0))
            | Binary("*", left, Const(1))
            | Binary("//", left, Const(1))
        ):
            return left  # type: ignore[return-value]
        case Binary("+", Const(0), right) | Binary("*", Const(1), right):
            return right  # type: ignore[return-value]
        case Binary("*", _, Const(0)) | Binary("*", Const(0), _):
            return Const(0)  # type: ignore[return-value]
        case Binary("+", left, Binary("*", inner, Const(c))) if c < 0:
            return Binary("-", left, simplify(Binary("*", inner, Const(-c))))  # type: ignore[return-value]
        case Binary("-", left, Binary("*", inner, Const(c))) if c < 0:
            return Binary("+", left, simplify(Binary("*", inner, Const(-c))))  # type: ignore[return-value]
        case Binary("+", left, Const(c)) if c < 0:
            return Binary("-", left, Const(-c))  # type: ignore[return-value]
        case Binary("*", Binary("*", inner, Const(a)), Const(b)) if INT64_MIN <= a * b <= INT64_MAX:
            return Binary("*", inner, Const(a * b))  # type: ignore[return-value]
        case MinMax(op, (MinMax(inner_op, (inner, Const(a))), Const(b))) if op == inner_op:
            return MinMax(op, (inner, Const(min(a, b) if op == "min" else max(a, b))))  # type: ignore[return-value]
        case Cond(_, then, orelse) if _same(then, orelse):
            return then  # type: ignore[return-value]
        case Cond(Const(value), then, orelse):
            return then if value else orelse  # type: ignore[return-value]
        case If(_, then_block, else_block) if then_block and _same_block(then_block, else_block):
            return replace(result, test=Const(1, True))  # type: ignore[return-value]
    return result  # type: ignore[return-value]


def _simplified(value: object) -> object:
    if isinstance(value, Node):
        return simplify(value)
    if isinstance(value, tuple) and value and isinstance(value[0], Node):
        parts = tuple(simplify(item) for item in value)
        return value if all(x is y for x, y in zip(parts, value, strict=True)) else parts
    return value


def _same(a: Node, b: Node) -> bool:
    if type(a) is not type(b):
        return False
    for item in fields(a):
        if item.name == "line":
            continue
        left, right = getattr(a, item.name), getattr(b, item.name)
        if isinstance(left, Node):
            if not (isinstance(right, Node) and _same(left, right)):
                return False
        elif isinstance(left, tuple) and left and isinstance(left[0], Node):
            if not (isinstance(right, tuple) and _same_block(left, right)):
                return False
        elif left != right:
            return False
    return True


def _same_block(a: Sequence[Node], b: Sequence[Node]) -> bool:
    return len(a) == len(b) and all(_same(left, right) for left, right in zip(a, b, strict=True))


def _replace(root: Node, target: Node, new: Node) -> Node:
    if root is target:
        return new
    changes: dict[str, Any] = {}
    for name in PARTS[type(root)]:
        value = getattr(root, name)
        if isinstance(value, Node):
            changed: object = _replace(value, target, new)
        elif isinstance(value, tuple) and value and isinstance(value[0], Node):
            parts = tuple(_replace(part, target, new) for part in value)
            changed = value if all(x is y for x, y in zip(parts, value, strict=True)) else parts
        else:
            continue
        if changed is not value:
            changes[name] = changed
    return replace(root, **changes) if changes else root


def _map(node: N, names: Mapping[str, str]) -> N:
    changes: dict[str, Any] = {}
    for name in PARTS[type(node)]:
        value = getattr(node, name)
        if isinstance(value, Node):
            changes[name] = _map(value, names)
        elif isinstance(value, tuple) and value and isinstance(value[0], Node):
            changes[name] = tuple(_map(part, names) for part in value)
    if isinstance(node, Field) and node.view in names:
        changes["view"] = names[node.view]
    if isinstance(node, ViewRef) and node.name in names:
        changes["name"] = names[node.name]
    return replace(node, **changes)


def free_of_locals(node: Node) -> bool:
    """Return True if an expression can be moved to another function.

    Such an expression reads no local variable, calls no helper and passes no view.
    """
    return not any(isinstance(part, (Local, Call, ViewRef)) for part in walk(node))


def descend(node: Node) -> Iterator[Node]:
    """Yield the direct children of a node that are expressions."""
    return (child for child in children(node) if isinstance(child, Expr))
