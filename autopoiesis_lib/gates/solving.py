"""Z3 under a resource limit, so that a verdict repeats on any machine: scopes of symbols, queries, models back to values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import z3

from ..contract import Contract, Formula, FormulaParam, formula_module
from ..language.smt import Encoder, Oracle, SymbolicView, Term, as_bool, domain_constraints, symbolic_scalar
from .counterexample import Arguments, instances

__all__ = [
    "DEFAULT_RLIMIT",
    "Answer",
    "IncrementalSolver",
    "Scope",
    "ask",
    "assumptions_used",
    "encode_formula",
    "refuted_text",
    "scope_of",
    "to_smtlib",
    "values_of",
]

DEFAULT_RLIMIT = 4_000_000
"""Z3 resource units a query may use: about two seconds here, and the same verdict everywhere."""

Answer = Literal["sat", "unsat", "unknown"]


@dataclass(frozen=True)
class Scope:
    """Symbols for the parameters of a formula or decision, and what may be assumed of them."""

    symbols: Mapping[str, SymbolicView | Term]
    domains: tuple[z3.BoolRef, ...]
    assumptions: tuple[tuple[str, z3.BoolRef], ...]
    """Instances of the contract's assumptions, each with the assumption's name."""

    @property
    def constraints(self) -> list[z3.BoolRef]:
        """Domains and assumptions together."""
        return [*self.domains, *(term for _, term in self.assumptions)]


def scope_of(contract: Contract, params: Sequence[FormulaParam]) -> Scope:
    """Fresh symbols for parameters, with their domains and every instance of every assumption about them."""
    symbols: dict[str, SymbolicView | Term] = {}
    domains: list[z3.BoolRef] = []
    for param in params:
        if param.view is not None:
            symbol = SymbolicView.fresh(param.name, param.view)
            domains += symbol.domain()
            symbols[param.name] = symbol
        else:
            assert param.domain is not None
            symbols[param.name] = symbolic_scalar(param.name, param.domain)
            domains += domain_constraints(symbols[param.name], param.domain)
    views = {param.name: param.view for param in params if param.view is not None}
    assumptions = [
        (formula.name, term)
        for formula in contract.assumptions
        for names in instances(formula, views)
        if not isinstance(term := encode_formula(formula, [symbols[name] for name in names], None), bool)
    ]
    return Scope(symbols, tuple(domains), tuple(assumptions))


def encode_formula(formula: Formula, arguments: Sequence[SymbolicView | Term], oracle: Oracle | None) -> Term:
    """A formula as a Z3 truth value; `oracle` answers its calls of decisions."""
    encoder = Encoder(_module(formula), oracle=oracle)
    value = encoder.call(formula.name, arguments)
    return as_bool(value) if formula.function.returns_bool else value


@cache
def _module(formula: Formula):  # type: ignore[no-untyped-def]
    return formula_module((formula,))


def ask(constraints: Sequence[Term], rlimit: int) -> tuple[Answer, z3.ModelRef | None]:
    """Whether constraints can hold together; a model when they can. Never runs longer than `rlimit` allows."""
    solver = z3.Solver()
    solver.set("rlimit", rlimit)
    for constraint in constraints:
        if constraint is False:
            return "unsat", None
        if constraint is not True:
            solver.add(constraint)
    answer = solver.check()
    if answer == z3.sat:
        return "sat", solver.model()
    return ("unsat" if answer == z3.unsat else "unknown"), None


class IncrementalSolver:
    """One solver for many queries that share constraints; gives up on a query after `rlimit` resource units."""

    def __init__(self, constraints: Sequence[Term], rlimit: int) -> None:
        self._solver = z3.Solver()
        self._solver.set("rlimit", rlimit)
        self._constraints = [constraint for constraint in constraints if constraint is not True]
        self._rlimit = rlimit
        self._impossible = any(constraint is False for constraint in self._constraints)
        if not self._impossible:
            self._solver.add(*self._constraints)

    def ask(self, extra: Sequence[Term] = ()) -> tuple[Answer, z3.ModelRef | None]:
        """As `ask`, with further constraints for this query only; a fresh solver has the last word when this one gives up."""
        if self._impossible:
            return "unsat", None
        self._solver.push()
        try:
            self._solver.add(*extra)
            answer = self._solver.check()
            if answer == z3.sat:
                return "sat", self._solver.model()
            if answer == z3.unsat:
                return "unsat", None
        finally:
            self._solver.pop()
        return ask([*self._constraints, *extra], self._rlimit)


def assumptions_used(scope: Scope, violation: z3.BoolRef, rlimit: int) -> tuple[str, ...] | None:
    """The assumptions in an unsatisfiable core of a proved obligation, by name; None when the solver gives up on finding one."""
    solver = z3.Solver()
    solver.set("rlimit", rlimit)
    solver.set("core.minimize", True)
    solver.add(*scope.domains, violation)
    tracked: dict[str, str] = {}
    for index, (name, term) in enumerate(scope.assumptions):
        label = f"assumption!{index}"
        tracked[label] = name
        solver.assert_and_track(term, label)
    if solver.check() != z3.unsat:
        return None
    return tuple(sorted({tracked[str(label)] for label in solver.unsat_core()}))


def to_smtlib(constraints: Sequence[Term]) -> str:
    """A query as SMT-LIB 2 text that any solver reads."""
    solver = z3.Solver()
    for constraint in constraints:
        solver.add(z3.BoolVal(constraint) if isinstance(constraint, bool) else constraint)
    return str(solver.to_smt2())


def refuted_text(smtlib: str, rlimit: int) -> Answer:
    """Z3's answer to an SMT-LIB 2 text."""
    solver = z3.Solver()
    solver.set("rlimit", rlimit)
    solver.from_string(smtlib)
    answer = solver.check()
    return "sat" if answer == z3.sat else "unsat" if answer == z3.unsat else "unknown"


def values_of(model: z3.ModelRef, symbols: Mapping[str, SymbolicView | Term]) -> Arguments:
    """The values a model gives to symbols."""
    values: Arguments = {}
    for name, symbol in symbols.items():
        if isinstance(symbol, SymbolicView):
            values[name] = {field: _number(model, term) for field, term in symbol.terms.items()}
        else:
            values[name] = _number(model, symbol)
    return values


def _number(model: z3.ModelRef, term: Term) -> int:
    value = model.eval(term, model_completion=True)
    if isinstance(value, z3.BoolRef):
        return int(z3.is_true(value))
    return int(value.as_long())
