"""Where jobs run. An executor takes jobs in any number and gives back answers or failures as they come."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["Done", "Executor", "Failure", "Key"]

Key = tuple[str, int]
"""What a job is for: its stage and the candidate's id."""


@dataclass(frozen=True)
class Failure:
    """A job that gave no answer; its candidate is lost, nothing else is."""

    kind: Literal["time", "cpu", "memory", "died", "raised"]
    detail: str


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
