"""The order vLLM itself would serve: what every drop, refusal and disabled engine falls back to.

vLLM keeps a deque under `fcfs` and a heap under `priority`. A policy picks from the middle, so both are kept here in a
form where removing any request is cheap; what comes first is the same.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Protocol

__all__ = ["ArrivalOrder", "BuiltinOrder", "PriorityOrder"]


class BuiltinOrder(Protocol):
    """Which waiting request the engine's own policy would serve next."""

    def append(self, request: Any) -> None:
        """A request joins the queue."""

    def prepend(self, request: Any) -> None:
        """A preempted or skipped request rejoins at the front, where the order has a front."""

    def discard(self, request: Any) -> None:
        """A request leaves, from wherever it stands."""

    def first(self) -> str:
        """The id of the request to serve next; `IndexError` when nobody waits."""

    def __iter__(self) -> Iterator[str]:
        """Ids in the order of service."""


class ArrivalOrder:
    """First come, first served, with vLLM's rule that preempted and skipped requests rejoin at the front. All O(1)."""

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
    """vLLM's `priority` policy: lowest priority number first, then arrival. Leavers are dropped when they surface."""

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
        """A priority order has no front: the same as `append`."""
        self.append(request)

    def discard(self, request: Any) -> None:
        """See `BuiltinOrder`."""
        self._tickets.pop(request.request_id, None)
        # Leavers that never surface must not pile up behind an unserved head.
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
