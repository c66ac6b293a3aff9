"""Expressions to IR: names, fields, arithmetic and calls, each with its type. Anything else is refused by name."""

import ast
import builtins
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NoReturn

from ..view import INT64_MAX, INT64_MIN, View
from .errors import invalid, unsupported
from .ir import (
    Abs,
    ArithmeticOp,
    Binary,
    Call,
    Compare,
    CompareOp,
    Cond,
    Const,
    Expr,
    Field,
    Local,
    Logic,
    MinMax,
    Negate,
    Not,
    Param,
    Signature,
    ToBool,
    ToInt,
    ViewRef,
)

__all__ = ["ExpressionReader", "Scope", "annotation_name"]

MAX_DEPTH = 100
"""Greatest nesting depth of statements and expressions (an `elif` counts as one level)."""

MAX_EXPONENT = 64

ARITHMETIC: Mapping[type[ast.operator], ArithmeticOp] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
}
COMPARISONS: Mapping[type[ast.cmpop], CompareOp] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
INSTEAD: Mapping[str, tuple[str, str]] = {
    "While": ("`while`", "use `for i in range(N)` with a constant N"),
    "Try": ("`try`", "guard the operation with `if`"),
    "With": ("`with`", "a policy has no resources"),
    "Raise": ("`raise`", "return a value on every path"),
    "Assert": ("`assert`", "state it as an assumption of the contract"),
    "Global": ("`global`", "return the value instead"),
    "Nonlocal": ("`nonlocal`", "return the value instead"),
    "Delete": ("`del`", "leave the name alone"),
    "FunctionDef": ("a function inside a function", "move it to the top level"),
    "ClassDef": ("a class", "use helper functions"),
    "Import": ("an import inside a function", "import views at the top"),
    "ImportFrom": ("an import inside a function", "import views at the top"),
    "Break": ("`break`", "use a flag or an early `return`"),
    "Continue": ("`continue`", "put the rest of the body under `if`"),
    "Match": ("`match`", "use `if` / `elif`"),
    "Lambda": ("`lambda`", "write a helper function"),
    "ListComp": ("a comprehension", "use a bounded `for` loop"),
    "SetComp": ("a comprehension", "use a bounded `for` loop"),
    "DictComp": ("a comprehension", "use a bounded `for` loop"),
    "GeneratorExp": ("a generator", "use a bounded `for` loop"),
    "JoinedStr": ("a string", "use integers and enum members"),
    "List": ("a list", "use separate variables"),
    "Tuple": ("a tuple", "use separate variables"),
    "Dict": ("a dict", "use `if` / `elif`"),
    "Set": ("a set", "use comparisons"),
    "Subscript": ("indexing", "read view fields by name"),
    "NamedExpr": ("`:=`", "assign on a line of its own"),
    "Await": ("`await`", "a policy is a plain function"),
    "Yield": ("`yield`", "use `return`"),
    "Starred": ("`*` unpacking", "pass arguments one by one"),
}


@dataclass(frozen=True)
class Scope:
    """The names a function body may use besides its own parameters and locals."""

    views: Mapping[str, type[View]]
    enums: Mapping[str, type]
    constants: Mapping[str, Const]
    functions: Mapping[str, tuple[tuple[Param, ...], bool]]
    """Helpers by name: parameters, and true for those that return a bool."""
    taken: frozenset[str]
    """Names that locals may not shadow."""
    self_path: tuple[str, ...] = ()
    """Path of the policy in a contract's own methods, such as ("self",) or ("self", "policy")."""
    decisions: Mapping[str, Signature] = field(default_factory=dict)
    """Decisions that may be called through `self_path`."""
    parameters: Mapping[str, Const] = field(default_factory=dict)
    """Contract parameters that may be read through `parameters_path`."""

    @property
    def parameters_path(self) -> tuple[str, ...]:
        """The path of the contract: `self` in its own methods, `self.contract` in a theorem's.

        In a theorem's methods decisions are those of `self.policy`.
        """
        return self.self_path if len(self.self_path) < 2 else (self.self_path[0], "contract")


def annotation_name(annotation: ast.expr) -> str | None:
    """Return the plain name of an annotation, quoted or not; None for any other annotation."""
    match annotation:
        case ast.Name(id=name):
            return name
        case ast.Constant(value=str() as name) if name.isidentifier():
            return name
        case ast.Constant(value=None):
            return "None"
    return None


