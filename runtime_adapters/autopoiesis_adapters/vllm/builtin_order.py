"""vLLM's own order of service, the fallback for every drop, refusal and disabled engine.

vLLM keeps a deque under `fcfs` and a heap under `priority`. A policy picks from the middle, so both orders are kept
here in data structures from which any request can be removed cheaply. The order of service is the same.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Protocol

__all__ = ["ArrivalOrder", "BuiltinOrder", "PriorityOrder"]


class BuiltinOrder(Protocol):
    """The order in which the engine's own policy would serve the waiting requests."""

    def append(self, request: Any) -> None:
        """Add a request to the queue."""

    def prepend(self, request: Any) -> None:
        """Put a preempted or skipped request back at the front, when the order has a front."""

    def discard(self, request: Any) -> None:
        """Remove a request from any place in the queue."""

    def first(self) -> str:
        """Return the id of the request to serve next; `IndexError` when no request waits."""

    def __iter__(self) -> Iterator[str]:
        """Iterate over the ids in the order of service."""


class ArrivalOrder:
    """First come, first served, where preempted and skipped requests rejoin at the front, as in vLLM.

    Every operation is O(1).
    """

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()

    def append(self, request: Any) -> None:
        """See `BuiltinOrder`."""
        self._ids[request.request_id] = None

    def prepend(self, request: Any) -> None:
        """See `BuiltinOrder`."""
        self._ids[request.request_id] = None
        self._ids.move_to_end(request.request_id, last=False)

    def discard(self, request: Any) -> None:
        """See `BuiltinOrder`."""
        self._ids.pop(request.request_id, None)

    def first(self) -> str:
        """See `BuiltinOrder`."""
        for request_id in self._ids:
            return request_id
        raise IndexError("peek from an empty queue")

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._ids))


class PriorityOrder:
    """vLLM's `priority` policy: lowest priority number first, then arrival.

    Removed requests are dropped when they reach the top.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Any, int]] = []
        self._tickets: dict[str, int] = {}
        self._next_ticket = 0

    def append(self, request: Any) -> None:
        """See `BuiltinOrder`."""
        self._next_ticket += 1
        self._tickets[request.request_id] = self._next_ticket
        heapq.heappush(self._heap, (request, self._next_ticket))

    def prepend(self, request: Any) -> None:
        """Add the request as `append` does: a priority order has no front."""
        self.append(request)

    def discard(self, request: Any) -> None:
        """See `BuiltinOrder`."""
        self._tickets.pop(request.request_id, None)
        # Removed requests that never reach the top must not accumulate behind an unserved head.
        if len(self._heap) > 2 * len(self._tickets) + 64:
            self._heap = [entry for entry in self._heap if self._live(entry)]
            heapq.heapify(self._heap)

    def first(self) -> str:
        """See `BuiltinOrder`."""
        while self._heap:
            if self._live(self._heap[0]):
                return str(self._heap[0][0].request_id)
            heapq.heappop(self._heap)
        raise IndexError("peek from an empty queue")

    def __iter__(self) -> Iterator[str]:
        return iter([request.request_id for request, _ in sorted(filter(self._live, self._heap))])

    def _live(self, entry: tuple[Any, int]) -> bool:
        request, ticket = entry
        return self._tickets.get(request.request_id) == ticket
