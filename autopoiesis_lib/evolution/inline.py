"""The inline executor: jobs run in this process, with no isolation and no limits.

It is meant for debugging an evaluator and for notebooks.
"""

import time
from collections import deque
from collections.abc import Sequence

from .executor import Done, Failure, Key
from .work import Setup, Worker

__all__ = ["Inline"]


class Inline:
    """An executor that runs one job at each `wait`. Pass the class itself as `evolve(executor=Inline)`."""

    def __init__(self, setup: Setup) -> None:
        self.workers = 1
        self._worker = Worker(setup)
        self._queue: deque[tuple[Key, object]] = deque()

    def submit(self, key: Key, job: object, time_limit_s: float | None = None) -> None:
        """Queue a job. Time limits do not apply here."""
        self._queue.append((key, job))

    def wait(self, timeout_s: float | None) -> Sequence[Done]:
        """Run the next job."""
        if not self._queue:
            return []
        key, job = self._queue.popleft()
        started = time.monotonic()
        try:
            answer = self._worker(job)
        except Exception as error:
            answer = Failure.of(error)
        return [Done(key, answer, time.monotonic() - started)]

    def clear(self) -> None:
        """Remove all queued jobs."""
        self._queue.clear()

    def close(self) -> None:
        """Do nothing, because there are no workers to close."""
