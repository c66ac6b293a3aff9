"""The adapter's state inside one engine: queue, policy slots, telemetry and watcher threads for one scheduler."""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from time import perf_counter_ns
from typing import Any

import vllm
from autopoiesis_contracts.admission import Admission
from autopoiesis_contracts.preemption import Preemption
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering
from vllm.v1.request import RequestStatus

from autopoiesis_lib.contract import Contract
from autopoiesis_lib.logs import log_event
from autopoiesis_lib.protocol.channel import ORDERING, Channel, Trust
from autopoiesis_lib.protocol.files import MAX_CERTIFICATE_BYTES, MAX_POLICY_BYTES, read_bounded
from autopoiesis_lib.protocol.permissions import permission_problems

from ..loading import VerifiedAdmission, VerifiedVictims, load_admission, load_victims
from .admission import AdmissionLever
from .assumptions import Assumptions
from .builtin_order import ArrivalOrder, PriorityOrder
from .engine_model import ADMISSION, PREEMPTION, EngineShape, shape_of
from .governor import Governor
from .seat import Seat
from .settings import Settings, read_settings
from .telemetry import Telemetry
from .victims import VictimLever
from .waiting_columns import RequestClock, UnknownFieldError, WaitingColumns
from .waiting_queue import PolicyQueue
from .watcher import Load, Watcher, engine_name

__all__ = ["EngineSide", "attach"]

logger = logging.getLogger("autopoiesis.vllm")

ENGINE_FIELDS = (
    "num_waiting",
    "num_running",
    "free_blocks",
    "total_blocks",
    "block_size",
    "max_num_seqs",
    "oldest_waited_us",
)
"""Fields of an engine view this adapter can supply, in the order in which it reads them."""

WATCHER_CHECK_STEPS = 256

ABORTED = RequestStatus.FINISHED_ABORTED


@cache
def assumptions_of(contract_type: type[Contract], decision: str) -> Assumptions:
    """Compile the checks of a contract whose decision reads a request and the engine, once per process."""
    contract = contract_type()
    request_view, engine_view = (contract.views[param.type] for param in contract.decisions[decision].params)
    return Assumptions(contract, request_view, engine_view)


def limits_of(scheduler: Any, total_blocks: int) -> dict[str, int]:
    """Return the limits of a scheduler, under the names of the simulator's `EngineConfig`."""
    config = scheduler.scheduler_config
    return {
        "block_size": int(scheduler.block_size),
        "total_blocks": total_blocks,
        "max_num_seqs": int(scheduler.max_num_running_reqs),
        "max_num_batched_tokens": int(scheduler.max_num_scheduled_tokens),
        "long_prefill_token_threshold": int(getattr(config, "long_prefill_token_threshold", 0)),
        "enable_prefix_caching": bool(getattr(scheduler.kv_cache_manager, "enable_caching", False)),
    }


