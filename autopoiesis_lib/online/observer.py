"""Telemetry of the engines of one channel, as sliding windows."""

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
"""Seconds without a new piece after which an engine counts as not serving."""
MAX_ENGINES = 1_024
"""Greatest number of observed engines per channel: those known to serve, then those whose folders changed last."""
MAX_FOLDERS = 16_384
"""Greatest number of entries of the telemetry folder that are read."""
MAX_ROWS = 8_388_608
"""Rows kept of all engines together, about 700 MB.

Beyond that, the engine with the most rows drops the older half of them.
"""


class Observer:
    """The reader of the telemetry below `CHANNEL/telemetry/ENGINE`; no content there can make it fail.

    A restarted engine has another name. Windows of an engine are dropped when it has been silent for as long as records
    are kept.
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
        """Map from an engine to its refused pieces, rows and entries, by reason. "" is the telemetry folder."""
        self._window_s = window_s
        self._longest_s = longest_s
        self._kept_s = max(KEPT * window_s, 4 * (longest_s or 0.0))
        self._clock_s = clock_s
        self._readers: dict[str, TelemetryReader] = {}
        self._windows: dict[str, SlidingWindow] = {}
        self._heard: dict[str, float] = {}

    def look(self) -> None:
        """Read the new telemetry."""
        now = self._clock_s()
        changed = self._folders()
        newest_ns = max(changed.values(), default=0)
        self._readers = {name: reader for name, reader in self._readers.items() if name in changed}
        for name, changed_ns in changed.items():
            known = name in self._readers
            if not known and newest_ns - changed_ns > self._kept_s * 1e9:
                continue  # it fell silent before this control plane started
            reader = self._readers.setdefault(name, TelemetryReader(self.root / name))
            found = reader.read()
            repeated = 0
            if found.pieces:
                window = self._windows.setdefault(name, SlidingWindow(name, self._window_s, self._longest_s))
                repeated = window.add(found.pieces)
                # In a folder that is new here, the last piece may be old; only times of one file system are compared.
                self._heard[name] = now - (0.0 if known else max(0, newest_ns - found.written_ns) / 1e9)
            self._count(name, found, repeated)
        self._forget(now)

    @property
    def replicas(self) -> int:
        """Number of engines that reported lately."""
        return len(self._serving())

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait for admission, over all engines that reported lately, as far as is known."""
        return sum(window.num_waiting for window in self._serving())

    def busiest(self) -> SlidingWindow | None:
        """Return the records of the engine with the most finished requests, if possible one that reported lately.

        The result is the view of one replica. It is None before the first record.
        """
        heard = [window for window in self._windows.values() if window.now_us > 0]
        return max(heard, key=lambda window: (self.serving(window.engine), window.count, window.engine), default=None)

    def named(self, engine: str) -> SlidingWindow | None:
        """Return one engine's records; None when there are none."""
        return self._windows.get(engine)

    def serving(self, engine: str) -> bool:
        """Return true for an engine that reported lately."""
        return engine in self._heard and self._clock_s() - self._heard[engine] <= SILENT_S

    def replaced(self, engine: str) -> SlidingWindow | None:
        """Return the busiest serving engine when this one is silent and another serves; otherwise None.

        A caller that waits for more records of a replaced engine would wait forever.
        """
        busiest = self.busiest()
        return None if busiest is None or self.serving(engine) or not self.serving(busiest.engine) else busiest

    def settled(self, *, engine: str | None = None, since_us: int = 0) -> Window | None:
        """Return the last full window of an engine (the busiest by default), with no part of it before `since_us`."""
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
            return {}  # no engine has reported yet
        except OSError:
            standing[TelemetryProblem.FOLDER] += 1
        newest = sorted(found, key=lambda name: (self.serving(name), found[name]), reverse=True)
        standing[TelemetryProblem.CROWDED] += max(0, len(newest) - MAX_ENGINES)
        self._count("", Pieces(standing=+standing), 0)
        return {name: found[name] for name in sorted(newest[:MAX_ENGINES])}

    def _count(self, engine: str, found: Pieces, repeated: int) -> None:
        """Add up the refused telemetry; log each reason once per engine."""
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
        """Bound memory: drop engines silent for too long, then those silent longest, then the oldest records."""
        by_silence = sorted(self._heard, key=lambda name: self._heard[name], reverse=True)
        for place, name in enumerate(by_silence):
            if place >= MAX_ENGINES or now - self._heard[name] > self._kept_s + SILENT_S:
                del self._heard[name], self._windows[name]
        for name in [name for name in self.refused if name and name not in self._readers]:
            del self.refused[name]
        while sum(window.rows for window in self._windows.values()) > MAX_ROWS:
            max(self._windows.values(), key=lambda window: window.rows).halve()
