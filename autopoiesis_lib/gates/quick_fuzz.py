"""The quick fuzz gate: what broke earlier policies, then a fixed pool, on every invariant at its limit. Microseconds a try."""

import time
from collections.abc import Sequence

from ..policy import Policy
from .counterexample import Evaluator
from .trials import Trials, trials_of
from .verdict import GateResult, Verdict

__all__ = ["check"]


def check(policy: Policy, evaluator: Evaluator, trials: Sequence[Trials] | None = None) -> GateResult:
    """Try a policy on prepared inputs, by default on the pool of its contract.

    Raises:
        EncoderBug: what broke over columns holds in CPython.
    """
    started = time.perf_counter()
    trials = trials_of(policy.contract) if trials is None else trials
    for item in trials:
        arguments = item.first_broken(policy, evaluator)
        if arguments is None:
            continue
        example = evaluator.fault_within(item.formula, arguments) or evaluator.counterexample(item.formula, arguments)
        return GateResult.refuted("quick-fuzz", example, time.perf_counter() - started)
    tried = sum(len(item.arguments) for item in trials)
    return GateResult(
        name="quick-fuzz", verdict=Verdict.PASSED, seconds=time.perf_counter() - started, detail=f"{tried} inputs"
    )
