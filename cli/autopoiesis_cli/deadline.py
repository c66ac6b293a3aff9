"""A wall-clock limit on work that is partly inside a solver's own code."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["OutOfTime", "within"]


class OutOfTime(Exception):
    """The time limit passed."""


@contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """Raise `OutOfTime` in the block when it takes longer; a running Z3 query is interrupted. Main thread only."""
    if seconds is None:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    solver = threading.Timer(seconds, _interrupt_solver)
    solver.daemon = True
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    solver.start()
    try:
        yield
    finally:
        solver.cancel()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _interrupt_solver() -> None:
    """Each proof has a Z3 context of its own, so every one that is alive is told."""
    import gc
    import sys

    if "z3" in sys.modules:
        import z3

        for context in [item for item in gc.get_objects() if isinstance(item, z3.Context)]:
            context.interrupt()
