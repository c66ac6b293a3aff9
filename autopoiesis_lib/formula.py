"""Formulas: the methods of contracts and theorems, read to IR once everything that could make them mean two things is refused.

A formula has two meanings. Gates encode its IR for solvers, and replays call the method itself in CPython. Both must agree, so
a method may not be wrapped, may not see rebound builtins, and must annotate every parameter.
"""

import __future__

import ast
import builtins
import inspect
import sys
import textwrap
import tokenize
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin, overload

from .errors import ContractError
from .language import LanguageError, Param, Signature
from .language.functions import FunctionReader, Scope
from .language.ir import Const, Function, Module
from .language.python import to_source
from .protocol.text import hidden_character
from .view import Domain, View, domain_of

__all__ = [
    "Formula",
    "FormulaParam",
    "Least",
    "MethodReader",
    "add_views",
    "assumption",
    "checked_method",
    "claim_of",
    "condition_of",
    "decision",
    "formula_module",
    "hints_of",
    "invariant",
    "lemma",
    "marked",
    "meaning_of_domain",
    "roles_of",
    "words",
]

F = TypeVar("F", bound=Callable[..., Any])

_MARK: Final = "__autopoiesis_role__"
_WHEN: Final = "__autopoiesis_when__"
_BUILTINS: Final = ("abs", "bool", "int", "max", "min", "range")
"""Builtins that the policy language gives a meaning."""


def decision(function: F) -> F:
    """Mark a method as a decision the policy must make; its body is never run (raise `NotImplementedError`)."""
    setattr(function, _MARK, "decision")
    return function


def assumption(function: F) -> F:
    """Mark a method as a fact about views that proofs may use, and that adapters check while serving."""
    setattr(function, _MARK, "assumption")
    return function


@overload
def invariant(function: F) -> F: ...
@overload
def invariant(*, when: str) -> Callable[[F], F]: ...
def invariant(function: F | None = None, *, when: str = "") -> F | Callable[[F], F]:
    """Mark a method as a property every policy must have; its docstring is the claim in the certificate.

    With `when`, the name of a `bool` parameter of the contract, it is one only where that parameter is true.
    """
    if function is None:
        return partial(_mark_invariant, when=when)
    return _mark_invariant(function, when="")


def _mark_invariant(function: F, when: str) -> F:
    setattr(function, _MARK, "invariant")
    setattr(function, _WHEN, when)
    return function


def condition_of(method: object) -> str:
    """Return the name of the parameter on which an invariant depends; empty when it always is one."""
    return str(getattr(method, _WHEN, ""))


def lemma(function: F) -> F:
    """Mark a method of a `Theorem` as a statement that must follow from the contract's invariants alone."""
    setattr(function, _MARK, "lemma")
    return function


@dataclass(frozen=True)
class Least:
    """Marks an integer parameter of an invariant: the proof gate finds the least value that makes the invariant true.

    `limit` names the contract parameter that bounds it; a policy whose least value lies above is refused.
    """

    limit: str


@dataclass(frozen=True)
class FormulaParam:
    """A parameter of a formula: a view, or an integer of a domain, perhaps with a least value to find."""

    name: str
    view: type[View] | None = None
    domain: Domain | None = None
    least_limit: int | None = None


@dataclass(frozen=True)
class Formula:
    """An assumption, invariant, lemma or part of a transition system: its parameters, its IR, and its claim in words."""

    name: str
    params: tuple[FormulaParam, ...]
    function: Function
    doc: str
    source: str
    method: Callable[..., bool]
    """The author's own Python, for replays: called with a stand-in for `self`."""

    @property
    def least(self) -> FormulaParam | None:
        """The parameter whose least value is to be found, if the formula has one."""
        return next((param for param in self.params if param.least_limit is not None), None)

    @property
    def views(self) -> tuple[type[View], ...]:
        """The views among its parameters, in order."""
        return tuple(param.view for param in self.params if param.view is not None)

    def meaning(self) -> tuple[str, ...]:
        """Return all that the formula's truth and claim depend on: claim, parameters, domains and IR, but no layout."""
        params = (
            f"{param.name}: {param.view.__name__ if param.view else meaning_of_domain(param.domain)} <= {param.least_limit}"
            for param in self.params
        )
        return self.name, self.doc, *params, to_source(formula_module((self,)))


