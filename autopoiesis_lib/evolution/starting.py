"""Resolution of the arguments of `evolve`: a workload to an evaluator, a name to an executor."""

import os
from collections.abc import Callable
from typing import Literal

from ..contract import Contract
from .budget import Limits
from .errors import EvolutionError
from .evaluator import Evaluator
from .executor import Executor
from .work import Setup

__all__ = ["evaluator_of", "executor_of"]


def evaluator_of(contract: Contract, workload: object | None) -> Evaluator:
    """Return the evaluator for a workload argument of `evolve`.

    Raises:
        EvolutionError: the workload has a type that `evolve` does not accept.
    """
    from ..simulation.trace import Trace
    from ..simulation.workload import Workload, default_workload
    from .evaluator import SimulationEvaluator

    match workload:
        case None:
            return SimulationEvaluator.of(contract, default_workload())
        case Workload():
            return SimulationEvaluator.of(contract, workload)
        case Trace():
            default = default_workload()
            return SimulationEvaluator.of(contract, Workload.of(workload, default.calibration, engine=default.engine))
        case _ if all(callable(getattr(workload, name, None)) for name in ("measure", "probes", "describe")):
            return workload  # type: ignore[return-value]
    raise EvolutionError(f"workload is a {type(workload).__name__}: give a Workload, a Trace, or an evaluator")


def executor_of(
    kind: Literal["local", "ray"] | Callable[[Setup], Executor], workers: int | None, setup: Setup, limits: Limits
) -> Executor:
    count = workers if workers is not None else len(os.sched_getaffinity(0))
    if callable(kind):
        return kind(setup)
    if kind == "ray":
        from .ray_pool import RayPool

        return RayPool(setup, count, limits)
    if kind != "local":
        raise EvolutionError(f"there is no executor {kind!r}: give local or ray")
    from .pool import LocalPool

    return LocalPool(setup, count, limits)
