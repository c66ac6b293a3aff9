"""The admission control point, where a certified policy decides on admission and on the blocks to reserve.

vLLM reads `max_num_active_reqs` each time it is about to admit a request (version 0.31 and later). Just before, it asks
the waiting queue for waiting requests. At that moment the policy is asked about the request at the head of the queue. A
refusal lowers the limit to the number of running requests, so the step admits no more requests. No request is then
hidden while one ranked behind it is admitted. When nothing runs the limit is one, and vLLM's own accounting decides.

vLLM does not know of reservations; this module keeps them. A reservation counts the blocks promised at admission less
the blocks that the request holds. The promise covers all tokens of the request, also those of a prompt computed in
chunks, and the blocks that the policy reserves. The view shows promised blocks as not free, as long as there are free
blocks to promise. Running requests take free blocks first.

A view counts in blocks of the engine's block size. In a model with several KV-cache groups, or with a group that drops
old tokens, the view shows the blocks that the request at the head of the queue can fill (`KVGroups.units`). A request
that a policy proves to fit there fits into every group. A waiting request that holds KV blocks (a remote load, a
streaming session) counts as running, because it takes part in the memory.
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
from .kv_groups import KVGroups
from .seat import Seat
from .waiting_columns import WaitingColumns
from .waiting_queue import PolicyQueue

__all__ = ["AdmissionLever"]

Int64s = NDArray[np.int64]
RUNNING = RequestStatus.RUNNING


class AdmissionLever(Seat[VerifiedAdmission]):
    """The policy slot of admission.

    The policy is asked before each admission, and a refusal ends admission for the step.

    Args:
        scheduler: a vLLM scheduler that has `max_num_active_reqs`.
        groups: its KV-cache groups.
        queue: its waiting queue.
        columns: the waiting requests' columns.
        assumptions: the checks of a request and the memory.
        deadline_ns: an answer that takes longer is late.
        late_limit: late answers in a row after which the policy is quarantined.
        disabled: the kill switch.
    """

    def __init__(
        self,
        scheduler: Any,
        groups: KVGroups,
        queue: PolicyQueue,
        columns: WaitingColumns,
        assumptions: Assumptions,
        deadline_ns: int = 10_000_000,
        late_limit: int = 3,
        disabled: bool = False,
    ) -> None:
        super().__init__("admission", deadline_ns=deadline_ns, late_limit=late_limit, disabled=disabled)
        self._scheduler = scheduler
        self._groups = groups
        self._queue = queue
        self._columns = columns
        self._assumptions = assumptions
        self.block_size = int(scheduler.block_size)
        pool = scheduler.kv_cache_manager.block_pool
        self._free_blocks: Callable[[], int] = pool.get_num_free_blocks
        self._total_units = groups.units(max(int(pool.num_gpu_blocks) - 1, 1))
        self._limit = int(scheduler.max_num_active_reqs)
        self._promised: dict[Any, int] | None = None
        """Requests with KV blocks -> blocks promised to them, while they hold fewer; None while they have not been
        counted."""
        self._holders: tuple[Any, ...] = ()
        """Waiting requests that hold KV blocks, since this step began. vLLM hides those that it passes over until the
        end of the step."""
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
        self._holders = tuple(self._scheduler.kv_holding_waiting)
        self._answer = None

    def end_pass(self, _output: Any, _preempted: int) -> None:
        """End the step: reset the step's time, restore the engine's own limit and rest if there is nothing to do."""
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
        """Record the promise to a request that leaves the queue, when the policy admitted it."""
        if self._answer is not None and self._answer[0] is request and self._promised is not None:
            self._promised[request] = self._answer[1]
        self._answer = None
        if request.status is RequestStatus.WAITING_FOR_REMOTE_KVS:
            self._holders = (*self._holders, request)

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
                tokens = fields[1] + fields[3] + reserve * self.block_size
                self._answer = request, self._groups.needed(tokens)
        if self.shadow is not None:
            self._compare(self.shadow, fields, memory, admits)
        return admits

    def _views(self, request: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        columns = self._columns
        slot = columns.slot(request.request_id)
        columns.set_waits(self.now_us)
        scheduler, units = self._scheduler, self._groups.units
        running = len(scheduler.running) + sum(one.status is not RUNNING for one in self._holders)
        free = self._free_blocks()
        promised = min(self._outstanding(), free)
        left = units(free - promised)
        watermark = left - units(free - promised - scheduler.kv_cache_manager.watermark_blocks)
        memory = (left, self._total_units, watermark, running, units(free) - left)
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
        """Return the fault in an answer, or None.

        A fault is an answer that breaks what the contract proves of every answer.
        """
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
        """Return the blocks that are promised to requests and not yet taken by them."""
        groups = self._groups
        if self._promised is None:
            holders = (*self._scheduler.running, *self._holders)
            self._promised = {request: groups.needed(request.num_tokens) for request in holders}
        total = 0
        for request, promised in list(self._promised.items()):
            held = groups.held(request.request_id)
            gone = request.is_finished() or not (held or request.status is RUNNING)
            if gone or (held >= promised and not groups.recycles):
                del self._promised[request]
            else:
                total += max(promised - held, 0)
        return total

    def _seated(self) -> None:
        self._promised = self._promised if self.active is not None or self.shadow is not None else None


def blocks(tokens: int, block_size: int) -> int:
    """Return the blocks that so many tokens fill; the last block may be partly filled."""
    return -(-tokens // block_size)
