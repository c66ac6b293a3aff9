"""Contracts: a policy type as one typed Python class, with no solver in sight.

A contract names the decisions a policy must make, what it may assume of the views, what must hold of every decision, and the
theorem about the kernel that those invariants buy. The bodies of assumptions, invariants and theorems are written in the policy
language, so one text serves the proof gate (on symbols) and the fuzz gate and replays (on values, as plain Python).
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict

from .errors import ContractError
from .formula import (
    Formula,
    MethodReader,
    add_views,
    checked_method,
    condition_of,
    hints_of,
    meaning_of_domain,
    roles_of,
    words,
)
from .language import Interface, Param, Signature
from .theorem import Theorem, theorem_formulas
from .view import View, domain_of

if TYPE_CHECKING:
    from .simulation.result import SimulationResult

__all__ = ["Contract", "Unhashed"]


class Contract(BaseModel):
    """Base of every policy type. Class arguments: `name`, the name on the command line.

    Fields are the contract's parameters: integers and booleans with defaults that an operator may tighten. Subclasses define
    `@decision`, `@assumption` and `@invariant` methods, and may override `theorems` and `baselines`. A contract that is not well
    formed cannot be made: its constructor raises `ContractError`.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, use_attribute_docstrings=True
    )

    contract_name: ClassVar[str] = ""
    max_operations: ClassVar[int] = 1_024
    """Worst-case operations a decision may take."""
    slots: ClassVar[Mapping[str, str]] = {}
    """Decision name -> the simulator slot that runs it; decisions without one are not simulated."""

    def __init_subclass__(cls, *, name: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name:
            cls.contract_name = name

    def model_post_init(self, context: Any, /) -> None:
        """Read the contract.

        Raises:
            ContractError: it is not well formed.
        """
        super().model_post_init(context)
        _meaning(self)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a contract with some parameters changed, validated as a new one is.

        Raises:
            ValidationError: a parameter is unknown or out of its domain.
        """
        del deep  # parameters are integers
        return type(self)(**{**self.model_dump(), **(update or {})})

    @classmethod
    def theorems(cls) -> tuple[type[Theorem], ...]:
        """Return the system properties that the invariants and the kernel imply together."""
        return ()

    @classmethod
    def baselines(cls) -> Mapping[str, str]:
        """Return hand-written policies to compare with: name -> policy text, the engine's own default first."""
        return {}

    def check_replay(self, result: "SimulationResult", bounds: Mapping[str, int]) -> str | None:
        """Return what a replay shows to be against the contract, in one line, or None.

        Args:
            result: the replay; `bounds`: the proved bounds by invariant.
        """
        del result, bounds
        return None

    @property
    def decisions(self) -> Mapping[str, Signature]:
        """The decisions a policy must define, by name, in declared order."""
        return _meaning(self).decisions

    @property
    def assumptions(self) -> tuple[Formula, ...]:
        """Facts about views, in declared order."""
        return _meaning(self).assumptions

    @property
    def invariants(self) -> tuple[Formula, ...]:
        """Properties every policy must have, in declared order."""
        return _meaning(self).invariants

    @property
    def views(self) -> Mapping[str, type[View]]:
        """The views its decisions read, by class name."""
        return _meaning(self).interface.views

    @property
    def interface(self) -> Interface:
        """Names that a policy text may refer to."""
        return _meaning(self).interface

    @property
    def digest(self) -> str:
        """SHA-256 over the contract's meaning: all that a proof or a claim of a certificate depends on.

        Covered are name, parameters, decisions, every view that anything reads with every domain in it, and the IR and the claim
        of every assumption, invariant and theorem, inherited ones included. Comments and layout are not.
        """
        return _meaning(self).digest

    @property
    def stated(self) -> Mapping[type[Theorem], str]:
        """The theorems with their claims, as the digest covers them."""
        return _meaning(self).claims

    def theorem_formulas(self, theorem: type[Theorem]) -> Mapping[str, Formula]:
        """Return every lemma and transition-system method of a theorem of this contract as IR, by name.

        Raises:
            ContractError: the theorem is not well formed (`theorem.theorem_formulas`), or not one that may be stated of this
                contract.
        """
        meaning = _meaning(self)
        known = meaning.theorems.get(theorem)
        return known if known is not None else _theorem(theorem, self.parameters, meaning)

    def stand_in(self, decisions: Mapping[str, Callable[..., int]]) -> Any:
        """Return an object to pass as `self` to a formula's own Python method: parameters and the given decisions."""
        return SimpleNamespace(**self.parameters, **decisions)

    @property
    def parameters(self) -> Mapping[str, int]:
        """The contract's parameters by name."""
        return _parameters(self)


@dataclass(frozen=True)
class Unhashed:
    """A contract as a cache holds it beside its digest: told apart by the modules that policy texts import from.

    Contracts of one meaning in two modules have one digest.
    """

    contract: Contract

    def __hash__(self) -> int:
        return hash(self.contract.interface.modules)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unhashed) and self.contract.interface.modules == other.contract.interface.modules


