"""`calibrate`: find the step-time coefficients of a real engine from its step log, or from request timestamps alone."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls

from autopoiesis_lib.simulation.calibration import Calibration, CalibrationError, EngineConfig, StepTimeModel
from autopoiesis_lib.simulation.engine import simulate
from autopoiesis_lib.simulation.result import RequestTimes
from autopoiesis_lib.simulation.trace import Ints, Trace

__all__ = ["MeasuredRequests", "StepRecords", "calibrate", "fit_requests", "fit_steps", "prediction_errors"]

Floats = NDArray[np.float64]

_STARTS: Final = (
    (0.010, 4.5e-5, 1.2e-4, 2e-8, 3e-9),
    (0.020, 8.0e-5, 3.0e-5, 2e-8, 1e-8),
    (0.012, 5.0e-5, 3.0e-5, 1e-7, 1e-9),
)
"""Seconds; one memory-bound and two compute-bound guesses of an 8B model on one GPU, for the descent to start from."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredRequests:
    """What a serving engine recorded of each request, in order of arrival; seconds on one clock."""

    queued_s: Floats
    scheduled_s: Floats
    first_token_s: Floats
    last_token_s: Floats
    num_prompt_tokens: Ints
    num_output_tokens: Ints

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The vLLM run format: JSON lines with input_toks, output_toks, queued_ts, scheduled_ts, first_token_ts,
        last_token_ts. Raises CalibrationError naming the line."""
        rows: list[dict[str, Any]] = []
        try:
            text = Path(path).read_text()
        except OSError as problem:
            raise CalibrationError(f"cannot read {path}: {problem}") from problem
        keys = ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts", "input_toks", "output_toks")
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                rows.append({key: float(record[key]) for key in keys})
            except (ValueError, KeyError, TypeError) as problem:
                raise CalibrationError(f"{path}: line {number}: no usable {problem}") from problem
        if len(rows) < 8:
            raise CalibrationError(f"{path}: {len(rows)} requests are too few to fit five coefficients to")
        rows.sort(key=lambda row: row["queued_ts"])
        table = {key: np.array([row[key] for row in rows]) for key in keys}
        return cls(
            queued_s=table["queued_ts"],
            scheduled_s=table["scheduled_ts"],
            first_token_s=table["first_token_ts"],
            last_token_s=table["last_token_ts"],
            num_prompt_tokens=table["input_toks"].astype(np.int64),
            num_output_tokens=table["output_toks"].astype(np.int64),
        )

    def trace(self, name: str = "measured") -> Trace:
        """The same arrivals as a workload."""
        return Trace.from_columns(
            arrival_us=np.rint((self.queued_s - self.queued_s[0]) * 1e6).astype(np.int64),
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
            name=name,
        )

    def measures(self) -> Mapping[str, Floats]:
        """TTFT, TPOT and end-to-end of every request, seconds."""
        later = np.maximum(self.num_output_tokens - 1, 1)
        return {
            "ttft": self.first_token_s - self.queued_s,
            "tpot": (self.last_token_s - self.first_token_s) / later,
            "e2e": self.last_token_s - self.queued_s,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class StepRecords:
    """What an engine recorded of each step; (n,) arrays."""

    seconds: Floats
    prefill_tokens: Ints
    attention: Floats
    """Sum of chunk * (context + chunk / 2) over the prefill chunks of the step."""
    decodes: Ints
    context: Ints
    """Sum of the contexts of the decodes."""


def fit_steps(steps: StepRecords) -> StepTimeModel:
    """Non-negative least squares (Lawson, Hanson) on relative error, then the floor that lowers it most, if any."""
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
    """Coefficients that make the simulated TTFT, TPOT and end-to-end times of `rows` match the measured ones.

    Descent through the simulator itself (Nelder, Mead) from several starts, because queueing and preemption make the
    times a non-linear function of the coefficients. About a millisecond a simulated run of 300 requests.
    """
    trace, observed = measured.trace(), measured.measures()
    mask = np.ones(len(trace), dtype=bool) if rows is None else rows

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
    """Fit on the first part of the requests, report the errors on the unseen rest. Raises CalibrationError."""
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
    """`(simulated - measured) / measured` of mean, p50 and p99 of each measure, over `rows`."""
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
    }


def _simulated(times: RequestTimes) -> Mapping[str, Floats]:
    if not bool(times.served.all()):
        raise CalibrationError("some measured requests could not fit the engine's KV memory: check total_blocks")
    return {"ttft": times.ttft_s, "tpot": times.tpot_s, "e2e": times.e2e_s}


def _model(coefficients: Floats, floor: float) -> StepTimeModel:
    limits = (100.0, 1.0, 1.0, 1e-3, 1e-4)
    c0, c1, c2, c3, c4 = (float(min(max(v, 0.0), top)) for v, top in zip(coefficients, limits, strict=True))
    return StepTimeModel(c0=max(c0, 1e-9), c1=c1, c2=c2, c3=c3, c4=c4, floor=floor)
