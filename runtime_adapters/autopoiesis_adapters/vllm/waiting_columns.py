"""The waiting requests as int64 columns, kept up to date as requests come and go, so that a step scores without a
loop."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.view import View

from .waits import Waits

__all__ = ["RequestClock", "UnknownFieldError", "WaitingColumns"]

Int64s = NDArray[np.int64]

READERS: dict[str, Callable[[Any], int]] = {
    "num_prompt_tokens": lambda request: int(request.num_prompt_tokens),
    "num_output_tokens": lambda request: int(request.num_output_tokens),
    "max_tokens": lambda request: int(request.max_tokens),
    # vLLM serves low numbers first and defaults to 0; contracts serve high numbers first and call the default 8.
    "priority": lambda request: min(max(8 - int(request.priority), 0), 15),
    "num_preemptions": lambda request: int(request.num_preemptions),
}
"""How each field of a request view is read from a vLLM request. `waited_us` and `num_cached_tokens` are not here: the
first follows the clock, the second asks the prefix cache."""


class UnknownFieldError(AutopoiesisError):
    """The contract's request view has a field this engine cannot supply."""


class RequestClock:
    """When things happened to one request, in microseconds of the engine's monotonic clock; 0 means not yet.

    It lives on the request itself, so it survives preemption and goes with the request.
    """

    __slots__ = ("admitted_us", "cached_tokens", "finished_us", "first_token_us", "seq", "stamp_us")

    def __init__(self, stamp_us: int, seq: int) -> None:
        self.stamp_us = stamp_us
        self.seq = seq
        self.admitted_us = 0
        self.first_token_us = 0
        self.finished_us = 0
        self.cached_tokens = 0


