"""A workload trace: the arrival time and the token counts of each request.

It has columns instead of objects, so that ten million rows fit in memory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from autopoiesis_lib.errors import AutopoiesisError

__all__ = [
    "DEFAULT_MAX_TOKENS",
    "DEFAULT_PRIORITY",
    "MAX_ARRIVAL_US",
    "MAX_TOKENS_IN_VIEW",
    "BadRow",
    "MalformedTrace",
    "Prefixes",
    "Trace",
    "TraceError",
    "TraceFormat",
]

Ints = NDArray[np.int64]
TraceFormat = Literal["azure", "mooncake", "vllm-run", "openai", "autopoiesis"]

DEFAULT_MAX_TOKENS: Final = 2_048
"""`max_tokens` of every request of a trace that does not record it.

A constant reveals nothing about the true output length to a policy. A trace with longer outputs uses the smallest power
of two that is at least its longest output, the same for every request.
"""

MAX_TOKENS_IN_VIEW: Final = 1_048_576
MAX_ARRIVAL_US: Final = 100 * 366 * 86_400_000_000
"""A hundred years, which leave room in the simulator's 63-bit nanosecond clock to serve the arrivals."""
DEFAULT_PRIORITY: Final = 8
"""The contracts' default priority, where higher is served first. vLLM serves lower first, and its default is 0."""
SHIPPED: Final = {
    "azure-conv": "azure_conv_2023.csv.gz",
    "azure-code": "azure_code_2023.csv.gz",
    "mooncake": "mooncake_synthetic.jsonl.gz",
    "vllm-rtx4090": "vllm_rtx4090_llama31_8b.jsonl.gz",
    "vllm-rtxpro6000": "vllm_rtxpro6000_llama31_8b.jsonl.gz",
}


class TraceError(AutopoiesisError):
    """A trace cannot be used as requested."""


class MalformedTrace(TraceError):
    """Rows of a trace file could not be read."""

    def __init__(self, path: str, count: int, examples: Sequence["BadRow"]) -> None:
        shown = "; ".join(f"line {bad.line}: `{bad.field}` {bad.why}" for bad in examples)
        more = f" and {count - len(examples)} more" if count > len(examples) else ""
        super().__init__(f"{path}: {count} malformed rows ({shown}{more}); mend them, or read with on_malformed='skip'")
        self.path = path
        self.count = count
        self.examples = tuple(examples)
        self.lines = tuple(bad.line for bad in examples)


