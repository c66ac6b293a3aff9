"""The ranges gate: intervals settle most safety obligations; one that is surely open and breaks on a sample is refuted here."""

import time

from ..policy import Policy
from .counterexample import Evaluator, decision_params
from .samples import pool_of
from .verdict import GateResult, Verdict

__all__ = ["check"]


def check(policy: Policy, evaluator: Evaluator) -> GateResult:
    """Analyse every decision; try the pool only where something is left open."""
    started = time.perf_counter()
    settled = total = 0
    for name, signature in policy.contract.decisions.items():
        ranges = policy.ranges[name]
        settled += len(ranges.checked) - len(ranges.open)
        total += len(ranges.checked)
        in_range = signature.result.lo <= ranges.result.lo and ranges.result.hi <= signature.result.hi
        if not ranges.open and in_range:
            continue
        params = decision_params(policy.contract, name)
        for arguments in pool_of(policy.contract).decisions[name]:
            # the pool's repair may give up on a sample: only admissible ones count
            if evaluator.fault(name, arguments) is not None and evaluator.admissible(params, arguments):
                example = evaluator.fault_counterexample(name, arguments)
                return GateResult.refuted("ranges", example, time.perf_counter() - started)
    detail = f"{settled} of {total} operations cannot overflow or divide by zero; {total - settled} left to the proof"
    return GateResult(name="ranges", verdict=Verdict.PASSED, seconds=time.perf_counter() - started, detail=detail)
