"""Theorems, once per contract: the kernel model and the invariants imply the system property, for every policy.

Decisions are free symbols here, known only through their declared ranges and the contract's invariants, instantiated for every
combination of the views in scope. A transition system yields more lemmas: initiation, consecution, the goal and the ranking.
Its states are unbounded, so that no declared domain and no assumption can make a property inductive. A lemma or goal that holds
of any state and any policy is VACUOUS, and so is one whose premises cannot be met.
"""

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache, reduce
from itertools import product

import z3

from ..contract import Contract, Unhashed
from ..formula import Formula, FormulaParam
from ..language.smt import (
    SymbolicView,
    Term,
    TooComplex,
    as_int,
    conjunction,
    disjunction,
    domain_constraints,
    negation,
    symbolic_scalar,
)
from ..theorem import SYSTEM, Theorem
from .second_solver import agreed
from .solving import DEFAULT_RLIMIT, Encoded, Scope, ask, encode_formula, scope_of, to_smtlib
from .verdict import ObligationResult, Reason, TheoremResult, Verdict

__all__ = ["prove_theorem", "prove_theorems"]


def prove_theorems(contract: Contract, rlimit: int = DEFAULT_RLIMIT) -> tuple[TheoremResult, ...]:
    """Return every theorem of a contract with its lemmas, discharged or not; proved once per process.

    Raises:
        Disagreement: Z3 proves a lemma that cvc5 refutes.
    """
    return _proved(contract.digest, rlimit, Unhashed(contract))


@lru_cache(maxsize=64)
def _proved(digest: str, rlimit: int, handle: Unhashed) -> tuple[TheoremResult, ...]:
    return tuple(
        TheoremResult(name=theorem.__name__, statement=claim, lemmas=prove_theorem(handle.contract, theorem, rlimit))
        for theorem, claim in handle.contract.stated.items()
    )


def prove_theorem(
    contract: Contract, theorem: type[Theorem], rlimit: int = DEFAULT_RLIMIT
) -> tuple[ObligationResult, ...]:
    """Return every lemma of a theorem; all PROVED means the theorem holds of every policy that satisfies the invariants.

    Raises:
        ContractError: the theorem is not well formed.
        Disagreement: Z3 proves a lemma that cvc5 refutes.
    """
    formulas = contract.theorem_formulas(theorem)
    name = theorem.__name__
    try:
        results = [_lemma(contract, name, formula, rlimit) for key, formula in formulas.items() if key not in SYSTEM]
        if "step" in formulas:
            results += _System(contract, name, formulas, rlimit).lemmas()
    except TooComplex as error:
        return (
            ObligationResult(
                name=name, verdict=Verdict.UNKNOWN, seconds=0.0, reason=Reason.COMPLEXITY, detail=str(error)
            ),
        )
    return tuple(results)


class _FreePolicy:
    """Answers decisions with free symbols, one for each combination of views."""

    def __init__(self, contract: Contract, context: z3.Context) -> None:
        self.contract = contract
        self.context = context
        self.symbols: dict[tuple[str, ...], Term] = {}

    def __call__(self, name: str, arguments: Sequence[SymbolicView | Term]) -> Term:
        key = (name, *(item.name for item in arguments if isinstance(item, SymbolicView)))
        domain = self.contract.decisions[name].result
        return self.symbols.setdefault(key, symbolic_scalar("!".join((*key, "")), domain, self.context))

    def premises(self, params: Sequence[FormulaParam], scope: Scope) -> list[Term]:
        """Return what is proved of every policy: the contract's invariants over every combination of views in scope (scalars are
        matched by name, within the invariant's own domains), and that each answer met so far lies in its declared range."""
        invariants = self._invariants(params, scope)
        return [*invariants, *self.ranges()]

    def ranges(self) -> list[Term]:
        """Return that each answer met so far lies in its declared range."""
        return [
            bound
            for key, term in self.symbols.items()
            for bound in domain_constraints(term, self.contract.decisions[key[0]].result)
        ]

    def _invariants(self, params: Sequence[FormulaParam], scope: Scope) -> list[Term]:
        found: list[Term] = []
        for formula in self.contract.invariants:
            choices: list[list[str]] = []
            for param in formula.params:
                if param.view is not None:
                    choices.append([other.name for other in params if other.view is param.view])
                else:
                    choices.append([other.name for other in params if other.view is None and other.name == param.name])
            for names in product(*choices):
                arguments = [scope.symbols[name] for name in names]
                holds = encode_formula(formula, arguments, self).holds
                outside = negation(reduce(conjunction, _within(formula.params, arguments), True))
                found.append(disjunction(outside, holds))
        return found


def _within(params: Sequence[FormulaParam], arguments: Sequence[SymbolicView | Term]) -> list[Term]:
    """Return that scalars lie in an invariant's own domains: a lemma's may be larger, where nothing is proved of a policy."""
    return [
        bound
        for param, term in zip(params, arguments, strict=True)
        if param.domain is not None
        for bound in domain_constraints(term, param.domain)
    ]


