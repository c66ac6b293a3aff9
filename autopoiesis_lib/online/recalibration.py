"""Recalibration: the latency model fitted again to the steps an engine really took.

Steps, not request times, are fitted: how long a step takes does not depend on which policy ordered the queue, so the fit is
the same whatever was being served. Telemetry says when each step began and what it held; its length is the time to the next
step's beginning, unless the engine may have stood idle in between.
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
"""Steps below which the calibration in hand is kept."""
OUTLIER: Final = 20.0
"""A gap this many times the median is not a step: the process was suspended, or nobody was served."""
GAIN: Final = 0.98
"""A new model is taken when its error on unseen steps is below this share of the old one's."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Recalibration:
    """What became of the latency model."""

    calibration: Calibration
    """The one to use from now on."""
    accepted: bool
    """Whether it is a new one."""
    steps: int
    """Steps with a known length."""
    error_before: float
    """Mean absolute relative error of a step's time on unseen steps, with the model in hand; nan without steps."""
    error_after: float
    """With the newly fitted one; nan without a fit."""

    def __str__(self) -> str:
        if np.isnan(self.error_after):
            return f"calibration kept: {self.steps} steps are too few to fit"
        verdict = "new calibration" if self.accepted else "calibration kept"
        return (
            f"{verdict}: error per step on unseen steps {self.error_before:.1%} before, {self.error_after:.1%} after, "
            f"{self.steps} steps"
        )


def step_gaps(window: Window, engine: EngineConfig) -> tuple[NDArray[np.int64], StepRecords]:
    """(beginnings in us, records) of the steps whose length is known.

    Telemetry has no context lengths, so the context of the decodes is read off the KV blocks held, half a block less a
    sequence; prefill attention is unknown and taken as 0, so that its cost goes to the prefill tokens.
    """
    steps = window.steps
    at, running, admitted = steps["at_us"], steps["num_running"], steps["admitted"]
    seconds = np.diff(at) / 1e6
    busy = (steps["scheduled_tokens"][:-1] > 0) & (seconds > 0)
    # When everything that runs was admitted just now, nothing ran before: the engine may have waited for an arrival.
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
    """(beginnings in us, log of measured over predicted length) of the steps whose length is known: 0 when the model is right."""
    at, records = step_gaps(window, engine)
    return at, np.log(records.seconds / _predicted(model, records))


def with_limits(
    calibration: Calibration, engines: Mapping[str, Mapping[str, Any]], engine: str | None = None
) -> Calibration:
    """The calibration with the limits an engine says it has (`limits` of its status: KV blocks, sequences, tokens a step).

    `engine` is whose limits are meant; without it they must all say the same. Limits that nobody told, or that make no engine,
    leave the calibration as it is: an operator's word stands until a better one is heard.
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
    """Fit the step-time model to every other stretch of the window and take it if it predicts the unseen stretches better.

    Stretches, not single steps, alternate: neighbouring steps are nearly the same, and a model checked on a step's neighbour
    would not be checked at all.
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
