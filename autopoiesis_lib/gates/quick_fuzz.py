"""The quick fuzz gate: what broke earlier policies, then a fixed pool, on every invariant at its limit. Microseconds a try."""

import time
from collections.abc import Mapping, Sequence

from ..policy import Policy
from .counterexample import Arguments, Evaluator
from .samples import pool_of
from .verdict import GateResult, Verdict

__all__ = ["check"]


def check(policy: Policy, evaluator: Evaluator, regressions: Mapping[str, Sequence[Arguments]] | None = None) -> GateResult:
    """Try kept counterexamples (`regressions`: invariant -> arguments) and the pool of the contract."""
    started = time.perf_counter()
    tried = 0
    for formula in policy.contract.invariants:
        kept = (regressions or {}).get(formula.name, ())
        for arguments in (*kept, *pool_of(policy.contract).invariants[formula.name]):
            tried += 1
            if evaluator.holds(formula, arguments) or not evaluator.admissible(formula.params, arguments):
                continue
            if formula.least is not None and arguments[formula.least.name] != formula.least.least_limit:
                continue
            example = evaluator.counterexample(formula, dict(arguments))
            return GateResult(
                name="quick-fuzz", verdict=Verdict.REFUTED, seconds=time.perf_counter() - started, detail=example.explanation, counterexample=example
            )
    return GateResult(name="quick-fuzz", verdict=Verdict.PASSED, seconds=time.perf_counter() - started, detail=f"{tried} inputs")