def _lemma(contract: Contract, theorem: str, formula: Formula, rlimit: int) -> ObligationResult:
    scope = scope_of(contract, formula.params)
    policy = _FreePolicy(contract, scope.context)
    holds = encode_formula(formula, [scope.symbols[param.name] for param in formula.params], policy).holds
    premises = [*scope.constraints, *policy.premises(formula.params, scope)]
    anything = [*scope.constraints, *policy.ranges()]
    return _conclude(f"{theorem}.{formula.name}", formula.doc, premises, holds, rlimit, anything)


def _conclude(
    name: str, doc: str, premises: Sequence[Term], conclusion: Term, rlimit: int, anything: Sequence[Term] | None = None
) -> ObligationResult:
    """Return whether premises imply a conclusion.

    Args:
        name: of the obligation; `doc`: its statement in words.
        premises: what is given; `conclusion`: what must follow.
        rlimit: Z3's limit.
        anything: when given, the conclusion must be false somewhere here, or it says nothing.
    """
    started = time.perf_counter()

    def result(
        verdict: Verdict, detail: str, reason: Reason | None = None, solvers: tuple[str, ...] = ("z3",)
    ) -> ObligationResult:
        seconds = time.perf_counter() - started
        return ObligationResult(
            name=name, verdict=verdict, seconds=seconds, reason=reason, detail=detail, solvers=solvers, smtlib=text
        )

    query = [*premises, negation(conclusion)]
    text = to_smtlib(query)
    answer, model = ask(query, rlimit)
    if answer == "sat":
        return result(Verdict.REFUTED, f"does not follow: {_shown(model)}", Reason.INVARIANT)
    if answer == "unknown":
        return result(Verdict.UNKNOWN, f"Z3 gave up within {rlimit:,} resource units", Reason.RESOURCES)
    if ask(list(premises), rlimit)[0] != "sat":
        return result(Verdict.VACUOUS, "the premises cannot be met", Reason.VACUOUS)
    if anything is not None and ask([*anything, negation(conclusion)], rlimit)[0] != "sat":
        detail = "it holds of any kernel and any policy, so it says nothing of these"
        return result(Verdict.VACUOUS, detail, Reason.VACUOUS)
    return result(Verdict.PROVED, doc, solvers=agreed(name, text))


def _shown(model: z3.ModelRef | None) -> str:
    """Return a model on one line, in the order of names, so that the text repeats."""
    if model is None:
        return ""
    return ", ".join(sorted(f"{item.name()} = {model[item]}" for item in model.decls()))


class _System:
    """The lemmas of a theorem's transition system."""

    def __init__(self, contract: Contract, theorem: str, formulas: Mapping[str, Formula], rlimit: int) -> None:
        step = formulas["step"]
        self._theorem, self._formulas, self._rlimit = theorem, formulas, rlimit
        self._before, self._after = step.params[0].name, step.params[1].name
        self._scope = scope_of(contract, step.params, unbounded=(self._before, self._after))
        self._policy = _FreePolicy(contract, self._scope.context)
        self._inputs = step.params[2:]

    def lemmas(self) -> list[ObligationResult]:
        """Return whether each obligation of the system holds."""
        before, after = self._before, self._after
        init, inductive = self._encode("init", before), self._encode("inductive", before)
        step, kept = self._encode("step", before, after), self._encode("inductive", after)
        stepped = conjunction(inductive.holds, step.holds)
        results = [
            *self._total("init", init, True),
            *self._total("step", step, inductive.holds),
            self._follows("initiation", self._formulas["init"].doc, init.holds, inductive.holds),
            self._follows("consecution", self._formulas["step"].doc, stepped, kept.holds),
        ]
        if "goal" in self._formulas:
            goal = self._encode("goal", before)
            results.append(
                self._follows("goal", self._formulas["goal"].doc, inductive.holds, goal.holds, anywhere=True)
            )
        if "ranking" in self._formulas:
            progress = self._encode("progress", before, after)
            first, second = self._encode("ranking", before), self._encode("ranking", after)
            lower, higher = as_int(second.value), as_int(first.value)
            falls = reduce(conjunction, (first.total, second.total, lower >= 0, lower < higher))
            progressed = conjunction(stepped, progress.holds)
            results += self._total("progress", progress, stepped)
            results.append(self._follows("ranking", self._formulas["ranking"].doc, progressed, falls))
        return results

    def _encode(self, name: str, *states: str) -> Encoded:
        formula = self._formulas[name]
        arguments = [*states, *(param.name for param in formula.params[len(states) :])]
        return encode_formula(formula, [self._scope.symbols[item] for item in arguments], self._policy)

    def _follows(
        self, part: str, doc: str, premise: Term, conclusion: Term, *, anywhere: bool = False
    ) -> ObligationResult:
        premises = [*self._scope.constraints, *self._policy.premises(self._inputs, self._scope), premise]
        return _conclude(f"{self._theorem}: {part}", doc, premises, conclusion, self._rlimit, [] if anywhere else None)

    def _total(self, name: str, encoded: Encoded, premise: Term) -> list[ObligationResult]:
        """Return that a premise never divides by zero, where it divides: it would silently exclude those steps."""
        if encoded.total is True:
            return []
        return [self._follows(f"{name} is total", f"`{name}` never divides by zero", premise, encoded.total)]
