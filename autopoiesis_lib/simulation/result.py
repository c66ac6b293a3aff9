"""The result of a run: the times of every request and the usual measures of serving, as one typed value."""

import csv
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from autopoiesis_lib.simulation import _columns as c

__all__ = ["Distribution", "RequestTimes", "SimulationResult", "Slo", "StepLog"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Mean and percentiles (linear interpolation) of one measure, in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Floats) -> Self:
        """Return the distribution of values, with all fields 0 if there are no values."""
        if len(values) == 0:
            return cls(mean=0.0, p50=0.0, p90=0.0, p99=0.0, max=0.0)
        p50, p90, p99 = np.percentile(values, [50, 90, 99])
        return cls(mean=float(values.mean()), p50=float(p50), p90=float(p90), p99=float(p99), max=float(values.max()))


@dataclass(frozen=True, kw_only=True)
class Slo:
    """A service-level objective. A request meets it if both limits hold."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, eq=False, kw_only=True)
class RequestTimes:
    """Per-request records, all (n,) int64, in order of arrival.

    A value is -1 if its event never happened, as for a rejected request.
    """

    arrival_ns: Ints
    scheduled_ns: Ints
    """Start of the step that first ran the request."""
    first_token_ns: Ints
    finish_ns: Ints
    num_prompt_tokens: Ints
    num_output_tokens: Ints
    num_preemptions: Ints
    recomputed_tokens: Ints
    cached_tokens: Ints
    """Prompt tokens found in the prefix cache at first admission."""
    replica: Ints
    """Replica that finished the request."""

    @property
    def served(self) -> NDArray[np.bool_]:
        return self.finish_ns >= 0

    @property
    def ttft_s(self) -> Floats:
        """Time to first token of served requests, in seconds."""
        return np.asarray((self.first_token_ns - self.arrival_ns)[self.served] / 1e9)

    @property
    def queueing_s(self) -> Floats:
        """Time from arrival to the first scheduling of served requests, in seconds."""
        return np.asarray((self.scheduled_ns - self.arrival_ns)[self.served] / 1e9)

    @property
    def e2e_s(self) -> Floats:
        """Time from arrival to the last token of served requests, in seconds."""
        return np.asarray((self.finish_ns - self.arrival_ns)[self.served] / 1e9)

    @property
    def tpot_s(self) -> Floats:
        """Mean time per output token after the first, in seconds; 0 for served requests of one token."""
        served = self.served
        later = np.maximum(self.num_output_tokens[served] - 1, 1)
        return np.asarray((self.finish_ns - self.first_token_ns)[served] / 1e9 / later)


@dataclass(frozen=True, eq=False, kw_only=True)
class StepLog:
    """Rows of steps, or of closed-form windows of pure decode steps.

    All arrays are (rows,) int64, in order of scheduling.
    """

    start_ns: Ints
    end_ns: Ints
    replica: Ints
    steps: Ints
    prefill_steps: Ints
    prefill_tokens: Ints
    decodes: Ints
    """Decode sequences, summed over the steps of the row."""
    context: Ints
    """Context tokens of decodes, summed over the steps of the row."""
    attention2: Ints
    """Twice the sum of chunk * (context + chunk / 2)."""
    running: Ints
    waiting: Ints
    free_blocks: Ints

    @classmethod
    def from_rows(cls, rows: Ints) -> Self:
        return cls(
            start_ns=rows[:, c.LOG_START_NS],
            end_ns=rows[:, c.LOG_END_NS],
            replica=rows[:, c.LOG_REPLICA],
            steps=rows[:, c.LOG_STEPS],
            prefill_steps=rows[:, c.LOG_PREFILL_STEPS],
            prefill_tokens=rows[:, c.LOG_PREFILL_TOKENS],
            decodes=rows[:, c.LOG_DECODES],
            context=rows[:, c.LOG_CONTEXT],
            attention2=rows[:, c.LOG_ATTENTION2],
            running=rows[:, c.LOG_RUNNING],
            waiting=rows[:, c.LOG_WAITING],
            free_blocks=rows[:, c.LOG_FREE],
        )


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """The measures of one run. Times are in seconds and cover served requests."""

    trace_name: str
    num_requests: int
    num_served: int
    num_rejected: int
    """Number of requests that could never fit the KV memory."""
    ttft: Distribution
    tpot: Distribution
    e2e: Distribution
    queueing: Distribution
    worst_wait_s: float
    """Longest time from arrival to the first token."""
    makespan_s: float
    """Time from the start of the trace to the last token."""
    request_throughput: float
    """Served requests per second of makespan."""
    output_token_throughput: float
    preemptions: int
    recomputed_tokens: int
    cached_prompt_tokens: int
    jain_fairness: float
    """Jain's index of (output tokens / e2e) over requests, where 1 is perfectly even.

    The index is (sum x)^2 / (n sum x^2) (Jain, Chiu, Hawe 1984).
    """
    steps: int
    replica_seconds: float
    served_by_replica: tuple[int, ...]
    times: RequestTimes = field(repr=False, compare=False)
    step_log: StepLog | None = field(default=None, repr=False, compare=False)
    decisions: Ints | None = field(default=None, repr=False, compare=False)
    """Decisions in order of time, of shape (rows, 4): time in ns, replica, 0 admitted or 1 preempted, request."""

    @classmethod
    def from_times(
        cls,
        times: RequestTimes,
        *,
        trace_name: str,
        steps: int,
        replica_seconds: float,
        served_by_replica: tuple[int, ...],
        step_log: StepLog | None = None,
        decisions: Ints | None = None,
    ) -> Self:
        served = times.served
        ttft, e2e = times.ttft_s, times.e2e_s
        output = times.num_output_tokens[served]
        count = int(served.sum())
        makespan = float(times.finish_ns.max(initial=0)) / 1e9
        speed = output / np.maximum(e2e, 1e-9)
        squares = float(np.sum(speed * speed))
        return cls(
            trace_name=trace_name,
            num_requests=len(times.finish_ns),
            num_served=count,
            num_rejected=len(times.finish_ns) - count,
            ttft=Distribution.of(ttft),
            tpot=Distribution.of(times.tpot_s[output > 1]),
            e2e=Distribution.of(e2e),
            queueing=Distribution.of(times.queueing_s),
            worst_wait_s=float(ttft.max(initial=0.0)),
            makespan_s=makespan,
            request_throughput=count / makespan if makespan else 0.0,
            output_token_throughput=float(output.sum()) / makespan if makespan else 0.0,
            preemptions=int(times.num_preemptions.sum()),
            recomputed_tokens=int(times.recomputed_tokens.sum()),
            cached_prompt_tokens=int(times.cached_tokens.sum()),
            jain_fairness=float(np.sum(speed)) ** 2 / (count * squares) if squares else 1.0,
            steps=steps,
            replica_seconds=replica_seconds,
            served_by_replica=served_by_replica,
            times=times,
            step_log=step_log,
            decisions=decisions,
        )

    def goodput(self, slo: Slo) -> float:
        """Return the requests per second of makespan that met both limits of the SLO. A rejected request meets none."""
        good = (self.times.ttft_s <= slo.ttft_s) & (self.times.tpot_s <= slo.tpot_s)
        return float(good.sum()) / self.makespan_s if self.makespan_s else 0.0

    def slo_attainment(self, slo: Slo) -> float:
        """Return the fraction of all requests that met both limits of the SLO."""
        good = (self.times.ttft_s <= slo.ttft_s) & (self.times.tpot_s <= slo.tpot_s)
        return float(good.sum()) / self.num_requests if self.num_requests else 0.0

    def summary(self, slo: Slo | None = None) -> dict[str, Any]:
        """Return all measures except the arrays as a JSON-able value, with the goodput of the SLO if one is given."""
        plain = {
            name: asdict(value) if isinstance(value, Distribution) else value
            for name, value in self.__dict__.items()
            if name not in ("times", "step_log", "decisions")
        }
        if slo is not None:
            plain["slo"] = {**asdict(slo), "goodput": self.goodput(slo), "attainment": self.slo_attainment(slo)}
        return plain

    def to_json(self, slo: Slo | None = None) -> str:
        return json.dumps(self.summary(slo), indent=2)

    def to_csv(self, path: str | Path) -> None:
        """Write one CSV row per request with all its recorded times."""
        columns = self.times.__dict__
        with Path(path).open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(columns)
            writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
