"""The replay gate: the policy's machine code serves a piece of a real trace in the simulator, checked step by step.

Every request must be served, block accounting conserved, and the order of admissions must obey what the contract promises of
its proved bounds (`Contract.check_replay`). Contracts whose decisions have no simulator slot skip it, and say so.
"""

import time
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from ..errors import AutopoiesisError
from ..policy import Policy
from .verdict import GateResult, Reason, Verdict

if TYPE_CHECKING:
    from ..simulation.calibration import Calibration
    from ..simulation.trace import Trace

__all__ = ["REPLAY_REQUESTS", "check"]

REPLAY_REQUESTS = 600
"""Requests of the shipped Azure conversation trace that are replayed, at four times the recorded rate."""


def check(policy: Policy, bounds: Mapping[str, int]) -> GateResult:
    """Replay a policy; `bounds` are its proved bounds by invariant."""
    started = time.perf_counter()
    contract = policy.contract
    if not contract.slots:
        return GateResult(
            name="replay",
            verdict=Verdict.PASSED,
            seconds=time.perf_counter() - started,
            detail="no simulator slot runs this contract: not replayed",
        )
    from ..simulation.engine import simulate
    from ..simulation.slots import LAYOUTS

    trace, calibration, served_by_default = _workload()
    natives = {slot: policy.native(decision, layout=LAYOUTS[slot]) for decision, slot in contract.slots.items()}
    problem: str | None
    try:
        result = simulate(trace, calibration.engine, calibration.step_time, natives, checked=True)
    except AutopoiesisError as error:
        problem = str(error)
    else:
        problem = contract.check_replay(result, bounds)
        if result.num_served != served_by_default:
            problem = f"{served_by_default - result.num_served} requests were never served"
    return GateResult(
        name="replay",
        verdict=Verdict.PASSED if problem is None else Verdict.REFUTED,
        reason=None if problem is None else Reason.REPLAY,
        seconds=time.perf_counter() - started,
        detail=problem or f"{len(trace)} requests of {trace.name} served, blocks conserved at every step",
    )


@cache
def _workload() -> "tuple[Trace, Calibration, int]":
    """Return the trace, the engine, and the number of requests that the engine's own default serves."""
    from ..simulation.calibration import Calibration
    from ..simulation.engine import simulate
    from ..simulation.trace import Trace

    trace = Trace.shipped("azure-conv").select(np.arange(REPLAY_REQUESTS)).scaled(4.0)
    calibration = Calibration.shipped("rtx4090-llama31-8b")
    return trace, calibration, simulate(trace, calibration.engine, calibration.step_time).num_served
