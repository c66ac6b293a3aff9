"""`simulate`: replay of a trace through a model of a vLLM-like engine, with policies at its control points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.simulation import _columns as c
from autopoiesis_lib.simulation.calibration import EngineConfig, StepTimeModel
from autopoiesis_lib.simulation.result import RequestTimes, SimulationResult, StepLog
from autopoiesis_lib.simulation.slots import NativeFunctionLike, SlotError, address_table
from autopoiesis_lib.simulation.trace import Trace

__all__ = ["Fleet", "Outage", "SimulationError", "simulate"]

Ints = NDArray[np.int64]


class SimulationError(AutopoiesisError):
    """A run cannot be set up, or reached a state that must not occur."""


@dataclass(frozen=True, kw_only=True)
class Outage:
    """The loss of a replica with its whole state. If `end_s` is given, the replica comes back empty."""

    replica: int
    start_s: float
    end_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The number of replicas, its limits and the outages. Autoscaling needs a policy in the slot `autoscaling`."""

    replicas: int = 1
    """Number of replicas at the start."""
    min_replicas: int = 1
    max_replicas: int | None = None
    """Maximum number of replicas; None for the number at the start."""
    scale_interval_s: float = 10.0
    """Seconds between two calls of the autoscaling policy."""
    max_step: int = 1
    """Maximum number of replicas that one call of the policy starts or drains."""
    start_delay_s: float = 60.0
    """Seconds from the decision until a new replica serves."""
    outages: Sequence[Outage] = ()

    @property
    def size(self) -> int:
        return max(self.replicas, self.max_replicas or self.replicas)


def simulate(
    trace: Trace,
    engine: EngineConfig,
    step_time: StepTimeModel,
    policies: Mapping[str, NativeFunctionLike] | None = None,
    *,
    fleet: Fleet | None = None,
    checked: bool = False,
    step_log: bool = False,
    decision_log: bool = False,
) -> SimulationResult:
    """Serve every request of `trace` to its end and return the times of each request.

    `policies` maps slot names (see `slots.LAYOUTS`) to native functions. A slot without a policy behaves as in vLLM:
    requests are served first come, first served, the last admitted request is preempted, the least recently used blocks
    are evicted, and the least loaded replica gets a request. A request that can never fit the KV memory is rejected and
    counted.

    `checked` verifies block conservation after every step. `step_log` keeps one row per step (or per closed-form window
    of decode steps) for plots and calibration. `decision_log` keeps every admission and preemption. None of them
    changes the other results. The call releases the GIL.

    Raises:
        SlotError: a slot or layout is wrong, or a Python policy raised.
        SimulationError: the run cannot be set up, or reached a state that must not occur.
    """
    chosen = policies or {}
    fleet = fleet or Fleet()
    _validate(trace, engine, fleet, chosen)
    slots = address_table(chosen)
    rows = max(4 * len(trace), 1_024) if step_log else 0
    decisions = 2 * len(trace) if decision_log else 0
    while True:
        run = _Arrays(trace, engine, step_time, fleet, checked=checked, log_rows=rows, decision_rows=decisions)
        run.execute(slots)
        if (run.out[3] <= rows or not step_log) and (run.out[6] <= decisions or not decision_log):
            break
        rows, decisions = int(run.out[3]) * step_log, int(run.out[6]) * decision_log
    for slot, policy in chosen.items():
        failures = getattr(policy, "failures", ())
        if failures:
            raise SlotError(f"the Python policy in slot {slot!r} raised {failures[0]!r}") from failures[0]
    if run.out[0] != c.OK:
        raise SimulationError(_explain(int(run.out[0]), int(run.out[1]), int(run.out[2])))
    return run.result(trace, step_log=step_log, decision_log=decision_log)


