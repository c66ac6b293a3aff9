"""Recalibration: the latency model fitted again to the measured steps of an engine.

The fit uses steps, not request times. A step's time does not depend on the policy that ordered the queue, so the fit is
the same for every policy. Telemetry records when each step began and what it held. A step's length is the time to the
next step's beginning, unless the engine may have been idle in between.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ..simulation.calibration import Calibration, EngineConfig, StepTimeModel
from ..simulation.fitting import StepRecords, fit_steps
from .window import Window

__all__ = ["MIN_STEPS", "Recalibration", "recalibrate", "step_gaps", "step_residuals", "with_limits"]

Floats = NDArray[np.float64]

MIN_STEPS: Final = 200
"""Number of steps below which the current calibration is kept."""
OUTLIER: Final = 20.0
"""Multiple of the median above which a gap is not a step: the process was suspended, or the engine was idle."""
GAIN: Final = 0.98
"""Share of the old error: a new model is accepted when its error on unseen steps is below it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Recalibration:
    """The result of a recalibration."""

    calibration: Calibration
    """The calibration to use from now on."""
    accepted: bool
    """True for a new calibration."""
    steps: int
    """Steps with a known length."""
    error_before: float
    """Mean absolute relative error of a step's time on unseen steps with the current model; nan without steps."""
    error_after: float
    """The same error with the newly fitted model; nan without a fit."""

    def __str__(self) -> str:
        if np.isnan(self.error_after):
            return f"calibration kept: {self.steps} steps are too few to fit"
        verdict = "new calibration" if self.accepted else "calibration kept"
        return (
            f"{verdict}: error per step on unseen steps {self.error_before:.1%} before, {self.error_after:.1%} after, "
            f"{self.steps} steps"
        )


def step_gaps(window: Window, engine: EngineConfig) -> tuple[NDArray[np.int64], StepRecords]:
    """Return (beginnings in us, records) of the steps whose length is known.

    Telemetry has no context lengths. The decodes' context is therefore estimated from the KV blocks held, minus half a
    block per sequence. Prefill attention is unknown and set to 0, so its cost is attributed to the prefill tokens.
    """
    steps = window.steps
    at, running, admitted = steps["at_us"], steps["num_running"], steps["admitted"]
    seconds = np.diff(at) / 1e6
    busy = (steps["scheduled_tokens"][:-1] > 0) & (seconds > 0)
    # When every running request was admitted just now, nothing ran before: the engine may have waited for an arrival.
    continuous = running[1:] > admitted[1:]
    keep = busy & continuous
    if keep.any():
        keep &= seconds < OUTLIER * float(np.median(seconds[keep]))
    rows = np.flatnonzero(keep)
    tokens = steps["scheduled_tokens"][rows]
    decodes = np.minimum(np.maximum(running[rows] - admitted[rows], 0), tokens)
    held = (engine.total_blocks - steps["free_blocks"][rows]) * engine.block_size
    share = decodes / np.maximum(running[rows], 1)
    context = np.maximum(held - running[rows] * engine.block_size // 2, 0) * share
    return at[rows], StepRecords(
        seconds=seconds[rows],
        prefill_tokens=tokens - decodes,
        attention=np.zeros(len(rows)),
        decodes=decodes,
        context=np.rint(context).astype(np.int64),
    )


def step_residuals(window: Window, engine: EngineConfig, model: StepTimeModel) -> tuple[NDArray[np.int64], Floats]:
    """Return (beginnings in us, log of measured over predicted length) of the steps whose length is known.

    The log is 0 when the model is exact.
    """
    at, records = step_gaps(window, engine)
    return at, np.log(records.seconds / _predicted(model, records))


def with_limits(
    calibration: Calibration, engines: Mapping[str, Mapping[str, Any]], engine: str | None = None
) -> Calibration:
    """Return the calibration with the limits that an engine reports.

    The limits are those of its status: KV blocks, sequences and tokens per step.

    `engine` names the engine; without it, all engines must report the same limits. Missing or invalid limits leave the
    calibration unchanged: the operator's values stand until an engine reports valid ones.
    """
    told = [status.get("limits") for name, status in engines.items() if engine in (None, name)]
    if not told or not isinstance(told[0], Mapping) or any(limits != told[0] for limits in told):
        return calibration
    known = {name: value for name, value in told[0].items() if name in EngineConfig.model_fields}
    try:
        found = EngineConfig.model_validate({**calibration.engine.model_dump(), **known})
    except ValidationError:
        return calibration
    return calibration if found == calibration.engine else calibration.model_copy(update={"engine": found})


def recalibrate(window: Window, current: Calibration) -> Recalibration:
    """Fit the step-time model to every other stretch of the window, and accept it if it predicts the rest better.

    Stretches alternate, not single steps. Neighbouring steps are nearly equal, so a step's neighbour would be no
    independent check.
    """
    _, records = step_gaps(window, current.engine)
    count = len(records.seconds)
    if count < MIN_STEPS:
        nan = float("nan")
        return Recalibration(calibration=current, accepted=False, steps=count, error_before=nan, error_after=nan)
    seen = (np.arange(count) * 10 // count) % 2 == 0
    model = fit_steps(_rows(records, seen))
    unseen = _rows(records, ~seen)
    before, after = _error(current.step_time, unseen), _error(model, unseen)
    accepted = after < GAIN * before
    fitted = Calibration(
        name=f"{current.name.partition('@')[0]}@{window.engine}",
        step_time=model,
        engine=current.engine,
        source=f"telemetry of {window.engine}, {window.seconds:.0f} s",
        method=f"fit_steps on {int(seen.sum())} of {count} steps, errors on the other {int((~seen).sum())}",
        errors={"step_mean_absolute": round(after, 5)},
    )
    return Recalibration(
        calibration=fitted if accepted else current,
        accepted=accepted,
        steps=count,
        error_before=before,
        error_after=after,
    )


def _predicted(model: StepTimeModel, records: StepRecords) -> Floats:
    compute = model.c1 * records.prefill_tokens + model.c4 * records.attention
    prefill = np.where(records.prefill_tokens > 0, np.maximum(model.floor, compute), 0.0)
    return np.asarray(np.maximum(model.c0 + prefill + model.c2 * records.decodes + model.c3 * records.context, 1e-9))


def _rows(records: StepRecords, rows: NDArray[np.bool_]) -> StepRecords:
    return StepRecords(
        seconds=records.seconds[rows],
        prefill_tokens=records.prefill_tokens[rows],
        attention=records.attention[rows],
        decodes=records.decodes[rows],
        context=records.context[rows],
    )


def _error(model: StepTimeModel, records: StepRecords) -> float:
    return float(np.mean(np.abs(_predicted(model, records) / records.seconds - 1.0)))
