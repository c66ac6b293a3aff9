"""A sliding window of telemetry: what one engine served lately, as a trace to replay and as measurements to calibrate on.

Who has come is known at once, what an answer cost only when it is there. A settled window therefore ends so long before the
present that all but 5% (`OPEN`) of its requests have left: what lies in it is what arrived, not what happened to finish first.
What those few will cost, and what all will that came just now, is guessed from requests with like prompts (`completed`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..errors import AutopoiesisError
from ..protocol.files import FileRefusedError, read_bounded, write_atomically
from ..protocol.telemetry import (
    ARRIVAL_FIELDS,
    MAX_TIME_US,
    REQUEST_FIELDS,
    STEP_FIELDS,
    Piece,
    TelemetryError,
    faulty_requests,
    faulty_steps,
    pack,
    unpack,
)
from ..protocol.text import hidden_character
from ..simulation.fitting import MeasuredRequests
from ..simulation.trace import DEFAULT_PRIORITY, MAX_TOKENS_IN_VIEW, Trace

__all__ = ["KEPT", "OPEN", "SlidingWindow", "Window", "WindowError"]

Ints = NDArray[np.int64]

OPEN = 0.05
"""Greatest share of a settled window's requests that are still in the engine."""
KEPT = 12
"""Of how many windows an engine's records are kept."""
NEIGHBOURS = 5
"""Among how many requests with the nearest prompts it is drawn what an unfinished one will cost."""
MAX_ROWS = 2_097_152
"""Rows of a table that a window keeps: of one an engine takes in an hour at 580 steps a second."""
MAX_FILE_BYTES = 268_435_456
"""Size of a window's file. Ten million steps and requests of real telemetry take a third of it."""
COLUMNS = (
    "span", "engine", *(f"requests.{name}" for name in REQUEST_FIELDS), *(f"steps.{name}" for name in STEP_FIELDS)
)  # fmt: skip
"""Columns of a window's file: beside the tables its start and end, and its engine's name as bytes."""


