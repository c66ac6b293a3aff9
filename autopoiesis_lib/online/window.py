"""A sliding window of telemetry: one engine's recent load, as a trace to replay and measurements to calibrate on.

Arrivals are known immediately; output lengths only once a request finishes. A settled window therefore ends so long
before the present that all but 5% (`OPEN`) of its requests have finished. It holds the arrivals of its time, not the
requests that happened to finish first. The output lengths of the rest, and of the newest arrivals, are estimated from
requests with similar prompts (`completed`).
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
"""Number of windows for which an engine's records are kept."""
NEIGHBOURS = 5
"""Number of requests with the nearest prompts from which the output length of an unfinished request is drawn."""
MAX_ROWS = 2_097_152
"""Greatest number of rows of a table that a window keeps: an hour at 580 steps per second."""
MAX_FILE_BYTES = 268_435_456
"""Greatest size of a window's file. Ten million steps and requests of real telemetry take a third of it."""
COLUMNS = (
    "span", "engine", *(f"requests.{name}" for name in REQUEST_FIELDS), *(f"steps.{name}" for name in STEP_FIELDS)
)  # fmt: skip
"""Columns of a window's file: the tables, the window's start and end, and the engine's name as bytes."""


class WindowError(AutopoiesisError):
    """A window that holds too little for the request, or cannot be read back."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Window:
    """Telemetry of one engine for the requests that arrived in [start_us, end_us) of its own clock."""

    engine: str
    start_us: int
    end_us: int
    requests: Mapping[str, Ints]
    """REQUEST_FIELDS of the requests stamped in the window, by stamp.

    An unfinished request has 0 where it has no value yet.
    """
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
        """Arrivals per second."""
        return len(self) / self.seconds if self.end_us > self.start_us else 0.0

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Mask of requests with at least one output token: an aborted one without any leaves nothing to replay."""
        return np.asarray((self.requests["num_output_tokens"] > 0) & (self.requests["num_prompt_tokens"] > 0))

    @property
    def unfinished(self) -> NDArray[np.bool_]:
        """Mask of requests that are still in the engine."""
        return np.asarray(self.requests["finished_us"] == 0)

    def completed(self, alike: Sequence["Window"] = ()) -> Self:
        """Return the window with an estimated output length for every unfinished request.

        The length is that of one of the NEIGHBOURS finished requests with the nearest prompts (or of all with the same
        prompt length, if they are more). They are taken from windows of a similar workload if there are any. Otherwise
        they are taken from this one, where the requests that finished first were short. Without any finished request,
        the window is returned unchanged.
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
        """Return the part from `at_us` on, with the requests that were then in the engine.

        These requests are placed just before `at_us`: the running ones first, with their remaining lengths. A replay of
        the result begins with the queue as it was, whatever order had produced it.
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
        """Return the arrivals as a workload for the simulator; vLLM's priority p becomes clamp(8 - p, 0, 15).

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
        """Return the measured times, for `simulation.fitting`. They are the times under the policy that ran.

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
        """Return (stamps in us, times to first token in seconds) of the requests with a first token."""
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
        """Read the window back.

        Raises:
            WindowError: the file does not exist, or is not a window.
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
    """The last records of one engine. Add pieces; take windows out.

    A missing number between two pieces means that records are missing or that the engine restarted with a new clock.
    The earlier records are then dropped, because a window with a gap would show too low a rate.
    """

    def __init__(self, engine: str, length_s: float, longest_s: float | None = None) -> None:
        if not length_s > 0:
            raise WindowError(f"a window of {length_s:g} s holds nothing; give a length above 0")
        self.engine = engine
        self.length_us = round(length_s * 1e6)
        self._kept_us = max(KEPT * self.length_us, round(4 * (longest_s or 0.0) * 1e6))
        self.position = -1
        """Number of the last piece that was added."""
        self._forget()

    def _forget(self) -> None:
        self._finished: dict[str, Ints] = _empty(REQUEST_FIELDS)
        self._arrivals: dict[str, Ints] = _empty(ARRIVAL_FIELDS)
        self._steps: dict[str, Ints] = _empty(STEP_FIELDS)
        self._requests: dict[str, Ints] = _empty(REQUEST_FIELDS)
        """Finished and unfinished requests, by stamp."""

    def add(self, pieces: Sequence[Piece]) -> int:
        """Add pieces, oldest first; return how many rows repeated a request's number and were dropped."""
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
        """Number of rows it holds, over all tables."""
        return sum(len(part["stamp_us"]) for part in (self._finished, self._arrivals)) + len(self._steps["at_us"])

    def halve(self) -> None:
        """Drop the older half of the records, because another engine needs the memory."""
        self._trim(max(1, max(len(part) for part in self._event_times()) // 2))

    @property
    def count(self) -> int:
        """Number of finished requests it holds."""
        return len(self._finished["stamp_us"])

    @property
    def now_us(self) -> int:
        """The newest time in any record; 0 when there is none."""
        return int(max(times.max(initial=0) for times in self._event_times()))

    @property
    def num_waiting(self) -> int:
        """Number of requests that waited at the newest step; 0 when there was none."""
        waiting = self._steps["num_waiting"]
        return int(waiting[-1]) if len(waiting) else 0

    def window(self, *, since_us: int = 0, length_s: float | None = None) -> Window | None:
        """Return the last settled window of full length (or of `length_s`), completed, or None.

        No part of it is before `since_us`.
        """
        length_us = self.length_us if length_s is None else round(length_s * 1e6)
        end = self._settled_us(length_us)
        start = end - length_us
        if start < max(since_us, self.first_us):
            return None
        return self.between(start, end).completed()

    def arrived(self, *, since_us: int = 0) -> Window | None:
        """Return the window of full length that ends with the last request, as far as it is known.

        The result is None if it would begin before `since_us`.
        """
        start = self.last_us - self.length_us
        return self.between(start, self.last_us) if start >= max(since_us, self.first_us) else None

    @property
    def last_us(self) -> int:
        """The moment after the last arrival; 0 before the first."""
        stamps = self._requests["stamp_us"]
        return int(stamps[-1]) + 1 if len(stamps) else 0

    @property
    def first_us(self) -> int:
        """The oldest time in any record; 0 when there is none."""
        oldest = [int(column.min()) for column in (self._requests["stamp_us"], self._steps["at_us"]) if len(column)]
        return min(oldest, default=0)

    @property
    def settled_us(self) -> int:
        """The end of the time for which output lengths are known, those of slow requests as well.

        It is 0 when there is none.
        """
        return self._settled_us(self.length_us)

    def between(self, start_us: int, end_us: int) -> Window:
        """Return the records of a stretch of the engine's time."""
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
        """Return the latest settled time, no later than the last request.

        All but a share of OPEN of the requests in the `length_us` before it have finished.
        """
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
        """Keep recent records, at most `most` rows of each table.

        Drop all records older than the oldest of a table that was cut short.
        """
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
    """Return the prompt and output lengths of the requests that finished without an abort."""
    rows = ~window.unfinished & (window.requests["aborted"] == 0) & window.usable
    return window.requests["num_prompt_tokens"][rows], window.requests["num_output_tokens"][rows]


def _by_stamp(finished: Mapping[str, Ints], arrivals: Mapping[str, Ints]) -> dict[str, Ints]:
    """Return all requests by stamp: the finished ones with final records, the others with arrival records."""
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
    """Return the first row of each request number."""
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