class EngineSide:
    """The adapter inside one engine.

    The scheduler mixin calls it before and after vLLM's own methods, on the engine thread.

    Args:
        scheduler: a vLLM scheduler whose `__init__` has run.
        settings: the operator's settings.
        shape: the control points that can be served in that scheduler.
        load: turns a policy text and certificate into a policy that may run.
        clock_ns: a monotonic clock, in nanoseconds; by default the clock that also times the adapter.
    """

    # The attributes that every step reads are adjacent: vLLM empties the caches between two steps, and loading a
    # cache line costs more than using it. The same holds in every class that a step uses.
    __slots__ = (
        "__dict__",
        "_admissions",
        "_awaiting_first_token",
        "_clock_behind_us",
        "_fallbacks",
        "_levers_awake",
        "_next_seq",
        "_now_us",
        "_pool",
        "_record",
        "_record_arrival",
        "_record_request",
        "_scheduler",
        "_step_ns",
        "_steps",
        "_steps_at",
        "busy",
        "clock_ns",
        "columns",
        "due",
        "governor",
        "queue",
        "telemetry",
    )

    def __init__(
        self,
        scheduler: Any,
        settings: Settings,
        shape: EngineShape,
        load: Load,
        clock_ns: Callable[[], int] = perf_counter_ns,
    ) -> None:
        contract = RequestOrdering()
        request_view, engine_view = (contract.views[param.type] for param in contract.decisions["score"].params)
        pool = scheduler.kv_cache_manager.block_pool
        self.telemetry = Telemetry(settings.telemetry_rows)
        self.clock_ns = clock_ns
        self._clock_behind_us = 0
        """Microseconds by which the clock has jumped back so far."""
        self._now_us = 0
        self._steps = 0
        self._step_ns = 0
        self.busy = False
        """True when `end_step` has more to do than to record the step."""
        self.due = False
        """True when `begin_step` has work to do; when it is false, `begin_step` is not called."""
        self._levers_awake = False
        """True when a control point other than the ordering may have work to do."""
        self._fallbacks = 0
        """Passes of all policy slots that were left to the built-in rule, as the step records report them."""
        self._awaiting_first_token: Sequence[Any] = ()
        self._record, self._record_request = self.telemetry.steps.put, self.telemetry.requests.append
        self._record_arrival = self.telemetry.arrivals.append
        self._steps_at = self.telemetry.steps.at
        self._scheduler = scheduler
        self._pool = pool  # the queue's count is read directly, which saves a method call every step
        self.settings = settings
        self._next_seq = 0
        self._admissions = 0
        self._metrics_server: Any = None
        self._total_blocks = max(int(pool.num_gpu_blocks) - 1, 1)  # no request can hold the null block
        assumptions = assumptions_of(RequestOrdering, "score")
        self.columns = WaitingColumns(request_view, self._cached_tokens, self.stamp, assumptions)
        engine_names = tuple(spec.name for spec in engine_view.fields())
        self.governor = Governor(
            self.columns,
            assumptions,
            engine_reader(engine_names, self.read_engine),
            self._begin_picks,
            lambda: self.queue.builtin_slot(),
            deadline_ns=settings.deadline_us * 1_000,
            disabled=settings.disable,
        )
        builtin = PriorityOrder() if shape.scheduling == "priority" else ArrivalOrder()
        self.queue = PolicyQueue(self.columns, builtin, self.governor.choose)
        self.queue.on_unsettled = self._wake
        self.seats: dict[str, Seat[Any]] = {ORDERING: self.governor}
        """The policy slots of this engine, by policy type."""
        loads = {ORDERING: load, **levers_loads(scheduler, settings)}
        self._levers: list[AdmissionLever | VictimLever] = []
        deadline_ns = settings.deadline_us * 1_000
        self.admission: AdmissionLever | None = None
        if shape.groups is not None and ADMISSION not in shape.off:
            checks = assumptions_of(Admission, "admit")
            self.admission = AdmissionLever(
                scheduler, shape.groups, self.queue, self.columns, checks, deadline_ns, disabled=settings.disable
            )
            self.queue.on_pop = self.admission.popped
            self._levers.append(self.admission)
        self.victims: VictimLever | None = None
        if shape.groups is not None and PREEMPTION not in shape.off:
            checks = assumptions_of(Preemption, "victim_score")
            names = tuple(spec.name for spec in Preemption().views["Engine"].fields())
            read = engine_reader(names, self.read_engine)
            self.victims = VictimLever(
                scheduler, shape.groups, checks, read, self.oldest_waited_us, deadline_ns, disabled=settings.disable
            )
            self._levers.append(self.victims)
        self.seats |= {lever.contract: lever for lever in self._levers}
        parallel = getattr(scheduler, "parallel_config", None)
        channel: Channel | None = None
        if settings.channel is not None:
            trust = Trust(settings.keys, settings.allow_unsigned)
            channel = Channel(settings.channel, trust=trust, state=settings.state, id=settings.channel_id)
        self.watcher = Watcher(
            engine_name(settings.engine, int(getattr(parallel, "data_parallel_index", 0)), channel),
            shape,
            self.seats,
            loads,
            self.now_us,
            channel,
            settings.poll_ms / 1_000,
            settings.disable,
            self.telemetry,
            settings.snapshot_s,
        )
        self.watcher.limits = limits_of(scheduler, self._total_blocks)
        for seat in self.seats.values():
            seat.report = self.watcher.faults.put
            seat.wake = self._wake

    def stamp(self, request: Any) -> RequestClock:
        """Give a request its microsecond stamp and sequence number, once in its life; a second call changes nothing."""
        clock: RequestClock | None = getattr(request, "autopoiesis_clock", None)
        if clock is None:
            now_us = self._read_clock()
            self._next_seq = seq = self._next_seq + 1
            clock = request.autopoiesis_clock = RequestClock(now_us, seq)
            try:
                self._record_arrival(seq, now_us, request.num_prompt_tokens, request.max_tokens, request.priority)
            except Exception as error:
                self.governor.drop("adapter", f"{type(error).__name__}: {error}")
        return clock

    def updated(self, request_id: str) -> None:
        """Read a waiting streaming session again: it got more input, which changed its fields in place."""
        request = self._scheduler.requests.get(request_id)
        if request is not None and request in self.columns:
            self.columns.reread(request)

    def begin_step(self) -> None:
        """Do the work due before vLLM's own step; called only when `due`. Never raises."""
        started = perf_counter_ns()
        try:
            # A wake-up from another thread either comes after this line or is seen below, so none is lost.
            self.due = False
            now_us = self._read_clock()
            if self._levers_awake:
                self.due = self.busy = True
                for lever in self._levers:
                    if not lever.idle:
                        lever.begin_pass(now_us)
            if self._awaiting_first_token:
                self._note_first_tokens(now_us)
            if self.queue.unsettled:
                self.queue.settle()
                self.due = True
        except Exception as error:
            self.governor.give_up_pass("adapter", f"{type(error).__name__}: {error}")
        self._step_ns = perf_counter_ns() - started

    def end_step(self, output: Any, ran: int) -> None:
        """Record a step that began with `ran` requests running, and clear the step's state. Never raises."""
        started = self.clock_ns()
        try:
            now_us = started // 1_000 + self._clock_behind_us
            if now_us < self._now_us:
                now_us = self._read_clock()
            spent_ns, self._step_ns = self._step_ns, 0
            preempted = len(output.preempted_req_ids) if output.preempted_req_ids else 0
            running = len(self._scheduler.running)
            admitted = running - ran
            if admitted > 0:
                self._note_admissions(ran, self._now_us if self.busy else now_us)
            else:
                admitted = 0
            if self.busy:
                self._end_passes(now_us, output, preempted)
                spent_ns, self._step_ns = spent_ns + self._step_ns, 0
            self._now_us = now_us
            self._record(
                self._steps_at,
                now_us,
                self.columns.n,
                running,
                self._pool.free_block_queue.num_free_blocks,
                output.total_num_scheduled_tokens,
                admitted,
                preempted,
                spent_ns + self.clock_ns() - started,
                self._fallbacks,
            )
            self._steps = steps = self._steps + 1
            if not steps % WATCHER_CHECK_STEPS and not self.watcher.alive:
                self.governor.counters["watcher_restarts"] += 1
                self.watcher.start()
        except Exception as error:
            self.governor.drop("adapter", f"{type(error).__name__}: {error}")
            self.queue.peeked = None
            self.governor.end_pass()

    def finished(self, request: Any) -> None:
        """Record the times of a request that leaves the engine. Never raises."""
        try:
            clock: RequestClock = getattr(request, "autopoiesis_clock", None) or self.stamp(request)
            clock.finished_us = now_us = self._read_clock()
            tokens = request.num_output_tokens
            if not clock.first_token_us and tokens:
                clock.first_token_us = now_us
            aborted = request.status is ABORTED
            if aborted:
                self.governor.counters["aborted"] += 1
            self._record_request(
                clock.seq,
                clock.stamp_us,
                clock.admitted_us,
                clock.first_token_us,
                now_us,
                request.num_prompt_tokens,
                clock.cached_tokens,
                tokens,
                request.max_tokens,
                request.priority,
                request.num_preemptions,
                aborted,
            )
        except Exception as error:
            self.governor.drop("adapter", f"{type(error).__name__}: {error}")

    def reset_running(self) -> None:
        """Prepare for a reset of the prefix cache, which preempts every running request. Never raises."""
        try:
            if self.victims is not None:
                self.victims.reset()
        except Exception as error:
            self.governor.drop("adapter", f"{type(error).__name__}: {error}")

    def _note_admissions(self, ran: int, now_us: int) -> None:
        """Number the requests that have entered `running` in a step that began with `ran` there.

        vLLM appends them, wherever they waited. It admits no request in a step in which it preempts one.
        """
        number = self._admissions
        for request in self._scheduler.running[ran:]:
            number += 1
            clock = getattr(request, "autopoiesis_clock", None) or self.stamp(request)
            clock.admission = number
            if not clock.admitted_us:
                clock.admitted_us = now_us
                self._awaiting_first_token = (*self._awaiting_first_token, request)
                self.due = True
        self._admissions = number

    def _note_first_tokens(self, now_us: int) -> None:
        """Stamp the first tokens of the previous step with the beginning of this step.

        vLLM has processed that step's output by now.
        """
        still: list[Any] = []
        for request in self._awaiting_first_token:
            if request.num_output_tokens:
                request.autopoiesis_clock.first_token_us = request.autopoiesis_clock.first_token_us or now_us
            elif not request.is_finished():
                still.append(request)
        self._awaiting_first_token = tuple(still)
        if still:
            self.due = True

    def _end_passes(self, now_us: int, output: Any, preempted: int) -> None:
        """End a step in which a request was picked or a policy slot had work to do.

        The method also marks the work that is due before the next step.
        """
        # A wake-up from another thread either comes after these lines or is seen below, so none is lost.
        self.busy = False
        awake, self._levers_awake = self._levers_awake, False
        queue, governor = self.queue, self.governor
        spent_ns = governor.step_ns
        queue.peeked = None  # the first request may have changed
        governor.end_pass()
        if governor.pending is not None or governor.candidate:
            governor.begin_pass(now_us)
        fallbacks = governor.fallbacks
        for lever in self._levers:
            fallbacks += lever.fallbacks
            if awake and not lever.idle:
                spent_ns += lever.step_ns
                lever.end_pass(output, preempted)
            if not lever.idle:
                self._wake()
        self._step_ns, self._fallbacks = spent_ns, fallbacks
        if governor.candidate:
            self.busy = True
        if self._awaiting_first_token or queue.unsettled:
            self.due = True

    def _begin_picks(self) -> int:
        """Note that a request is about to be picked, so that `end_step` ends the pass. Return the clock (us)."""
        self.busy = True
        return self._read_clock()

    def _wake(self) -> None:
        self._levers_awake = True
        self.busy = self.due = True

    def now_us(self) -> int:
        """Return the engine's clock (us) with which requests are stamped. Safe from any thread."""
        return self.clock_ns() // 1_000 + self._clock_behind_us

    def close(self) -> None:
        """Stop the watcher threads and the metrics server."""
        self.watcher.stop()
        if self._metrics_server is not None:
            self._metrics_server.shutdown()
            self._metrics_server.server_close()
            self._metrics_server = None

    def serve_metrics(self, port: int, host: str) -> None:
        """Serve Prometheus metrics; a taken port is logged, not raised."""
        from .metrics import serve_metrics

        try:
            self._metrics_server, _ = serve_metrics(self.watcher, port, host)
        except OSError as error:
            said = f"no metrics on {host}:{port} ({error.strerror or error})"
            log_event(logger, "metrics.unavailable", said, {"port": port}, level=logging.WARNING)

    def _read_clock(self) -> int:
        now_us = self.clock_ns() // 1_000 + self._clock_behind_us
        if now_us < self._now_us:
            # The clock continues from its last value: if it stopped until it caught up, no request would age meanwhile.
            self._clock_behind_us += self._now_us - now_us
            self.governor.counters["clock_backwards"] += 1
            return self._now_us
        self._now_us = now_us
        return now_us

    def oldest_waited_us(self) -> int:
        """Return the longest wait (us) among the waiting requests; 0 when no request waits."""
        return self._now_us - self.columns.set_waits(self._now_us) if self.columns.n else 0

    def read_engine(self, oldest_waited_us: int) -> tuple[int, ...]:
        """Return the engine's values, in the order of `ENGINE_FIELDS`."""
        scheduler = self._scheduler
        return (
            self.columns.n,
            len(scheduler.running),
            self._pool.free_block_queue.num_free_blocks,
            self._total_blocks,
            scheduler.block_size,
            scheduler.max_num_running_reqs,
            oldest_waited_us,
        )

    def _cached_tokens(self, request: Any) -> int:
        # vLLM calls this when it passes us a request: an exception raised here would end the engine.
        try:
            return self._look_up(request)
        except Exception as error:
            self.governor.drop("adapter", f"{type(error).__name__}: {error}")
            return 0  # the field is a hint and 0 means unknown

    def _look_up(self, request: Any) -> int:
        scheduler = self._scheduler
        if getattr(scheduler, "enable_kv_cache_events", False):
            return 0  # unknown: looking up would publish cache events of its own
        cached = int(scheduler.kv_cache_manager.get_computed_blocks(request)[1])
        return min(cached, int(request.num_prompt_tokens))


