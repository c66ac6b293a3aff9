"""Z3 under a resource limit, so that a verdict repeats on any machine: scopes of symbols, queries, models back to values."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from typing import Literal

import z3

from ..contract import Contract
from ..formula import Formula, FormulaParam, formula_module
from ..language.ir import Module
from ..language.smt import (
    Encoder,
    Oracle,
    SymbolicView,
    Term,
    as_bool,
    conjunction,
    domain_constraints,
    negation,
    symbolic_scalar,
)
from .counterexample import Arguments, instances

__all__ = [
    "DEFAULT_RLIMIT",
    "Answer",
    "Encoded",
    "IncrementalSolver",
    "Nlsat",
    "Scope",
    "any_of",
    "ask",
    "assumptions_used",
    "encode_formula",
    "scope_of",
    "to_smtlib",
    "unassuming_scope",
    "values_of",
]

DEFAULT_RLIMIT = 4_000_000
"""Z3 resource units a query may use: about two seconds here, and the same verdict everywhere."""

BUDGET_FACTOR = 4
"""All queries to one solver together may use this many times the limit of one query."""

FIRST_TRY = 4
"""A query's first try, by the incremental core, may use this part of the limit; what it can do at all it mostly does soon."""

NLSAT_PART = 40
"""Fraction of the limit for the last try, in which Z3 may use nlsat, its solver for products. In there 30 s have counted for as
few resource units as 0.25 s elsewhere; a proof that nlsat finds takes it few units. No query is stopped by a clock."""

z3.set_param("memory_max_size", 3_072)  # MiB; a query beyond it counts as unknown

# A Z3 context takes megabytes, and every scope has one of its own. Until a process has freed a large block, glibc hands each back
# to the system, and taking it again costs as much as three queries. One large block, never touched, taken and freed:
bytes(31 << 20)

Answer = Literal["sat", "unsat", "unknown"]
Nlsat = Literal["never", "last", "always"]
"""Policy for nlsat: never, as the last try of a query, or always."""


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


def scope_of(contract: Contract, params: Sequence[FormulaParam], unbounded: Collection[str] = ()) -> Scope:
    """Return symbols for parameters, with their domains and every instance of every assumption about them.

    Each scope has a Z3 context of its own: what a process asked before cannot change an answer, so verdicts repeat.

    Args:
        contract: its assumptions are instantiated; `params`: the parameters; `unbounded`: names of views of which nothing is
            assumed, neither domain nor assumption: the states of a theorem.
    """
    scope = unassuming_scope(params, unbounded)
    context, symbols = scope.context, scope.symbols
    views = {param.name: param.view for param in params if param.view is not None and param.name not in unbounded}
    assumptions = [
        (formula.name, z3.BoolVal(False, context) if term is False else term)
        for formula in contract.assumptions
        for names in instances(formula.params, views)
        if (term := encode_formula(formula, [symbols[name] for name in names], None).holds) is not True
    ]
    return replace(scope, assumptions=tuple(assumptions))


def unassuming_scope(params: Sequence[FormulaParam], unbounded: Collection[str] = ()) -> Scope:
    """Return symbols for parameters with their domains, as `scope_of`, and without any assumption."""
    context = z3.Context()
    symbols: dict[str, SymbolicView | Term] = {}
    domains: list[z3.BoolRef] = []
    for param in params:
        if param.view is not None:
            symbol = SymbolicView.fresh(param.name, param.view, context)
            domains += symbol.domain() if param.name not in unbounded else []
            symbols[param.name] = symbol
        else:
            assert param.domain is not None
            symbols[param.name] = symbolic_scalar(f"{param.name}.value", param.domain, context)
            domains += domain_constraints(symbols[param.name], param.domain)
    return Scope(symbols, tuple(domains), context, ())


@dataclass(frozen=True)
class Encoded:
    """A formula on symbols: its value, and whether CPython computes one."""

    value: Term
    total: Term
    """Condition that nothing on the path that is taken divides by zero."""

    @property
    def holds(self) -> Term:
        """Condition that the formula is true; one that raises in CPython is not."""
        return conjunction(as_bool(self.value), self.total)


def encode_formula(formula: Formula, arguments: Sequence[SymbolicView | Term], oracle: Oracle | None) -> Encoded:
    """Return a formula on symbols, over unbounded integers as CPython computes it; `oracle` answers its calls of decisions."""
    encoder = Encoder(_module(formula), oracle=oracle, unbounded=True)
    value = encoder.call(formula.name, arguments)
    faults = [obligation.negation() for obligation in encoder.obligations]
    return Encoded(value, reduce(conjunction, map(negation, faults), True))


@cache
def _module(formula: Formula) -> Module:
    return formula_module((formula,))


def ask(constraints: Sequence[Term], rlimit: int) -> tuple[Answer, z3.ModelRef | None]:
    """Return whether constraints can hold together, and a model when they can, within a few times `rlimit`."""
    return IncrementalSolver(constraints, rlimit).ask()


def any_of(terms: Sequence[Term], context: z3.Context) -> z3.BoolRef:
    """Return the disjunction of truth values."""
    return z3.Or([z3.BoolVal(term, context) if isinstance(term, bool) else term for term in terms], context)


def _context(constraints: Sequence[Term]) -> z3.Context | None:
    return next((item.ctx for item in constraints if isinstance(item, z3.ExprRef)), None)


