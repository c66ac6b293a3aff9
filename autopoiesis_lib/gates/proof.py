"""The proof gate: every obligation of a policy, for every input of its contract, by Z3.

For each decision: it is safe (no zero divisor, nothing outside int64) and its result lies in the declared range. For the
contract: every invariant holds, at the least value of its bound where it has one, and is not vacuous. Every counterexample is
replayed in CPython; one that does not replay is a bug of ours and raises.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial, reduce
from itertools import chain

import z3

from ..binding import range_name, safe_name
from ..formula import Formula
from ..language.ir import Signature
from ..language.products import Products
from ..language.ranges import Ranges
from ..language.smt import (
    Encoder,
    SymbolicView,
    Term,
    TooComplex,
    as_int,
    conjunction,
    domain_constraints,
    negation,
    symbolic_scalar,
)
from ..policy import Policy
from .contracts import examined
from .counterexample import Evaluator, decision_params
from .least import find_least
from .samples import falsifiable
from .search import Search
from .second_solver import certified, second_opinion
from .solving import (
    DEFAULT_RLIMIT,
    IncrementalSolver,
    Nlsat,
    Scope,
    any_of,
    ask,
    encode_formula,
    scope_of,
    to_smtlib,
    values_of,
)
from .verdict import GateResult, ObligationResult, Reason, Verdict, rests_on, worst

__all__ = ["check", "prove_invariant", "prove_safety"]


def check(policy: Policy, *, rlimit: int = DEFAULT_RLIMIT, least: bool = True, certify: bool = False) -> GateResult:
    """Prove every obligation of a policy.

    With `least=False` invariants are proved at the contract's limit only, which is quicker. With `certify` each proof also keeps
    its SMT-LIB text (safety without the help of intervals), says which assumptions it used, and is put to cvc5.

    Raises:
        EncoderBug: a counterexample of the solver does not replay in CPython.
        Disagreement: Z3 proves what cvc5 refutes.
    """
    started = time.perf_counter()
    results = [result for result in examined(policy.contract, rlimit) if not result.verdict.green]
    evaluator = Evaluator(policy)
    try:
        for signature in policy.contract.decisions.values() if not results else ():
            results += prove_safety(policy, signature, evaluator, rlimit, certify)
        if all(result.verdict.green for result in results):
            for formula in policy.contract.invariants:
                results += prove_invariant(policy, formula, evaluator, rlimit, least, certify)
    except TooComplex as error:
        results.append(
            ObligationResult(
                name="encoding", verdict=Verdict.UNKNOWN, seconds=0.0, reason=Reason.COMPLEXITY, detail=str(error)
            )
        )
    verdict = worst(*(result.verdict for result in results))
    seconds = time.perf_counter() - started
    if not verdict.green:
        failed = next(result for result in results if result.verdict == verdict)
        return GateResult.failed("proof", failed, seconds, results)
    detail = f"{len(results)} obligations proved"
    return GateResult(name="proof", verdict=verdict, seconds=seconds, detail=detail, obligations=tuple(results))


def prove_safety(
    policy: Policy, signature: Signature, evaluator: Evaluator, rlimit: int, certify: bool = False
) -> list[ObligationResult]:
    """Return whether a decision never faults and never leaves its range, as two obligations."""
    started = time.perf_counter()
    scope = scope_of(policy.contract, decision_params(policy.contract, signature.name))
    ranges = policy.ranges[signature.name]
    encoder = Encoder(policy.module, ranges)
    value = as_int(encoder.call(signature.name, [scope.symbols[param.name] for param in signature.params]))
    violations = [obligation.negation() for obligation in encoder.obligations]
    discharged = len(ranges.checked) - len(ranges.open)
    prove = partial(
        _prove_all,
        scope=scope,
        signature=signature,
        evaluator=evaluator,
        rlimit=rlimit,
        nlsat="never" if encoder.opaque else "last",
    )
    safe = prove(safe_name(signature.name), violations, started=started)
    detail = f"{discharged} of {len(ranges.checked)} operations by intervals, {len(violations)} obligations by Z3"
    results = [safe.model_copy(update={"detail": safe.detail or detail})]
    started = time.perf_counter()
    outside = _outside(value, signature, ranges)
    results.append(
        prove(range_name(signature.name), outside, started=started).model_copy(
            update={} if outside else {"detail": f"by intervals: {signature.result.describe()}"}
        )
    )
    return _certify_safety(policy, signature, scope, results, rlimit) if certify else results


def _certify_safety(
    policy: Policy, signature: Signature, scope: Scope, results: list[ObligationResult], rlimit: int
) -> list[ObligationResult]:
    """Return the results of `prove_safety`; proved ones carry what a certificate keeps of them.

    By the bounds of products if Z3 can prove those too, or else exactly.
    """
    proved = [result for result in results if result.verdict is Verdict.PROVED]
    if proved[:1] != results[:1]:
        return results
    found: list[list[ObligationResult]] = []
    for products in (Products(scope.context), None):
        encoder = Encoder(
            policy.module, cutter=products.cutter(policy.ranges[signature.name]) if products is not None else None
        )
        value = as_int(encoder.call(signature.name, [scope.symbols[param.name] for param in signature.params]))
        violations = ([obligation.negation() for obligation in encoder.obligations], _outside(value, signature, None))
        found = [
            _certify(result, scope, violation, products, rlimit)
            for result, violation in zip(proved, violations, strict=False)
        ]
        if all(found):
            break
    return [*chain.from_iterable(found), *results[len(proved) :]]


def _certify(
    proved: ObligationResult, scope: Scope, violations: Sequence[Term], products: Products | None, rlimit: int
) -> list[ObligationResult]:
    """Return a proved obligation as a certificate keeps it, after the one it rests on; empty when Z3 cannot prove that one."""
    violation = any_of(violations, scope.context)
    if not products:
        return [certified(proved, scope, violation, rlimit)]
    lemma = ObligationResult(
        name=rests_on(proved.name),
        verdict=Verdict.PROVED,
        seconds=0.0,
        detail=f"what {len(products.constants)} products give lies in their intervals when their operands do",
    )
    anything = replace(scope, symbols={}, domains=(), assumptions=())
    parts = (
        (lemma, anything, any_of([products.results_outside], scope.context)),
        (proved, scope, products.first_outside(violation)),
    )
    if any(ask([*part.constraints, outside], rlimit)[0] != "unsat" for _, part, outside in parts):
        return []
    return [certified(result, part, outside, rlimit) for result, part, outside in parts]


def _outside(value: Term, signature: Signature, ranges: Ranges | None) -> list[Term]:
    domain = signature.result
    if domain.kind == "bool":
        return []
    if ranges is not None and domain.values is None and domain.lo <= ranges.result.lo and ranges.result.hi <= domain.hi:
        return []
    if isinstance(value, int):
        return [] if value in domain else [True]
    violations = [value < domain.lo, value > domain.hi]
    if domain.values is not None:
        violations.append(z3.And([value != member for member in domain.values]))
    return violations


def _prove_all(
    name: str,
    violations: Sequence[Term],
    scope: Scope,
    signature: Signature,
    evaluator: Evaluator,
    rlimit: int,
    started: float,
    nlsat: Nlsat,
) -> ObligationResult:
    """Return whether none of the violations can happen."""
    answer, detail, reason = "unsat", "", None
    if violations:
        solver = IncrementalSolver([*scope.constraints, any_of(violations, scope.context)], rlimit, nlsat)
        answer, model = solver.ask()
        if answer == "sat" and model is not None:
            example = evaluator.fault_counterexample(signature.name, values_of(model, scope.symbols))
            return ObligationResult(
                name=name,
                verdict=Verdict.REFUTED,
                seconds=time.perf_counter() - started,
                reason=example.reason,
                detail=example.explanation,
                counterexample=example,
            )
    verdict = Verdict.PROVED if answer == "unsat" else Verdict.UNKNOWN
    if verdict is Verdict.UNKNOWN:
        detail, reason = solver.gave_up, Reason.RESOURCES
    seconds = time.perf_counter() - started
    return ObligationResult(name=name, verdict=verdict, seconds=seconds, reason=reason, detail=detail)


def prove_invariant(
    policy: Policy, formula: Formula, evaluator: Evaluator, rlimit: int, least: bool = True, certify: bool = False
) -> list[ObligationResult]:
    """Return whether an invariant holds for every input: at its limit, and at the tightest bound when asked for.

    With `certify`, after the bounds of products that this rests on, if any.
    """
    results = _prove_invariant(Search(policy, formula, evaluator, rlimit), least, certify)
    if results:
        return results
    return _prove_invariant(Search(policy, formula, evaluator, rlimit, cut=False), least, certify)


def _prove_invariant(search: Search, least: bool, certify: bool) -> list[ObligationResult]:
    """Return what `prove_invariant` does; empty when a product's bound cannot be proved, for nothing may rest on it then."""
    started = time.perf_counter()
    formula = search.formula
    bound = formula.least
    limit = bound.least_limit if bound is not None and bound.least_limit is not None else 0

    def result(verdict: Verdict, detail: str, **extra: object) -> list[ObligationResult]:
        return [
            ObligationResult.model_validate(
                {
                    "name": formula.name,
                    "verdict": verdict,
                    "seconds": time.perf_counter() - started,
                    "detail": detail,
                    **extra,
                }
            )
        ]

    answer, values = search.ask(limit, limit)
    if answer == "unknown":
        return result(Verdict.UNKNOWN, search.gave_up, reason=Reason.RESOURCES)
    if values is not None:
        example = search.evaluator.counterexample(formula, values)
        detail = example.explanation if bound is None else _starved(search, limit) or example.explanation
        return result(Verdict.REFUTED, detail, counterexample=example, reason=Reason.INVARIANT)
    found = find_least(search, limit) if bound is not None and least else None
    value = found.value if found is not None else limit
    if not _falsifiable(search.policy, formula, value, search.rlimit):
        return result(Verdict.VACUOUS, _vacuous(formula), least=found, reason=Reason.VACUOUS)
    by_intervals = search.proved_by_intervals(value, limit)
    detail = formula.doc + (f" (by intervals of {len(search.cut.products.constants)} products)" if by_intervals else "")
    proved = result(Verdict.PROVED, detail, least=found)
    if not certify:
        return proved
    violation = search.cut if by_intervals else search.bounded
    if search.cut.products and not by_intervals and _proved_exactly_by_both(search, value, limit):
        violation = search.exact
    at_bound = reduce(conjunction, violation.between(value, limit), violation.term)
    return _certify(proved[0], violation.scope, [at_bound], violation.products, search.rlimit)