@dataclass(frozen=True)
class _Meaning:
    """A contract as everything else reads it."""

    interface: Interface
    assumptions: tuple[Formula, ...]
    invariants: tuple[Formula, ...]
    views: Mapping[str, type[View]]
    """Every view that a decision, an assumption or an invariant reads."""
    theorems: Mapping[type[Theorem], Mapping[str, Formula]]
    claims: Mapping[type[Theorem], str]
    digest: str

    @property
    def decisions(self) -> Mapping[str, Signature]:
        """The decisions, by name."""
        return self.interface.decisions


def _parameters(contract: Contract) -> dict[str, int]:
    fields = vars(contract)  # an attribute of that name may be another one
    return {name: fields[name] for name in type(contract).model_fields}


def _meaning(contract: Contract) -> _Meaning:
    """Return the meaning of a contract, keyed by what its fields hold now: no copy and no change of a field gets an older one."""
    parameters = _parameters(contract)
    other = next((name for name, value in parameters.items() if type(value) not in (int, bool)), None)
    if other is not None:
        raise ContractError(f"{type(contract).__name__}.{other}: a contract's parameter is an int or a bool")
    return _meaning_of(type(contract), tuple((name, type(value), value) for name, value in parameters.items()))


@lru_cache(maxsize=256)
def _meaning_of(cls: type[Contract], values: tuple[tuple[str, type, int], ...]) -> _Meaning:
    """Return the meaning of a contract with certain values of its parameters.

    Raises:
        ContractError: it is not well formed.
    """
    parameters = {name: value for name, _, value in values}
    roles = roles_of(cls, Contract)
    _check_names(cls, roles)
    named = {role: [name for name, own in roles.items() if own == role] for role in set(roles.values())}
    signatures: dict[str, Signature] = {}
    views: dict[str, type[View]] = {}
    for name in named.get("decision", ()):
        signatures[name], read = _signature(cls, name)
        add_views(views, read, cls.__name__)
    interface = _interface(cls, signatures, dict(views))
    reader = MethodReader(cls, parameters, interface.enums, signatures)
    assumptions = tuple(reader.read(name, calls=False) for name in named.get("assumption", ()))
    invariants = tuple(
        reader.read(name, least=True) for name in named.get("invariant", ()) if _wanted(cls, name, parameters)
    )
    for formula in assumptions:
        scalar = next((param.name for param in formula.params if param.view is None), None)
        if scalar is not None:
            raise ContractError(
                f"{cls.__name__}.{formula.name}: `{scalar}` is no view, and an assumption is about views alone"
            )
    for formula in (*assumptions, *invariants):
        add_views(views, formula.views, cls.__name__)
    bounds = [formula.least.name for formula in invariants if formula.least is not None]
    twice = next((name for name in bounds if bounds.count(name) > 1), None)
    if twice is not None:
        raise ContractError(
            f"{cls.__name__}: two invariants have a least `{twice}`; a theorem could not tell them apart"
        )
    meaning = _Meaning(interface, assumptions, invariants, views, {}, {}, "")
    listed = tuple(cls.theorems())
    if any(not (isinstance(theorem, type) and issubclass(theorem, Theorem)) for theorem in listed):
        raise ContractError(f"{cls.__name__}.theorems: return classes derived from Theorem")
    if len({theorem.__name__ for theorem in listed}) < len(listed):
        raise ContractError(f"{cls.__name__}.theorems: two theorems have one name, or one is listed twice")
    theorems = {theorem: _theorem(theorem, parameters, meaning) for theorem in listed}
    meaning = replace(meaning, theorems=theorems, claims={theorem: words(theorem) for theorem in listed})
    return replace(meaning, digest=_digest(cls, values, meaning))


def _wanted(cls: type[Contract], name: str, parameters: Mapping[str, int]) -> bool:
    """Return whether an invariant is one with these parameters.

    Raises:
        ContractError: it depends on what is no `bool` parameter.
    """
    condition = condition_of(inspect.getattr_static(cls, name))
    if condition and not isinstance(parameters.get(condition), bool):
        raise ContractError(f"{cls.__name__}.{name}: `when={condition!r}` names no bool parameter of the contract")
    return not condition or bool(parameters[condition])


_OWN: Final = (
    "assumptions",
    "decisions",
    "digest",
    "interface",
    "invariants",
    "model_copy",
    "model_post_init",
    "parameters",
    "stand_in",
    "stated",
    "theorem_formulas",
    "views",
)
"""Names of `Contract` that a contract may not define anew: gates and engines rely on what they say."""


