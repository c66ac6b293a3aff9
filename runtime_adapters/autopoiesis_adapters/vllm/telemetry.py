"""What an engine did, step by step and request by request, in rings of fixed size: written by the engine, read by
anybody.

Writing is one append. Reading copies while the engine goes on and throws away what was overwritten meanwhile,
so that no snapshot ever waits for a step or a step for a snapshot. No request content is recorded, only counts and
times.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["REQUEST_FIELDS", "STEP_FIELDS", "Ring", "Snapshot", "Telemetry"]

Int64s = NDArray[np.int64]

STEP_FIELDS = (
    "at_us",
    "num_waiting",
    "num_running",
    "free_blocks",
    "scheduled_tokens",
    "admitted",
    "preempted",
    "adapter_ns",
    "fallbacks",
)
"""`at_us`: the step's clock; `adapter_ns`: time spent in this adapter during the step; `fallbacks`: total so far."""
REQUEST_FIELDS = (
    "stamp_us",
    "admitted_us",
    "first_token_us",
    "finished_us",
    "num_prompt_tokens",
    "num_cached_tokens",
    "num_output_tokens",
    "max_tokens",
    "priority",
    "num_preemptions",
    "aborted",
)
"""Times in microseconds of the engine's monotonic clock, 0 when it never happened; a first token is noted when vLLM has
taken it in, at the beginning of the next step. `priority` as vLLM was given it."""

BATCH = 64
"""Rows that go into the array together."""
INT64 = np.iinfo(np.int64)


class Ring:
    """The last `capacity` rows of int64 values. One writer; any number of readers in other threads.

    Rows are kept as they come and go into the array in batches: one row written by itself costs a step ten microseconds,
    because vLLM has emptied the caches since the last one.
    """

    __slots__ = ("_capacity", "_fresh", "_rows", "_state", "fields")

    def __init__(self, fields: Sequence[str], capacity: int) -> None:
        self.fields = tuple(fields)
        self._capacity = capacity
        # Row k lies at k modulo the length. A batch longer than the capacity: while one is being written, all rows that
        # readers were promised are still there.
        self._rows: Int64s = np.zeros((capacity + BATCH, len(self.fields)), np.int64)
        self._fresh: list[tuple[int, ...]] = []
        self._state = (0, self._fresh)
        """How many rows have gone into the array, and those after them: replaced as one, so that readers see both."""

    def append(self, *row: int) -> None:
        """Write one row."""
        fresh = self._fresh
        fresh.append(row)
        if len(fresh) == BATCH:
            self._settle()

    def since(self, first: int = 0) -> tuple[int, Int64s]:
        """Rows `first` and later that are still there: (number of the first row given, rows of shape (k, fields))."""
        settled, fresh = self._state
        late = fresh.copy()
        start = max(first, settled + len(late) - self._capacity, 0)
        rows = self._rows[np.arange(start, settled) % len(self._rows)]
        # While we copied, the writer may have gone round.
        lost = min(max(self._state[0] - self._capacity - start, 0), len(rows))
        late_rows = int64_rows(late[max(start - settled, 0) :], len(self.fields))
        return start + lost, np.concatenate((rows[lost:], late_rows))

    def _settle(self) -> None:
        settled, fresh = self._state
        self._rows[np.arange(settled, settled + len(fresh)) % len(self._rows)] = int64_rows(fresh, len(self.fields))
        self._fresh = []
        self._state = settled + len(fresh), self._fresh


def int64_rows(rows: list[tuple[int, ...]], width: int) -> Int64s:
    """Rows as one array of shape (k, width); what does not fit 64 bits becomes the nearest that does, what is no integer 0."""
    try:
        return np.array(rows, np.int64).reshape(-1, width)
    except (OverflowError, TypeError, ValueError):
        fitting = [
            [min(max(value, INT64.min), INT64.max) if isinstance(value, int) else 0 for value in row] for row in rows
        ]
        return np.array(fitting, np.int64).reshape(-1, width)


@dataclass(frozen=True)
class Snapshot:
    """Telemetry since some row, as columns; `next_step` and `next_request` are where the next snapshot goes on."""

    steps: dict[str, Int64s]
    requests: dict[str, Int64s]
    next_step: int
    next_request: int
    lost_steps: int
    """Rows overwritten before anybody read them."""
    lost_requests: int


class Telemetry:
    """The two rings of one engine."""

    def __init__(self, capacity: int) -> None:
        self.steps = Ring(STEP_FIELDS, capacity)
        self.requests = Ring(REQUEST_FIELDS, capacity)

    def finished(self, request: Any, clock: Any, aborted: bool) -> None:
        """Record one request that has left the engine; `clock` is its `RequestClock`."""
        self.requests.append(
            clock.stamp_us,
            clock.admitted_us,
            clock.first_token_us,
            clock.finished_us,
            request.num_prompt_tokens,
            clock.cached_tokens,
            request.num_output_tokens,
            request.max_tokens,
            request.priority,
            request.num_preemptions,
            aborted,
        )

    def snapshot(self, first_step: int = 0, first_request: int = 0) -> Snapshot:
        """What has been recorded since the given rows. Never blocks a step."""
        step, steps = self.steps.since(first_step)
        request, requests = self.requests.since(first_request)
        return Snapshot(
            dict(zip(STEP_FIELDS, steps.T.copy(), strict=True)),
            dict(zip(REQUEST_FIELDS, requests.T.copy(), strict=True)),
            step + len(steps),
            request + len(requests),
            step - first_step,
            request - first_request,
        )
