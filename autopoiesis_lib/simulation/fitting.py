"""`calibrate`: fit of an engine's step-time coefficients to its step log or to request timestamps alone."""

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls

from autopoiesis_lib.protocol.files import FileRefusedError
from autopoiesis_lib.protocol.text import printable
from autopoiesis_lib.simulation._rows import (
    MAX_SPAN_US,
    FieldError,
    integer,
    json_object,
    microseconds,
    number,
    out_of_line,
    shown,
    text_blocks,
)
from autopoiesis_lib.simulation.calibration import Calibration, CalibrationError, EngineConfig, StepTimeModel
from autopoiesis_lib.simulation.engine import simulate
from autopoiesis_lib.simulation.result import RequestTimes
from autopoiesis_lib.simulation.trace import MAX_TOKENS_IN_VIEW, Ints, Trace

__all__ = ["MeasuredRequests", "StepRecords", "calibrate", "fit_requests", "fit_steps", "prediction_errors"]

Floats = NDArray[np.float64]

MAX_MEASURED_REQUESTS: Final = 1_000_000
_CLOCKS: Final = ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")

_STARTS: Final = (
    (0.010, 4.5e-5, 1.2e-4, 2e-8, 3e-9),
    (0.020, 8.0e-5, 3.0e-5, 2e-8, 1e-8),
    (0.012, 5.0e-5, 3.0e-5, 1e-7, 1e-9),
)
"""Start points of the descent: one memory-bound and two compute-bound guesses of an 8B model on one GPU, in seconds."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredRequests:
    """The times that a serving engine recorded of each request, in order of arrival and in seconds of one clock."""

    queued_s: Floats
    scheduled_s: Floats
    first_token_s: Floats
    last_token_s: Floats
    num_prompt_tokens: Ints
    num_output_tokens: Ints

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read the vLLM run format, plain or gzipped (`.gz`).

        The file has JSON lines with input_toks, output_toks, queued_ts, scheduled_ts, first_token_ts and last_token_ts.

        Raises:
            CalibrationError: the file cannot be read, a row is wrong, or the number of requests is out of bounds. For a
                wrong row the message names the line and the field.
        """
        rows: list[dict[str, float]] = []
        lines: list[int] = []
        try:
            with closing(text_blocks(Path(path))) as blocks:
                for line, raw in ((n, raw) for first, text in blocks for n, raw in enumerate(text.split(b"\n"), first)):
                    if not raw.strip():
                        continue
                    if len(rows) == MAX_MEASURED_REQUESTS:
                        raise CalibrationError(f"{printable(path)}: has more than {MAX_MEASURED_REQUESTS:,} requests")
                    lines.append(line)
                    rows.append(_measured(json_object(raw)))
        except FileRefusedError as refused:
            raise CalibrationError(f"cannot read measured requests: {printable(refused)}") from None
        except FieldError as wrong:
            raise CalibrationError(f"{printable(path)}: line {lines[-1]}: {wrong}") from None
        far = out_of_line(np.rint(np.array([row["queued_ts"] for row in rows]) * 1e6).astype(np.int64))
        if len(far):
            raise CalibrationError(
                f"{printable(path)}: line {lines[far[0]]}: `queued_ts` lies more than five years from the median"
            )
        if len(rows) < 8:
            raise CalibrationError(f"{printable(path)}: {len(rows)} requests are too few to fit five coefficients to")
        rows.sort(key=lambda row: row["queued_ts"])
        table = {key: np.array([row[key] for row in rows]) for key in (*_CLOCKS, "input_toks", "output_toks")}
        return cls(
            queued_s=table["queued_ts"],
            scheduled_s=table["scheduled_ts"],
            first_token_s=table["first_token_ts"],
            last_token_s=table["last_token_ts"],
            num_prompt_tokens=table["input_toks"].astype(np.int64),
            num_output_tokens=table["output_toks"].astype(np.int64),
        )

    def trace(self, name: str = "measured") -> Trace:
        """Return the same arrivals as a trace."""
        return Trace.from_columns(
            arrival_us=np.rint((self.queued_s - self.queued_s[0]) * 1e6).astype(np.int64),
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
            name=name,
        )

    def measures(self) -> Mapping[str, Floats]:
        """Return TTFT, TPOT and end-to-end time of every request, in seconds."""
        later = np.maximum(self.num_output_tokens - 1, 1)
        return {
            "ttft": self.first_token_s - self.queued_s,
            "tpot": (self.last_token_s - self.first_token_s) / later,
            "e2e": self.last_token_s - self.queued_s,
        }


