"""Contracts: a policy type as one typed Python class, with no solver in sight.

A contract names the decisions a policy must make, what it may assume of the views, what must hold of every decision, and the
theorem about the kernel that those invariants buy. The bodies of assumptions, invariants and theorems are written in the policy
language, so one text serves the proof gate (on symbols) and the fuzz gate and replays (on values, as plain Python).
"""

import ast
import hashlib
import inspect
import sys
import textwrap
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict

from .errors import ContractError
from .language import Interface, LanguageError, Param, Signature
from .language.functions import FunctionReader, Scope
from .language.ir import Const, Function, Module
from .view import Domain, View, domain_of

if TYPE_CHECKING:
    from .simulation.result import SimulationResult

__all__ = [
    "Contract",
    "Formula",
    "FormulaParam",
    "Least",
    "Theorem",
    "Unhashed",
    "assumption",
    "decision",
    "invariant",
    "lemma",
]

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__autopoiesis_role__"


def decision(function: F) -> F:
    """Mark a method as a decision the policy must make; its body is never run (raise `NotImplementedError`)."""
    setattr(function, _MARK, "decision")
    return function


def assumption(function: F) -> F:
    """Mark a method as a fact about views that proofs may use, and that adapters check while serving."""
    setattr(function, _MARK, "assumption")
    return function


def invariant(function: F) -> F:
    """Mark a method as a property every policy must have; its docstring is the claim in the certificate."""
    setattr(function, _MARK, "invariant")
    return function


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
    """An assumption, invariant or lemma: its parameters, its meaning as IR, and its claim in words."""

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


class Contract(BaseModel):
    """Base of every policy type. Class arguments: `name`, the name on the command line.

    Fields are the contract's parameters, with defaults that an operator may tighten. Subclasses define `@decision`,
    `@assumption` and `@invariant` methods, and may override `theorems` and `baselines`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    contract_name: ClassVar[str] = ""
    max_operations: ClassVar[int] = 1_024
    """Worst-case operations a decision may take."""
    slots: ClassVar[Mapping[str, str]] = {}
    """Decision name -> the simulator slot that runs it; decisions without one are not simulated."""

    def __init_subclass__(cls, *, name: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name:
            cls.contract_name = name

    @classmethod
    def theorems(cls) -> tuple[type["Theorem"], ...]:
        """The system properties that the invariants and the kernel imply together."""
        return ()

    @classmethod
    def baselines(cls) -> Mapping[str, str]:
        """Hand-written policies to compare with: name -> policy text, the engine's own default first."""
        return {}

    def check_replay(self, result: "SimulationResult", bounds: Mapping[str, int]) -> str | None:
        """What a replay shows to be against the contract, in one line, or None; `bounds` are proved ones by invariant."""
        del result, bounds
        return None

    @cached_property
    def decisions(self) -> Mapping[str, Signature]:
        """The decisions a policy must define, by name, in declared order."""
        return {name: _signature(name, method, type(self)) for name, method in _methods(type(self), "decision").items()}

    @cached_property
    def assumptions(self) -> tuple[Formula, ...]:
        """Facts about views, in declared order."""
        return tuple(
            self._formula(method, self._scope(decisions={})) for method in _methods(type(self), "assumption").values()
        )

    @cached_property
    def invariants(self) -> tuple[Formula, ...]:
        """Properties every policy must have, in declared order."""
        return tuple(
            self._formula(method, self._scope(self.decisions)) for method in _methods(type(self), "invariant").values()
        )

    @cached_property
    def views(self) -> Mapping[str, type[View]]:
        """The views its decisions read, by class name."""
        found: dict[str, type[View]] = {}
        for method in _methods(type(self), "decision").values():
            for annotation in _hints(method).values():
                if isinstance(annotation, type) and issubclass(annotation, View):
                    found[annotation.__name__] = annotation
        return found

    @cached_property
    def interface(self) -> Interface:
        """What a policy text may refer to."""
        enums: dict[str, type[IntEnum]] = {
            spec.domain.enum.__name__: spec.domain.enum
            for view in self.views.values()
            for spec in view.fields()
            if spec.domain.enum is not None
        }
        module = type(self).__module__
        modules = (module, module.rpartition(".")[0]) if "." in module else (module,)
        return Interface(self.decisions, self.views, enums, modules, self.max_operations)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that a certificate depends on: name, parameters, views, enums, decisions, formulas and theorems."""
        parts = [self.contract_name, self.model_dump_json(), str(self.max_operations)]
        for name, view in self.views.items():
            parts += [name, *(f"{spec.name}:{spec.domain!r}" for spec in view.fields())]
        parts += [repr(signature) for signature in self.decisions.values()]
        parts += [
            f"{name}:{member}={value:d}"
            for name, enum in self.interface.enums.items()
            for member, value in getattr(enum, "__members__", {}).items()
        ]
        for formula in (*self.assumptions, *self.invariants):
            parts += [formula.source, *(f"{param.name}:{param.domain!r}" for param in formula.params)]
        parts += [inspect.getsource(theorem) for theorem in self.theorems()]
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()

    def stand_in(self, decisions: Mapping[str, Callable[..., int]]) -> Any:
        """An object to pass as `self` to a formula's own Python method: parameters and the given decisions as attributes."""
        return SimpleNamespace(**{name: getattr(self, name) for name in type(self).model_fields}, **decisions)

    def limit(self, least: Least, where: str) -> int:
        """The value of the contract parameter that bounds a least value; raises `ContractError` if there is none."""
        if least.limit not in type(self).model_fields:
            raise ContractError(
                f"{where}: Least(limit={least.limit!r}) names no parameter of the contract; declare one"
            )
        return int(getattr(self, least.limit))

    def _scope(self, decisions: Mapping[str, Signature], self_path: tuple[str, ...] = ("self",)) -> Scope:
        parameters = {
            name: Const(int(getattr(self, name)), isinstance(getattr(self, name), bool))
            for name in type(self).model_fields
            if isinstance(getattr(self, name), int)
        }
        return Scope({}, self.interface.enums, {}, {}, frozenset(), self_path, decisions, parameters)

    def _formula(
        self, method: Callable[..., Any], scope: Scope, views: Mapping[str, type[View]] | None = None
    ) -> Formula:
        where = f"{type(self).__name__}.{method.__name__}"
        hints = _hints(method)
        if hints.pop("return", None) not in (bool, int):
            raise ContractError(f"{where}: annotate what it returns: `-> bool`")
        params: list[FormulaParam] = []
        seen: dict[str, type[View]] = dict(views or {})
        for name, annotation in hints.items():
            if isinstance(annotation, type) and issubclass(annotation, View):
                params.append(FormulaParam(name, view=annotation))
                seen[annotation.__name__] = annotation
                continue
            least = next((item for item in _metadata(annotation) if isinstance(item, Least)), None)
            limit = self.limit(least, where) if least is not None else None
            params.append(FormulaParam(name, domain=domain_of(annotation, f"{where}({name})"), least_limit=limit))
        source = textwrap.dedent(inspect.getsource(method))
        scope = Scope(seen, scope.enums, {}, {}, frozenset(), scope.self_path, scope.decisions, scope.parameters)
        function = _read_method(source, where, params, scope, returns_bool=_hints(method).get("return") is bool)
        return Formula(
            method.__name__, tuple(params), function, " ".join((method.__doc__ or "").split()), source, method
        )