def _validate(trace: Trace, engine: EngineConfig, fleet: Fleet, policies: Mapping[str, NativeFunctionLike]) -> None:
    if fleet.replicas < 1 or fleet.min_replicas < 1 or fleet.min_replicas > fleet.size or fleet.max_step < 1:
        raise SimulationError(f"a fleet needs at least one replica and a step of at least 1, not {fleet}")
    if fleet.size > fleet.replicas and "autoscaling" not in policies:
        raise SimulationError("max_replicas above replicas needs a policy in the slot 'autoscaling'")
    if not fleet.scale_interval_s > 0 or fleet.start_delay_s < 0:
        raise SimulationError("scale_interval_s must be positive and start_delay_s not negative")
    for outage in fleet.outages:
        if not 0 <= outage.replica < fleet.size or outage.start_s < 0:
            raise SimulationError(f"{outage} is not about a replica of a fleet of {fleet.size}")
    if trace.prefixes is not None and trace.prefixes.block_tokens % engine.block_size and engine.enable_prefix_caching:
        raise SimulationError(
            f"the trace's prefix blocks of {trace.prefixes.block_tokens} tokens are not a multiple of block_size "
            f"{engine.block_size}: choose a block_size that divides them, or enable_prefix_caching=False"
        )


def _explain(status: int, replica: int, time_ns: int) -> str:
    where = f"replica {replica} at {time_ns / 1e9:.6f} s"
    if status == c.NOT_CONSERVED:
        return f"blocks are not conserved on {where}: this is a defect of the simulator, please report it"
    return f"requests are waiting but nothing can ever run on {where}: no replica is left, or none comes back"


class _Arrays:
    """The kernel's arrays for one run, which exist only during `simulate`."""

    def __init__(
        self,
        trace: Trace,
        engine: EngineConfig,
        step_time: StepTimeModel,
        fleet: Fleet,
        *,
        checked: bool,
        log_rows: int,
        decision_rows: int,
    ) -> None:
        n, replicas = len(trace), fleet.size
        prefixes = trace.prefixes if engine.enable_prefix_caching else None
        if prefixes is None:
            self.prefix_ptr: Ints = np.zeros(n + 1, dtype=np.int64)
            self.prefix_ids: Ints = np.zeros(0, dtype=np.int64)
            hashes = weight = 0
        else:
            distinct, dense = np.unique(prefixes.ids, return_inverse=True)
            self.prefix_ptr, self.prefix_ids = prefixes.ptr, np.ascontiguousarray(dense, dtype=np.int64)
            hashes, weight = len(distinct), prefixes.block_tokens // engine.block_size
        self.p = _parameters(engine, step_time, fleet, hashes=hashes, weight=weight, checked=checked)
        self.trace = np.ascontiguousarray(
            np.stack(
                [trace.arrival_us, trace.num_prompt_tokens, trace.num_output_tokens, trace.max_tokens, trace.priority]
            )
        )
        self.q = np.zeros((n, c.REQUEST_COLUMNS), dtype=np.int64)
        for column in (c.SCHEDULED_NS, c.FIRST_TOKEN_NS, c.FINISH_NS, c.REPLICA):
            self.q[:, column] = -1
        self.rep = np.zeros((replicas, c.REPLICA_COLUMNS), dtype=np.int64)
        self.rep[: fleet.replicas, c.HEALTH] = c.ACTIVE
        self.run = np.zeros((replicas, c.RUN_COLUMNS, engine.max_num_seqs + 1), dtype=np.int64)
        self.pf = np.zeros((replicas, engine.max_num_seqs + 1), dtype=np.int64)
        self.grow = np.zeros((replicas, 2, engine.block_size), dtype=np.int64)
        self.line = np.full((replicas + 1, 2), -1, dtype=np.int64)
        self.links = np.zeros((replicas * hashes + n + replicas, 3), dtype=np.int64)
        self.cache = np.zeros((replicas * hashes, 4), dtype=np.int64)
        self.owned = np.zeros(len(self.prefix_ids), dtype=np.uint8)
        self.log = np.zeros((log_rows, c.LOG_COLUMNS), dtype=np.int64)
        self.decisions = np.zeros((decision_rows, 4), dtype=np.int64)
        self.out = np.zeros(7, dtype=np.int64)
        self.outages = _outage_table(fleet)

    def execute(self, slots: Ints) -> None:
        from autopoiesis_lib.simulation._fleet import compiled_run

        compiled_run()(
            self.p,
            slots,
            self.trace,
            self.prefix_ptr,
            self.prefix_ids,
            self.outages,
            self.q,
            self.rep,
            self.run,
            self.pf,
            self.grow,
            self.line,
            self.links,
            self.cache,
            self.owned,
            self.log,
            self.decisions,
            self.out,
        )

    def result(self, trace: Trace, *, step_log: bool, decision_log: bool) -> SimulationResult:
        q = self.q
        times = RequestTimes(
            arrival_ns=trace.arrival_us * 1_000,
            scheduled_ns=q[:, c.SCHEDULED_NS].copy(),
            first_token_ns=q[:, c.FIRST_TOKEN_NS].copy(),
            finish_ns=q[:, c.FINISH_NS].copy(),
            num_prompt_tokens=trace.num_prompt_tokens,
            num_output_tokens=trace.num_output_tokens,
            num_preemptions=q[:, c.PREEMPTIONS].copy(),
            recomputed_tokens=q[:, c.RECOMPUTED].copy(),
            cached_tokens=q[:, c.CACHED].copy(),
            replica=q[:, c.REPLICA].copy(),
        )
        log = StepLog.from_rows(self.log[: int(self.out[3])]) if step_log else None
        return SimulationResult.from_times(
            times,
            trace_name=trace.name,
            steps=int(self.rep[:, c.STEPS].sum()),
            replica_seconds=float(self.rep[:, c.ON_NS].sum()) / 1e9,
            served_by_replica=tuple(int(x) for x in self.rep[:, c.SERVED]),
            step_log=log,
            decisions=self.decisions[: int(self.out[6])] if decision_log else None,
        )


