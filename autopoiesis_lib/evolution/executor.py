"""The interface of executors: an executor takes any number of jobs and returns answers or failures as they arrive."""

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..gates.counterexample import EncoderBug
from ..gates.second_solver import Disagreement
from ..gates.verdict import Reason

__all__ = ["Done", "Executor", "Failure", "Key"]

Key = tuple[str, int]
"""The purpose of a job: its stage and the candidate's id."""


@dataclass(frozen=True)
class Failure:
    """A job without an answer. Only its candidate is lost."""

    reason: Literal[Reason.TIME, Reason.CPU, Reason.MEMORY, Reason.DIED, Reason.RAISED, Reason.OWN_DEFECT]
    detail: str

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """Return the failure for a job that raised an exception."""
        if isinstance(error, MemoryError):
            return cls(Reason.MEMORY, "out of its memory limit")
        frame = traceback.extract_tb(error.__traceback__)[-1]
        ours = isinstance(error, (Disagreement, EncoderBug))
        text = f"{type(error).__name__}: {error} ({frame.name})"[:500]
        return cls(Reason.OWN_DEFECT if ours else Reason.RAISED, text)


@dataclass(frozen=True)
class Done:
    """A job's answer, or the failure that replaces it."""

    key: Key
    answer: object
    seconds: float

    @property
    def failure(self) -> Failure | None:
        """The failure, or None if the job has an answer."""
        return self.answer if isinstance(self.answer, Failure) else None


class Executor(Protocol):
    """An executor of jobs in workers."""

    workers: int

    def submit(self, key: Key, job: object, time_limit_s: float | None = None) -> None:
        """Queue a job, optionally with its own time limit.

        Jobs start in the order in which they were submitted.
        """

    def wait(self, timeout_s: float | None) -> Sequence[Done]:
        """Return the finished jobs. Block until at least one is done or the time is up, then perhaps return none."""

    def clear(self) -> None:
        """Remove the jobs that have not started."""

    def close(self) -> None:
        """Kill all running jobs immediately."""