class Theorem:
    """A system property: a kernel model that may use the contract's invariants and nothing else about the policy.

    Subclasses write their claim as the docstring and define `@lemma` methods (each must hold for every policy that satisfies
    the invariants; the policy's decisions are reached as `self.policy.NAME(...)`). To prove a property of whole runs they also
    define the kernel as a transition system over a view `State`:

    - `init(self, s) -> bool`: the initial states;
    - `step(self, s, t, ...) -> bool`: whether the kernel may go from `s` to `t` (further parameters are inputs);
    - `inductive(self, s) -> bool`: holds initially and is kept by every step;
    - `goal(self, s) -> bool`: follows from `inductive`: the property promised;
    - `ranking(self, s) -> int` and `progress(self, s, t, ...) -> bool` (optional): on a progress step the ranking, which is
      never negative, goes down.
    """

    policy: Any
    """The policy under the theorem; only its decisions may be called, and they are known by the invariants alone."""
    contract: Any
    """The contract; only its parameters may be read."""

    @classmethod
    def formulas(cls, contract: Contract) -> Mapping[str, Formula]:
        """Every lemma and transition-system method as IR, by name."""
        scope = contract._scope(contract.decisions, ("self", "policy"))
        methods = _methods(cls, "lemma")
        for name, method in _own(cls).items():
            if name in ("init", "step", "inductive", "goal", "ranking", "progress"):
                methods[name] = method
        return {name: contract._formula(method, scope) for name, method in methods.items()}


@dataclass(frozen=True)
class Unhashed:
    """A contract that a cache is not keyed by: its digest is."""

    contract: Contract

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unhashed)


def _own(cls: type) -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for base in reversed(cls.__mro__):
        if base is not Theorem:
            for name, value in vars(base).items():
                if inspect.isfunction(value):
                    found[name] = value
    return found


def _methods(cls: type, role: str) -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if getattr(value, _MARK, None) == role:
                found[name] = value
    return found


def _hints(method: Callable[..., Any]) -> dict[str, Any]:
    module = sys.modules[method.__module__]
    return typing.get_type_hints(method, vars(module), include_extras=True)


def _metadata(annotation: Any) -> tuple[Any, ...]:
    found: tuple[Any, ...] = ()
    while get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        found = (*inner, *found)
    return found


def _signature(name: str, method: Callable[..., Any], owner: type) -> Signature:
    hints = _hints(method)
    where = f"{owner.__name__}.{name}"
    if "return" not in hints:
        raise ContractError(f"{where}: annotate what the decision returns, such as `-> Score`")
    result = domain_of(hints.pop("return"), where)
    params: list[Param] = []
    for param, annotation in hints.items():
        if not (isinstance(annotation, type) and issubclass(annotation, View)):
            raise ContractError(f"{where}: the parameter `{param}` must be a View")
        params.append(Param(param, annotation.__name__))
    return Signature(name, tuple(params), result, " ".join((method.__doc__ or "").split()))


def _read_method(source: str, where: str, params: list[FormulaParam], scope: Scope, *, returns_bool: bool) -> Function:
    node = ast.parse(source).body[0]
    if not isinstance(node, ast.FunctionDef):
        raise ContractError(f"{where}: write it as a plain method")
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


def formula_module(formulas: Mapping[str, Formula] | tuple[Formula, ...]) -> Module:
    """The IR of formulas as one module, for the interpreter."""
    items = formulas.values() if isinstance(formulas, Mapping) else formulas
    views = {param.view.__name__: param.view for formula in items for param in formula.params if param.view is not None}
    return Module({formula.name: formula.function for formula in items}, views)
