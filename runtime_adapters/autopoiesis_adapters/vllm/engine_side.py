"""Everything the adapter keeps inside one engine: queue, governor, telemetry and the watcher thread, tied to one
scheduler."""

import logging
import time
from collections.abc import Callable
from typing import Any

from autopoiesis_contracts.request_ordering import RequestOrdering

from ..channel import Channel
from .assumptions import Assumptions
from .builtin_order import ArrivalOrder, PriorityOrder
from .governor import Governor
from .settings import Settings, read_settings
from .telemetry import Telemetry
from .waiting_columns import RequestClock, UnknownFieldError, WaitingColumns
from .waiting_queue import PolicyQueue
from .watcher import Load, Watcher

__all__ = ["EngineSide", "attach"]

logger = logging.getLogger("autopoiesis.vllm")

ENGINE_READERS: dict[str, Callable[[Any], int]] = {
    "num_running": lambda scheduler: len(scheduler.running),
    "free_blocks": lambda scheduler: int(scheduler.kv_cache_manager.block_pool.get_num_free_blocks()),
    # One block of vLLM's pool is the null block, which nobody can hold.
    "total_blocks": lambda scheduler: max(int(scheduler.kv_cache_manager.block_pool.num_gpu_blocks) - 1, 1),
    "block_size": lambda scheduler: int(scheduler.block_size),
    "max_num_seqs": lambda scheduler: int(scheduler.max_num_running_reqs),
}
"""How each field of the engine view is read from a vLLM scheduler; `num_waiting` and `oldest_waited_us` come from the
queue."""

WATCHER_CHECK_STEPS = 256


