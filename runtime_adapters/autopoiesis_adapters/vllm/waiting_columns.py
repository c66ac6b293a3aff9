"""The waiting requests as int64 columns, updated as requests come and go, so that a step scores without a loop."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.simulation.trace import DEFAULT_PRIORITY
from autopoiesis_lib.view import View

from .assumptions import Assumptions
from .moves import moves_for, words_of

__all__ = ["Located", "RequestClock", "UnknownFieldError", "WaitingColumns", "priority_of"]

Int64s = NDArray[np.int64]

PLAIN = ("num_prompt_tokens", "num_output_tokens", "max_tokens", "num_preemptions")
"""Fields of a request view that a vLLM request has under the same name."""
STAGED = (*PLAIN, "priority", "num_cached_tokens", "waited_us")
"""Fields of a request view that this engine can supply, in the order in which they are staged."""

_plain = attrgetter(*PLAIN)


def priority_of(request: Any) -> int:
    """Return the contract's priority of a request.

    vLLM serves low numbers first and defaults to 0; contracts serve high numbers first and their default is 8.
    """
    return min(max(DEFAULT_PRIORITY - int(request.priority), 0), 15)


class UnknownFieldError(AutopoiesisError):
    """Error for a contract whose request view has a field this engine cannot supply."""


class RequestClock:
    """The times of events of one request, in microseconds of the engine's monotonic clock; 0 means not yet.

    The clock is an attribute of the request, so it survives preemption and is removed with the request.
    """

    __slots__ = ("admission", "admitted_us", "cached_tokens", "finished_us", "first_token_us", "seq", "stamp_us")

    def __init__(self, stamp_us: int, seq: int) -> None:
        self.stamp_us = stamp_us
        self.seq = seq
        self.admission = 0  # the number of this request's latest admission, counted over the engine
        self.admitted_us = 0
        self.first_token_us = 0
        self.finished_us = 0
        self.cached_tokens = 0


class Located(NamedTuple):
    """The arrays of the columns, for machine code that picks; a new object replaces it when the columns have grown."""

    fields: Int64s
    seqs: Int64s
    stamps: Int64s


class WaitingColumns:
    """Columns of the waiting requests; slot `i < n` is one request.

    Removing a request moves the last slot into its place.

    `fields` has shape (number of view fields, capacity), rows in the view's declared order; `stamps` (us) and `seqs`
    have shape (capacity,). Slots have no order: ties are broken by `seqs`, assigned once when a request is first added.
    """

    # The attributes that a step reads are adjacent (see `EngineSide`).
    __slots__ = (
        "__dict__",
        "_bad",
        "_move",
        "_place",
        "_slots",
        "_words_at",
        "capacity",
        "located",
        "n",
        "out_of_domain",
        "reads_cached_tokens",
        "requests",
    )

    def __init__(
        self,
        view: type[View],
        cached_tokens: Callable[[Any], int],
        stamp: Callable[[Any], RequestClock],
        assumptions: Assumptions,
        capacity: int = 256,
    ) -> None:
        specs = view.fields()
        unknown = [spec.name for spec in specs if spec.name not in STAGED]
        if unknown:
            raise UnknownFieldError(
                f"{view.__name__}: vLLM has no field {', '.join(unknown)}; there are {', '.join(STAGED)}"
            )
        self.n = 0
        self.out_of_domain = 0
        """Number of waiting requests outside the contract's domains or assumptions; the proofs do not cover them."""
        self.reads_cached_tokens = False
        """True when the active policy or a shadow, canary or base reads cached tokens; the prefix cache is queried only
        then."""
        self._specs = specs
        self._cached_tokens = cached_tokens
        self._stamp = stamp
        self._assumptions = assumptions  # its machine code checks each row
        self._bounds = {spec.name: (spec.domain.lo, spec.domain.hi, spec.domain.saturates) for spec in specs}
        self._waited_row = next((row for row, spec in enumerate(specs) if spec.name == "waited_us"), None)
        self.max_wait_us = self._bounds["waited_us"][1] if self._waited_row is not None else 2**62
        """The longest wait that the view can hold; a request beyond it is overdue and is served before any scored
        request."""
        self._rotation = 0
        moves = moves_for(len(STAGED), (*(STAGED.index(spec.name) for spec in specs),))
        self._waits, self._place, self._move = moves.waits, moves.place, moves.move
        self.fields: Int64s = np.zeros((len(specs), capacity), np.int64)
        self.stamps: Int64s = np.zeros(capacity, np.int64)
        self.seqs: Int64s = np.zeros(capacity, np.int64)
        self._find_addresses()
        self.requests: list[Any] = []
        self._bad: set[str] = set()
        self._slots: dict[str, int] = {}

    def slot(self, request_id: str) -> int:
        """Return the slot of a request; `KeyError` when it does not wait here."""
        return self._slots[request_id]

    def __contains__(self, request: Any) -> bool:
        return request.request_id in self._slots

    def add(self, request: Any) -> None:
        """Append one request, reading its fields once.

        Fields do not change while a request waits (see `reread` for those that do).
        """
        n = self.n
        if n == self.capacity:
            self._grow()
        self.requests.append(request)
        self._slots[request.request_id] = n
        self.n = n + 1
        self._write(n, request)

    def remove(self, request: Any) -> None:
        """Take one request out; `KeyError` when it does not wait here."""
        request_id = request.request_id
        slot = self._slots.pop(request_id)
        requests = self.requests
        moved = requests.pop()
        self.n = last = self.n - 1
        if slot != last:
            self._move(self._words_at, slot, last)
            requests[slot] = moved
            self._slots[moved.request_id] = slot
        if self.out_of_domain:
            self._bad.discard(request_id)
            self.out_of_domain = len(self._bad)

    def reread(self, request: Any) -> None:
        """Read a waiting request's fields again.

        Under async scheduling, late tokens of a preempted request may still arrive.
        """
        self._write(self._slots[request.request_id], request)

    def reread_next(self) -> None:
        """Read one waiting request again, in rotation, so that cached-token hints do not age without bound.

        One request per pass keeps the cost of a step constant. The contract calls the field a hint for this reason.
        """
        if self.n:
            self._rotation = slot = (self._rotation + 1) % self.n
            waited = int(self.fields[self._waited_row, slot]) if self._waited_row is not None else 0
            self._write(slot, self.requests[slot])
            if self._waited_row is not None:
                self.fields[self._waited_row, slot] = waited

    def set_waits(self, now_us: int) -> int:
        """Bring the `waited_us` row to `now_us` and return the earliest stamp (us); at least one request must wait."""
        least: int = self._waits(self._stamps_at, self._waits_row_at, self.n, now_us)
        return least

    def oldest_slot(self) -> int:
        """Return the slot of the request that came first, ties to the earlier sequence number."""
        stamps = self.stamps[: self.n]
        oldest = np.flatnonzero(stamps == stamps.min())
        return int(oldest[np.argmin(self.seqs[oldest])])

    def row(self, slot: int) -> dict[str, int]:
        """Return one request's view as a dictionary, for dumps and explanations."""
        return {spec.name: int(value) for spec, value in zip(self._specs, self.fields[:, slot], strict=True)}

    def _write(self, slot: int, request: Any) -> None:
        clock = getattr(request, "autopoiesis_clock", None) or self._stamp(request)
        cached = self._ask_prefix_cache(request, clock) if self.reads_cached_tokens else 0
        try:
            given = *_plain(request), priority_of(request) if request.priority else DEFAULT_PRIORITY
            good = self._place(self._words_at, slot, *given, cached, 0, clock.stamp_us, clock.seq)
        except (OverflowError, TypeError, ValueError):  # a value that fits no int64
            good = 0
        if not good:
            good = self._write_clamped(slot, request, clock, cached)
        if not good or self._bad:
            (self._bad.discard if good else self._bad.add)(request.request_id)
            self.out_of_domain = len(self._bad)

    def _write_clamped(self, slot: int, request: Any, clock: RequestClock, cached: int) -> int:
        """Write a row with saturating fields clamped.

        The result is 1 when the request is inside domains and assumptions, else 0.
        """
        values = dict(zip(STAGED, (*_plain(request), priority_of(request), cached, 0), strict=True))
        inside = True
        for name, (lo, hi, saturates) in self._bounds.items():
            if not lo <= values[name] <= hi:
                inside = inside and saturates
                values[name] = min(max(int(values[name]), lo), hi)
        for name in STAGED:
            if name not in self._bounds:
                values[name] = 0
        placed = self._place(self._words_at, slot, *values.values(), clock.stamp_us, clock.seq)
        return placed if inside else 0

    def _ask_prefix_cache(self, request: Any, clock: RequestClock) -> int:
        cached = self._cached_tokens(request)
        clock.cached_tokens = cached
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
        # Machine code knows only the address of this array, so it is kept here: a view without waits has no such row.
        self._waits_row = self.fields[self._waited_row] if self._waited_row is not None else np.zeros_like(self.stamps)
        self.located = Located(self.fields, self.seqs, self.stamps)
        self.fields_at, self.capacity = self.fields.ctypes.data, self.stamps.shape[0]
        self._stamps_at, self._waits_row_at = self.stamps.ctypes.data, self._waits_row.ctypes.data
        self._words = words_of(
            columns=self.fields_at,
            stride=self.capacity,
            stamps=self._stamps_at,
            seqs=self.seqs.ctypes.data,
            check=self._assumptions.request_check,
        )
        self._words_at: int = self._words.ctypes.data
