"""A short thread switch interval while a policy is loaded beside a serving engine."""

import sys
import threading

__all__ = ["ShortTurns"]

TURN_S = 0.0002


class ShortTurns:
    """A context in which threads switch every 0.2 ms instead of every 5 ms, for the load of a policy.

    A load releases the interpreter dozens of times (files, signature, each call into LLVM), and each time the engine's
    thread keeps the interpreter for a whole interval. Short intervals make a load several times faster and take no more
    time from the engine in total. Several threads may be inside at once: the last to leave restores the interval that
    the first one found.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._usual_s = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._usual_s = sys.getswitchinterval()
                sys.setswitchinterval(min(self._usual_s, TURN_S))
            self._inside += 1

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                sys.setswitchinterval(self._usual_s)