class ExpressionReader:
    """Reads expressions inside one function; `FunctionReader` adds the statements."""

    def __init__(self, name: str, params: tuple[Param, ...], returns_bool: bool, scope: Scope) -> None:
        self.name = name
        self.returns_bool = returns_bool
        self.scope = scope
        self.views = {param.name: param.type for param in params if param.is_view}
        self.locals: dict[str, bool] = {param.name: param.type == "bool" for param in params if not param.is_view}
        """Map from a scalar to true for booleans. A local's type is that of its first assignment."""
        self.assigned: set[str] = set(self.locals)
        """Locals that are certainly assigned at the current point."""
        self.depth = 0

    def expression(self, node: ast.expr) -> Expr:
        """Read one expression."""
        self._enter(node)
        result = self._expression(node)
        self.depth -= 1
        return result

    def _expression(self, node: ast.expr) -> Expr:
        line = node.lineno
        match node:
            case ast.Constant(value=value):
                return self._constant(value, line)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as value)) if not isinstance(value, bool):
                return self._constant(-value, line)
            case ast.Name(id=name):
                return self._name(name, line)
            case ast.Attribute():
                return self._attribute(node)
            case ast.UnaryOp(op=operator, operand=operand):
                return self._unary(operator, self.expression(operand), line)
            case ast.BinOp(left=left, op=operator, right=right):
                return self._binary(operator, self.expression(left), self.expression(right), node)
            case ast.BoolOp(op=operator, values=values):
                read = tuple(self.expression(value) for value in values)
                return Logic("and" if isinstance(operator, ast.And) else "or", read, line=line)
            case ast.Compare(left=left, ops=operators, comparators=comparators):
                operands = tuple(self.expression(operand) for operand in (left, *comparators))
                return Compare(tuple(self._comparison(operator, line) for operator in operators), operands, line=line)
            case ast.IfExp(test=test, body=then, orelse=orelse):
                return Cond(self.expression(test), self.expression(then), self.expression(orelse), line=line)
            case ast.Call():
                return self._call(node)
            case _:
                self._refuse(node)

    def _constant(self, value: object, line: int) -> Const:
        if isinstance(value, bool):
            return Const(int(value), True, line=line)
        if isinstance(value, int):
            if not INT64_MIN <= value <= INT64_MAX:
                raise unsupported(line, "a constant outside int64", "stay within -2**63 to 2**63 - 1")
            return Const(value, line=line)
        if isinstance(value, float):
            raise unsupported(line, f"the float {value!r}", "use integers: scale by 1_000 and divide with `//`")
        if isinstance(value, complex):
            raise unsupported(line, "a complex number", "use integers")
        if value is None or value is Ellipsis:
            raise invalid(
                line,
                f"`{value}` stands where a number is needed"
                if value is None
                else "`...` stands where a number is needed",
            )
        raise unsupported(line, "a string", "use integers and enum members")

    def _name(self, name: str, line: int) -> Expr:
        if name in self.views:
            raise unsupported(
                line, f"the view `{name}` as a value", f"read a field, such as `{name}.{self._fields(name)[0]}`"
            )
        if name in self.locals:
            if name not in self.assigned:
                raise unsupported(
                    line, f"`{name}` may be read before it is assigned, which", "assign it on every path first"
                )
            return Local(name, self.locals[name], line=line)
        if name in self.scope.constants:
            constant = self.scope.constants[name]
            return Const(constant.value, constant.is_bool, line=line)
        if name in self.scope.functions or name in self.scope.views or name in self.scope.enums:
            raise unsupported(line, f"`{name}` as a value", "call it or read a member")
        if name in _BUILTINS:
            raise unsupported(line, f"`{name}`", "use only min, max, abs, int, bool and range")
        raise invalid(line, f"the name `{name}` is not defined; read the parameters and what you assigned")

    def _known(self, name: str) -> bool:
        scope = self.scope
        return name in _BUILTINS or any(
            name in known
            for known in (self.views, self.locals, scope.constants, scope.functions, scope.views, scope.enums)
        )

    def _fields(self, view: str) -> list[str]:
        return [spec.name for spec in self.scope.views[self.views[view]].fields()]

    def _attribute(self, node: ast.Attribute) -> Expr:
        path = _path(node)
        if path is not None and self.scope.self_path and path[:-1] == self.scope.parameters_path:
            if path[-1] in self.scope.parameters:
                constant = self.scope.parameters[path[-1]]
                return Const(constant.value, constant.is_bool, line=node.lineno)
            raise invalid(node.lineno, f"the contract has no parameter `{path[-1]}`")
        match node.value:
            case ast.Name(id=owner) if owner in self.views:
                view = self.scope.views[self.views[owner]]
                try:
                    spec = view.field(node.attr)
                except KeyError:
                    known = ", ".join(self._fields(owner))
                    raise invalid(
                        node.lineno, f"`{self.views[owner]}` has no field `{node.attr}`; it has {known}"
                    ) from None
                return Field(owner, node.attr, spec.domain.kind == "bool", line=node.lineno)
            case ast.Name(id=owner) if owner in self.scope.enums and owner not in self.locals:
                enum = self.scope.enums[owner]
                assert issubclass(enum, IntEnum)
                if node.attr not in enum.__members__:
                    raise invalid(
                        node.lineno, f"`{owner}` has no member `{node.attr}`; it has {', '.join(enum.__members__)}"
                    )
                return Const(int(enum[node.attr]), line=node.lineno)
            case ast.Name(id=owner) if not self._known(owner):
                views = " or ".join(f"`{view}`" for view in self.views)
                raise invalid(node.lineno, f"the name `{owner}` is not defined; read fields of {views or 'a view'}")
        raise unsupported(
            node.lineno, f"the attribute `.{node.attr}`", "read only fields of views and members of enums"
        )

    def _unary(self, operator: ast.unaryop, operand: Expr, line: int) -> Expr:
        match operator:
            case ast.USub():
                return Negate(operand, line=line)
            case ast.Not():
                return Not(operand, line=line)
            case ast.UAdd():
                return ToInt(operand, line=line)
        raise unsupported(line, "`~`", "use arithmetic and comparisons")

    def _binary(self, operator: ast.operator, left: Expr, right: Expr, node: ast.AST) -> Expr:
        line: int = getattr(node, "lineno", 0)
        if isinstance(operator, ast.Div):
            raise unsupported(line, "`/`, which makes a float,", "use `//`")
        op = ARITHMETIC.get(type(operator))
        if op is None:
            raise unsupported(line, "a bit or matrix operator", "use + - * // % and comparisons")
        constant = isinstance(right, Const) and not right.is_bool and 0 <= right.value <= MAX_EXPONENT
        if op == "**" and not constant:
            raise unsupported(
                line, f"`**` with an exponent that is not a constant from 0 to {MAX_EXPONENT}", "multiply instead"
            )
        return Binary(op, left, right, line=line)

    def _comparison(self, operator: ast.cmpop, line: int) -> CompareOp:
        op = COMPARISONS.get(type(operator))
        if op is None:
            raise unsupported(line, "`in`, `is` and their negations", "use == != < <= > >=")
        return op

    def _call(self, node: ast.Call) -> Expr:
        line = node.lineno
        path = _path(node.func) if isinstance(node.func, ast.Attribute) else None
        if path is not None and self.scope.self_path and path[:-1] == self.scope.self_path:
            signature = self.scope.decisions.get(path[-1])
            if signature is None:
                raise invalid(line, f"the contract has no decision `{path[-1]}`")
            return self._apply(path[-1], signature.params, signature.result.kind == "bool", node)
        if not isinstance(node.func, ast.Name):
            raise unsupported(line, "calling a method", "call only helpers of this file, min, max, abs, int and bool")
        name = node.func.id
        if name in self.scope.functions:
            params, returns_bool = self.scope.functions[name]
            return self._apply(name, params, returns_bool, node)
        if name not in ("min", "max", "abs", "int", "bool"):
            if name == "range":
                raise unsupported(line, "`range` outside a `for`", "write `for i in range(N)`")
            if name == "float":
                raise unsupported(line, "`float`", "use integers: scale by 1_000 and divide with `//`")
            if name in _BUILTINS:
                raise unsupported(
                    line, f"calling `{name}`", "call only helpers of this file, min, max, abs, int and bool"
                )
            raise invalid(line, f"the function `{name}` is not defined; define it in this file")
        if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
            raise unsupported(line, f"`{name}` with keyword or starred arguments", "pass values one by one")
        operands = tuple(self.expression(argument) for argument in node.args)
        if name in ("min", "max"):
            if len(operands) < 2:
                raise unsupported(line, f"`{name}` of fewer than two values", "pass two or more")
            return MinMax("min" if name == "min" else "max", operands, line=line)
        if len(operands) != 1:
            raise invalid(line, f"`{name}` takes one value, not {len(operands)}")
        return {"abs": Abs, "int": ToInt, "bool": ToBool}[name](operands[0], line=line)  # type: ignore[return-value]

    def _apply(self, name: str, params: tuple[Param, ...], returns_bool: bool, node: ast.Call) -> Call:
        if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
            raise unsupported(
                node.lineno, f"calling `{name}` with keyword or starred arguments", "pass arguments by position"
            )
        if len(node.args) != len(params):
            raise invalid(node.lineno, f"`{name}` takes {len(params)} arguments, not {len(node.args)}")
        arguments: list[Expr | ViewRef] = []
        for param, argument in zip(params, node.args, strict=True):
            if param.is_view:
                if not isinstance(argument, ast.Name) or self.views.get(argument.id) != param.type:
                    raise invalid(
                        node.lineno, f"`{name}` needs a {param.type} for `{param.name}`; pass a parameter of that type"
                    )
                arguments.append(ViewRef(argument.id, line=node.lineno))
                continue
            read = self.expression(argument)
            if param.type == "bool" and not read.is_bool:
                raise invalid(node.lineno, f"`{name}` needs a bool for `{param.name}`")
            arguments.append(read)
        return Call(name, tuple(arguments), returns_bool, line=node.lineno)

    def _enter(self, node: ast.AST | None) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise unsupported(
                getattr(node, "lineno", 1),
                f"nesting deeper than {MAX_DEPTH} levels",
                "flatten it into helper functions",
            )

    def _refuse(self, node: ast.AST) -> NoReturn:
        what, instead = INSTEAD.get(
            type(node).__name__.replace("Async", ""),
            (f"`{type(node).__name__}`", "see the language rules in the documentation"),
        )
        raise unsupported(getattr(node, "lineno", 1), what, instead)


_BUILTINS = frozenset(dir(builtins))


def _path(node: ast.expr) -> tuple[str, ...] | None:
    """Return the names of a dotted path such as `self.policy.score`, or None."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return tuple(reversed([*names, node.id]))
