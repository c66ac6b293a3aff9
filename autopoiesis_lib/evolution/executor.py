"""Where jobs run. An executor takes jobs in any number and gives back answers or failures as they come."""

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..gates.counterexample import EncoderBug
from ..gates.second_solver import Disagreement
from ..gates.verdict import Reason

__all__ = ["Done", "Executor", "Failure", "Key"]

Key = tuple[str, int]
"""What a job is for: its stage and the candidate's id."""


@dataclass(frozen=True)
class Failure:
    """A job that gave no answer; its candidate is lost, nothing else is."""

    reason: Literal[Reason.TIME, Reason.CPU, Reason.MEMORY, Reason.DIED, Reason.RAISED, Reason.OWN_DEFECT]
    detail: str

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """Return that a job raised an exception."""
        if isinstance(error, MemoryError):
            return cls(Reason.MEMORY, "out of its memory limit")
        frame = traceback.extract_tb(error.__traceback__)[-1]
        ours = isinstance(error, (Disagreement, EncoderBug))
        text = f"{type(error).__name__}: {error} ({frame.name})"[:500]
        return cls(Reason.OWN_DEFECT if ours else Reason.RAISED, text)


@dataclass(frozen=True)
class Done:
    """A job's answer, or why there is none."""

    key: Key
    answer: object
    seconds: float

    @property
    def failure(self) -> Failure | None:
        """The failure, if it is one."""
        return self.answer if isinstance(self.answer, Failure) else None


class Executor(Protocol):
    """Runs jobs in isolated workers."""

    workers: int

    def submit(self, key: Key, job: object, time_limit_s: float | None = None) -> None:
        """Queue a job, perhaps with another time limit than usual; jobs start in the order they were submitted."""

    def wait(self, timeout_s: float | None) -> Sequence[Done]:
        """Block until at least one job is done, or the time is up (then empty)."""

    def clear(self) -> None:
        """Forget the jobs that have not started."""

    def close(self) -> None:
        """Kill whatever runs, at once."""
