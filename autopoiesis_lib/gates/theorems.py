"""Theorems, once per contract: the kernel model and the invariants imply the system property, whatever the policy.

Decisions are free symbols here, known only through their declared ranges and the contract's invariants, instantiated for every
combination of the views in scope. A transition system yields four more lemmas: initiation, consecution, the goal and the
ranking.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import product

import z3

from ..contract import Contract, Formula, FormulaParam, Theorem
from ..language.smt import SymbolicView, Term, as_int, conjunction, domain_constraints, negation, symbolic_scalar
from .second_solver import agreed
from .solving import DEFAULT_RLIMIT, Scope, ask, encode_formula, scope_of, to_smtlib
from .verdict import ObligationResult, Verdict

__all__ = ["prove_theorem"]


def prove_theorem(
    contract: Contract, theorem: type[Theorem], rlimit: int = DEFAULT_RLIMIT
) -> tuple[ObligationResult, ...]:
    """Every lemma of a theorem, by name; all PROVED means the theorem holds of every policy that satisfies the invariants.

    Raises:
        Disagreement: Z3 proves a lemma that cvc5 refutes.
    """
    formulas = theorem.formulas(contract)
    lemmas = [name for name in formulas if name not in _SYSTEM]
    results = [_lemma(contract, theorem.__name__, formulas[name], rlimit) for name in lemmas]
    if "step" in formulas:
        results += _system(contract, theorem.__name__, formulas, rlimit)
    return tuple(results)


_SYSTEM = frozenset({"init", "step", "inductive", "goal", "ranking", "progress"})


class _FreePolicy:
    """Answers decisions with free symbols, one for each combination of views."""

    def __init__(self, contract: Contract, context: z3.Context) -> None:
        self.contract = contract
        self.context = context
        self.symbols: dict[tuple[str, ...], Term] = {}

    def __call__(self, name: str, arguments: Sequence[SymbolicView | Term]) -> Term:
        key = (name, *(item.name for item in arguments if isinstance(item, SymbolicView)))
        domain = self.contract.decisions[name].result
        return self.symbols.setdefault(key, symbolic_scalar("!".join(key), domain, self.context))

    def premises(self, params: Sequence[FormulaParam], scope: Scope) -> list[Term]:
        """What is proved of every policy: the contract's invariants over every combination of views in scope (scalars are
        matched by name), and that each answer met so far lies in its declared range."""
        invariants = self._invariants(params, scope)
        ranges = [
            bound
            for key, term in self.symbols.items()
            for bound in domain_constraints(term, self.contract.decisions[key[0]].result)
        ]
        return [*invariants, *ranges]

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
                found.append(encode_formula(formula, [scope.symbols[name] for name in names], self))
        return found


def _lemma(contract: Contract, theorem: str, formula: Formula, rlimit: int) -> ObligationResult:
    scope = scope_of(contract, formula.params)
    policy = _FreePolicy(contract, scope.context)
    holds = encode_formula(formula, [scope.symbols[param.name] for param in formula.params], policy)
    premises = [*scope.constraints, *policy.premises(formula.params, scope)]
    return _conclude(f"{theorem}.{formula.name}", formula.doc, premises, holds, rlimit)


def _conclude(name: str, doc: str, premises: Sequence[Term], conclusion: Term, rlimit: int) -> ObligationResult:
    started = time.perf_counter()
    query = [*premises, negation(conclusion)]
    answer, model = ask(query, rlimit)
    detail = doc
    text = to_smtlib(query)
    solvers: tuple[str, ...] = ("z3",)
    if answer == "sat":
        verdict, detail = Verdict.REFUTED, f"does not follow: {model}"
    elif answer == "unknown":
        verdict, detail = Verdict.UNKNOWN, f"Z3 gave up within {rlimit:,} resource units"
    elif ask(list(premises), rlimit)[0] != "sat":
        verdict, detail = Verdict.VACUOUS, "the premises cannot be met"
    else:
        verdict = Verdict.PROVED
        solvers = agreed(name, text)
    return ObligationResult(
        name=name,
        verdict=verdict,
        seconds=time.perf_counter() - started,
        detail=detail,
        solvers=solvers,
        smtlib=text,
    )


def _system(contract: Contract, theorem: str, formulas: Mapping[str, Formula], rlimit: int) -> list[ObligationResult]:
    step = formulas["step"]
    scope = scope_of(contract, step.params)
    policy = _FreePolicy(contract, scope.context)
    before, after = step.params[0].name, step.params[1].name

    def holds(name: str, *states: str) -> Term:
        inputs = [param.name for param in formulas[name].params[len(states) :]]
        return encode_formula(formulas[name], [scope.symbols[item] for item in (*states, *inputs)], policy)

    stepped = conjunction(holds("inductive", before), holds("step", before, after))
    premises: list[Term] = [*scope.constraints, *policy.premises(step.params, scope)]
    results = [
        _conclude(
            f"{theorem}: initiation",
            formulas["init"].doc,
            [*premises, holds("init", before)],
            holds("inductive", before),
            rlimit,
        ),
        _conclude(f"{theorem}: consecution", step.doc, [*premises, stepped], holds("inductive", after), rlimit),
    ]
    if "goal" in formulas:
        results.append(
            _conclude(
                f"{theorem}: goal",
                formulas["goal"].doc,
                [*premises, holds("inductive", before)],
                holds("goal", before),
                rlimit,
            )
        )
    if "ranking" in formulas and "progress" in formulas:
        rank_before, rank_after = as_int(holds("ranking", before)), as_int(holds("ranking", after))
        progressed = [*premises, stepped, holds("progress", before, after)]
        decreases = conjunction(rank_after >= 0, rank_after < rank_before)
        results.append(_conclude(f"{theorem}: ranking", formulas["ranking"].doc, progressed, decreases, rlimit))
    return results