class BadRow(NamedTuple):
    """One malformed row of a trace file."""

    line: int
    field: str
    """The first wrong field; `row` if the row as a whole is wrong."""
    why: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Prefixes:
    """The blocks of prompt tokens that each request shares with others, in compressed sparse rows.

    `ids[ptr[i]:ptr[i + 1]]` are the hash-block ids of request i from the prompt's start. Equal ids have equal tokens
    and equal predecessors. A last block that the prompt does not fill is never cached.
    """

    ptr: Ints
    """Offsets into `ids`, of shape (n + 1,)."""
    ids: Ints
    """Block ids, which may be any non-negative integers."""
    block_tokens: int
    """Tokens per hash block."""

    def select(self, rows: Ints) -> Self:
        """Return the prefixes of the given rows, in that order."""
        lengths = (self.ptr[1:] - self.ptr[:-1])[rows]
        ptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        starts = np.repeat(self.ptr[rows] - ptr[:-1], lengths)
        return replace(self, ptr=ptr, ids=self.ids[starts + np.arange(ptr[-1], dtype=np.int64)])


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """Requests in order of arrival. All columns are int64 arrays of one length, in tokens and microseconds.

    `num_output_tokens` is the true output length. The simulator's kernel uses it, and no policy view ever contains it.
    """

    arrival_us: Ints
    """Microseconds since the trace began, not decreasing."""
    num_prompt_tokens: Ints
    num_output_tokens: Ints
    max_tokens: Ints
    priority: Ints
    """Priority from 0 to 15, where higher is served first; 8 if the source has none."""
    prefixes: Prefixes | None = None
    name: str = "trace"
    source: str = ""
    """Origin and licence of the trace, for reports."""
    skipped_rows: int = field(default=0)
    """Number of malformed rows that were skipped on request."""

    def __post_init__(self) -> None:
        n = len(self.arrival_us)
        for column in ("arrival_us", "num_prompt_tokens", "num_output_tokens", "max_tokens", "priority"):
            values = getattr(self, column)
            if values.dtype != np.int64 or values.shape != (n,):
                raise TraceError(f"trace {self.name!r}: {column} must be int64 of shape ({n},), not {values.dtype}")
        if n == 0:
            return
        if self.arrival_us[0] < 0 or bool(np.any(self.arrival_us[1:] < self.arrival_us[:-1])):
            raise TraceError(f"trace {self.name!r}: arrivals must not decrease; build it with Trace.from_columns")
        if self.arrival_us[-1] > MAX_ARRIVAL_US:
            raise TraceError(
                f"trace {self.name!r}: the last arrival is {self.arrival_us[-1]} us after the first; at most "
                f"{MAX_ARRIVAL_US} us can be simulated"
            )
        limits = (
            ("num_prompt_tokens", 1, MAX_TOKENS_IN_VIEW),
            ("num_output_tokens", 1, MAX_TOKENS_IN_VIEW),
            ("max_tokens", 1, MAX_TOKENS_IN_VIEW),
            ("priority", 0, 15),
        )
        for column, low, high in limits:
            values = getattr(self, column)
            wrong = np.flatnonzero((values < low) | (values > high))
            if len(wrong):
                raise TraceError(
                    f"trace {self.name!r}: {column} of request {wrong[0]} is {values[wrong[0]]}, outside "
                    f"[{low}, {high}] ({len(wrong)} such requests)"
                )

    @classmethod
    def from_columns(
        cls,
        *,
        arrival_us: Ints,
        num_prompt_tokens: Ints,
        num_output_tokens: Ints,
        max_tokens: Ints | None = None,
        priority: Ints | None = None,
        prefixes: Prefixes | None = None,
        name: str = "trace",
        source: str = "",
        skipped_rows: int = 0,
    ) -> Self:
        """Return a trace sorted by arrival (stable), with its start at 0 and constants in place of missing columns.

        Raises:
            TraceError: a value or the span of the arrivals is out of range.
        """
        order = np.argsort(arrival_us, kind="stable")
        arrival = np.ascontiguousarray(arrival_us[order], dtype=np.int64)
        if len(arrival):
            if int(arrival[-1]) - int(arrival[0]) > MAX_ARRIVAL_US:  # before the difference overflows
                raise TraceError(
                    f"trace {name!r}: arrivals from {arrival[0]} to {arrival[-1]} us are no plausible span"
                )
            arrival = arrival - arrival[0]
        output = np.ascontiguousarray(num_output_tokens[order], dtype=np.int64)
        if max_tokens is None:
            longest = int(output.max()) if len(output) else 1
            constant = max(DEFAULT_MAX_TOKENS, 1 << (longest - 1).bit_length())
            budget = np.full(len(arrival), constant, dtype=np.int64)
        else:
            budget = np.ascontiguousarray(max_tokens[order], dtype=np.int64)
        level = (
            np.full(len(arrival), DEFAULT_PRIORITY, dtype=np.int64)
            if priority is None
            else np.ascontiguousarray(priority[order], dtype=np.int64)
        )
        return cls(
            arrival_us=arrival,
            num_prompt_tokens=np.ascontiguousarray(num_prompt_tokens[order], dtype=np.int64),
            num_output_tokens=output,
            max_tokens=budget,
            priority=level,
            prefixes=None if prefixes is None else prefixes.select(order.astype(np.int64)),
            name=name,
            source=source,
            skipped_rows=skipped_rows,
        )

    @classmethod
    def read(
        cls,
        path: str | Path,
        *,
        format: TraceFormat | None = None,  # noqa: A002
        on_malformed: Literal["stop", "skip"] = "stop",
        name: str | None = None,
    ) -> "Trace":
        """Read a trace file, plain or gzipped (`.gz`).

        Sizes are bounded: 4 GiB of text, 50 million lines of at most 4 MiB, 100 million prefix ids. Dates lie in the
        years 1970 to 2199 and are UTC unless they name a zone. All arrivals lie within ten years.

        Args:
            path: the file; a link is followed.
            format: the format; it is recognised from the first rows if None.
            on_malformed: "stop" to raise an error, or "skip" to leave out malformed rows and count them.
            name: the name of the trace; the file's name by default.

        Raises:
            MalformedTrace: rows are malformed. The message names the first of them with line, field and reason.
            TraceError: the file as a whole is missing, not regular, damaged, too large, empty or of no known format.
        """
        from autopoiesis_lib.simulation.formats import read_trace

        return read_trace(Path(path), format=format, on_malformed=on_malformed, name=name)

    @classmethod
    def shipped(cls, name: str) -> "Trace":
        """Return a trace that comes with the library. SHIPPED lists them; data/LICENSES.md has the licences.

        Raises:
            TraceError: there is no such trace.
        """
        if name not in SHIPPED:
            raise TraceError(f"no shipped trace {name!r}; there are {', '.join(SHIPPED)}")
        with as_file(files("autopoiesis_lib") / "data" / SHIPPED[name]) as path:
            return cls.read(path, name=name)

    def write(self, path: str | Path, *, format: TraceFormat = "autopoiesis") -> None:  # noqa: A002
        """Write the trace, gzipped if the name ends in `.gz`.

        The format `autopoiesis` loses only the name, the source and the count of skipped rows.
        """
        from autopoiesis_lib.simulation.formats import write_trace

        write_trace(self, Path(path), format=format)

    def __len__(self) -> int:
        return len(self.arrival_us)

    @property
    def duration_s(self) -> float:
        """Seconds from the first arrival to the last."""
        return float(self.arrival_us[-1]) / 1e6 if len(self) else 0.0

    @property
    def rate(self) -> float:
        """Mean arrivals per second."""
        return (len(self) - 1) / self.duration_s if self.duration_s > 0 else 0.0

    def scaled(self, rate_factor: float) -> "Trace":
        """Return the same requests arriving `rate_factor` times as fast."""
        if not 0 < rate_factor < math.inf:
            raise TraceError(f"rate factor must be positive and finite, not {rate_factor}")
        if len(self) and float(self.arrival_us[-1]) > MAX_ARRIVAL_US * rate_factor:
            raise TraceError(
                f"trace {self.name!r} spans {self.duration_s:g} s; {rate_factor:g} times the rate is too slow to simulate"
            )
        arrival = np.rint(self.arrival_us / rate_factor).astype(np.int64)
        return replace(self, arrival_us=arrival, name=f"{self.name}x{rate_factor:g}")

    def select(self, rows: Ints) -> "Trace":
        """Return the given rows (increasing), with the clock starting at the first of them."""
        arrival = self.arrival_us[rows]
        return replace(
            self,
            arrival_us=arrival - arrival[0] if len(arrival) else arrival,
            num_prompt_tokens=self.num_prompt_tokens[rows],
            num_output_tokens=self.num_output_tokens[rows],
            max_tokens=self.max_tokens[rows],
            priority=self.priority[rows],
            prefixes=None if self.prefixes is None else self.prefixes.select(rows),
        )

    def split(self, *fractions: float) -> tuple["Trace", ...]:
        """Return consecutive parts with the given fractions of the requests, each with its clock starting at 0."""
        if not fractions or any(f <= 0 for f in fractions) or sum(fractions) > 1 + 1e-9:
            raise TraceError(f"fractions must be positive and sum to at most 1, not {fractions}")
        edges = np.rint(np.concatenate([[0.0], np.cumsum(fractions)]) * len(self)).astype(np.int64)
        return tuple(
            replace(self.select(np.arange(a, b, dtype=np.int64)), name=f"{self.name}[{a}:{b}]")
            for a, b in pairwise(edges)
        )

    def windows(self, count: int) -> tuple["Trace", ...]:
        """Return `count` consecutive windows with numbers of requests as equal as possible."""
        if not 0 < count <= len(self):
            raise TraceError(f"cannot cut {len(self)} requests into {count} windows")
        return self.split(*([1.0 / count] * count))

    def window(self, start_s: float, end_s: float) -> "Trace":
        """Return the requests arriving in [start, end) seconds, with the clock starting at the first of them."""
        rows = np.flatnonzero((self.arrival_us >= start_s * 1e6) & (self.arrival_us < end_s * 1e6)).astype(np.int64)
        return replace(self.select(rows), name=f"{self.name}[{start_s:g}s:{end_s:g}s]")

    def spliced(self, *others: "Trace", gap_us: int = 0) -> "Trace":
        """Return this trace followed by the others.

        Prefixes of different traces never match.
        """
        parts = (self, *others)
        offsets, clock = [], 0
        for part in parts:
            offsets.append(clock)
            clock += (int(part.arrival_us[-1]) if len(part) else 0) + gap_us
        return replace(
            self,
            arrival_us=np.concatenate([p.arrival_us + o for p, o in zip(parts, offsets, strict=True)]),
            num_prompt_tokens=np.concatenate([p.num_prompt_tokens for p in parts]),
            num_output_tokens=np.concatenate([p.num_output_tokens for p in parts]),
            max_tokens=np.concatenate([p.max_tokens for p in parts]),
            priority=np.concatenate([p.priority for p in parts]),
            prefixes=_spliced_prefixes(parts),
            name="+".join(p.name for p in parts),
            source="; ".join(dict.fromkeys(p.source for p in parts if p.source)),
        )


def _spliced_prefixes(parts: Sequence[Trace]) -> Prefixes | None:
    if all(p.prefixes is None for p in parts):
        return None
    sizes = {p.prefixes.block_tokens for p in parts if p.prefixes is not None}
    if len(sizes) != 1:
        raise TraceError(f"cannot splice traces whose hash blocks hold {sorted(sizes)} tokens")
    ptrs, ids, first_id, entries = [np.zeros(1, dtype=np.int64)], [], 0, 0
    for part in parts:
        if part.prefixes is None:
            ptrs.append(np.full(len(part), entries, dtype=np.int64))
            continue
        # Numbered anew, because ids of 63 bits leave no room to shift them.
        distinct, dense = np.unique(part.prefixes.ids, return_inverse=True)
        ptrs.append(part.prefixes.ptr[1:] + entries)
        ids.append(dense.astype(np.int64) + first_id)
        entries += len(dense)
        first_id += len(distinct)
    return Prefixes(ptr=np.concatenate(ptrs), ids=np.concatenate(ids), block_tokens=sizes.pop())
