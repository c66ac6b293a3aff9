"""The search for a counterexample of an invariant: by products known only by their bounds first, then exactly.

A policy that multiplies no fields is encoded once, exactly, and asked about once. For others (`language.products`) a wider
encoding comes first, whose "none" is a proof, and whose model counts if it breaks the invariant in CPython; then a narrower one,
whose models do. Both are linear. Only what they leave open goes to the exact encoding, where solvers may give up. Between a least
bound that is proved and one that is refuted it goes there with the bounds of products beside it and to Z3 without nlsat, then to
nlsat for a moment: a query there has taken half a minute while an engine waited for a swap, and a bound may be merely sufficient.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce

from ..formula import Formula
from ..language.products import Products
from ..language.smt import Encoder, SymbolicView, Term, conjunction, negation
from ..policy import Policy
from .counterexample import Arguments, Evaluator
from .solving import Answer, IncrementalSolver, Scope, encode_formula, scope_of, values_of

__all__ = ["Search", "Violation", "violation_of"]

PART = 4
"""Fraction of the limit for a query of the over- or the under-approximation, which are linear and need little."""
SPARE, BOUNDED = 8, 16
"""Fractions of the limit for a query that only tightens a proved bound, exactly and with the bounds of products beside.

A policy must not wait long for a finer figure. Smaller limits leave more queries within the common budget, and find more."""
BRIEF = 100
"""Fraction of the limit for a query that tightens a bound and may use nlsat from the start."""


@dataclass(frozen=True)
class Violation:
    """An invariant over a policy, as the constraints of a search for a counterexample."""

    formula: Formula
    scope: Scope
    term: Term
    """The negated invariant."""
    products: Products
    """Products that `term` abstracts; empty when it is exact."""

    @property
    def constraints(self) -> list[Term]:
        """Constraints that a counterexample satisfies, whatever the invariant's bound."""
        return [*self.scope.constraints, *self.products.bounds, self.term]

    def between(self, low: int, high: int) -> list[Term]:
        """Return the constraint that the invariant's bound, if it has one, lies between two values."""
        if self.formula.least is None:
            return []
        bound: Term = self.scope.symbols[self.formula.least.name]
        return [bound >= low, bound <= high]


def violation_of(policy: Policy, formula: Formula, cut: bool) -> Violation:
    """Return the negation of an invariant for this policy, exactly or with its products abstracted."""
    scope = scope_of(policy.contract, formula.params)
    products = Products(scope.context)
    known: dict[tuple[str, ...], Term] = {}

    def oracle(name: str, arguments: Sequence[SymbolicView | Term]) -> Term:
        key = (name, *(item.name for item in arguments if isinstance(item, SymbolicView)))
        if key not in known:
            ranges = policy.ranges[name]
            cutter = products.cutter(ranges) if cut else None
            known[key] = Encoder(policy.module, ranges, cutter=cutter).call(name, arguments)
        return known[key]

    holds = encode_formula(formula, [scope.symbols[param.name] for param in formula.params], oracle).holds
    return Violation(formula, scope, negation(holds), products)


class Search:
    """Looks for counterexamples of one invariant of one policy."""

    def __init__(self, policy: Policy, formula: Formula, evaluator: Evaluator, rlimit: int, cut: bool = True) -> None:
        self.policy, self.formula, self.evaluator, self.rlimit = policy, formula, evaluator, rlimit
        self.cut = violation_of(policy, formula, cut)
        """Violation with its products abstracted; the exact one when there are none, or with `cut=False`."""

    @cached_property
    def exact(self) -> Violation:
        """The violation with every product as it is."""
        return violation_of(self.policy, self.formula, cut=False) if self.cut.products else self.cut

    @cached_property
    def solver(self) -> IncrementalSolver:
        """Asks the exact encoding."""
        return IncrementalSolver(self.exact.constraints, self.rlimit)

    @cached_property
    def bounded(self) -> Violation:
        """The violation with every product as it is, and with its bounds, which Z3 would take long to find."""
        return replace(self.cut, term=reduce(conjunction, self.cut.products.definitions, self.cut.term))

    @cached_property
    def _bounded(self) -> IncrementalSolver:
        return IncrementalSolver(self.bounded.constraints, max(1, self.rlimit // BOUNDED), nlsat="never")

    def spare(self) -> None:
        """Reduce the budget of exact queries: the bound is proved already, and only its tightness is open."""
        self.solver.spare(max(1, self.rlimit // SPARE))

    @cached_property
    def _brief(self) -> IncrementalSolver:
        return IncrementalSolver(self.exact.constraints, max(1, self.rlimit // BRIEF), nlsat="always")

    @cached_property
    def _wider(self) -> IncrementalSolver:
        return IncrementalSolver(self.cut.constraints, max(1, self.rlimit // PART))

    @cached_property
    def _narrower(self) -> IncrementalSolver:
        constraints = [*self.cut.scope.constraints, *self.cut.products.pins, self.cut.term]
        return IncrementalSolver(constraints, max(1, self.rlimit // PART))

    @property
    def gave_up(self) -> str:
        """Explanation, in words, of the last answer that was unknown."""
        return self.solver.gave_up

    def proved_by_intervals(self, low: int, high: int) -> bool:
        """Return whether the bounds of products suffice to prove the invariant with its bound between two values."""
        return bool(self.cut.products) and self._wider.ask(self.cut.between(low, high))[0] == "unsat"

    def ask(self, low: int, high: int) -> tuple[Answer, Arguments | None]:
        """Return whether the invariant can break with its bound between two values, and values that break it when it can."""
        answer, values = self.ask_cut(low, high)
        return self.ask_exact(low, high) if answer == "unknown" else (answer, values)

    def ask_cut(self, low: int, high: int) -> tuple[Answer, Arguments | None]:
        """Return what `ask` does, by the over- and the under-approximation only."""
        if not self.cut.products:
            return "unknown", None
        extra = self.cut.between(low, high)
        for solver in (self._wider, self._narrower):
            answer, model = solver.ask(extra)
            if answer == "unsat" and solver is self._wider:
                return "unsat", None
            if model is not None:  # one that does not break it in CPython says nothing
                values = values_of(model, self.cut.scope.symbols)
                if self._breaks(values):
                    return "sat", values
        return "unknown", None

    def ask_exact(self, low: int, high: int) -> tuple[Answer, Arguments | None]:
        """Return what `ask` does, by the exact encoding only."""
        return self._ask(self.exact, self.solver, low, high)

    def ask_briefly(self, low: int, high: int) -> tuple[Answer, Arguments | None]:
        """Return what `ask_exact` does, within a small limit, so that a query in nlsat takes seconds at most."""
        return self._ask(self.exact, self._brief, low, high)

    def ask_bounded(self, low: int, high: int) -> tuple[Answer, Arguments | None]:
        """Return what `ask` does, by the exact encoding with the bounds of products beside, and without nlsat."""
        return self._ask(self.bounded, self._bounded, low, high)

    @staticmethod
    def _ask(violation: Violation, solver: IncrementalSolver, low: int, high: int) -> tuple[Answer, Arguments | None]:
        answer, model = solver.ask(violation.between(low, high))
        return answer, None if model is None else values_of(model, violation.scope.symbols)

    def _breaks(self, values: Arguments) -> bool:
        return self.evaluator.admissible(self.formula.params, values) and not self.evaluator.holds(self.formula, values)
