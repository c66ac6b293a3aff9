"""Evaluators, which score candidates: the protocol, and the evaluator that uses the simulator.

An evaluator is any picklable object with the protocol's methods; it runs inside the workers. The simulator's scores
come from the kernel's own records of the replay. A candidate can influence them only through its decisions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..contract import Contract
from ..policy import Policy
from ..simulation.calibration import EngineConfig, StepTimeModel
from ..simulation.engine import simulate
from ..simulation.result import SimulationResult, Slo
from ..simulation.slots import LAYOUTS
from ..simulation.trace import Trace
from ..simulation.workload import Workload
from ..view import View
from .errors import EvolutionError

__all__ = ["HIGHER_IS_BETTER", "Evaluator", "Measurement", "SimulationEvaluator", "Window"]

Window = Literal["short", "train", "busier", "other-rates", "held-out"]

HIGHER_IS_BETTER = frozenset({"goodput_rps", "slo_attainment", "throughput_rps", "jain_fairness"})
"""Metrics that are maximised. All other metrics are minimised."""

Row = Mapping[str, int]

BUSIER = 1.25
"""Factor on the rate of the train windows for the second measurement of each candidate.

If few requests queue, a window separates policies only by a few coincidences. At a higher rate the same requests form
longer queues, and more of the order affects the metrics.
"""
OTHER_RATES = (1.1, 1.4, 1.6)
"""Factors on the rate at which only the best candidates are measured, so that the winner does well at all of them."""
SHORT = 16_384
"""Number of requests in the short window. A train window of fewer than four times as many is replayed whole."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """Metrics of one policy on one window, and per-request samples in arrival order where the metric has them."""

    metrics: Mapping[str, float]
    samples: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


class Evaluator(Protocol):
    """A scorer of policies of one contract on the windows of one workload.

    An evaluator must be picklable and deterministic.
    """

    def measure(self, policy: Policy, window: Window, *, samples: bool = False) -> Sequence[Measurement]:
        """Return one measurement for each part of a window; an empty sequence if the evaluator lacks that window.

        The fitness is computed from the parts of "train" and "busier" together; "busier" is the train windows at a
        higher rate. "short" only identifies hopeless candidates. "other-rates" is the train windows at further rates
        and ranks the best candidates. "held-out" is used for the final comparison only.
        """

    def probes(self, contract: Contract, decision: str) -> Sequence[Sequence[Row]]:
        """Return typical arguments of a decision (one row per view), on which behavioural fingerprints are taken.

        Rows are compared within a group of consecutive arguments that share every view but the first.
        """

    def describe(self) -> Mapping[str, Any]:
        """Return aggregate facts about the workload for the run's record, reports and prompts.

        They never include the contents of requests.
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulationEvaluator:
    """An evaluator that replays traces in the request-level simulator with the policy in its contract's slots."""

    train: tuple[Trace, ...]
    held_out: tuple[Trace, ...]
    engine: EngineConfig
    step_time: StepTimeModel
    slo: Slo
    short: tuple[Trace, ...] = ()
    """The beginning of the train windows, for a cheaper measurement; empty if the whole windows are cheap."""
    busier: float = BUSIER
    """Factor on the train windows' rate for the second replay of each candidate. 1 omits that replay."""
    other_rates: tuple[float, ...] = OTHER_RATES
    """Factors on the train windows' rate at which only the best candidates are replayed."""
    slots: Mapping[str, str]
    """Decision -> simulator slot."""
    name: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, contract: Contract, workload: Workload) -> "SimulationEvaluator":
        """Return the evaluator of a contract on a workload.

        Raises:
            EvolutionError: no decision of the contract runs in a simulator slot.
        """
        return cls(
            train=(workload.train,),
            held_out=(workload.held_out,),
            engine=workload.engine,
            step_time=workload.calibration.step_time,
            slo=workload.slo,
            short=(workload.train.select(np.arange(SHORT)),) if len(workload.train) >= 4 * SHORT else (),
            slots=dict(contract.slots),
            name=workload.name,
            notes={"rate_factor": workload.rate_factor, "calibration": workload.calibration.name},
        )

    def __post_init__(self) -> None:
        if not self.slots:
            raise EvolutionError("the contract runs in no simulator slot: give evolve() an evaluator of your own")
        if not self.train or not self.held_out:
            raise EvolutionError("a workload needs at least one train and one held-out window")

    def measure(self, policy: Policy, window: Window, *, samples: bool = False) -> Sequence[Measurement]:
        """Replay the traces of a window to their end."""
        return [self.measurement(self.replay(policy, trace), samples=samples) for trace in self._windows[window]]

    @cached_property
    def _windows(self) -> Mapping[Window, tuple[Trace, ...]]:
        busier = tuple(trace.scaled(self.busier) for trace in self.train) if self.busier != 1.0 else ()
        others = tuple(trace.scaled(rate) for rate in self.other_rates for trace in self.train)
        return {
            "short": self.short,
            "train": self.train,
            "busier": busier,
            "other-rates": others,
            "held-out": self.held_out,
        }

    def replay(self, policy: Policy, trace: Trace) -> SimulationResult:
        """Replay one trace with the policy in its slots."""
        native = {slot: policy.native(decision, LAYOUTS[slot]) for decision, slot in self.slots.items()}
        return simulate(trace, self.engine, self.step_time, native)

    def probes(self, contract: Contract, decision: str) -> Sequence[Sequence[Row]]:
        """Return requests of the train trace with random waiting times under random states of the engine."""
        draw = Random(f"probes/{decision}")
        signature = contract.decisions[decision]
        views = [contract.views[param.type] for param in signature.params]
        rows: list[list[Row]] = []
        for _ in range(GROUPS):
            shared: list[Row] = [self._context(view, draw) for view in views[1:]]
            oldest = next((row["oldest_waited_us"] for row in shared if "oldest_waited_us" in row), 60_000_000)
            rows += [[self._item(views[0], draw, oldest), *shared] for _ in range(GROUP_SIZE)]
        return rows

    def describe(self) -> Mapping[str, Any]:
        """Return rates, lengths, engine and SLO."""
        trace = self.train[0]
        lengths = {
            name: [int(x) for x in np.percentile(getattr(trace, name), [50, 90, 99])]
            for name in ("num_prompt_tokens", "num_output_tokens")
        }
        return {
            "name": self.name or trace.name,
            "train_requests": [len(item) for item in self.train],
            "held_out_requests": [len(item) for item in self.held_out],
            "rate_rps": round(trace.rate, 3),
            "busier": self.busier,
            "other_rates": list(self.other_rates),
            **{f"{name}_p50_p90_p99": values for name, values in lengths.items()},
            "engine": self.engine.model_dump(mode="json"),
            "step_time": self.step_time.model_dump(mode="json"),
            "slo": {"ttft_s": self.slo.ttft_s, "tpot_s": self.slo.tpot_s},
            **self.notes,
        }

    def measurement(self, result: SimulationResult, *, samples: bool = False) -> Measurement:
        """Return the metrics of one replay."""
        metrics = {
            "ttft_mean_us": result.ttft.mean * 1e6,
            "ttft_p50_us": result.ttft.p50 * 1e6,
            "ttft_p99_us": result.ttft.p99 * 1e6,
            "e2e_mean_us": result.e2e.mean * 1e6,
            "e2e_p99_us": result.e2e.p99 * 1e6,
            "tpot_mean_us": result.tpot.mean * 1e6,
            "tpot_p99_us": result.tpot.p99 * 1e6,
            "queueing_mean_us": result.queueing.mean * 1e6,
            "worst_wait_us": result.worst_wait_s * 1e6,
            "goodput_rps": result.goodput(self.slo),
            "slo_attainment": result.slo_attainment(self.slo),
            "throughput_rps": result.request_throughput,
            "jain_fairness": result.jain_fairness,
            "makespan_us": result.makespan_s * 1e6,
            "preemptions": float(result.preemptions),
            "rejected": float(result.num_rejected),
        }
        if not samples:
            return Measurement(metrics)
        times = result.times
        good = (times.ttft_s <= self.slo.ttft_s) & (times.tpot_s <= self.slo.tpot_s)
        arrays = {
            "ttft": times.ttft_s * 1e6,
            "e2e": times.e2e_s * 1e6,
            "tpot": times.tpot_s * 1e6,
            "queueing": times.queueing_s * 1e6,
            "slo_attainment": good.astype(np.float64),
        }
        return Measurement(metrics, arrays)

    def _item(self, view: type[View], draw: Random, oldest: int) -> Row:
        trace = self.train[0]
        index = draw.randrange(len(trace))
        prompt = int(trace.num_prompt_tokens[index])
        preempted = draw.random() < 0.1
        caching = self.engine.enable_prefix_caching and (trace.prefixes is not None or preempted)
        typical = {
            "waited_us": int(oldest * draw.random() ** 2),
            "num_prompt_tokens": prompt,
            "num_cached_tokens": draw.randrange(prompt + 1) if caching else 0,
            "num_output_tokens": draw.randrange(1, 512) if preempted else 0,
            "max_tokens": int(trace.max_tokens[index]),
            "priority": int(trace.priority[index]),
            "num_preemptions": draw.randrange(1, 4) if preempted else 0,
        }
        return _row(view, typical, draw)

    def _context(self, view: type[View], draw: Random) -> Row:
        running = draw.randrange(self.engine.max_num_seqs + 1)
        typical = {
            "num_waiting": int(2 ** (10 * draw.random())),
            "num_running": running,
            "free_blocks": draw.randrange(self.engine.total_blocks + 1),
            "total_blocks": self.engine.total_blocks,
            "block_size": self.engine.block_size,
            "max_num_seqs": self.engine.max_num_seqs,
            "oldest_waited_us": int(10 ** (4 + 4 * draw.random())),
            "watermark_blocks": self.engine.watermark_blocks,
        }
        return _row(view, typical, draw)


GROUPS, GROUP_SIZE = 6, 192


def _row(view: type[View], typical: Mapping[str, int], draw: Random) -> Row:
    """Return a row in its view's domains.

    A field has its typical value if that is known, otherwise a small random one.
    """
    row: dict[str, int] = {}
    for spec in view.fields():
        domain = spec.domain
        if domain.values is not None:
            row[spec.name] = draw.choice(domain.values)
        else:
            value = typical.get(spec.name)
            if value is None:
                value = domain.lo + int((min(domain.hi, domain.lo + 100_000) - domain.lo) * draw.random() ** 2)
            row[spec.name] = min(max(value, domain.lo), domain.hi)
    return row