def meaning_of_domain(domain: Domain | None) -> str:
    """Return a text that is equal for domains only if they hold the same values under the same names."""
    if domain is None:
        return "none"
    members = {} if domain.enum is None else {name: int(member) for name, member in domain.enum.__members__.items()}
    named = "" if domain.enum is None else domain.enum.__name__
    return f"{domain.kind} {domain.lo} {domain.hi} {domain.values} {named} {members} {domain.unit} {domain.saturates}"


def formula_module(formulas: Mapping[str, Formula] | tuple[Formula, ...]) -> Module:
    """Return the IR of formulas as one module, for the interpreter."""
    items = formulas.values() if isinstance(formulas, Mapping) else formulas
    views = {view.__name__: view for formula in items for view in formula.views}
    return Module({formula.name: formula.function for formula in items}, views)


def words(method: object) -> str:
    """Return a docstring on one line; empty when there is none."""
    return " ".join((getattr(method, "__doc__", None) or "").split())


def claim_of(stated: object, where: str) -> str:
    """Return the docstring of what is claimed, on one line.

    Args:
        stated: a method or a theorem; `where` names it in an error.

    Raises:
        ContractError: a reader of the claim cannot see all of it.
    """
    claim = words(stated)
    if hidden_character(claim) is not None:
        raise ContractError(f"{where}: its docstring holds a character that cannot be seen; remove it")
    return claim


def roles_of(cls: type, stop: type) -> dict[str, str]:
    """Return the role of each marked method that a class has, by name, in the order in which they are first defined.

    Args:
        cls: a contract or a theorem.
        stop: the library's base class, whose own names count as no definitions.

    Raises:
        ContractError: a name that is marked in one class is something else in another one.
    """
    found: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if base not in stop.__mro__]):
        for name, value in vars(base).items():
            role = marked(value)
            if name in found and role != found[name]:
                raise ContractError(
                    f"{base.__name__}.{name} shadows the {found[name]} `{name}` that it inherits; "
                    f"mark it `@{found[name]}`, or rename it"
                )
            if role is not None:
                found[name] = role
    return found


def marked(value: object) -> str | None:
    """Return the role that a method is marked with; also of one inside `staticmethod`, `classmethod` or `property`."""
    inner = getattr(value, "fget", None) or getattr(value, "__func__", None) or value
    role = getattr(inner, _MARK, None)
    return role if isinstance(role, str) else None


def checked_method(cls: type, name: str) -> types.FunctionType:
    """Return the method that a class has under a name, once it is sure that its source says what CPython runs.

    Raises:
        ContractError: it is no plain method, is wrapped or renamed, has defaults, or it or its module rebinds a builtin.
    """
    where = f"{cls.__name__}.{name}"
    method = inspect.getattr_static(cls, name)
    if not isinstance(method, types.FunctionType):
        raise ContractError(f"{where}: write it as a plain method")
    if hasattr(method, "__wrapped__") or method.__name__ != name:
        raise ContractError(f"{where}: it is wrapped, or defined under another name; define it here by a plain `def`")
    if method.__defaults__:
        raise ContractError(f"{where}: its parameters may have no defaults")
    found: dict[str, object] = {**getattr(method, "__builtins__", vars(builtins)), **method.__globals__}
    taken = [item for item in _BUILTINS if found.get(item) is not getattr(builtins, item)]
    if taken:
        raise ContractError(f"{where}: its module gives `{taken[0]}` another meaning; rename that")
    parameters = list(inspect.signature(method).parameters.values())
    if not parameters or any(item.kind is not item.POSITIONAL_OR_KEYWORD for item in parameters):
        raise ContractError(f"{where}: take `self` and plain parameters")
    shadowing = next((item.name for item in parameters if item.name in _BUILTINS), None)
    if shadowing is not None:
        raise ContractError(f"{where}: the parameter `{shadowing}` shadows the builtin of that name; rename it")
    for parameter in parameters[1:]:
        if parameter.annotation is parameter.empty:
            raise ContractError(f"{where}: annotate the parameter `{parameter.name}` with a view or a bounded int")
    return method


