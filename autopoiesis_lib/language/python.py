"""IR to Python: the text that people read, and the function that CPython runs.

A candidate's own text is never executed. The executed text is printed from its IR, with no names but its own and the
builtins of the language. The text equals that of `ast.unparse`, which the tests check. It is printed directly from the
IR, because every candidate is printed several times and digests must not depend on the version of Python.
"""

import builtins
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
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
    Return,
    Stmt,
    ToBool,
    ToInt,
    ViewRef,
)

__all__ = ["compile_python", "expression_source", "to_source"]


class _Level(IntEnum):
    """Binding strength of the parts of an expression, loosest first; the missing bit operators leave a gap."""

    TEST = 1
    OR = 2
    AND = 3
    NOT = 4
    COMPARE = 5
    SUM = 10
    TERM = 11
    FACTOR = 12
    POWER = 13
    ATOM = 15


_BINARY: Mapping[str, _Level] = {
    "+": _Level.SUM,
    "-": _Level.SUM,
    "*": _Level.TERM,
    "//": _Level.TERM,
    "%": _Level.TERM,
    "**": _Level.POWER,
}


def to_source(module: Module, interface: Interface | None = None) -> str:
    """Return the module as a policy text without docstrings; with an interface, the imports of its views come first."""
    text = "\n\n\n".join("\n".join(_function(function)) for function in module.functions.values()) + "\n"
    if interface is None:
        return text
    used = sorted({param.type for function in module.functions.values() for param in function.params if param.is_view})
    return f"from {interface.modules[0]} import {', '.join(used)}\n\n\n{text}"


def expression_source(expression: Expr) -> str:
    """Return one expression as text."""
    return _expression(expression, _Level.TEST)


def compile_python(module: Module) -> dict[str, Callable[..., int]]:
    """Compile every function of the module to a CPython function over objects with the views' fields as attributes."""
    text = "\n".join(line for function in module.functions.values() for line in _function(function, annotations=False))
    names = {name: getattr(builtins, name) for name in ("min", "max", "abs", "int", "bool", "range")}
    namespace: dict[str, Any] = {"__builtins__": names}
    exec(compile(text, "<policy>", "exec", dont_inherit=True), namespace)
    return {name: namespace[name] for name in module.functions}


def _function(function: Function, annotations: bool = True) -> Iterator[str]:
    if annotations:
        params = ", ".join(f"{param.name}: {param.type}" for param in function.params)
        yield f"def {function.name}({params}) -> {'bool' if function.returns_bool else 'int'}:"
    else:
        yield f"def {function.name}({', '.join(param.name for param in function.params)}):"
    yield from _block(function.body, "    ")


def _block(body: tuple[Stmt, ...], indent: str) -> Iterator[str]:
    if not body:
        yield f"{indent}pass"
    for statement in body:
        yield from _statement(statement, indent)


def _statement(statement: Stmt, indent: str) -> Iterator[str]:
    match statement:
        case Assign(name, value):
            yield f"{indent}{name} = {expression_source(value)}"
        case Return(value):
            yield f"{indent}return {expression_source(value)}"
        case If():
            yield from _if(statement, indent)
        case For(name, start, stop, step, body):
            bounds = (stop,) if (start, step) == (0, 1) else (start, stop) if step == 1 else (start, stop, step)
            yield f"{indent}for {name} in range({', '.join(map(str, bounds))}):"
            yield from _block(body, f"{indent}    ")


def _if(statement: If, indent: str) -> Iterator[str]:
    word, inner = "if", f"{indent}    "
    while True:
        yield f"{indent}{word} {expression_source(statement.test)}:"
        yield from _block(statement.then, inner)
        match statement.orelse:
            case (If() as statement,):
                word = "elif"
            case ():
                return
            case orelse:
                yield f"{indent}else:"
                yield from _block(orelse, inner)
                return


def _expression(expression: Expr, level: int) -> str:
    """Return the text of an expression, in parentheses where it binds more loosely than the context requires."""
    match expression:
        case Const(value, is_bool):
            if is_bool:
                return str(bool(value))
            return str(value) if value >= 0 else _within(level, _Level.FACTOR, str(value))
        case Field(view, name):
            return f"{view}.{name}"
        case Local(name):
            return name
        case Binary(op, left, right):
            own = _BINARY[op]
            before, after = (own + 1, own) if op == "**" else (own, own + 1)
            return _within(level, own, f"{_expression(left, before)} {op} {_expression(right, after)}")
        case MinMax(op, operands):
            return _call(op, operands)
        case Cond(test, then, orelse):
            inner = _Level.TEST + 1
            text = f"{_expression(then, inner)} if {_expression(test, inner)} else {_expression(orelse, _Level.TEST)}"
            return _within(level, _Level.TEST, text)
        case Compare(ops, operands):
            first, *rest = (_expression(item, _Level.COMPARE + 1) for item in operands)
            text = " ".join([first, *(f"{op} {item}" for op, item in zip(ops, rest, strict=True))])
            return _within(level, _Level.COMPARE, text)
        case Logic(op, operands):
            own = _Level.AND if op == "and" else _Level.OR
            # each operand binds more tightly than the one before, as `ast.unparse` has it
            texts = [_expression(item, min(own + 1 + i, _Level.ATOM)) for i, item in enumerate(operands)]
            return _within(level, own, f" {op} ".join(texts))
        case Not(operand):
            return _within(level, _Level.NOT, f"not {_expression(operand, _Level.NOT)}")
        case Negate(operand):
            return _within(level, _Level.FACTOR, f"-{_expression(operand, _Level.FACTOR)}")
        case Abs(operand):
            return _call("abs", (operand,))
        case ToInt(operand):
            return _call("int", (operand,))
        case ToBool(operand):
            return _call("bool", (operand,))
        case Call(name, arguments):
            return _call(name, arguments)


def _within(level: int, own: int, text: str) -> str:
    return f"({text})" if level > own else text


def _call(name: str, arguments: tuple[Expr | ViewRef, ...]) -> str:
    read = [item.name if isinstance(item, ViewRef) else _expression(item, _Level.TEST) for item in arguments]
    return f"{name}({', '.join(read)})"
