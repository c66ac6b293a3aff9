"""How often Python's threads take turns while a policy is loaded beside a serving engine."""

import sys
import threading

__all__ = ["ShortTurns"]

TURN_S = 0.0002


class ShortTurns:
    """While a policy is loaded, threads take turns every fifth of a millisecond instead of every five.

    A load lets go of the interpreter dozens of times (files, signature, each call into LLVM), and each time the engine's
    thread keeps it for a whole turn. Short turns make a load several times faster and take no more from the engine in all.
    May be entered by several threads at once: the last one out puts back what the first one found.
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