def hints_of(method: types.FunctionType) -> dict[str, Any]:
    """Return a method's annotations, `return` included.

    Raises:
        ContractError: one names what cannot be found.
    """
    try:
        return typing.get_type_hints(method, vars(sys.modules[method.__module__]), include_extras=True)
    except NameError as error:
        raise ContractError(f"{method.__qualname__}: {error}; views must be importable from its module") from None


class MethodReader:
    """Reads the methods of one contract, or of one theorem of it, to formulas."""

    def __init__(
        self,
        owner: type,
        parameters: Mapping[str, int],
        enums: Mapping[str, type[IntEnum]],
        decisions: Mapping[str, Signature],
        self_path: tuple[str, ...] = ("self",),
    ) -> None:
        """Take the owner, the contract's parameters, and its decisions, which `self_path` reaches."""
        self._owner, self._parameters, self._decisions = owner, parameters, decisions
        constants = {name: Const(int(value), isinstance(value, bool)) for name, value in parameters.items()}
        self._scope = Scope({}, enums, {}, {}, frozenset(), self_path, decisions, constants)

    def read(self, name: str, *, least: bool = False, calls: bool = True, returns: type = bool) -> Formula:
        """Return the formula that a method states.

        Args:
            name: the method; `least`: it may have one parameter marked `Least`; `calls`: it may call decisions; `returns`: the
                annotation it must have.

        Raises:
            ContractError: the method is not a formula of the policy language, or marks what it may not.
        """
        where = f"{self._owner.__name__}.{name}"
        method = checked_method(self._owner, name)
        hints = hints_of(method)
        if hints.pop("return", None) is not returns:
            raise ContractError(f"{where}: annotate what it returns: `-> {returns.__name__}`")
        params = tuple(self._param(item, annotation, where) for item, annotation in hints.items())
        bounds = [param.name for param in params if param.least_limit is not None]
        if len(bounds) > (1 if least else 0):
            problem = (
                f"`{bounds[0]}` and `{bounds[1]}` are both marked Least; split it into two invariants"
                if least
                else f"`{bounds[0]}` is marked Least, which only a parameter of an invariant may be"
            )
            raise ContractError(f"{where}: {problem}")
        views: dict[str, type[View]] = {}
        add_views(views, (param.view for param in params if param.view is not None), where)
        decisions = self._decisions if calls else {}
        scope = Scope(
            views, self._scope.enums, {}, {}, frozenset(), self._scope.self_path, decisions, self._scope.parameters
        )
        try:
            source = textwrap.dedent(inspect.getsource(method))
        except (OSError, SyntaxError, tokenize.TokenError):
            raise ContractError(f"{where}: its source cannot be found; define it in a file") from None
        node = _parsed(source, name, where)
        _check_code(method, node, where)
        self._check_names(method, node, where)
        function = _read(node, where, params, scope, returns_bool=returns is bool)
        return Formula(name, params, function, claim_of(method, where), source, method)

    def _check_names(self, method: types.FunctionType, node: ast.FunctionDef, where: str) -> None:
        """Raise `ContractError` where CPython finds another enum under a name than the IR, or a variable that the IR has not."""
        cells = zip(method.__code__.co_freevars, method.__closure__ or (), strict=True)
        enclosing = {name: cell.cell_contents for name, cell in cells}
        for name in sorted({item.id for item in ast.walk(node) if isinstance(item, ast.Name)}):
            if name in self._scope.enums:
                if enclosing.get(name, method.__globals__.get(name)) is not self._scope.enums[name]:
                    raise ContractError(f"{where}: `{name}` is not the enum of that name that a view holds; rename one")
            elif name in enclosing:
                raise ContractError(f"{where}: it uses `{name}` of an enclosing function; make that a parameter")

    def _param(self, name: str, annotation: Any, where: str) -> FormulaParam:
        least = [item for item in _metadata(annotation) if isinstance(item, Least)]
        if _is_view(annotation):
            return FormulaParam(name, view=annotation)
        domain = domain_of(annotation, f"{where}({name})")
        if not least:
            return FormulaParam(name, domain=domain)
        limit = self._parameters.get(least[0].limit)
        if limit is None or isinstance(limit, bool):
            raise ContractError(
                f"{where}: Least(limit={least[0].limit!r}) names no integer parameter of the contract; declare one"
            )
        if len(least) > 1 or domain.kind != "int":
            raise ContractError(f"{where}: mark `{name}` Least once, and make it an int")
        if limit not in domain:
            raise ContractError(
                f"{where}: `{name}` takes {domain.describe()}, but `{least[0].limit}`, its limit, is {limit:,}"
            )
        return FormulaParam(name, domain=domain, least_limit=limit)