def levers_loads(scheduler: Any, settings: Settings) -> dict[str, Load]:
    """Return the loaders for policies of the other control points, with the operator's rules."""

    rules: dict[str, Any] = {
        "allow_unsigned": settings.allow_unsigned,
        "allow_single_solver": settings.allow_single_solver,
        "keys": settings.keys,
    }

    def admission(source: str, certificate: str | bytes) -> VerifiedAdmission:
        return load_admission(source, certificate, block_size=int(scheduler.block_size), **rules)

    def victims(source: str, certificate: str | bytes) -> VerifiedVictims:
        return load_victims(source, certificate, **rules)

    return {"admission": admission, "preemption": victims}


def engine_reader(names: tuple[str, ...], read: Callable[[int], tuple[int, ...]]) -> Callable[[int], tuple[int, ...]]:
    """Return `read` with its `ENGINE_FIELDS` in a view's own order.

    Raises:
        UnknownFieldError: the view has a field this engine does not know.
    """
    if names == ENGINE_FIELDS:
        return read
    unknown = [name for name in names if name not in ENGINE_FIELDS]
    if unknown:
        raise UnknownFieldError(f"engine.{unknown[0]}: vLLM has no such field; there are {', '.join(ENGINE_FIELDS)}")
    places = tuple(ENGINE_FIELDS.index(name) for name in names)

    def reordered(oldest_waited_us: int) -> tuple[int, ...]:
        row = read(oldest_waited_us)
        return tuple([row[place] for place in places])

    return reordered