def _parameters(
    engine: EngineConfig, step_time: StepTimeModel, fleet: Fleet, *, hashes: int, weight: int, checked: bool
) -> Ints:
    p = np.zeros(c.PARAMETERS, dtype=np.int64)
    p[[c.C0, c.C1, c.C2, c.C3, c.C4_HALF, c.PREFILL_FLOOR]] = step_time.femtoseconds()
    p[c.BLOCK_SIZE] = engine.block_size
    p[c.TOTAL_BLOCKS] = engine.total_blocks
    p[c.MAX_NUM_SEQS] = engine.max_num_seqs
    p[c.MAX_BATCHED_TOKENS] = engine.max_num_batched_tokens
    p[c.CHUNK_LIMIT] = engine.long_prefill_token_threshold
    p[c.WATERMARK] = engine.watermark_blocks
    p[c.CACHING] = engine.enable_prefix_caching
    p[c.NUM_HASHES] = hashes
    p[c.HASH_WEIGHT] = weight
    p[c.CHECKED] = checked
    p[c.SCALE_INTERVAL_US] = round(fleet.scale_interval_s * 1e6)
    p[c.SCALE_MIN] = fleet.min_replicas
    p[c.SCALE_MAX] = fleet.size
    p[c.SCALE_STEP] = fleet.max_step
    p[c.START_DELAY_US] = round(fleet.start_delay_s * 1e6)
    return p


def _outage_table(fleet: Fleet) -> Ints:
    rows: list[tuple[int, int, Literal[0, 1]]] = []
    for outage in fleet.outages:
        rows.append((round(outage.start_s * 1e9), outage.replica, 1))
        if outage.end_s is not None:
            rows.append((round(outage.end_s * 1e9), outage.replica, 0))
    return np.array(sorted(rows), dtype=np.int64).reshape(-1, 3)