def add_views(known: dict[str, type[View]], views: Iterable[type[View]], where: str) -> None:
    """Add views to those known by class name.

    Raises:
        ContractError: another view has one of the names: what is proved of the one would be claimed of the other.
    """
    for view in views:
        if known.setdefault(view.__name__, view) is not view:
            raise ContractError(f"{where}: two different views are called `{view.__name__}`; rename one")


def _is_view(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, View)


def _metadata(annotation: Any) -> tuple[Any, ...]:
    found: tuple[Any, ...] = ()
    while get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        found = (*inner, *found)
    return found


def _parsed(source: str, name: str, where: str) -> ast.FunctionDef:
    try:
        body = ast.parse(source).body
    except SyntaxError:
        body = []
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef) or body[0].name != name:
        raise ContractError(f"{where}: its source is no plain method of this name; import its module anew")
    return body[0]


def _check_code(method: types.FunctionType, node: ast.FunctionDef, where: str) -> None:
    """Raise `ContractError` unless a method's source compiles to what CPython runs: the file may have changed since."""
    code = method.__code__
    owner = ast.ClassDef(_class_of(method), [], [], [node], [], **_NO_TYPE_PARAMETERS)
    enclosing = ast.parse("def enclosing(): pass").body[0]
    assert isinstance(enclosing, ast.FunctionDef)
    enclosing.args.args = [ast.arg(name) for name in code.co_freevars]
    enclosing.body = [owner]
    flags = code.co_flags & __future__.annotations.compiler_flag
    module = ast.fix_missing_locations(ast.Module([enclosing], []))
    outer = _code_in(compile(module, code.co_filename, "exec", flags, dont_inherit=True), "enclosing")
    if _meaning_of_code(_code_in(_code_in(outer, owner.name), node.name)) != _meaning_of_code(code):
        raise ContractError(f"{where}: its source is not what CPython runs; import its module anew, and change no code")


_NO_TYPE_PARAMETERS: Final[dict[str, Any]] = {"type_params": []} if sys.version_info >= (3, 12) else {}


def _class_of(method: types.FunctionType) -> str:
    """Return the name of the class in which a method was defined, on which the meaning of `self.__name` depends."""
    return (method.__qualname__.split(".")[-2:-1] or ["owner"])[0].strip("<>")


def _code_in(code: types.CodeType, name: str) -> types.CodeType:
    return next(item for item in code.co_consts if isinstance(item, types.CodeType) and item.co_name == name)


def _meaning_of_code(code: types.CodeType) -> tuple[object, ...]:
    """Return what a function does, without where it is written."""
    texts = (
        " ".join(item.split()) if isinstance(item, str) else item for item in code.co_consts
    )  # of dedented docstrings
    constants = [(type(item).__name__, repr(item)) for item in texts]
    return code.co_code, constants, code.co_names, code.co_varnames


def _read(
    node: ast.FunctionDef, where: str, params: tuple[FormulaParam, ...], scope: Scope, *, returns_bool: bool
) -> Function:
    kinds = tuple(
        Param(
            param.name,
            param.view.__name__
            if param.view is not None
            else "bool"
            if param.domain and param.domain.kind == "bool"
            else "int",
        )
        for param in params
    )
    try:
        body = FunctionReader(node.name, kinds, returns_bool, scope).read(node)
    except LanguageError as error:
        raise ContractError(f"{where}: {error}") from None
    return Function(node.name, kinds, body, returns_bool, ast.get_docstring(node) or "", line=node.lineno)
