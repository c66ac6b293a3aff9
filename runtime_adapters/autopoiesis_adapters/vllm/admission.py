"""The admission lever: a certified policy says whether the head of the line is admitted now, and what is set aside for it.

vLLM reads `max_num_active_reqs` each time it is about to admit (0.31 and later). Just before, it asks the waiting queue
whether anybody waits; there the policy is asked about the head, and a refusal lowers the limit to what runs already: the
step admits nobody more, so no request is hidden while one ranked behind it is admitted. With nothing running the limit is
one, and vLLM's own accounting decides.

What vLLM does not know of is a reservation. It is kept here: blocks promised at admission (for all tokens of the request,
also those of a prompt that is computed in chunks, and the reservation) less the blocks it holds. The view shows promised
blocks as not free, as long as there are free ones to be promised; running requests take free blocks first.
"""

import time
from collections.abc import Callable
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm.v1.request import RequestStatus

from ..loading import VerifiedAdmission
from .assumptions import Assumptions
from .seat import Seat
from .waiting_columns import WaitingColumns
from .waiting_queue import PolicyQueue

__all__ = ["AdmissionLever"]

Int64s = NDArray[np.int64]
RUNNING = RequestStatus.RUNNING


class AdmissionLever(Seat[VerifiedAdmission]):
    """Asked before each admission; a refusal ends admission for the step.

    Args:
        scheduler: a vLLM scheduler that has `max_num_active_reqs`.
        queue: its waiting queue.
        columns: the waiting requests' columns.
        assumptions: what must hold of a request and the memory.
        deadline_ns: an answer that takes longer is late.
        late_limit: late answers in a row after which the policy is taken out.
        disabled: the kill switch.
    """

    def __init__(
        self,
        scheduler: Any,
        queue: PolicyQueue,
        columns: WaitingColumns,
        assumptions: Assumptions,
        deadline_ns: int = 10_000_000,
        late_limit: int = 3,
        disabled: bool = False,
    ) -> None:
        super().__init__("admission", deadline_ns=deadline_ns, late_limit=late_limit, disabled=disabled)
        self._scheduler = scheduler
        self._queue = queue
        self._columns = columns
        self._assumptions = assumptions
        self.block_size = int(scheduler.block_size)
        pool = scheduler.kv_cache_manager.block_pool
        self._free_blocks: Callable[[], int] = pool.get_num_free_blocks
        self._total_blocks = max(int(pool.num_gpu_blocks) - 1, 1)
        self._limit = int(scheduler.max_num_active_reqs)
        self._promised: dict[Any, int] | None = None
        """Running requests -> blocks promised to them, while they hold fewer; None: not known yet."""
        self._answer: tuple[Any, int] | None = None
        self._memory: Int64s = np.zeros(5, np.int64)
        self._memory_at: int = self._memory.ctypes.data
        self._memory_bytes = self._memory.data.cast("B")
        self._pack = Struct("=5q").pack_into

    def begin_pass(self, now_us: int) -> None:
        """See `Seat.begin_pass`; the engine's own limit holds until the policy is asked."""
        super().begin_pass(now_us)
        wanted = self.active is not None or self.shadow is not None
        self._queue.gate = self.ask if wanted and not self.disabled else None
        self._answer = None

    def end_pass(self, _preempted: int) -> None:
        """The step is over: outside of it the engine's own limit stands."""
        self.step_ns = 0
        self._queue.gate = None
        self._scheduler.max_num_active_reqs = self._limit
        self.rest()

    def ask(self) -> None:
        """Set how many requests may run for the admission that is about to be made. Never raises."""
        scheduler = self._scheduler
        scheduler.max_num_active_reqs = self._limit
        running = len(scheduler.running) + getattr(scheduler, "num_waiting_for_streaming_input", 0)
        if self.dropped or running >= self._limit or not self._columns.n:
            return
        started = time.perf_counter_ns()
        try:
            if not self._admits(self.active):
                scheduler.max_num_active_reqs = max(running, 1)
        except Exception as error:
            self.drop("exception", f"{type(error).__name__}: {error}")
        self.step_ns += time.perf_counter_ns() - started

    def popped(self, request: Any) -> None:
        """A request leaves the queue: if it was admitted on the policy's word, what was promised to it is kept."""
        if self._answer is not None and self._answer[0] is request and self._promised is not None:
            self._promised[request] = self._answer[1]
        self._answer = None

    def _admits(self, policy: VerifiedAdmission | None) -> bool:
        request = self._queue.peek_request()
        fields, memory = self._views(request)
        problem = self._problem(request, memory)
        if problem is not None:
            self.drop("assumption" if problem.startswith("assumption") else "view-domain", problem)
            return True
        admits = True
        if policy is not None:
            started = time.perf_counter_ns()
            admits, reserve = policy.admit(*fields, *memory) != 0, int(policy.reserve_blocks(*fields))
            took = time.perf_counter_ns() - started
            self.decisions += 1
            self.decision_ns += took
            if self.candidate and self.shadow is None:
                self.tried += 1
            broken = self._broken(fields, memory, admits, reserve) or self.lateness(took, "an answer")
            if broken is not None:
                self.drop(*broken, engine=memory)
                return True
            self.counters["admitted" if admits else "held_back"] += 1
            if admits:
                self._answer = request, blocks(fields[1] + fields[3], self.block_size) + reserve
        if self.shadow is not None:
            self._compare(self.shadow, fields, memory, admits)
        return admits

    def _views(self, request: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        columns = self._columns
        slot = columns.slot(request.request_id)
        columns.set_waits(self.now_us)
        scheduler = self._scheduler
        running = len(scheduler.running)
        free = self._free_blocks()
        reserved = min(self._outstanding(), free)
        watermark = int(getattr(scheduler.kv_cache_manager, "watermark_blocks", 0))
        memory = (free - reserved, self._total_blocks, watermark, running, reserved)
        return tuple([int(value) for value in columns.fields[:, slot]]), memory

    def _problem(self, request: Any, memory: tuple[int, ...]) -> str | None:
        columns = self._columns
        slot = columns.slot(request.request_id)
        at = columns.fields_at + 8 * slot
        if columns.out_of_domain or not self._assumptions.requests_hold(at, columns.capacity):
            return f"request {request.request_id} holds a value no proof covers"
        try:
            self._pack(self._memory_bytes, 0, *memory)
        except StructError:
            return "a memory value does not fit 64 bits"
        if self._assumptions.hold(at, columns.capacity, 1, self._memory_at):
            return None
        return self._assumptions.problem(columns.fields[:, slot : slot + 1], self._memory, 1)

    def _broken(
        self, fields: tuple[int, ...], memory: tuple[int, ...], admits: bool, reserve: int
    ) -> tuple[str, str] | None:
        """The fault in an answer: what the contract proves of every answer does not hold of this one."""
        free, total, watermark, running, _ = memory
        tokens = fields[1] + fields[3]
        if not 0 <= reserve <= blocks(fields[1] + fields[4], self.block_size):
            return "out-of-range", f"reserved {reserve} blocks for a request of at most {fields[1] + fields[4]} tokens"
        left = free - reserve - watermark if running else free
        if admits and tokens > left * self.block_size:
            return "pick-rule", f"admitted {tokens} tokens where {left} blocks of {self.block_size} may be taken"
        if not (admits or running) and tokens <= total * self.block_size:
            return "pick-rule", f"refused {tokens} tokens with nothing running; {total} blocks are free"
        return None

    def _compare(
        self, shadow: VerifiedAdmission, fields: tuple[int, ...], memory: tuple[int, ...], admits: bool
    ) -> None:
        try:
            answer, reserve = shadow.admit(*fields, *memory) != 0, int(shadow.reserve_blocks(*fields))
            broken = self._broken(fields, memory, answer, reserve)
            if broken is not None:
                self.drop_shadow(*broken, engine=memory)
                return
            self.tried += 1
            self.agreed += answer == admits
        except Exception as error:
            self.drop_shadow("exception", f"{type(error).__name__}: {error}")

    def _outstanding(self) -> int:
        """Blocks promised to running requests and not taken by them yet."""
        scheduler = self._scheduler
        if self._promised is None:
            self._promised = {request: blocks(request.num_tokens, self.block_size) for request in scheduler.running}
        total = 0
        for request, promised in list(self._promised.items()):
            held = len(scheduler.kv_cache_manager.get_blocks(request.request_id).blocks[0])
            if request.status is not RUNNING or held >= promised:
                del self._promised[request]
            else:
                total += promised - held
        return total

    def _seated(self) -> None:
        self._promised = self._promised if self.active is not None or self.shadow is not None else None


def blocks(tokens: int, block_size: int) -> int:
    """Blocks that so many tokens fill, the last one perhaps partly."""
    return -(-tokens // block_size)