class IncrementalSolver:
    """One solver for many queries that share constraints; gives up on a query after `rlimit` resource units.

    Its incremental core answers most queries several times sooner than a fresh solver, which comes next. Neither is Z3's
    default strategy: that goes from one tactic to the next after seconds on the clock, so that a busy machine gets other
    answers. Unless told otherwise both do without nlsat; what they leave open goes to it under a small limit of its own.
    """

    def __init__(self, constraints: Sequence[Term], rlimit: int, nlsat: Nlsat = "last") -> None:
        """Take what all queries share, a query's limit in resource units, and when nlsat is used.

        `always` is for small limits only: they stop nlsat late.
        """
        self._context = _context(constraints)
        self._nlsat = nlsat
        self._solver = self._limited(z3.SimpleSolver(ctx=self._context), max(1, rlimit // FIRST_TRY))
        self._constraints = [constraint for constraint in constraints if constraint is not True]
        self._rlimit = rlimit
        self._budget = BUDGET_FACTOR * rlimit
        self._impossible = any(constraint is False for constraint in self._constraints)
        self._filled = False

    @property
    def gave_up(self) -> str:
        """Explanation, in words, of the last answer that was unknown."""
        return f"Z3 gave up within {self._rlimit:,} resource units; simplify the arithmetic or raise the limit"

    def spare(self, rlimit: int) -> None:
        """Reduce the limit of a query, and that of all of them together to `BUDGET_FACTOR` times as much."""
        self._rlimit = min(self._rlimit, rlimit)
        self._budget = min(self._budget, BUDGET_FACTOR * rlimit)

    def ask(self, extra: Sequence[Term] = ()) -> tuple[Answer, z3.ModelRef | None]:
        """Return what the function `ask` does, with further constraints for this query only."""
        if self._impossible:
            return "unsat", None
        if self._budget <= 0:
            return "unknown", None
        try:
            answer, model = self._ask_incremental(extra)
            if answer == "unknown" and self._budget > 0:
                answer, model = self._ask_fresh(extra)
            if answer == "unknown" and self._budget > 0 and self._nlsat == "last":
                answer, model = self._ask_nlsat(extra)
        except z3.Z3Exception:  # out of memory, or a term too large for Z3's own structures
            self._budget = 0
            return "unknown", None
        return answer, model

    def _ask_incremental(self, extra: Sequence[Term]) -> tuple[Answer, z3.ModelRef | None]:
        if not self._filled:
            self._filled = True
            self._solver.add(*self._constraints)
        self._solver.push()
        try:
            self._solver.add(*extra)
            return self._check(self._solver)
        finally:
            self._solver.pop()

    def _ask_fresh(self, extra: Sequence[Term]) -> tuple[Answer, z3.ModelRef | None]:
        """Ask with the whole problem at once: slower to start, stronger on non-linear arithmetic."""
        solver = self._limited(self._whole(), self._rlimit)
        solver.add(*self._constraints, *extra)
        return self._check(solver)

    def _ask_nlsat(self, extra: Sequence[Term]) -> tuple[Answer, z3.ModelRef | None]:
        """Ask in both other ways again, with nlsat."""
        answer: Answer = "unknown"
        model: z3.ModelRef | None = None
        for solver in (z3.SimpleSolver(ctx=self._context), self._whole()):
            if answer == "unknown" and self._budget > 0:
                limited = _limited(solver, max(1, self._rlimit // NLSAT_PART), nlsat=True)
                limited.add(*self._constraints, *extra)
                answer, model = self._check(limited)
        return answer, model

    def _limited(self, solver: z3.Solver, rlimit: int) -> z3.Solver:
        return _limited(solver, rlimit, nlsat=self._nlsat == "always")

    def _whole(self) -> z3.Solver:
        return z3.Then(z3.Tactic("simplify", self._context), z3.Tactic("smt", self._context)).solver()

    def _check(self, solver: z3.Solver) -> tuple[Answer, z3.ModelRef | None]:
        before = _resources(solver)
        answer = solver.check()
        used = _resources(solver) - before
        self._budget -= used
        if answer == z3.sat:
            return "sat", solver.model()
        return ("unsat" if answer == z3.unsat else "unknown"), None


def _limited(solver: z3.Solver, rlimit: int, *, nlsat: bool = False) -> z3.Solver:
    solver.set("rlimit", rlimit)
    solver.set("arith.nl.nra", nlsat)
    return solver


def _resources(solver: z3.Solver) -> int:
    """Return the resource units that the solver's context has used so far."""
    statistics = solver.statistics()
    return int(statistics.get_key_value("rlimit count")) if "rlimit count" in statistics.keys() else 0  # noqa: SIM118


def assumptions_used(scope: Scope, violation: z3.BoolRef, rlimit: int) -> tuple[str, ...] | None:
    """Return the names of the assumptions in an unsatisfiable core of a proved obligation; None when the solver gives up."""
    solver = _limited(z3.SimpleSolver(ctx=scope.context), rlimit)
    solver.set("core.minimize", True)
    solver.add(*scope.domains, violation)
    tracked: dict[str, str] = {}
    for index, (name, term) in enumerate(scope.assumptions):
        label = f"assumption!{index}"
        tracked[label] = name
        solver.assert_and_track(term, label)
    try:
        if solver.check() != z3.unsat:
            return None
        return tuple(sorted({tracked[str(label)] for label in solver.unsat_core()}))
    except z3.Z3Exception:
        return None


def to_smtlib(constraints: Sequence[Term]) -> str:
    """Return a query as SMT-LIB 2 text that any solver reads."""
    context = _context(constraints)
    solver = z3.Solver(ctx=context)
    for constraint in constraints:
        solver.add(z3.BoolVal(constraint, context) if isinstance(constraint, bool) else constraint)
    return str(solver.to_smt2())


def values_of(model: z3.ModelRef, symbols: Mapping[str, SymbolicView | Term]) -> Arguments:
    """Return the values that a model gives to symbols."""
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
