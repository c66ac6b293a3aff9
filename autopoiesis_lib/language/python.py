"""IR to Python: the text people read, and the function CPython runs.

A candidate's own text is never executed: what runs is printed from its IR, with no names but its own and the five builtins of
the language.
"""

import ast
import builtins
from collections.abc import Callable
from typing import Any

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
    Interface,
    Local,
    Logic,
    MinMax,
    Module,
    Negate,
    Not,
    Param,
    Return,
    Stmt,
    ToBool,
    ToInt,
    ViewRef,
)

__all__ = ["compile_python", "expression_source", "to_source"]

_BINARY: dict[str, ast.operator] = {
    "+": ast.Add(),
    "-": ast.Sub(),
    "*": ast.Mult(),
    "//": ast.FloorDiv(),
    "%": ast.Mod(),
    "**": ast.Pow(),
}
_COMPARE: dict[str, ast.cmpop] = {
    "==": ast.Eq(),
    "!=": ast.NotEq(),
    "<": ast.Lt(),
    "<=": ast.LtE(),
    ">": ast.Gt(),
    ">=": ast.GtE(),
}


def to_source(module: Module, interface: Interface | None = None, *, docstrings: bool = True) -> str:
    """The module as a policy text; with an interface, the imports of the views it uses come first."""
    functions = [_function(function, docstrings) for function in module.functions.values()]
    text = "\n\n\n".join(ast.unparse(ast.fix_missing_locations(function)) for function in functions) + "\n"
    if interface is None:
        return text
    used = sorted({param.type for function in module.functions.values() for param in function.params if param.is_view})
    return f"from {interface.modules[0]} import {', '.join(used)}\n\n\n{text}"


def expression_source(expression: Expr) -> str:
    """One expression as text."""
    return ast.unparse(ast.fix_missing_locations(ast.Expression(_expression(expression))))


def compile_python(module: Module) -> dict[str, Callable[..., int]]:
    """Every function of the module as a CPython function over objects with the views' fields as attributes."""
    tree = ast.Module(
        [_function(function, docstrings=False, annotations=False) for function in module.functions.values()], []
    )
    names = {name: getattr(builtins, name) for name in ("min", "max", "abs", "int", "bool", "range")}
    namespace: dict[str, Any] = {"__builtins__": names}
    exec(compile(ast.fix_missing_locations(tree), "<policy>", "exec"), namespace)
    return {name: namespace[name] for name in module.functions}


def _function(function: Function, docstrings: bool, annotations: bool = True) -> ast.FunctionDef:
    body: list[ast.stmt] = [_statement(statement) for statement in function.body]
    if docstrings and function.doc:
        body.insert(0, ast.Expr(ast.Constant(function.doc)))
    arguments = [_argument(param, annotations) for param in function.params]
    returns = _name("bool" if function.returns_bool else "int") if annotations else None
    return ast.FunctionDef(
        name=function.name,
        args=ast.arguments(posonlyargs=[], args=arguments, kwonlyargs=[], kw_defaults=[], defaults=[]),
        body=body,
        decorator_list=[],
        returns=returns,
        **_TYPE_PARAMS,
    )


_TYPE_PARAMS: dict[str, Any] = {"type_params": []} if "type_params" in ast.FunctionDef._fields else {}


def _argument(param: Param, annotations: bool) -> ast.arg:
    return ast.arg(param.name, _name(param.type) if annotations else None)


def _name(name: str, store: bool = False) -> ast.Name:
    return ast.Name(name, ast.Store() if store else ast.Load())


def _block(body: tuple[Stmt, ...]) -> list[ast.stmt]:
    return [_statement(statement) for statement in body] or [ast.Pass()]


def _statement(statement: Stmt) -> ast.stmt:
    match statement:
        case Assign(name, value):
            return ast.Assign([_name(name, store=True)], _expression(value))
        case Return(value):
            return ast.Return(_expression(value))
        case If(test, then, orelse):
            return ast.If(_expression(test), _block(then), [_statement(item) for item in orelse])
        case For(name, start, stop, step, body):
            bounds = [stop] if (start, step) == (0, 1) else [start, stop] if step == 1 else [start, stop, step]
            call = ast.Call(_name("range"), [_integer(bound) for bound in bounds], [])
            return ast.For(_name(name, store=True), call, _block(body), [])


def _integer(value: int) -> ast.expr:
    return ast.Constant(value) if value >= 0 else ast.UnaryOp(ast.USub(), ast.Constant(-value))


def _expression(expression: Expr) -> ast.expr:
    match expression:
        case Const(value, is_bool):
            return ast.Constant(bool(value)) if is_bool else _integer(value)
        case Local(name):
            return _name(name)
        case Field(view, name):
            return ast.Attribute(_name(view), name, ast.Load())
        case Negate(operand):
            return ast.UnaryOp(ast.USub(), _expression(operand))
        case Not(operand):
            return ast.UnaryOp(ast.Not(), _expression(operand))
        case Binary(op, left, right):
            return ast.BinOp(_expression(left), _BINARY[op], _expression(right))
        case Compare(ops, operands):
            first, *rest = operands
            return ast.Compare(_expression(first), [_COMPARE[op] for op in ops], [_expression(item) for item in rest])
        case Logic(op, operands):
            return ast.BoolOp(ast.And() if op == "and" else ast.Or(), [_expression(item) for item in operands])
        case Cond(test, then, orelse):
            return ast.IfExp(_expression(test), _expression(then), _expression(orelse))
        case MinMax(op, operands):
            return _call(op, operands)
        case Abs(operand):
            return _call("abs", (operand,))
        case ToInt(operand):
            return _call("int", (operand,))
        case ToBool(operand):
            return _call("bool", (operand,))
        case Call(name, arguments):
            return _call(name, arguments)


def _call(name: str, arguments: tuple[Expr | ViewRef, ...]) -> ast.Call:
    read = [_name(item.name) if isinstance(item, ViewRef) else _expression(item) for item in arguments]
    return ast.Call(_name(name), read, [])