def attach(scheduler: Any, settings: Settings | None = None, load: Load | None = None) -> EngineSide:
    """Install the policy queue in a scheduler, load the initial policy, and start the watcher.

    Raises:
        SettingsError: a setting cannot be read.
    """
    from ..loading import loader, warm_up

    settings = settings or read_settings(getattr(scheduler.vllm_config, "additional_config", None))
    load = load or loader(
        allow_unsigned=settings.allow_unsigned,
        allow_single_solver=settings.allow_single_solver,
        keys=settings.keys,
        max_aging_us=settings.max_aging_us,
    )
    for problem in permission_problems(settings.channel, settings.keys, engine=True):
        log_event(logger, "permissions.open", problem, {"reason": problem}, level=logging.WARNING)
    warm_up(ORDERING, next(iter(BASELINES.values())))
    switched = {ADMISSION: settings.admission, PREEMPTION: settings.victims}
    off = {contract: "the operator has switched it off" for contract, on in switched.items() if not on}
    side = EngineSide(scheduler, settings, shape_of(scheduler, vllm.__version__, off), load)
    scheduler.waiting = side.queue
    side.watcher.read_orders()
    if settings.policy is not None:
        _bring_in_first(side, settings)
    side.watcher.look()  # the channel's policy is there from the first step on
    side.watcher.start()
    if settings.metrics_port:
        side.serve_metrics(settings.metrics_port, settings.metrics_host)
    return side


def _bring_in_first(side: EngineSide, settings: Settings) -> None:
    assert settings.policy is not None
    try:
        certificate = b""
        if settings.certificate is not None:
            certificate = read_bounded(settings.certificate, MAX_CERTIFICATE_BYTES, follow_links=True)
        source = read_bounded(settings.policy, MAX_POLICY_BYTES, follow_links=True).decode("utf-8")
        side.watcher.bring_in(source, certificate)
    except Exception as error:
        said = f"serving with the built-in order: {error}"
        log_event(logger, "policy.refused", said, {"reason": str(error)}, level=logging.WARNING)
