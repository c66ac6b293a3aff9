"""A sliding window of telemetry: what one engine served lately, as a trace to replay and as measurements to calibrate on.

The engine's request record is written when a request leaves, so the newest arrivals of any moment are missing their slow
ones. A window therefore ends before the present by the time 99% of its requests took (`SETTLED`): what lies in it is what
arrived, not what happened to finish first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..errors import AutopoiesisError
from ..simulation.fitting import MeasuredRequests
from ..simulation.trace import Trace
from .spool import Segment

__all__ = ["REQUEST_COLUMNS", "STEP_COLUMNS", "SlidingWindow", "Window", "WindowError"]

Ints = NDArray[np.int64]

REQUEST_COLUMNS = (
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
"""Request fields a window reads; times in microseconds of the engine's monotonic clock, 0 when it never happened."""
STEP_COLUMNS = ("at_us", "num_waiting", "num_running", "free_blocks", "scheduled_tokens", "admitted", "preempted")
"""Step fields a window reads; `at_us` is when the step began."""

SETTLED = 99.0
"""Percentile of the times in the engine that a window waits for before it counts an arrival."""
MAX_TOKENS_IN_VIEW = 1_048_576
DEFAULT_PRIORITY = 8


class WindowError(AutopoiesisError):
    """A window holds too little for what is asked of it, or cannot be read back."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Window:
    """What one engine served of the requests that arrived in [start_us, end_us) of its own clock."""

    engine: str
    start_us: int
    end_us: int
    requests: Mapping[str, Ints]
    """REQUEST_COLUMNS of the requests stamped in the window, by stamp."""
    steps: Mapping[str, Ints]
    """STEP_COLUMNS of the steps that began in the window, by time."""

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
        keep = self.usable & (self.requests["first_token_us"] > 0) & (self.requests["aborted"] == 0)
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
        """Keep the window in an `.npz` file (for a restart)."""
        columns = {f"requests.{name}": column for name, column in self.requests.items()}
        columns |= {f"steps.{name}": column for name, column in self.steps.items()}
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.part")
        with temporary.open("wb") as file:
            np.savez_compressed(
                file,
                span=np.array([self.start_us, self.end_us], np.int64),
                engine=np.array(self.engine),
                **columns,  # type: ignore[arg-type]
            )
        temporary.replace(target)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read it back.

        Raises:
            WindowError: it is not there, or is not a window.
        """
        found: dict[str, dict[str, Ints]] = {"requests": {}, "steps": {}}
        try:
            with np.load(path, allow_pickle=False) as content:
                start, end = (int(value) for value in content["span"])
                engine = str(content["engine"])
                for key in content.files:
                    kind, _, name = key.partition(".")
                    if kind in found:
                        found[kind][name] = np.asarray(content[key], dtype=np.int64)
        except Exception as error:  # a damaged archive raises whatever its damage hits
            raise WindowError(f"the window {path} cannot be read ({error}); a new one is taken") from None
        return cls(engine=engine, start_us=start, end_us=end, **found)


class SlidingWindow:
    """The last records of one engine. Feed it segments; take windows out.

    Where a number is missing between two segments, records are missing or the engine was restarted with a new clock: what came
    before is dropped, because a window with a hole would show a lower rate than there was.
    """

    def __init__(self, engine: str, length_s: float, longest_s: float | None = None) -> None:
        if not length_s > 0:
            raise WindowError(f"a window of {length_s:g} s holds nothing; give a length above 0")
        self.engine = engine
        self.length_us = round(length_s * 1e6)
        self._kept_us = 4 * round(max(length_s, longest_s or 0.0) * 1e6)
        self.position = -1
        """Number of the last segment taken in."""
        self._requests: dict[str, Ints] = {name: np.zeros(0, np.int64) for name in REQUEST_COLUMNS}
        self._steps: dict[str, Ints] = {name: np.zeros(0, np.int64) for name in STEP_COLUMNS}

    def add(self, segments: Sequence[Segment]) -> None:
        """Take in segments, oldest first."""
        for segment in segments:
            if segment.number != self.position + 1:
                self._requests = {name: column[:0] for name, column in self._requests.items()}
                self._steps = {name: column[:0] for name, column in self._steps.items()}
            self.position = segment.number
            self._requests = _joined(self._requests, segment.requests)
            self._steps = _joined(self._steps, segment.steps)
        self._trim()

    @property
    def count(self) -> int:
        """Requests it holds."""
        return len(self._requests["stamp_us"])

    @property
    def now_us(self) -> int:
        """The newest time in any record; 0 when there is none."""
        newest = [self._steps["at_us"].max(initial=0), self._requests["finished_us"].max(initial=0)]
        return int(max(newest))

    def window(self, *, since_us: int = 0, length_s: float | None = None) -> Window | None:
        """The window of full length (or of `length_s`) that has settled last, no part of it before `since_us`; None until
        there is one."""
        length_us = self.length_us if length_s is None else round(length_s * 1e6)
        stamps = self._requests["stamp_us"]
        if len(stamps) == 0:
            return None
        end = self._settled_us(length_us)
        start = end - length_us
        first = int(min(stamps.min(), self._steps["at_us"].min(initial=stamps.min())))
        if start < max(since_us, first):
            return None
        return self.between(start, end)

    @property
    def settled_us(self) -> int:
        """Up to where arrivals are known, the slow ones as well; 0 when nothing is."""
        return self._settled_us(self.length_us)

    def between(self, start_us: int, end_us: int) -> Window:
        """What is known of a stretch of the engine's time."""
        stamps, at = self._requests["stamp_us"], self._steps["at_us"]
        rows = np.flatnonzero((stamps >= start_us) & (stamps < end_us))
        rows = rows[np.argsort(stamps[rows], kind="stable")]
        steps = np.flatnonzero((at >= start_us) & (at < end_us))
        return Window(
            engine=self.engine,
            start_us=start_us,
            end_us=end_us,
            requests={name: column[rows] for name, column in self._requests.items()},
            steps={name: column[steps] for name, column in self._steps.items()},
        )

    def _settled_us(self, length_us: int) -> int:
        stamps, finished = self._requests["stamp_us"], self._requests["finished_us"]
        took = (finished - stamps)[stamps >= self.now_us - 3 * length_us]
        return self.now_us - (int(np.percentile(took, SETTLED)) if len(took) else 0)

    def _trim(self) -> None:
        oldest = self.now_us - self._kept_us
        keep, steps = self._requests["finished_us"] >= oldest, self._steps["at_us"] >= oldest
        if not keep.all():
            self._requests = {name: column[keep] for name, column in self._requests.items()}
        if not steps.all():
            self._steps = {name: column[steps] for name, column in self._steps.items()}


def _joined(have: Mapping[str, Ints], new: Mapping[str, Ints]) -> dict[str, Ints]:
    if not new or any(name not in new for name in have):
        return dict(have)
    return {name: np.concatenate([column, new[name]]) for name, column in have.items()}
