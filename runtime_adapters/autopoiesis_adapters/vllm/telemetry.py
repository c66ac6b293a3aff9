"""Telemetry of an engine in rings of fixed size: its steps, the requests that left, and the requests that came.

The engine writes a row in one call; any thread may read. Reading copies rows while the engine goes on, and discards the
rows that were overwritten meanwhile. No snapshot ever waits for a step, nor a step for a snapshot. Only counts and
times are recorded, no request content.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from autopoiesis_lib.language.builtin import builtin, entry
from autopoiesis_lib.language.native import MachineCode
from autopoiesis_lib.protocol.telemetry import ARRIVAL_FIELDS, REQUEST_FIELDS, STEP_FIELDS

__all__ = ["Ring", "Snapshot", "Telemetry"]

Int64s = NDArray[np.int64]

SLACK = 64
"""Rows that the array has beyond the capacity promised to readers: the engine may write so many during one copy."""
INT64 = np.iinfo(np.int64)

# Row `count` modulo the length, then the count: `words` are the rows' address, the length and the count.
_PUT = """\
define void @put(ptr %words{values}) nounwind {{
entry:
  %rows = load ptr, ptr %words
  %length.at = getelementptr i64, ptr %words, i64 1
  %length = load i64, ptr %length.at
  %count.at = getelementptr i64, ptr %words, i64 2
  %count = load i64, ptr %count.at
  %row = urem i64 %count, %length
  %start = mul i64 %row, {width}
{stores}
  %next = add i64 %count, 1
  store i64 %next, ptr %count.at
  ret void
}}
"""


class Ring:
    """The last `capacity` rows of int64 values, with one writer and any number of readers in other threads.

    Machine code writes the rows. numpy takes ten microseconds for one row, because vLLM has emptied the caches since
    the last. Rows buffered as Python objects would add to the garbage collector's work.
    """

    __slots__ = ("_capacity", "_rows", "_words", "at", "fields", "put")

    def __init__(self, fields: Sequence[str], capacity: int) -> None:
        self.fields = tuple(fields)
        self._capacity = capacity
        # Row k is at k modulo the length. It is filled once, or the kernel would allocate its pages during steps.
        self._rows: Int64s = np.empty((capacity + SLACK, len(self.fields)), np.int64)
        self._rows.fill(0)
        self._words = np.array([self._rows.ctypes.data, len(self._rows), 0], np.int64)
        self.put = _put(len(self.fields))
        """`put(at, *row)` writes one row of ints. It raises `OverflowError` or `TypeError`, and writes nothing, when a
        value is not an int64."""
        self.at: int = self._words.ctypes.data

    def append(self, *row: int) -> None:
        """Write one row; an integer beyond 64 bits is clamped, and a value that is not an integer is written as 0."""
        try:
            self.put(self.at, *row)
        except (OverflowError, TypeError):
            fitting = (int(value) if isinstance(value, int | np.integer) else 0 for value in row)
            self.put(self.at, *(min(max(value, INT64.min), INT64.max) for value in fitting))

    def since(self, first: int = 0) -> tuple[int, Int64s]:
        """Return the rows from `first` on that are still held.

        The result is (number of the first row returned, rows of shape (k, fields)).
        """
        count = int(self._words[2])
        start = max(first, count - self._capacity, 0)
        rows = self._rows[np.arange(start, count) % len(self._rows)]
        # The writer may have wrapped around during the copy; the row that it writes now is not valid either.
        overwritten = int(self._words[2]) + 1 - len(self._rows)
        lost = min(max(overwritten - start, 0), len(rows))
        return start + lost, rows[lost:]


@cache
def _put(width: int) -> Callable[..., int]:
    stores = "\n".join(
        f"  %index.{i} = add i64 %start, {i}\n  %at.{i} = getelementptr i64, ptr %rows, i64 %index.{i}\n"
        f"  store i64 %value.{i}, ptr %at.{i}"
        for i in range(width)
    )
    values = "".join(f", i64 %value.{i}" for i in range(width))
    code = MachineCode(
        _PUT.format(values=values, width=width, stores=stores) + entry("put", "p" + "i" * width, returns=False)
    )
    return builtin(code, "put")


@dataclass(frozen=True)
class Snapshot:
    """Telemetry since some row of each ring, as columns."""

    steps: dict[str, Int64s]
    requests: dict[str, Int64s]
    arrivals: dict[str, Int64s]
    next: tuple[int, int, int]
    """Row numbers in the three rings at which the next snapshot begins."""
    lost: tuple[int, int, int]
    """Rows in the three rings that were overwritten before they were read."""


class Telemetry:
    """The rings of one engine: steps, requests that left, and requests that came."""

    def __init__(self, capacity: int) -> None:
        self.steps = Ring(STEP_FIELDS, capacity)
        self.requests = Ring(REQUEST_FIELDS, capacity)
        self.arrivals = Ring(ARRIVAL_FIELDS, capacity)

    def snapshot(self, first: tuple[int, int, int] = (0, 0, 0)) -> Snapshot:
        """Return the telemetry since the given rows of steps, requests and arrivals. The method never blocks a step."""
        # Requests are read before arrivals, so that every request that has left is also among the arrivals.
        rings = (self.steps, self.requests, self.arrivals)
        found = [ring.since(row) for ring, row in zip(rings, first, strict=True)]
        columns = [
            dict(zip(ring.fields, rows.T.copy(), strict=True)) for ring, (_, rows) in zip(rings, found, strict=True)
        ]
        ends = [start + len(rows) for start, rows in found]
        lost = [start - row for (start, _), row in zip(found, first, strict=True)]
        return Snapshot(columns[0], columns[1], columns[2], (ends[0], ends[1], ends[2]), (lost[0], lost[1], lost[2]))