def _proved_exactly_by_both(search: Search, low: int, high: int) -> bool:
    """Return whether both solvers manage without the bounds of products, which makes the plainer certificate."""
    between = search.exact.between(low, high)
    if second_opinion(to_smtlib([*search.exact.constraints, *between])) != "unsat":
        return False
    return search.solver.ask(between)[0] == "unsat"


def _vacuous(formula: Formula) -> str:
    return f"no policy could break `{formula.name}` here, its premises cannot be met: mend the contract's bounds or assumptions"


def _falsifiable(policy: Policy, formula: Formula, bound: int, rlimit: int) -> bool:
    """Return whether some policy could break the invariant at this bound: decisions are left free."""
    if falsifiable(policy.contract, formula, bound):
        return True
    scope = scope_of(policy.contract, formula.params)
    free: dict[tuple[str, ...], Term] = {}

    def oracle(name: str, arguments: Sequence[SymbolicView | Term]) -> Term:
        key = (name, *(item.name for item in arguments if isinstance(item, SymbolicView)))
        domain = policy.contract.decisions[name].result
        return free.setdefault(key, symbolic_scalar("!".join((*key, "")), domain, scope.context))

    holds = encode_formula(formula, [scope.symbols[param.name] for param in formula.params], oracle).holds
    at = [] if formula.least is None else [scope.symbols[formula.least.name] == bound]
    answers = chain.from_iterable(
        domain_constraints(term, policy.contract.decisions[key[0]].result) for key, term in free.items()
    )
    return ask([*scope.constraints, *answers, *at, negation(holds)], rlimit)[0] == "sat"


def _starved(search: Search, limit: int) -> str | None:
    """In words: whether the bound fails even at the longest value its domain knows."""
    bound = search.formula.least
    if bound is None or bound.domain is None:
        return None
    longest = bound.domain.hi
    _, values = search.ask(longest, longest)
    if values is not None:
        witness = search.evaluator.counterexample(search.formula, values)
        return f"still broken at {bound.name} = {longest:,} {bound.domain.unit}, the longest there is: {witness.explanation}"
    return f"not certified at {bound.name} <= {limit:,} {bound.domain.unit}"
