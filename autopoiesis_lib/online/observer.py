"""What the engines of one channel say of themselves: their telemetry spools as sliding windows."""

import time
from collections.abc import Callable
from pathlib import Path

from .spool import read_segments
from .window import SlidingWindow, Window

__all__ = ["TELEMETRY", "Observer"]

TELEMETRY = "telemetry"
"""The folder of a channel directory that holds one spool an engine."""
SILENT_S = 60.0
"""An engine with no new segment for this long is not serving."""


class Observer:
    """Reads the spools below `CHANNEL/telemetry/ENGINE`; nothing it meets there can make it fail."""

    def __init__(
        self,
        channel: Path,
        window_s: float,
        clock_s: Callable[[], float] = time.monotonic,
        *,
        longest_s: float | None = None,
    ) -> None:
        self.root = channel / TELEMETRY
        self._window_s = window_s
        self._longest_s = longest_s
        self._clock_s = clock_s
        self._windows: dict[str, SlidingWindow] = {}
        self._heard: dict[str, float] = {}

    def look(self) -> None:
        """Take in what is new."""
        for folder in sorted(path for path in self.root.glob("*") if path.is_dir()):
            window = self._windows.setdefault(folder.name, SlidingWindow(folder.name, self._window_s, self._longest_s))
            segments = read_segments(folder, window.position)
            if segments:
                window.add(segments)
                self._heard[folder.name] = self._clock_s()

    @property
    def replicas(self) -> int:
        """Engines heard of lately."""
        return len(self._serving())

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a place in an engine, over all engines heard of lately, as far as is known."""
        return sum(window.num_waiting for window in self._serving())

    def busiest(self) -> SlidingWindow | None:
        """The engine that has served most lately: what one replica sees. None before the first record."""
        heard = [window for window in self._windows.values() if window.now_us > 0]
        return max(heard, key=lambda window: (window.count, window.engine), default=None)

    def named(self, engine: str) -> SlidingWindow | None:
        """One engine's records."""
        return self._windows.get(engine)

    def settled(self, *, engine: str | None = None, since_us: int = 0) -> Window | None:
        """The last full window of an engine (the busiest when none is named), no part of it before `since_us`."""
        window = self.named(engine) if engine is not None else self.busiest()
        return window.window(since_us=since_us) if window is not None else None

    def _serving(self) -> list[SlidingWindow]:
        now = self._clock_s()
        return [self._windows[name] for name, heard in self._heard.items() if now - heard <= SILENT_S]
