"""Trials: the inputs every policy of a contract is tried on before its proof, prepared once for all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from ..contract import Contract, Unhashed
from ..formula import Formula
from ..language.columns import Column, Rows, evaluate_columns
from ..language.ranges import Interval, analyse_formula, view_rows
from ..policy import Policy
from ..view import Domain
from .counterexample import Arguments, Evaluator, Scene
from .samples import pool_of

__all__ = ["Trials", "trials_of"]


@dataclass(frozen=True, eq=False)
class Trials:
    """Inputs of one invariant, admissible and at the contract's limit."""

    contract: Contract
    formula: Formula
    arguments: tuple[Arguments, ...]

    def first_broken(self, policy: Policy, evaluator: Evaluator) -> Arguments | None:
        """Return the first inputs on which a policy breaks the invariant; None when there are none.

        All inputs at once over columns where those are exact, else one after the other as CPython has it; what is found is
        replayed in CPython either way.
        """
        if not (policy.settled and self.exact):
            return next((item for item in self.arguments if not evaluator.holds(self.formula, item)), None)
        holds = evaluate_columns(policy.module.functions, self.formula.function, self.columns, len(self.arguments))
        broken = np.flatnonzero(holds == 0)
        return self.arguments[broken[0]] if broken.size else None

    @cached_property
    def columns(self) -> list[Rows | Column]:
        """The inputs by parameter."""
        found: list[Rows | Column] = []
        for param in self.formula.params:
            values = [item[param.name] for item in self.arguments]
            if param.view is None:
                found.append(np.array(values, dtype=np.int64))
                continue
            rows = [value for value in values if isinstance(value, dict)]
            names = [spec.name for spec in param.view.fields()]
            found.append({name: np.array([row[name] for row in rows], dtype=np.int64) for name in names})
        return found

    @cached_property
    def exact(self) -> bool:
        """True if intervals show that the invariant's own arithmetic stays in int64."""
        spans = [
            view_rows(param.view) if param.view is not None else _interval(param.domain)
            for param in self.formula.params
        ]
        answers = {name: _interval(signature.result) for name, signature in self.contract.decisions.items()}
        return not analyse_formula(self.formula.function, spans, answers).open


def trials_of(contract: Contract, regressions: Mapping[str, Sequence[Arguments]] | None = None) -> tuple[Trials, ...]:
    """For each invariant what broke earlier policies (`regressions`: invariant -> arguments), then the contract's pool."""
    pool = _pool_trials(contract.digest, Unhashed(contract))
    if not regressions:
        return pool
    return tuple(
        Trials(
            contract,
            item.formula,
            (*_prepared(contract, item.formula, regressions[item.formula.name]), *item.arguments),
        )
        if item.formula.name in regressions
        else item
        for item in pool
    )


@cache
def _pool_trials(digest: str, handle: Unhashed) -> tuple[Trials, ...]:
    contract, pool = handle.contract, pool_of(handle.contract)
    return tuple(
        Trials(contract, formula, tuple(_prepared(contract, formula, pool.invariants[formula.name])))
        for formula in contract.invariants
    )


def _prepared(contract: Contract, formula: Formula, values: Sequence[Arguments]) -> list[Arguments]:
    """Arguments at the limit of the invariant's bound; those that the contract rules out could never count."""
    limit = {} if formula.least is None else {formula.least.name: formula.least.least_limit or 0}
    scene, stand_in = Scene(contract, formula.params), contract.stand_in({})
    prepared: list[Arguments] = [{**item, **limit} for item in values]
    return [item for item in prepared if scene.admits(stand_in, item)]


def _interval(domain: Domain | None) -> Interval:
    assert domain is not None  # a parameter is a view or has a domain
    return Interval(domain.lo, domain.hi)
