"""The workload on which candidates are scored: trace, split, engine, rate and SLO, pinned so that scores compare."""

from dataclasses import dataclass
from typing import Any, Final

from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.simulation.calibration import Calibration, EngineConfig
from autopoiesis_lib.simulation.engine import simulate
from autopoiesis_lib.simulation.result import Slo
from autopoiesis_lib.simulation.trace import Trace

__all__ = ["DEFAULT_RATE_FACTOR", "Workload", "WorkloadError", "default_workload", "overload_factor"]

DEFAULT_RATE_FACTOR: Final = 1.7
"""Default multiple of the recorded rate of Azure conv.

It is the least multiple of 0.05 at which FCFS's mean TTFT exceeds 2 s on both halves of the trace, on the shipped RTX
PRO 6000 calibration. `overload_factor` computes it, and a test compares the two.
"""


class WorkloadError(AutopoiesisError):
    """A workload cannot be built as requested."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Workload:
    """Training and held-out requests, the engine that serves them, and the objective's SLO."""

    name: str
    train: Trace
    held_out: Trace
    calibration: Calibration
    engine: EngineConfig
    """The calibration's engine, or a variant of it."""
    rate_factor: float
    """Factor on the recorded arrival rate."""
    slo: Slo

    @classmethod
    def of(
        cls,
        trace: Trace,
        calibration: Calibration,
        *,
        engine: EngineConfig | None = None,
        rate_factor: float = 1.0,
        train_fraction: float = 0.5,
        slo: Slo | None = None,
        name: str | None = None,
    ) -> "Workload":
        """Return a workload with the first `train_fraction` of the requests for training and the rest held out.

        Both parts are scaled by `rate_factor`.

        Raises:
            WorkloadError: `train_fraction` is not between 0 and 1, or the trace has fewer than two requests.
        """
        if not 0 < train_fraction < 1:
            raise WorkloadError(f"train_fraction must lie between 0 and 1, not {train_fraction}")
        if len(trace) < 2:
            raise WorkloadError(f"trace {trace.name!r} has {len(trace)} requests: too few to hold any out")
        train, held_out = trace.split(train_fraction, 1 - train_fraction)
        return cls(
            name=name or trace.name,
            train=train.scaled(rate_factor),
            held_out=held_out.scaled(rate_factor),
            calibration=calibration,
            engine=engine or calibration.engine,
            rate_factor=rate_factor,
            slo=slo or Slo(ttft_s=2.0, tpot_s=0.1),
        )

    def describe(self) -> str:
        """Return one paragraph for a report."""
        e, errors = self.engine, self.calibration.errors
        error = ", ".join(f"{k} {v:+.1%}" for k, v in errors.items() if k in ("ttft_mean", "e2e_mean", "e2e_p99"))
        return (
            f"{self.name}: {len(self.train):,} requests to train on and {len(self.held_out):,} held out, "
            f"consecutive parts of the trace, arriving at {self.rate_factor:g} times the recorded rate "
            f"({self.train.rate:.1f} and {self.held_out.rate:.1f} requests/s); one replica of {self.calibration.name} "
            f"(unseen-half error {error}), "
            f"{e.total_blocks:,} blocks of {e.block_size} tokens, max_num_seqs {e.max_num_seqs}, "
            f"max_num_batched_tokens {e.max_num_batched_tokens}; max_tokens is {int(self.train.max_tokens.max()):,} at "
            f"most and the true output length is never shown to a policy; SLO TTFT {self.slo.ttft_s:g} s and TPOT "
            f"{self.slo.tpot_s:g} s; every run is drained to its last token."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the workload as a JSON-able value."""
        return {
            "name": self.name,
            "train": {"trace": self.train.name, "requests": len(self.train), "rate": self.train.rate},
            "held_out": {"trace": self.held_out.name, "requests": len(self.held_out), "rate": self.held_out.rate},
            "rate_factor": self.rate_factor,
            "calibration": self.calibration.model_dump(mode="json"),
            "engine": self.engine.model_dump(mode="json"),
            "slo": {"ttft_s": self.slo.ttft_s, "tpot_s": self.slo.tpot_s},
            "drained": True,
        }


def default_workload() -> Workload:
    """Return the pinned workload: Azure conv in two halves at an overloaded rate.

    The engine is one RTX PRO 6000 with Llama-3.1-8B.
    """
    calibration = Calibration.shipped("rtxpro6000-llama31-8b")
    # measured with at most 128 sequences; 256 is vLLM's own default, so memory and compute become the limits
    engine = calibration.engine.model_copy(update={"max_num_seqs": 256})
    trace = Trace.shipped("azure-conv")
    return Workload.of(trace, calibration, engine=engine, rate_factor=DEFAULT_RATE_FACTOR, name="azure-conv-overload")


def overload_factor(
    trace: Trace, calibration: Calibration, engine: EngineConfig | None = None, *, ttft_s: float = 2.0
) -> float:
    """Return the least multiple of 0.05 of the recorded rate at which FCFS's mean TTFT exceeds `ttft_s` on both halves.

    Raises:
        WorkloadError: no rate up to 64 times the recorded one overloads the engine.
    """
    halves = trace.split(0.5, 0.5)

    def overloaded(twentieths: int) -> bool:
        return all(
            simulate(half.scaled(twentieths / 20), engine or calibration.engine, calibration.step_time).ttft.mean
            > ttft_s
            for half in halves
        )

    low, high = 0, 1
    while not overloaded(high):
        low, high = high, high * 2
        if high > 64 * 20:
            raise WorkloadError(f"{trace.name!r} does not overload this engine at 64 times its recorded rate")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if overloaded(middle) else (middle, high)
    return high / 20