def _measured(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the used fields of a row.

    Raises:
        FieldError: a field is wrong, or the times are not in the order of their events.
    """
    found: dict[str, float] = {}
    before = -math.inf
    for key in _CLOCKS:
        given = number(record, key)
        microseconds(key, given, 1_000_000)  # finite, and small enough for a float
        value = float(given)
        if value < before:
            raise FieldError(key, f"{shown(value)} is earlier than what happens before it")
        found[key] = before = value
    if found[_CLOCKS[-1]] - found[_CLOCKS[0]] > MAX_SPAN_US / 1e6:
        raise FieldError(_CLOCKS[-1], "is more than ten years after `queued_ts`")
    for key in ("input_toks", "output_toks"):
        found[key] = integer(record, key, 1, MAX_TOKENS_IN_VIEW)
    return found


@dataclass(frozen=True, eq=False, kw_only=True)
class StepRecords:
    """The data that an engine recorded of each step, as (n,) arrays."""

    seconds: Floats
    prefill_tokens: Ints
    attention: Floats
    """Sum of chunk * (context + chunk / 2) over the prefill chunks of the step."""
    decodes: Ints
    context: Ints
    """Sum of the contexts of the decodes."""


def fit_steps(steps: StepRecords) -> StepTimeModel:
    """Fit a step-time model to step records.

    The fit minimises the relative error by non-negative least squares (Lawson, Hanson). It then adds the floor that
    lowers the error most, if any does.

    Raises:
        CalibrationError: there are fewer than 8 steps.
    """
    prefills = (steps.prefill_tokens > 0).astype(np.float64)
    design = np.column_stack(
        [np.ones_like(steps.seconds), steps.prefill_tokens, steps.decodes, steps.context, steps.attention]
    ).astype(np.float64)
    if len(design) < 8:
        raise CalibrationError(f"{len(design)} steps are too few to fit five coefficients to")
    weight = 1.0 / np.maximum(steps.seconds, 1e-6)

    def solve(rows: NDArray[np.bool_]) -> Floats:
        a = design[rows] * weight[rows, None]
        scale = np.maximum(np.abs(a).max(axis=0), 1e-300)
        solution, _ = nnls(a / scale, np.ones(int(rows.sum())))
        return np.asarray(solution / scale)

    def error(coefficients: Floats, floor: float) -> float:
        compute = design[:, [1, 4]] @ coefficients[[1, 4]]
        rest = design[:, [0, 2, 3]] @ coefficients[[0, 2, 3]]
        return float(np.mean((((rest + np.maximum(floor, compute) * prefills) * weight) - 1.0) ** 2))

    coefficients, floor = solve(np.ones(len(design), dtype=bool)), 0.0
    best = error(coefficients, floor)
    compute = design[:, [1, 4]] @ coefficients[[1, 4]]
    for candidate in np.quantile(compute[prefills > 0], np.linspace(0.05, 0.5, 10)) if prefills.any() else ():
        refitted = solve((prefills == 0) | (compute > candidate))
        if error(refitted, float(candidate)) < best:
            coefficients, floor, best = refitted, float(candidate), error(refitted, float(candidate))
    return _model(coefficients, floor)


def fit_requests(
    measured: MeasuredRequests, engine: EngineConfig, *, rows: NDArray[np.bool_] | None = None, evaluations: int = 600
) -> StepTimeModel:
    """Fit coefficients so that the simulated TTFT, TPOT and end-to-end times of `rows` match the measured ones.

    The times are a non-linear function of the coefficients because of queueing and preemption. The fit therefore
    descends through the simulator itself (Nelder, Mead) from several starts. A simulated run of 300 requests takes
    about a millisecond.

    Raises:
        CalibrationError: the measured times are all 0 or not finite, or a request does not fit the KV memory.
    """
    trace, observed = measured.trace(), measured.measures()
    mask = np.ones(len(trace), dtype=bool) if rows is None else rows
    for name, truth in observed.items():
        if not (truth[mask].mean() > 0 and np.percentile(truth[mask], 99) > 0):
            raise CalibrationError(f"the measured {name} is 0 throughout: there is nothing to fit step times to")

    def loss(logs: Floats) -> float:
        times = _simulated(simulate(trace, engine, _model(np.exp(logs), 0.0)).times)
        total = 0.0
        for name, truth in observed.items():
            ours, theirs = times[name][mask], truth[mask]
            total += float(np.mean(np.abs(ours - theirs)) / theirs.mean())
            total += abs(float(ours.mean() / theirs.mean()) - 1.0)
            total += 0.5 * abs(float(np.percentile(ours, 99) / np.percentile(theirs, 99)) - 1.0)
        return total

    best: Floats | None = None
    least = np.inf
    for start in _STARTS:
        found = minimize(
            loss, np.log(start), method="Nelder-Mead", options={"maxfev": evaluations, "xatol": 1e-3, "fatol": 1e-4}
        )
        if found.fun < least:
            best, least = np.exp(found.x), float(found.fun)
    if best is None:
        raise CalibrationError("the measured times are not finite numbers: check the clocks of the log")
    return _model(best, 0.0)


def calibrate(
    measured: MeasuredRequests, engine: EngineConfig, *, name: str, source: str, fit_fraction: float = 0.5
) -> Calibration:
    """Fit a calibration to the first part of the requests, and report its errors on the rest.

    Raises:
        CalibrationError: the parts have too few requests, or the fit fails.
    """
    n = len(measured.queued_s)
    seen = np.arange(n) < round(n * fit_fraction)
    if not 8 <= int(seen.sum()) < n:
        raise CalibrationError(f"{fit_fraction:g} of {n} requests leaves too little to fit to or to check against")
    model = fit_requests(measured, engine, rows=seen)
    return Calibration(
        name=name,
        step_time=model,
        engine=engine,
        source=source,
        method=f"fit_requests on the first {int(seen.sum())} of {n} requests, errors on the other {int((~seen).sum())}",
        errors=prediction_errors(measured, engine, model, rows=~seen),
    )


def prediction_errors(
    measured: MeasuredRequests, engine: EngineConfig, model: StepTimeModel, *, rows: NDArray[np.bool_]
) -> dict[str, float]:
    """Return `(simulated - measured) / measured` of mean, p50 and p99 of each measure over `rows`.

    Statistics whose measured value is 0 are left out.
    """
    times = _simulated(simulate(measured.trace(), engine, model).times)
    summaries: dict[str, Callable[[Floats], float]] = {
        "mean": lambda x: float(x.mean()),
        "p50": lambda x: float(np.percentile(x, 50)),
        "p99": lambda x: float(np.percentile(x, 99)),
    }
    return {
        f"{measure}_{label}": round(summary(times[measure][rows]) / summary(truth[rows]) - 1.0, 5)
        for measure, truth in measured.measures().items()
        for label, summary in summaries.items()
        if summary(truth[rows]) > 0
    }


def _simulated(times: RequestTimes) -> Mapping[str, Floats]:
    if not bool(times.served.all()):
        raise CalibrationError("some measured requests could not fit the engine's KV memory: check total_blocks")
    return {"ttft": times.ttft_s, "tpot": times.tpot_s, "e2e": times.e2e_s}


def _model(coefficients: Floats, floor: float) -> StepTimeModel:
    limits = (100.0, 1.0, 1.0, 1e-3, 1e-4)
    c0, c1, c2, c3, c4 = (float(min(max(v, 0.0), top)) for v, top in zip(coefficients, limits, strict=True))
    return StepTimeModel(c0=max(c0, 1e-9), c1=c1, c2=c2, c3=c3, c4=c4, floor=floor)
