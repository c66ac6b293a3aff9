"""The contract gate: an assumption that raises, or assumptions that cannot be met, would make any policy look proved."""

import time
from functools import lru_cache, reduce

from ..contract import Contract, Unhashed
from ..formula import Formula, formula_module
from ..language.smt import Encoder, TooComplex, conjunction, negation
from .counterexample import admissible, decision_params
from .samples import pool_of
from .solving import DEFAULT_RLIMIT, ask, scope_of, unassuming_scope, values_of
from .verdict import GateResult, ObligationResult, Reason, Verdict

__all__ = ["check", "examined"]


def check(contract: Contract, rlimit: int = DEFAULT_RLIMIT) -> GateResult:
    """Return whether every assumption has a value everywhere, and every decision some inputs that meet them all."""
    started = time.perf_counter()
    results = examined(contract, rlimit)
    failed = next((result for result in results if not result.verdict.green), None)
    seconds = time.perf_counter() - started
    if failed is not None:
        return GateResult.failed("contract", failed, seconds, (failed,))
    detail = f"{len(results)} checks of the contract"
    return GateResult(name="contract", verdict=Verdict.PASSED, seconds=seconds, detail=detail)


def examined(contract: Contract, rlimit: int = DEFAULT_RLIMIT) -> tuple[ObligationResult, ...]:
    """Return every check of a contract; made once per process."""
    return _examined(contract.digest, rlimit, Unhashed(contract))


@lru_cache(maxsize=256)
def _examined(digest: str, rlimit: int, handle: Unhashed) -> tuple[ObligationResult, ...]:
    contract = handle.contract
    try:
        results = [_total(formula, rlimit) for formula in contract.assumptions]
        if all(result.verdict.green for result in results):
            results += [_can_be_met(contract, name, rlimit) for name in contract.decisions]
    except TooComplex as error:
        return (
            ObligationResult(
                name="contract", verdict=Verdict.UNKNOWN, seconds=0.0, reason=Reason.COMPLEXITY, detail=str(error)
            ),
        )
    return tuple(results)


def _total(formula: Formula, rlimit: int) -> ObligationResult:
    """Return whether an assumption has a value on all views of its domains, in machine code, too: engines check it there."""
    started = time.perf_counter()
    scope = unassuming_scope(formula.params)
    encoder = Encoder(formula_module((formula,)))
    encoder.call(formula.name, [scope.symbols[param.name] for param in formula.params])
    violations = [obligation.negation() for obligation in encoder.obligations]
    answer, model = ask([*scope.domains, negation(reduce(conjunction, map(negation, violations), True))], rlimit)
    verdict, reason, detail = Verdict.PROVED, None, "it has a value on every input"
    if model is not None:
        values = values_of(model, scope.symbols)
        verdict, reason = Verdict.INVALID, Reason.CONTRACT
        detail = f"the assumption divides by zero, or leaves int64, on {values}; guard it, or narrow the views"
    elif answer != "unsat":
        verdict, reason = Verdict.UNKNOWN, Reason.RESOURCES
        detail = f"Z3 gave up within {rlimit:,} resource units; simplify the assumption"
    seconds = time.perf_counter() - started
    return ObligationResult(
        name=f"{formula.name} is total", verdict=verdict, seconds=seconds, reason=reason, detail=detail
    )


def _can_be_met(contract: Contract, decision: str, rlimit: int) -> ObligationResult:
    """Return whether any inputs of a decision satisfy the assumptions: otherwise everything could be proved of it."""
    started = time.perf_counter()
    params = decision_params(contract, decision)
    answer, _ = ask(scope_of(contract, params).constraints, rlimit)
    if answer == "unknown":
        stand_in = contract.stand_in({})
        samples = pool_of(contract).decisions[decision]
        answer = "sat" if any(admissible(contract, stand_in, params, item) for item in samples) else "unknown"
    verdict, reason, detail = Verdict.PROVED, None, "its assumptions can be met"
    if answer == "unsat":
        verdict, reason = Verdict.VACUOUS, Reason.VACUOUS
        detail = f"no input of `{decision}` satisfies the contract's assumptions, so nothing is proved of any policy; mend them"
    elif answer == "unknown":
        verdict, reason = Verdict.UNKNOWN, Reason.RESOURCES
        detail = f"no solver finds an input of `{decision}` that satisfies the assumptions; simplify them"
    seconds = time.perf_counter() - started
    return ObligationResult(
        name=f"{decision} has inputs", verdict=verdict, seconds=seconds, reason=reason, detail=detail
    )
