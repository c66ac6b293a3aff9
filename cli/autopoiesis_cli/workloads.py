"""Traces, calibrations and rates of the command line: the conversion of their texts to values."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopoiesis_cli.answer import note

if TYPE_CHECKING:
    from autopoiesis_lib import Contract
    from autopoiesis_lib.evolution import Evaluator
    from autopoiesis_lib.simulation import Calibration, EngineConfig, Trace, Workload

__all__ = [
    "OVERLOAD",
    "CalibrationOption",
    "RateOption",
    "TraceOption",
    "evaluator_of",
    "read_engine",
    "read_trace",
    "scaling",
    "workload_of",
]

OVERLOAD = "overload"
"""The rate at which first come, first served is just overloaded."""

TraceOption = Annotated[
    list[str],
    typer.Option(
        "--trace",
        metavar="FILE",
        help="A trace file, or the name of a shipped one such as azure-conv. May be repeated.",
    ),
]
CalibrationOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="A calibration file, or the name of a shipped one; default: one mid-size GPU."),
]
RateOption = Annotated[
    str,
    typer.Option(
        metavar="FACTOR",
        help="How much faster than recorded requests arrive; `overload`: where FCFS's mean TTFT passes 2 s.",
    ),
]


def read_trace(text: str) -> "Trace":
    """Return the trace that a text names: a file, or a shipped one.

    Raises:
        TraceError: it is neither, or the file cannot be read.
    """
    from autopoiesis_lib.simulation import Trace, TraceError
    from autopoiesis_lib.simulation.trace import SHIPPED

    if text in SHIPPED and not Path(text).is_file():
        return Trace.shipped(text)
    if not Path(text).exists():
        raise TraceError(f"there is no trace file {text}, nor a shipped trace of that name ({', '.join(SHIPPED)})")
    return Trace.read(text)


def read_engine(text: str | None) -> "tuple[Calibration, EngineConfig]":
    """Return the calibration that a text names (a file or a shipped one), with its engine.

    None is that of the default workload.

    Raises:
        CalibrationError: it is neither, or the file cannot be read.
    """
    from autopoiesis_lib.simulation import Calibration, default_workload

    if text is None:
        default = default_workload()
        return default.calibration, default.engine
    found = (
        Calibration.shipped(text)
        if text in Calibration.names() and not Path(text).is_file()
        else Calibration.read(text)
    )
    return found, found.engine


def scaling(rate: str, trace: "Trace", calibration: "Calibration", engine: "EngineConfig") -> float:
    """Return the rate factor that a text names for a trace.

    Raises:
        WorkloadError: it is neither a positive number nor `overload`, or no rate overloads this engine.
    """
    from autopoiesis_lib.simulation import WorkloadError, overload_factor

    if rate == OVERLOAD:
        note(f"{trace.name}: looking for the rate that overloads the engine (compiles the simulator once per machine)")
        try:
            return overload_factor(trace, calibration, engine)
        except WorkloadError as error:
            raise WorkloadError(f"{error}; give --rate FACTOR") from None
    try:
        factor = float(rate)
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise WorkloadError(f"--rate {rate}: give a number above 0, or `{OVERLOAD}`")
    return factor


def workload_of(text: str, calibration: str | None, rate: str) -> "Workload":
    """Return one trace in two halves, the second held out.

    For azure-conv with default options it is the default workload.
    """
    from autopoiesis_lib.simulation import Workload

    trace = read_trace(text)
    chosen, engine = read_engine(calibration)
    factor = scaling(rate, trace, chosen, engine)
    return Workload.of(trace, chosen, engine=engine, rate_factor=factor, name=f"{trace.name} at {factor:g}x")


def evaluator_of(contract: "Contract", workloads: "list[Workload]") -> "Evaluator":
    """Return an evaluator that scores candidates on all workloads, which share one engine.

    Raises:
        EvolutionError: the contract runs in no simulator slot.
    """
    from autopoiesis_lib.evolution import SimulationEvaluator

    parts = [SimulationEvaluator.of(contract, workload) for workload in workloads]
    first = parts[0]
    if len(parts) == 1:
        return first
    return replace(
        first,
        train=tuple(trace for part in parts for trace in part.train),
        held_out=tuple(trace for part in parts for trace in part.held_out),
        short=tuple(trace for part in parts for trace in part.short),
        name=" + ".join(part.name for part in parts),
        notes={
            "rate_factors": [workload.rate_factor for workload in workloads],
            "calibration": workloads[0].calibration.name,
        },
    )