def _check_names(cls: type[Contract], roles: Mapping[str, str]) -> None:
    """Raise `ContractError` for marked methods that are out of place, and for names with two meanings."""
    for name, role in roles.items():
        if role not in ("decision", "assumption", "invariant"):
            raise ContractError(f"{cls.__name__}.{name}: `@{role}` belongs into a Theorem")
        if name in cls.model_fields or hasattr(Contract, name):
            raise ContractError(f"{cls.__name__}.{name}: the name is taken by a parameter or by the library; rename it")
    if "decision" not in roles.values():
        raise ContractError(f"{cls.__name__}: it has no decision; mark what a policy must define with `@decision`")
    for name in _OWN:
        owner = next(base for base in cls.__mro__ if name in vars(base))
        if owner is not Contract or name in cls.model_fields:
            raise ContractError(f"{cls.__name__}.{name}: the library defines `{name}`; rename yours")


def _interface(cls: type[Contract], signatures: Mapping[str, Signature], views: Mapping[str, type[View]]) -> Interface:
    enums: dict[str, type[IntEnum]] = {}
    for view in views.values():
        for spec in view.fields():
            enum = spec.domain.enum
            if enum is not None and enums.setdefault(enum.__name__, enum) is not enum:
                raise ContractError(f"{cls.__name__}: two different enums are called `{enum.__name__}`; rename one")
    module = cls.__module__
    modules = (module, module.rpartition(".")[0]) if "." in module else (module,)
    return Interface(signatures, views, enums, modules, cls.max_operations)


def _signature(cls: type[Contract], name: str) -> tuple[Signature, list[type[View]]]:
    method = checked_method(cls, name)
    hints = hints_of(method)
    where = f"{cls.__name__}.{name}"
    if "return" not in hints:
        raise ContractError(f"{where}: annotate what the decision returns, such as `-> Score`")
    result = domain_of(hints.pop("return"), where)
    params: list[Param] = []
    views: list[type[View]] = []
    for param, annotation in hints.items():
        if not (isinstance(annotation, type) and issubclass(annotation, View)):
            raise ContractError(f"{where}: the parameter `{param}` must be a View")
        params.append(Param(param, annotation.__name__))
        views.append(annotation)
    return Signature(name, tuple(params), result, words(method)), views


def _theorem(theorem: type[Theorem], parameters: Mapping[str, int], meaning: _Meaning) -> Mapping[str, Formula]:
    """Return a theorem's formulas, once it is sure that its views and scalars are no others than the contract's.

    Raises:
        ContractError: the theorem is not well formed, or reads as the contract's what is not.
    """
    where = theorem.__name__
    formulas = theorem_formulas(theorem, parameters, meaning.interface.enums, meaning.decisions)
    views = dict(meaning.views)
    for formula in formulas.values():
        add_views(views, formula.views, where)
    state = formulas["step"].params[0].view if "step" in formulas else None
    if state in meaning.views.values():
        raise ContractError(
            f"{where}: its state is the contract's `{state.__name__ if state else ''}`, whose domain and assumptions hold of "
            "views only; give the theorem a `State` of its own"
        )
    scalars = {
        param.name: param.domain
        for formula in meaning.invariants
        for param in formula.params
        if param.domain is not None
    }
    for formula in formulas.values():
        for param in formula.params:
            known = scalars.get(param.name)
            if known is None or param.domain is None:
                continue
            if known.kind != param.domain.kind or not (param.domain.lo <= known.lo and known.hi <= param.domain.hi):
                raise ContractError(
                    f"{where}.{formula.name}: `{param.name}` is the invariants' parameter of that name and must take all its "
                    f"values, {known.describe()}"
                )
    return formulas


def _digest(
    cls: type[Contract],
    values: tuple[tuple[str, type, int], ...],
    meaning: _Meaning,
) -> str:
    views = dict(meaning.views)
    stated: list[list[object]] = []
    for theorem, formulas in meaning.theorems.items():
        own = {view.__name__: view for formula in formulas.values() for view in formula.views}
        stated.append(
            [
                theorem.__name__,
                meaning.claims[theorem],
                [formula.meaning() for formula in formulas.values()],
                [_fields_of(view) for name, view in sorted(own.items()) if name not in views],
            ]
        )
    parts: list[object] = [
        cls.contract_name,
        cls.max_operations,
        sorted(cls.slots.items()),
        [(name, kind.__name__, int(value)) for name, kind, value in values],
        [_fields_of(view) for _, view in sorted(views.items())],
        [
            (name, [(param.name, param.type) for param in signature.params], meaning_of_domain(signature.result))
            for name, signature in meaning.decisions.items()
        ],
        [formula.meaning() for formula in meaning.assumptions],
        [formula.meaning() for formula in meaning.invariants],
        stated,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _fields_of(view: type[View]) -> list[object]:
    return [view.__name__, [(spec.name, meaning_of_domain(spec.domain)) for spec in view.fields()]]
