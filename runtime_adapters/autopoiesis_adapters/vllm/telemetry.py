"""What an engine did, step by step and request by request, in rings of fixed size: written by the engine, read by
anybody.

Writing is one row assignment. Reading copies while the engine goes on and throws away what was overwritten meanwhile,
so that no snapshot ever waits for a step or a step for a snapshot. No request content is recorded, only counts and
times.
"""

import struct
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


class Ring:
    """The last `capacity` rows of int64 values. One writer; any number of readers in other threads."""

    __slots__ = ("_bytes", "_capacity", "_pack", "_row_bytes", "_rows", "fields", "written")

    def __init__(self, fields: Sequence[str], capacity: int) -> None:
        self.fields = tuple(fields)
        self.written = 0
        """Rows ever written; row k lies at k modulo the capacity."""
        self._rows: Int64s = np.zeros((capacity, len(self.fields)), np.int64)
        self._capacity = capacity
        self._pack = struct.Struct(f"={len(self.fields)}q").pack_into  # several times faster than a numpy row
        self._row_bytes = 8 * len(self.fields)
        self._bytes = self._rows.data.cast("B")

    def append(self, *row: int) -> None:
        """Write one row. The count moves last, so a reader never takes a half-written row for a whole one."""
        written = self.written
        self._pack(self._bytes, written % self._capacity * self._row_bytes, *row)
        self.written = written + 1

    def since(self, first: int = 0) -> tuple[int, Int64s]:
        """Rows `first` and later that are still there: (number of the first row given, rows of shape (k, fields))."""
        capacity = self._capacity
        end = self.written
        start = max(first, end - capacity, 0)
        index = np.arange(start, end) % capacity
        rows = self._rows[index]
        # While we copied, the writer may have gone round: its row in progress counts as overwritten too.
        lost = max(self.written + 1 - capacity - start, 0) if self.written != end or end - start == capacity else 0
        return start + lost, rows[lost:]


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
