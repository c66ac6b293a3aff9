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
    "any_of",
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
    context: z3.Context
    assumptions: tuple[tuple[str, z3.BoolRef], ...]
    """Instances of the contract's assumptions, each with the assumption's name."""

    @property
    def constraints(self) -> list[z3.BoolRef]:
        """Domains and assumptions together."""
        return [*self.domains, *(term for _, term in self.assumptions)]


def scope_of(contract: Contract, params: Sequence[FormulaParam]) -> Scope:
    """Symbols for parameters, with their domains and every instance of every assumption about them.

    Each scope has a Z3 context of its own: what a process asked before cannot change an answer, so verdicts repeat.
    """
    context = z3.Context()
    symbols: dict[str, SymbolicView | Term] = {}
    domains: list[z3.BoolRef] = []
    for param in params:
        if param.view is not None:
            symbol = SymbolicView.fresh(param.name, param.view, context)
            domains += symbol.domain()
            symbols[param.name] = symbol
        else:
            assert param.domain is not None
            symbols[param.name] = symbolic_scalar(param.name, param.domain, context)
            domains += domain_constraints(symbols[param.name], param.domain)
    views = {param.name: param.view for param in params if param.view is not None}
    assumptions = [
        (formula.name, term)
        for formula in contract.assumptions
        for names in instances(formula, views)
        if not isinstance(term := encode_formula(formula, [symbols[name] for name in names], None), bool)
    ]
    return Scope(symbols, tuple(domains), context, tuple(assumptions))


def encode_formula(formula: Formula, arguments: Sequence[SymbolicView | Term], oracle: Oracle | None) -> Term:
    """A formula as a Z3 truth value; `oracle` answers its calls of decisions."""
    encoder = Encoder(_module(formula), oracle=oracle)
    value = encoder.call(formula.name, arguments)
    return as_bool(value) if formula.function.returns_bool else value


@cache
def _module(formula: Formula):  # type: ignore[no-untyped-def]
    return formula_module((formula,))


def ask(constraints: Sequence[Term], rlimit: int) -> tuple[Answer, z3.ModelRef | None]:
    """Whether constraints can hold together; a model when they can. Never runs longer than `rlimit` allows, twice."""
    return IncrementalSolver(constraints, rlimit).ask()


def any_of(terms: Sequence[Term], context: z3.Context) -> z3.BoolRef:
    """The disjunction of truth values."""
    return z3.Or([z3.BoolVal(term, context) if isinstance(term, bool) else term for term in terms], context)


def _context(constraints: Sequence[Term]) -> z3.Context | None:
    return next((item.ctx for item in constraints if isinstance(item, z3.ExprRef)), None)


class IncrementalSolver:
    """One solver for many queries that share constraints; gives up on a query after `rlimit` resource units.

    Its incremental core answers most queries several times sooner than a fresh solver, which has the last word.
    """

    def __init__(self, constraints: Sequence[Term], rlimit: int) -> None:
        self._solver = z3.Solver(ctx=_context(constraints))
        self._solver.set("rlimit", rlimit)
        self._constraints = [constraint for constraint in constraints if constraint is not True]
        self._rlimit = rlimit
        self._impossible = any(constraint is False for constraint in self._constraints)
        if not self._impossible:
            self._solver.add(*self._constraints)

    def ask(self, extra: Sequence[Term] = ()) -> tuple[Answer, z3.ModelRef | None]:
        """As `ask`, with further constraints for this query only."""
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
        return _ask_fresh([*self._constraints, *extra], self._rlimit)


def _ask_fresh(constraints: Sequence[Term], rlimit: int) -> tuple[Answer, z3.ModelRef | None]:
    """As `ask`, by Z3's strategy for a whole problem: slower to start, stronger on non-linear arithmetic."""
    solver = z3.Solver(ctx=_context(constraints))
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


def assumptions_used(scope: Scope, violation: z3.BoolRef, rlimit: int) -> tuple[str, ...] | None:
    """The assumptions in an unsatisfiable core of a proved obligation, by name; None when the solver gives up on finding one."""
    solver = z3.Solver(ctx=scope.context)
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
    context = _context(constraints)
    solver = z3.Solver(ctx=context)
    for constraint in constraints:
        solver.add(z3.BoolVal(constraint, context) if isinstance(constraint, bool) else constraint)
    return str(solver.to_smt2())


def refuted_text(smtlib: str, rlimit: int) -> Answer:
    """Z3's answer to an SMT-LIB 2 text."""
    solver = z3.Solver(ctx=z3.Context())
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