class EngineSide:
    """The adapter inside one engine. The mixin calls it at the edges of vLLM's own methods; the engine thread owns it.

    Args:
        scheduler: a vLLM scheduler whose `__init__` has run.
        settings: how the operator set the adapter up.
        load: turns a policy text and certificate into a policy that may run.
        clock_ns: the monotonic clock, in nanoseconds.
    """

    def __init__(
        self, scheduler: Any, settings: Settings, load: Load, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        contract = RequestOrdering()
        request_view, engine_view = (contract.views[param.type] for param in contract.decisions["score"].params)
        self.settings = settings
        self.clock_ns = clock_ns
        self.telemetry = Telemetry(settings.telemetry_rows)
        self._scheduler = scheduler
        self._now_us = 0
        self._next_seq = 0
        self._steps = 0
        self._step_ns = 0
        self._awaiting_first_token: list[Any] = []
        self._metrics_server: Any = None
        assumptions = Assumptions(contract, request_view, engine_view)
        self.columns = WaitingColumns(request_view, self._cached_tokens, self.stamp, assumptions.request_holds)
        self._engine_readers = tuple(self._engine_reader(spec.name) for spec in engine_view.fields())
        self._oldest_waited_us = 0
        self.governor = Governor(
            self.columns,
            assumptions,
            self._read_engine,
            deadline_ns=settings.deadline_us * 1_000,
            disabled=settings.disable,
        )
        parallel = getattr(scheduler, "parallel_config", None)
        self.watcher = Watcher(
            f"engine-{getattr(parallel, 'data_parallel_index', 0)}",
            self.governor,
            load,
            lambda: self.clock_ns() // 1_000,
            Channel(settings.channel) if settings.channel is not None else None,
            settings.poll_ms / 1_000,
            settings.disable,
            self.telemetry,
            settings.snapshot_s,
        )
        self.governor.report = self.watcher.faults.put
        by_priority = getattr(getattr(scheduler, "policy", None), "value", "fcfs") == "priority"
        self.queue = PolicyQueue(self.columns, PriorityOrder() if by_priority else ArrivalOrder(), self._choose)

    def stamp(self, request: Any) -> RequestClock:
        """Give a request its microsecond stamp and sequence number. Once in its life: a second call changes nothing."""
        clock: RequestClock | None = getattr(request, "autopoiesis_clock", None)
        if clock is None:
            self._next_seq += 1
            clock = request.autopoiesis_clock = RequestClock(self._read_clock(), self._next_seq)
        return clock

    def updated(self, request_id: str) -> None:
        """A waiting streaming session got more input: its fields changed where it stands."""
        request = self._scheduler.requests.get(request_id)
        if request is not None and request in self.columns:
            self.columns.reread(request)

    def begin_step(self) -> None:
        """One clock read, the swap if one is due, a fresh view. Never raises."""
        started = time.perf_counter_ns()
        now_us = self._read_clock()
        self.queue.forget_peek()
        self.queue.popped.clear()
        try:
            self.governor.begin_pass(now_us)
            self._steps += 1
            if self._steps % WATCHER_CHECK_STEPS == 0 and not self.watcher.alive:
                self.governor.counters["watcher_restarts"] += 1
                self.watcher.start()
        except Exception as error:
            self.governor.drop("adapter", f"{type(error).__name__}: {error}")
        self._step_ns = time.perf_counter_ns() - started

    def end_step(self, output: Any) -> None:
        """Record the step. Never raises."""
        started = time.perf_counter_ns()
        try:
            scheduler = self._scheduler
            running = scheduler.running
            admitted = 0
            for request in self.queue.popped:
                clock = request.autopoiesis_clock
                if request.status.name == "RUNNING":  # the others were skipped and wait again
                    admitted += 1
                    if not clock.admitted_us:
                        clock.admitted_us = self._now_us
                        self._awaiting_first_token.append(request)
            self._step_ns += time.perf_counter_ns() - started
            self.telemetry.steps.append(
                (
                    self._now_us,
                    self.columns.n,
                    len(running),
                    scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
                    output.total_num_scheduled_tokens,
                    admitted,
                    len(output.preempted_req_ids or ()),
                    self._step_ns,
                    self.governor.counters["fallbacks"],
                )
            )
        except Exception as error:
            self.governor.drop("adapter", f"{type(error).__name__}: {error}")

    def tokens_arrived(self) -> None:
        """The model's output is in: note first tokens, and read preempted requests again whose late tokens came. Never
        raises."""
        try:
            if self._awaiting_first_token:
                now_us = self._read_clock()
                still: list[Any] = []
                for request in self._awaiting_first_token:
                    if request.num_output_tokens:
                        request.autopoiesis_clock.first_token_us = now_us
                    elif not request.is_finished():
                        still.append(request)
                self._awaiting_first_token = still
            if self.queue.unsettled:
                for request in self.queue.unsettled:
                    if request in self.columns:
                        self.columns.reread(request)
                self.queue.unsettled = [
                    request
                    for request in self.queue.unsettled
                    if request in self.columns and request.num_stale_output_tokens
                ]
        except Exception as error:
            self.governor.drop("adapter", f"{type(error).__name__}: {error}")

    def finished(self, request: Any) -> None:
        """A request leaves the engine. Never raises."""
        try:
            clock = self.stamp(request)
            clock.finished_us = self._read_clock()
            if not clock.first_token_us and request.num_output_tokens:
                clock.first_token_us = clock.finished_us
            self.telemetry.finished(request, request.status.name == "FINISHED_ABORTED")
        except Exception as error:
            self.governor.drop("adapter", f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Stop the watcher thread and the metrics server."""
        self.watcher.stop()
        if self._metrics_server is not None:
            self._metrics_server.shutdown()
            self._metrics_server.server_close()
            self._metrics_server = None

    def serve_metrics(self, port: int) -> None:
        """Serve Prometheus metrics on a port; a taken port is logged, not raised."""
        from .metrics import serve_metrics

        try:
            self._metrics_server, _ = serve_metrics(self.watcher, port)
        except OSError as error:
            logger.warning("autopoiesis: no metrics on port %d (%s)", port, error.strerror or error)

    def _choose(self) -> int:
        started = time.perf_counter_ns()
        slot = self.governor.choose()
        self._step_ns += time.perf_counter_ns() - started
        return slot

    def _read_clock(self) -> int:
        now_us = self.clock_ns() // 1_000
        if now_us < self._now_us:
            self.governor.counters["clock_backwards"] += 1
        else:
            self._now_us = now_us
        return self._now_us

    def _read_engine(self, oldest_waited_us: int) -> tuple[int, ...]:
        self._oldest_waited_us = oldest_waited_us
        scheduler = self._scheduler
        return tuple([read(scheduler) for read in self._engine_readers])

    def _engine_reader(self, name: str) -> Callable[[Any], int]:
        if name == "num_waiting":
            return lambda _scheduler: self.columns.n
        if name == "oldest_waited_us":
            return lambda _scheduler: self._oldest_waited_us
        if name not in ENGINE_READERS:
            raise UnknownFieldError(
                f"engine.{name}: vLLM has no such field; the adapter knows {', '.join(ENGINE_READERS)}"
            )
        return ENGINE_READERS[name]

    def _cached_tokens(self, request: Any) -> int:
        scheduler = self._scheduler
        if getattr(scheduler, "enable_kv_cache_events", False):
            return 0  # looking up would publish cache events of its own; the field is a hint and 0 says unknown
        cached = int(scheduler.kv_cache_manager.get_computed_blocks(request)[1])
        return min(cached, int(request.num_prompt_tokens))


def attach(scheduler: Any, settings: Settings | None = None, load: Load | None = None) -> EngineSide:
    """Put the policy queue into a scheduler, load the policy it is to start with, and start watching.

    Raises:
        SettingsError: a setting cannot be read.
    """
    from ..loading import loader

    settings = settings or read_settings(getattr(scheduler.vllm_config, "additional_config", None))
    load = load or loader(
        allow_unsigned=settings.allow_unsigned,
        allow_single_solver=settings.allow_single_solver,
        keys=settings.keys,
        max_aging_us=settings.max_aging_us,
    )
    side = EngineSide(scheduler, settings, load)
    scheduler.waiting = side.queue
    if settings.policy is not None:
        _bring_in_first(side, settings)
    side.watcher.look()  # the channel's policy is there from the first step on
    side.watcher.start()
    if settings.metrics_port:
        side.serve_metrics(settings.metrics_port)
    return side


def _bring_in_first(side: EngineSide, settings: Settings) -> None:
    assert settings.policy is not None
    try:
        certificate = settings.certificate.read_text(encoding="utf-8") if settings.certificate is not None else ""
        side.watcher.bring_in(settings.policy.read_text(encoding="utf-8"), certificate)
    except OSError as error:
        logger.warning(
            "autopoiesis: refused: %s cannot be read (%s); serving with the built-in order",
            error.filename,
            error.strerror,
        )
    except Exception as error:
        logger.warning("autopoiesis: serving with the built-in order: %s", error)