class WaitingColumns:
    """Columns of the waiting requests; slot `i < n` is one request. Leaving moves the last slot into the hole.

    `fields` has shape (number of view fields, capacity), rows in the view's declared order; `stamps` (us) and `seqs`
    have shape (capacity,). Slots carry no order: ties are broken by `seqs`, given once when a request is first added.
    """

    def __init__(
        self,
        view: type[View],
        cached_tokens: Callable[[Any], int],
        stamp: Callable[[Any], RequestClock],
        holds: Callable[[int, int], bool] = lambda _columns, _stride: True,
        capacity: int = 256,
    ) -> None:
        specs = view.fields()
        unknown = [
            spec.name
            for spec in specs
            if spec.name not in READERS and spec.name not in ("waited_us", "num_cached_tokens")
        ]
        if unknown:
            raise UnknownFieldError(
                f"{view.__name__}: vLLM has no field {', '.join(unknown)}; there are waited_us, num_cached_tokens, "
                + ", ".join(READERS)
            )
        self.n = 0
        self.out_of_domain = 0
        """How many waiting requests lie outside the contract's domains or assumptions: nothing is proved about
        those."""
        self.reads_cached_tokens = False
        """Whether the prefix cache is asked at all: only a policy that reads the answer pays for it."""
        self._specs = specs
        self._cached_tokens = cached_tokens
        self._stamp = stamp
        self._holds = holds
        self._reads = tuple((row, self._reader(spec.name)) for row, spec in enumerate(specs))
        self._bounds = tuple((spec.domain.lo, spec.domain.hi, spec.domain.saturates) for spec in specs)
        self._waited_row = next((row for row, spec in enumerate(specs) if spec.name == "waited_us"), None)
        self._rotation = 0
        self._waits = Waits()
        self.fields: Int64s = np.zeros((len(specs), capacity), np.int64)
        self.stamps: Int64s = np.zeros(capacity, np.int64)
        self.seqs: Int64s = np.zeros(capacity, np.int64)
        self._find_addresses()
        self.requests: list[Any] = []
        self._bad: list[bool] = []
        self._slots: dict[str, int] = {}

    @property
    def max_wait_us(self) -> int:
        """The longest wait the view can hold; beyond it a request is overdue and served before anything scored."""
        return self._bounds[self._waited_row][1] if self._waited_row is not None else 2**62

    def slot(self, request_id: str) -> int:
        """Where a request stands; `KeyError` when it does not wait here."""
        return self._slots[request_id]

    def __contains__(self, request: Any) -> bool:
        return request.request_id in self._slots

    def add(self, request: Any) -> None:
        """Append one request, reading its fields once: they stand still while it waits (see `reread` for those that do
        not)."""
        n = self.n
        if n == self.capacity:
            self._grow()
        clock = self._stamp(request)
        self.stamps[n] = clock.stamp_us
        self.seqs[n] = clock.seq
        self.requests.append(request)
        self._bad.append(False)
        self._slots[request.request_id] = n
        self.n = n + 1
        self._write(n, request)

    def remove(self, request: Any) -> None:
        """Take one request out; `KeyError` when it does not wait here."""
        slot = self._slots.pop(request.request_id)
        last = self.n - 1
        self.out_of_domain -= self._bad[slot]
        if slot != last:
            moved = self.requests[last]
            cells = self._cells
            for base in self._bases:
                cells[base + slot] = cells[base + last]
            self.stamps[slot] = self.stamps[last]
            self.seqs[slot] = self.seqs[last]
            self.requests[slot] = moved
            self._bad[slot] = self._bad[last]
            self._slots[moved.request_id] = slot
        self.requests.pop()
        self._bad.pop()
        self.n = last

    def reread(self, request: Any) -> None:
        """Read a waiting request's fields again: late tokens of a preempted request still arrive under async
        scheduling."""
        self._write(self._slots[request.request_id], request)

    def reread_next(self) -> None:
        """Read one waiting request again, in rotation, so that cached-token hints do not age without bound.

        One a pass keeps the cost of a step flat; the contract calls the field a hint for this reason.
        """
        if self.n:
            self._rotation = slot = (self._rotation + 1) % self.n
            waited = self.fields[:, slot].copy()
            self._write(slot, self.requests[slot])
            if self._waited_row is not None:
                self.fields[self._waited_row, slot] = waited[self._waited_row]

    def set_waits(self, now_us: int) -> int:
        """Bring the `waited_us` row to `now_us` and return the earliest stamp (us); at least one request must wait."""
        return self._waits(self._stamps_at, self._waited_at, self.n, now_us)

    def oldest_slot(self) -> int:
        """The slot that came first, ties to the earlier sequence number."""
        stamps = self.stamps[: self.n]
        oldest = np.flatnonzero(stamps == stamps.min())
        return int(oldest[np.argmin(self.seqs[oldest])])

    def row(self, slot: int) -> dict[str, int]:
        """One request's view as a dictionary, for dumps and explanations."""
        return {spec.name: int(value) for spec, value in zip(self._specs, self.fields[:, slot], strict=True)}

    def _write(self, slot: int, request: Any) -> None:
        cells, base = self._cells, self._bases
        try:
            for row, read in self._reads:
                cells[base[row] + slot] = read(request)
            good = self._holds(self.fields_at + 8 * slot, self.capacity)
        except (ValueError, TypeError):  # what a memoryview says of a value that fits no int64
            good = False
        if not good:
            good = self._write_clamped(slot, request)
        if good == self._bad[slot]:
            self.out_of_domain += 1 if not good else -1
            self._bad[slot] = not good

    def _write_clamped(self, slot: int, request: Any) -> bool:
        """Clamp what the contract lets saturate; whether the request is then inside domains and assumptions."""
        for row, read in self._reads:
            value = read(request)
            lo, hi, saturates = self._bounds[row]
            if not lo <= value <= hi:
                if not saturates:
                    self._cells[self._bases[row] + slot] = 0
                    return False
                value = min(max(value, lo), hi)
            self._cells[self._bases[row] + slot] = value
        return self._holds(self.fields_at + 8 * slot, self.capacity)

    def _reader(self, name: str) -> Callable[[Any], int]:
        if name == "waited_us":
            return _zero
        return self._ask_prefix_cache if name == "num_cached_tokens" else READERS[name]

    def _ask_prefix_cache(self, request: Any) -> int:
        if not self.reads_cached_tokens:
            return 0
        cached = self._cached_tokens(request)
        self._stamp(request).cached_tokens = cached
        return cached

    def _grow(self) -> None:
        capacity = 2 * self.capacity
        fields = np.zeros((self.fields.shape[0], capacity), np.int64)
        fields[:, : self.n] = self.fields[:, : self.n]
        self.fields = fields
        self.stamps = np.resize(self.stamps, capacity)
        self.seqs = np.resize(self.seqs, capacity)
        self._find_addresses()

    def _find_addresses(self) -> None:
        row = self.fields[self._waited_row] if self._waited_row is not None else np.zeros_like(self.stamps)
        self._spare = row  # a view without waits still needs somewhere to write them
        self._stamps_at, self._waited_at = self.stamps.ctypes.data, row.ctypes.data
        self.fields_at, self.capacity = self.fields.ctypes.data, self.stamps.shape[0]
        # Single cells through a memoryview cost a tenth of what they cost through numpy.
        self._cells = self.fields.data.cast("B").cast("q")
        self._bases = tuple(row * self.capacity for row in range(self.fields.shape[0]))


def _zero(_request: Any) -> int:
    return 0
