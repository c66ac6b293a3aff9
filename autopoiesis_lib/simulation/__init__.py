"""Replay of traces through a calibrated model of the engine, with policies at the engine's control points.

    from autopoiesis_lib import simulation as sim

    workload = sim.default_workload()
    result = sim.simulate(workload.held_out, workload.engine, workload.calibration.step_time, {"ordering": native})
    print(result.ttft.mean, result.goodput(workload.slo))

The import of this package compiles nothing. The first `simulate` on a machine compiles the kernel once (about 40 s),
and numba keeps it on disk.
"""

from autopoiesis_lib.simulation.calibration import Calibration, CalibrationError, EngineConfig, StepTimeModel
from autopoiesis_lib.simulation.engine import Fleet, Outage, SimulationError, simulate
from autopoiesis_lib.simulation.metrics import Comparison, ComparisonError, compare, comparison_rows
from autopoiesis_lib.simulation.result import Distribution, RequestTimes, SimulationResult, Slo, StepLog
from autopoiesis_lib.simulation.slots import (
    ADMIT_LAYOUT,
    AUTOSCALING_LAYOUT,
    CHUNK_LAYOUT,
    EVICTION_LAYOUT,
    LAYOUTS,
    ORDERING_LAYOUT,
    RESERVE_LAYOUT,
    ROUTING_LAYOUT,
    TOKEN_BUDGET_LAYOUT,
    VICTIM_LAYOUT,
    CallableSlot,
    NativeFunctionLike,
    SlotError,
    python_policy,
)
from autopoiesis_lib.simulation.trace import MalformedTrace, Prefixes, Trace, TraceError
from autopoiesis_lib.simulation.workload import Workload, WorkloadError, default_workload, overload_factor

__all__ = [
    "ADMIT_LAYOUT",
    "AUTOSCALING_LAYOUT",
    "CHUNK_LAYOUT",
    "EVICTION_LAYOUT",
    "LAYOUTS",
    "ORDERING_LAYOUT",
    "RESERVE_LAYOUT",
    "ROUTING_LAYOUT",
    "TOKEN_BUDGET_LAYOUT",
    "VICTIM_LAYOUT",
    "Calibration",
    "CalibrationError",
    "CallableSlot",
    "Comparison",
    "ComparisonError",
    "Distribution",
    "EngineConfig",
    "Fleet",
    "MalformedTrace",
    "NativeFunctionLike",
    "Outage",
    "Prefixes",
    "RequestTimes",
    "SimulationError",
    "SimulationResult",
    "Slo",
    "SlotError",
    "StepLog",
    "StepTimeModel",
    "Trace",
    "TraceError",
    "Workload",
    "WorkloadError",
    "compare",
    "comparison_rows",
    "default_workload",
    "overload_factor",
    "python_policy",
    "simulate",
]
