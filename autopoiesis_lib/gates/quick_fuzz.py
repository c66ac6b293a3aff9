"""The quick fuzz gate: what broke earlier policies, then a fixed pool, on every invariant at its limit. Microseconds a try."""

import time
from collections.abc import Mapping, Sequence

from ..policy import Policy
from .counterexample import Arguments, Evaluator
from .samples import pool_of
from .verdict import GateResult, ObligationResult, Verdict

__all__ = ["check"]


def check(
    policy: Policy, evaluator: Evaluator, regressions: Mapping[str, Sequence[Arguments]] | None = None
) -> GateResult:
    """Try kept counterexamples (`regressions`: invariant -> arguments) and the pool of the contract."""
    started = time.perf_counter()
    tried = 0
    for formula in policy.contract.invariants:
        kept = (regressions or {}).get(formula.name, ())
        limit = {} if formula.least is None else {formula.least.name: formula.least.least_limit or 0}
        for values in (*kept, *pool_of(policy.contract).invariants[formula.name]):
            tried += 1
            arguments: Arguments = {**values, **limit}
            if evaluator.holds(formula, arguments) or not evaluator.admissible(formula.params, arguments):
                continue
            example = evaluator.counterexample(formula, arguments)
            seconds = time.perf_counter() - started
            obligation = ObligationResult(
                name=formula.name,
                verdict=Verdict.REFUTED,
                seconds=seconds,
                detail=example.explanation,
                counterexample=example,
            )
            return GateResult(
                name="quick-fuzz",
                verdict=Verdict.REFUTED,
                seconds=seconds,
                detail=example.explanation,
                obligations=(obligation,),
                counterexample=example,
            )
    return GateResult(
        name="quick-fuzz", verdict=Verdict.PASSED, seconds=time.perf_counter() - started, detail=f"{tried} inputs"
    )
