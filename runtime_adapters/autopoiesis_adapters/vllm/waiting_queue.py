"""The waiting queue that a policy orders: vLLM's queue interface over int64 columns. The columns are never sorted."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request

from .builtin_order import BuiltinOrder
from .waiting_columns import WaitingColumns

__all__ = ["BUILT_IN", "PolicyQueue"]

BUILT_IN = -1
"""The answer of a chooser that leaves the pick to the engine's built-in order."""


class PolicyQueue(RequestQueue):  # type: ignore[misc]  # vLLM ships no type information
    """A waiting queue whose next request is the policy's pick, or the built-in order's first.

    `pop_request` returns the request that `peek_request` showed. vLLM's other queue operations work as before. Requests
    that vLLM skips in a pass are popped and prepended again; the policy cannot pick them in that pass.
    """

    # The attributes that a step reads are adjacent (see `EngineSide`).
    __slots__ = ("_choose", "_columns", "_order", "gate", "on_pop", "on_unsettled", "peeked", "unsettled")

    def __init__(self, columns: WaitingColumns, order: BuiltinOrder, choose: Callable[[], int]) -> None:
        self._columns = columns
        self._order = order
        self._choose = choose
        self.peeked: Request | None = None
        """The request that the last peek showed; the owner clears it at the end of a step."""
        self.gate: Callable[[], None] | None = None
        """A callback, called whenever vLLM asks for waiting requests, which it does before each admission."""
        self.on_pop: Callable[[Request], None] | None = None
        self.on_unsettled: Callable[[], None] | None = None
        """A callback for each request added to `unsettled`."""
        # Every step checks this. The empty value is `()`, one object for all of Python, which stays in the caches.
        self.unsettled: Sequence[Request] = ()
        """Preempted requests whose last tokens have not arrived: their fields will change while they wait."""

    def peek_request(self) -> Request:
        """Return the request to serve next; `IndexError` when no request waits."""
        peeked = self.peeked
        if peeked is None:
            columns = self._columns
            if not columns.n:
                raise IndexError("peek from an empty queue")
            slot = self._choose()
            peeked = self.peeked = columns.requests[slot if slot != BUILT_IN else self.builtin_slot()]
        return peeked

    def builtin_slot(self) -> int:
        """Return the slot of the request that the built-in order would serve next."""
        return self._columns.slot(self._order.first())

    def pop_request(self) -> Request:
        """Remove and return exactly the request that `peek_request` shows."""
        request = self.peeked
        if request is None:
            request = self.peek_request()
        self._columns.remove(request)
        self._order.discard(request)
        self.peeked = None
        if self.gate is not None and self.on_pop is not None:
            self.on_pop(request)
        return request

    def add_request(self, request: Request) -> None:
        """Add a new request, or one that comes back to wait."""
        self._columns.add(request)
        self._order.append(request)
        self.peeked = None

    def prepend_request(self, request: Request) -> None:
        """Put a preempted or skipped request back.

        The request keeps its stamp and its sequence number, so the policy sees its whole wait.
        """
        self._columns.add(request)
        self._order.prepend(request)
        self.peeked = None
        if getattr(request, "num_stale_output_tokens", 0):
            self.unsettled = (*self.unsettled, request)
            if self.on_unsettled is not None:
                self.on_unsettled()

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """Put requests at the front one after the other, as a deque's `extendleft` does."""
        for request in requests:
            self.prepend_request(request)

    def remove_request(self, request: Request) -> None:
        """Remove one request; `KeyError` when it does not wait here."""
        self._columns.remove(request)
        self._order.discard(request)
        self.peeked = None

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Remove those of `requests` that wait here; vLLM calls this on each of its queues."""
        for request in list(requests):
            if request in self._columns:
                self.remove_request(request)

    def settle(self) -> None:
        """Read preempted requests again, because their late tokens may have arrived."""
        columns = self._columns
        waiting = [request for request in self.unsettled if request in columns]
        for request in waiting:
            columns.reread(request)
        self.unsettled = tuple([request for request in waiting if request.num_stale_output_tokens])

    def __bool__(self) -> bool:
        if self.gate is not None:
            self.gate()
        return self._columns.n > 0

    def __len__(self) -> int:
        return self._columns.n

    def __iter__(self) -> Iterator[Request]:
        columns = self._columns
        return iter([columns.requests[columns.slot(request_id)] for request_id in self._order])
