"""What the engines of one channel say of themselves: their telemetry as sliding windows."""

import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from ..logs import log_event
from ..protocol.files import opened_folder
from ..protocol.telemetry import ENGINE_NAME, TELEMETRY, Pieces, TelemetryProblem, TelemetryReader
from ..protocol.text import printable
from .window import KEPT, SlidingWindow, Window

__all__ = ["Observer"]

logger = logging.getLogger("autopoiesis.online")

SILENT_S = 60.0
"""An engine with no new piece for this long is not serving."""
MAX_ENGINES = 1_024
"""Engines of one channel that are observed: those known to serve, then those whose folders changed last."""
MAX_FOLDERS = 16_384
"""Entries of the telemetry folder that are looked at."""
MAX_ROWS = 8_388_608
"""Rows kept of all engines together, some 700 MB. Beyond that the engine with the most gives up the older half of its own."""


class Observer:
    """Reads the telemetry below `CHANNEL/telemetry/ENGINE`; nothing it meets there can make it fail.

    An engine that starts again has another name. Windows of engines that have been silent for as long as records are kept are
    forgotten.
    """

    def __init__(
        self,
        channel: Path,
        window_s: float,
        clock_s: Callable[[], float] = time.monotonic,
        *,
        longest_s: float | None = None,
    ) -> None:
        self.root = channel / TELEMETRY
        self.refused: dict[str, Counter[TelemetryProblem]] = {}
        """Engine -> pieces, rows and entries of its folder that were refused so far, by reason; "" is the telemetry folder."""
        self._window_s = window_s
        self._longest_s = longest_s
        self._kept_s = max(KEPT * window_s, 4 * (longest_s or 0.0))
        self._clock_s = clock_s
        self._readers: dict[str, TelemetryReader] = {}
        self._windows: dict[str, SlidingWindow] = {}
        self._heard: dict[str, float] = {}

    def look(self) -> None:
        """Take in what is new."""
        now = self._clock_s()
        changed = self._folders()
        newest_ns = max(changed.values(), default=0)
        self._readers = {name: reader for name, reader in self._readers.items() if name in changed}
        for name, changed_ns in changed.items():
            known = name in self._readers
            if not known and newest_ns - changed_ns > self._kept_s * 1e9:
                continue  # it fell silent before this control plane came
            reader = self._readers.setdefault(name, TelemetryReader(self.root / name))
            found = reader.read()
            repeated = 0
            if found.pieces:
                window = self._windows.setdefault(name, SlidingWindow(name, self._window_s, self._longest_s))
                repeated = window.add(found.pieces)
                # Of a folder that is new here, the last piece may be old; only times of one file system are compared.
                self._heard[name] = now - (0.0 if known else max(0, newest_ns - found.written_ns) / 1e9)
            self._count(name, found, repeated)
        self._forget(now)

    @property
    def replicas(self) -> int:
        """Engines heard of lately."""
        return len(self._serving())

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a place in an engine, over all engines heard of lately, as far as is known."""
        return sum(window.num_waiting for window in self._serving())

    def busiest(self) -> SlidingWindow | None:
        """Return the engine that has served most lately, of those heard of lately if there are any: what one replica sees. None
        before the first record."""
        heard = [window for window in self._windows.values() if window.now_us > 0]
        return max(heard, key=lambda window: (self.serving(window.engine), window.count, window.engine), default=None)

    def named(self, engine: str) -> SlidingWindow | None:
        """Return one engine's records; None when there are none, or none any more."""
        return self._windows.get(engine)

    def serving(self, engine: str) -> bool:
        """Return whether the engine was heard of lately."""
        return engine in self._heard and self._clock_s() - self._heard[engine] <= SILENT_S

    def replaced(self, engine: str) -> SlidingWindow | None:
        """Return the busiest serving engine when this one is silent and another serves; otherwise None.

        What waits for more records of an engine waits for ever once that is so.
        """
        busiest = self.busiest()
        return None if busiest is None or self.serving(engine) or not self.serving(busiest.engine) else busiest

    def settled(self, *, engine: str | None = None, since_us: int = 0) -> Window | None:
        """Return the last full window of an engine (the busiest when none is named), no part of it before `since_us`."""
        window = self.named(engine) if engine is not None else self.busiest()
        return window.window(since_us=since_us) if window is not None else None

    def _serving(self) -> list[SlidingWindow]:
        return [window for name, window in self._windows.items() if self.serving(name)]

    def _folders(self) -> dict[str, int]:
        """Return the engines' folders with the time of their last change, at most MAX_ENGINES, by name."""
        found: dict[str, int] = {}
        standing: Counter[TelemetryProblem] = Counter()
        try:
            with opened_folder(self.root, create=False) as folder, os.scandir(folder) as entries:
                for entry in islice(entries, MAX_FOLDERS):
                    if not ENGINE_NAME.fullmatch(entry.name):
                        standing[TelemetryProblem.NAME] += not entry.name.startswith(".")
                        continue
                    with suppress(OSError):  # removed meanwhile
                        about = entry.stat(follow_symlinks=False)
                        if stat.S_ISDIR(about.st_mode):
                            found[entry.name] = about.st_ctime_ns
                        else:
                            standing[TelemetryProblem.FOLDER] += 1
                standing[TelemetryProblem.CROWDED] = int(next(entries, None) is not None)
        except FileNotFoundError:
            return {}  # no engine has come yet
        except OSError:
            standing[TelemetryProblem.FOLDER] += 1
        newest = sorted(found, key=lambda name: (self.serving(name), found[name]), reverse=True)
        standing[TelemetryProblem.CROWDED] += max(0, len(newest) - MAX_ENGINES)
        self._count("", Pieces(standing=+standing), 0)
        return {name: found[name] for name in sorted(newest[:MAX_ENGINES])}

    def _count(self, engine: str, found: Pieces, repeated: int) -> None:
        """Add up what was refused; log each reason once an engine."""
        new = Counter(found.refused)
        new[TelemetryProblem.DUPLICATE] += repeated
        if not (+new or found.standing):
            return
        counted = self.refused.setdefault(engine, Counter())
        for problem in sorted((+new).keys() | found.standing.keys()):
            if not counted[problem]:
                whose = f"engine {engine}" if engine else "the channel's telemetry folder"
                log_event(
                    logger,
                    "telemetry.refused",
                    f"telemetry of {whose} is refused in part: {problem}; watching goes on without it",
                    {"engine": engine, "reason": str(problem), "folder": printable(self.root / engine)},
                    level=logging.WARNING,
                )
            counted[problem] = max(counted[problem] + new[problem], found.standing.get(problem, 0))

    def _forget(self, now: float) -> None:
        """Bound memory: forget who has been silent for long, then who has been silent longest, then the oldest records."""
        by_silence = sorted(self._heard, key=lambda name: self._heard[name], reverse=True)
        for place, name in enumerate(by_silence):
            if place >= MAX_ENGINES or now - self._heard[name] > self._kept_s + SILENT_S:
                del self._heard[name], self._windows[name]
        for name in [name for name in self.refused if name and name not in self._readers]:
            del self.refused[name]
        while sum(window.rows for window in self._windows.values()) > MAX_ROWS:
            max(self._windows.values(), key=lambda window: window.rows).halve()
