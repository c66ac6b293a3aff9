"""Theorems: a system property, as a kernel model that knows a policy by its contract's invariants alone."""

import types
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, ClassVar, Final

from .errors import ContractError
from .formula import Formula, FormulaParam, MethodReader, claim_of, roles_of
from .language import Signature
from .view import View

__all__ = ["SYSTEM", "Theorem", "theorem_formulas"]

SYSTEM: Final = ("init", "step", "inductive", "goal", "ranking", "progress")
"""Methods that together describe a transition system."""

_STATES: Final = {"init": 1, "step": 2, "inductive": 1, "goal": 1, "ranking": 1, "progress": 2}
"""The number of states that each of them takes, before any input."""


class Theorem:
    """A system property: a kernel model that may use the contract's invariants and nothing else about the policy.

    Subclasses write their claim as the docstring and define `@lemma` methods (each must hold for every policy that satisfies
    the invariants; the policy's decisions are reached as `self.policy.NAME(...)`). To prove a property of whole runs they also
    define the kernel as a transition system over a view `State`:

    - `init(self, s) -> bool`: the initial states;
    - `step(self, s, t, ...) -> bool`: whether the kernel may go from `s` to `t`; further parameters are inputs, chosen anew
      in every step;
    - `inductive(self, s) -> bool`: holds initially and is kept by every step;
    - `goal(self, s) -> bool`: follows from `inductive`: the property promised;
    - `ranking(self, s) -> int` and `progress(self, s, t, ...) -> bool`: on a progress step the ranking, which is never
      negative, goes down.

    `init`, `step`, `inductive` and one of `goal` and the last pair are required. The bounds that `State` declares for its
    fields are not assumed: a state holds any integers, and what bounds them has to be part of `inductive`.
    """

    policy: Any
    """The policy under the theorem; only its decisions may be called, and they are known by the invariants alone."""
    contract: Any
    """The contract; only its parameters may be read."""
    State: ClassVar[type[View]]
    """The view that `step` goes over, where the theorem has a transition system."""


def theorem_formulas(
    theorem: type[Theorem],
    parameters: Mapping[str, int],
    enums: Mapping[str, type[IntEnum]],
    decisions: Mapping[str, Signature],
) -> dict[str, Formula]:
    """Return every lemma and transition-system method of a theorem as IR, by name.

    Raises:
        ContractError: the theorem states no claim or proves nothing, part of its system is missing, or a method is not what its
            name or mark says.
    """
    where = theorem.__name__
    if not claim_of(theorem, where):
        raise ContractError(f"{where}: a theorem without a docstring claims nothing; write its claim there")
    roles = roles_of(theorem, Theorem)
    system = tuple(name for name in SYSTEM if hasattr(theorem, name))
    for name, role in roles.items():
        if role != "lemma" or name in SYSTEM:
            raise ContractError(f"{where}.{name}: a theorem has `@lemma` methods, and its system's have no mark")
    for name in _defined(theorem):
        if name not in roles and name not in SYSTEM:
            raise ContractError(f"{where}.{name}: mark it `@lemma`, or name it one of {', '.join(SYSTEM)}")
    if not roles and not system:
        raise ContractError(f"{where}: it has neither a lemma nor a transition system, so it proves nothing")
    if system:
        _check_parts(where, system)
    reader = MethodReader(theorem, parameters, enums, decisions, ("self", "policy"))
    formulas = {name: reader.read(name) for name in roles}
    formulas |= {name: reader.read(name, returns=int if name == "ranking" else bool) for name in system}
    if system:
        _check_states(where, {name: formulas[name] for name in system})
    return formulas


def _defined(theorem: type[Theorem]) -> list[str]:
    """Return the names that a theorem gives to methods, special ones aside."""
    return [
        name
        for base in theorem.__mro__
        if base not in (Theorem, object)
        for name, value in vars(base).items()
        if not (name.startswith("__") and name.endswith("__"))
        and isinstance(value, (staticmethod, classmethod, property, types.FunctionType))
    ]


def _check_parts(where: str, system: tuple[str, ...]) -> None:
    missing = [name for name in ("init", "step", "inductive") if name not in system]
    if missing:
        raise ContractError(f"{where}: it defines `{system[0]}` but no `{missing[0]}`, so the system proves nothing")
    if ("ranking" in system) != ("progress" in system):
        one, other = ("ranking", "progress") if "ranking" in system else ("progress", "ranking")
        raise ContractError(f"{where}: it defines `{one}` but no `{other}`; a ranking needs both")
    if "goal" not in system and "ranking" not in system:
        raise ContractError(f"{where}: its system has neither a `goal` nor a `ranking`, so it promises nothing")


def _check_states(where: str, formulas: Mapping[str, Formula]) -> None:
    """Raise `ContractError` unless all methods speak of the same states, and only steps have inputs."""
    step = formulas["step"]
    state = step.params[0].view if step.params else None
    inputs = {param.name: param for param in step.params[2:]}
    for name, formula in formulas.items():
        count = _STATES[name]
        states, others = formula.params[:count], formula.params[count:]
        if state is None or len(states) < count or any(param.view is not state for param in states):
            raise ContractError(f"{where}.{name}: its first parameters must be {count} of the state's view")
        if count == 1 and others:
            raise ContractError(
                f"{where}.{name}: `{others[0].name}` is no part of the state; an input changes from step to step, so keep "
                "what stays the same in the state"
            )
        if any(param.view is state for param in others):
            raise ContractError(f"{where}.{name}: a third parameter of the state's view; a step has two states")
        for param in others:
            if not _same(inputs.get(param.name), param):
                raise ContractError(
                    f"{where}.{name}: `{param.name}` is not an input of `step`, or has another type there"
                )


def _same(one: FormulaParam | None, other: FormulaParam) -> bool:
    return one is not None and one.view is other.view and one.domain == other.domain