class WindowError(AutopoiesisError):
    """A window holds too little for what is asked of it, or cannot be read back."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Window:
    """What one engine served of the requests that arrived in [start_us, end_us) of its own clock."""

    engine: str
    start_us: int
    end_us: int
    requests: Mapping[str, Ints]
    """REQUEST_FIELDS of the requests stamped in the window, by stamp; 0 where a request that has not left has no value yet."""
    steps: Mapping[str, Ints]
    """STEP_FIELDS of the steps that began in the window, by time."""

    def __len__(self) -> int:
        return len(self.requests["stamp_us"])

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return (self.end_us - self.start_us) / 1e6

    @property
    def rate(self) -> float:
        """Arrivals a second."""
        return len(self) / self.seconds if self.end_us > self.start_us else 0.0

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Requests with at least one output token: an aborted one without any leaves nothing to replay."""
        return np.asarray((self.requests["num_output_tokens"] > 0) & (self.requests["num_prompt_tokens"] > 0))

    @property
    def unfinished(self) -> NDArray[np.bool_]:
        """Requests that are still in the engine."""
        return np.asarray(self.requests["finished_us"] == 0)

    def completed(self, alike: Sequence["Window"] = ()) -> Self:
        """With an output length for every unfinished request: that of one of the NEIGHBOURS finished requests with the nearest
        prompts (of all with that very prompt length, if they are more), taken from windows of like work if there are any, or
        else from this one, where what has finished first was short.

        As it was when nothing has finished anywhere.
        """
        open_rows = np.flatnonzero(self.unfinished & (self.requests["num_output_tokens"] == 0))
        known = [_finished(window) for window in alike or (self,)]
        prompts, outputs = (np.concatenate(columns) for columns in zip(*known, strict=True))
        if len(open_rows) == 0 or len(prompts) == 0:
            return self
        order = np.argsort(prompts, kind="stable")
        wanted = self.requests["num_prompt_tokens"][open_rows]
        low, high = (np.searchsorted(prompts[order], wanted, side) for side in ("left", "right"))
        near = np.clip((low + high - NEIGHBOURS) // 2, 0, max(len(prompts) - NEIGHBOURS, 0))
        pick = np.random.default_rng(0).integers(
            np.minimum(low, near), np.maximum(high, np.minimum(near + NEIGHBOURS, len(prompts)))
        )
        column = self.requests["num_output_tokens"].copy()
        column[open_rows] = outputs[order][pick]
        return replace(self, requests={**self.requests, "num_output_tokens": column})

    def resumed(self, at_us: int) -> Self:
        """The part from `at_us` on, with what was in the engine then before it: as if that had come just then, in that order, the
        requests that were running first, with what was left of them.

        A replay of it begins with the queue as it was, whatever order had left it behind.
        """
        stamp, admitted, first, finished, outputs = (
            self.requests[name]
            for name in ("stamp_us", "admitted_us", "first_token_us", "finished_us", "num_output_tokens")
        )
        inside = (stamp < at_us) & ((finished > at_us) | (finished == 0))
        running = inside & (admitted > 0) & (admitted <= at_us)
        decoding = running & (first > 0) & (first <= at_us)
        left = np.where(finished > 0, (finished - at_us) / np.maximum(finished - first, 1), 1.0)
        order = np.concatenate([np.flatnonzero(rows) for rows in (running, inside & ~running, stamp >= at_us)])
        changed = {
            "stamp_us": np.where(running, at_us - 2, np.where(inside, at_us - 1, stamp)),
            "num_prompt_tokens": np.where(decoding, 1, self.requests["num_prompt_tokens"]),
            "num_output_tokens": np.where(decoding, np.ceil(outputs * left).astype(np.int64), outputs),
        }
        requests = {name: column[order] for name, column in {**self.requests, **changed}.items()}
        steps = {name: column[self.steps["at_us"] >= at_us] for name, column in self.steps.items()}
        return replace(self, start_us=at_us, requests=requests, steps=steps)

    def trace(self, name: str | None = None) -> Trace:
        """The arrivals as a workload for the simulator; vLLM's priority p becomes clamp(8 - p, 0, 15).

        Raises:
            WindowError: fewer than two requests are usable.
        """
        keep = self.usable
        if int(keep.sum()) < 2:
            raise WindowError(
                f"{int(keep.sum())} requests in {self.seconds:.0f} s are too few for a trace; wait for more"
            )
        column = {key: np.ascontiguousarray(values[keep]) for key, values in self.requests.items()}
        return Trace.from_columns(
            arrival_us=column["stamp_us"],
            num_prompt_tokens=np.clip(column["num_prompt_tokens"], 1, MAX_TOKENS_IN_VIEW),
            num_output_tokens=np.clip(column["num_output_tokens"], 1, MAX_TOKENS_IN_VIEW),
            max_tokens=np.clip(np.maximum(column["max_tokens"], column["num_output_tokens"]), 1, MAX_TOKENS_IN_VIEW),
            priority=np.clip(DEFAULT_PRIORITY - column["priority"], 0, 15),
            name=name or f"{self.engine}@{self.start_us // 1_000_000}s",
            source="telemetry of a running engine",
        )

    def measured(self) -> MeasuredRequests:
        """The measured times, for `simulation.fitting`. Times are those under the policy that ran.

        Raises:
            WindowError: fewer than eight requests finished.
        """
        keep = self.usable & ~self.unfinished & (self.requests["first_token_us"] > 0) & (self.requests["aborted"] == 0)
        if int(keep.sum()) < 8:
            raise WindowError(f"{int(keep.sum())} finished requests are too few to calibrate on; wait for more")
        column = {key: values[keep] for key, values in self.requests.items()}
        return MeasuredRequests(
            queued_s=column["stamp_us"] / 1e6,
            scheduled_s=column["admitted_us"] / 1e6,
            first_token_s=column["first_token_us"] / 1e6,
            last_token_s=column["finished_us"] / 1e6,
            num_prompt_tokens=column["num_prompt_tokens"],
            num_output_tokens=column["num_output_tokens"],
        )

    def ttft_s(self) -> tuple[Ints, NDArray[np.float64]]:
        """(stamps in us, times to first token in seconds) of requests that got one."""
        keep = self.requests["first_token_us"] > 0
        stamps = self.requests["stamp_us"][keep]
        return stamps, np.asarray((self.requests["first_token_us"][keep] - stamps) / 1e6)

    def write(self, path: str | Path) -> None:
        """Keep the window in an `.npz` file (for a restart).

        Raises:
            FileUnwritableError: it cannot be written.
        """
        columns = {f"requests.{name}": self.requests[name] for name in REQUEST_FIELDS}
        columns |= {f"steps.{name}": self.steps[name] for name in STEP_FIELDS}
        span = np.array([self.start_us, self.end_us], np.int64)
        engine = np.frombuffer(self.engine.encode(), np.uint8).astype(np.int64)
        write_atomically(path, pack({"span": span, "engine": engine, **columns}))

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read it back.

        Raises:
            WindowError: it is not there, or is not a window.
        """
        try:
            columns = unpack(read_bounded(path, MAX_FILE_BYTES), COLUMNS, MAX_ROWS)
            start, end = columns["span"].tolist()
            engine = bytes(columns["engine"].tolist()).decode()
        except (FileRefusedError, TelemetryError, ValueError) as error:
            raise WindowError(f"the window {path} cannot be read ({error}); a new one is taken") from None
        requests = {name: columns[f"requests.{name}"] for name in REQUEST_FIELDS}
        steps = {name: columns[f"steps.{name}"] for name in STEP_FIELDS}
        for part in (requests, steps):
            if len({len(column) for column in part.values()}) > 1:
                raise WindowError(f"the window {path} has columns of unequal length; a new one is taken")
        if (
            not 0 < len(engine) <= 128
            or hidden_character(engine, allowed="") is not None
            or not 0 <= start <= end <= MAX_TIME_US
            or bool(np.any(np.diff(requests["stamp_us"]) < 0))
            or bool(faulty_requests(requests).any() or faulty_steps(steps).any())
        ):
            raise WindowError(f"the window {path} holds what no engine reports; a new one is taken")
        return cls(engine=engine, start_us=start, end_us=end, requests=requests, steps=steps)


class SlidingWindow:
    """The last records of one engine. Feed it pieces; take windows out.

    Where a number is missing between two pieces, records are missing or the engine was restarted with a new clock: what came
    before is dropped, because a window with a hole would show a lower rate than there was.
    """

    def __init__(self, engine: str, length_s: float, longest_s: float | None = None) -> None:
        if not length_s > 0:
            raise WindowError(f"a window of {length_s:g} s holds nothing; give a length above 0")
        self.engine = engine
        self.length_us = round(length_s * 1e6)
        self._kept_us = max(KEPT * self.length_us, round(4 * (longest_s or 0.0) * 1e6))
        self.position = -1
        """Number of the last piece taken in."""
        self._forget()

    def _forget(self) -> None:
        self._finished: dict[str, Ints] = _empty(REQUEST_FIELDS)
        self._arrivals: dict[str, Ints] = _empty(ARRIVAL_FIELDS)
        self._steps: dict[str, Ints] = _empty(STEP_FIELDS)
        self._requests: dict[str, Ints] = _empty(REQUEST_FIELDS)
        """Those that have left and those that have not, by stamp."""

    def add(self, pieces: Sequence[Piece]) -> int:
        """Take in pieces, oldest first; return how many rows repeated a request's number and were dropped."""
        for piece in pieces:
            if piece.new_clock or piece.number != self.position + 1:
                self._forget()
            self.position = piece.number
            self._finished = _joined(self._finished, piece.requests)
            self._arrivals = _joined(self._arrivals, piece.arrivals)
            self._steps = _joined(self._steps, piece.steps)
        rows = len(self._finished["number"]) + len(self._arrivals["number"])
        self._finished, self._arrivals = (_first_of_each(columns) for columns in (self._finished, self._arrivals))
        repeated = rows - len(self._finished["number"]) - len(self._arrivals["number"])
        self._steps = _by_time(self._steps)
        self._trim(MAX_ROWS)
        return repeated

    @property
    def rows(self) -> int:
        """Rows it holds, of all tables."""
        return sum(len(part["stamp_us"]) for part in (self._finished, self._arrivals)) + len(self._steps["at_us"])

    def halve(self) -> None:
        """Give up the older half of the records: somebody else needs the memory."""
        self._trim(max(1, max(len(part) for part in self._event_times()) // 2))

    @property
    def count(self) -> int:
        """Requests it holds that have left."""
        return len(self._finished["stamp_us"])

    @property
    def now_us(self) -> int:
        """The newest time in any record; 0 when there is none."""
        return int(max(times.max(initial=0) for times in self._event_times()))

    @property
    def num_waiting(self) -> int:
        """Requests that waited at the newest step; 0 when there was none."""
        waiting = self._steps["num_waiting"]
        return int(waiting[-1]) if len(waiting) else 0

    def window(self, *, since_us: int = 0, length_s: float | None = None) -> Window | None:
        """The window of full length (or of `length_s`) that has settled last, completed, no part of it before `since_us`; None
        until there is one."""
        length_us = self.length_us if length_s is None else round(length_s * 1e6)
        end = self._settled_us(length_us)
        start = end - length_us
        if start < max(since_us, self.first_us):
            return None
        return self.between(start, end).completed()

    def arrived(self, *, since_us: int = 0) -> Window | None:
        """The window of full length that ends with the last request, as far as it is known; None if it would begin before
        `since_us`."""
        start = self.last_us - self.length_us
        return self.between(start, self.last_us) if start >= max(since_us, self.first_us) else None

    @property
    def last_us(self) -> int:
        """The moment after the last request came; 0 when none did."""
        stamps = self._requests["stamp_us"]
        return int(stamps[-1]) + 1 if len(stamps) else 0

    @property
    def first_us(self) -> int:
        """The oldest time in any record; 0 when there is none."""
        oldest = [int(column.min()) for column in (self._requests["stamp_us"], self._steps["at_us"]) if len(column)]
        return min(oldest, default=0)

    @property
    def settled_us(self) -> int:
        """Up to where it is known what requests cost, the slow ones as well; 0 when nothing is."""
        return self._settled_us(self.length_us)

    def between(self, start_us: int, end_us: int) -> Window:
        """What is known of a stretch of the engine's time."""
        at = self._steps["at_us"]
        rows = slice(*np.searchsorted(self._requests["stamp_us"], (start_us, end_us)))
        steps = np.flatnonzero((at >= start_us) & (at < end_us))
        return Window(
            engine=self.engine,
            start_us=start_us,
            end_us=end_us,
            requests={name: column[rows] for name, column in self._requests.items()},
            steps={name: column[steps] for name, column in self._steps.items()},
        )

    def _settled_us(self, length_us: int) -> int:
        """The latest moment, no later than the last request, such that of the requests of the `length_us` before it all but a
        share of OPEN have left."""
        stamps = self._requests["stamp_us"]
        waiting = stamps[self._requests["finished_us"] == 0]
        ends = np.append(waiting, self.last_us)
        unfinished, all_of_them = (
            np.searchsorted(column, ends) - np.searchsorted(column, ends - length_us) for column in (waiting, stamps)
        )
        return int(ends[unfinished <= OPEN * all_of_them].max(initial=0))

    def _event_times(self) -> tuple[Ints, Ints, Ints]:
        return self._steps["at_us"], self._finished["finished_us"], self._arrivals["stamp_us"]

    def _trim(self, most: int) -> None:
        """Keep what is new enough, at most `most` rows of each table, and nothing older than the oldest of a table cut short."""
        oldest = self.now_us - self._kept_us
        for times in self._event_times():
            if len(times) > most:
                oldest = max(oldest, int(np.partition(times, len(times) - most)[len(times) - most]))
        self._steps = _last(_since(self._steps, "at_us", oldest), most)
        self._arrivals = _last(_since(self._arrivals, "stamp_us", oldest), most)
        self._finished = _last(_since(_since(self._finished, "finished_us", oldest), "stamp_us", oldest), most)
        self._requests = _by_stamp(self._finished, self._arrivals)


def _empty(names: Sequence[str]) -> dict[str, Ints]:
    return {name: np.zeros(0, np.int64) for name in names}


def _finished(window: Window) -> tuple[Ints, Ints]:
    """Prompt and output lengths of the requests that ended by themselves."""
    rows = ~window.unfinished & (window.requests["aborted"] == 0) & window.usable
    return window.requests["num_prompt_tokens"][rows], window.requests["num_output_tokens"][rows]


def _by_stamp(finished: Mapping[str, Ints], arrivals: Mapping[str, Ints]) -> dict[str, Ints]:
    """All requests: those that have left as they left, the others as they came."""
    inside = ~np.isin(arrivals["number"], finished["number"])
    rest = np.zeros(int(inside.sum()), np.int64)
    order = np.argsort(np.concatenate([finished["stamp_us"], arrivals["stamp_us"][inside]]), kind="stable")
    return {
        name: np.concatenate([column, arrivals[name][inside] if name in arrivals else rest])[order]
        for name, column in finished.items()
    }


def _since(columns: dict[str, Ints], name: str, oldest: int) -> dict[str, Ints]:
    keep = columns[name] >= oldest
    return columns if keep.all() else {field: column[keep] for field, column in columns.items()}


def _last(columns: dict[str, Ints], most: int) -> dict[str, Ints]:
    return {name: column[-most:] for name, column in columns.items()}


def _first_of_each(columns: dict[str, Ints]) -> dict[str, Ints]:
    """One row a request's number: the first."""
    first = np.unique(columns["number"], return_index=True)[1]
    if len(first) == len(columns["number"]):
        return columns
    first.sort()
    return {name: column[first] for name, column in columns.items()}


def _by_time(steps: dict[str, Ints]) -> dict[str, Ints]:
    at = steps["at_us"]
    if not bool(np.any(np.diff(at) < 0)):
        return steps
    order = np.argsort(at, kind="stable")
    return {name: column[order] for name, column in steps.items()}


def _joined(have: Mapping[str, Ints], new: Mapping[str, Ints]) -> dict[str, Ints]:
    if not new or any(name not in new for name in have):
        return dict(have)
    return {name: np.concatenate([column, new[name]]) for name, column in have.items()}
