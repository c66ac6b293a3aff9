"""What the control plane keeps on disk beside the store, so that it may be killed at any moment: windows and where it was.

Every file is replaced by one rename. A file that is missing or damaged costs a new reference or a canary's time, never a
decision: decisions are in the store's log.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import AutopoiesisError
from ..simulation.calibration import Calibration
from .window import Window, WindowError

__all__ = ["WINDOWS", "CanaryStart", "Due", "Evolving", "Memory", "Reference", "ShadowStart"]

WINDOWS = "windows"
"""The folder in the state folder that holds what is remembered of past work."""
REMEMBERED = 32


@lru_cache(maxsize=REMEMBERED)
def _remembered(path: Path, changed_ns: int) -> Window:
    """A remembered window, read once: while an answer is due they are asked for at every look, and they do not change."""
    del changed_ns  # but for one that was damaged since
    return Window.read(path)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What drift is measured against: the first full window since work last changed."""

    window: Window
    replicas: int


@dataclass(frozen=True, kw_only=True)
class Due:
    """Work has changed, and an evolution has not answered it yet."""

    reason: str
    engine: str
    since_us: int
    """By that engine's clock: where the window to evolve on may begin."""
    looks: int = 0
    """How often known policies were compared on what came since."""
    next_look_us: int = 0
    """By that engine's clock: when there is enough that is new to compare them again."""
    rounds: int = 0
    """Evolutions that answered it so far."""


@dataclass(frozen=True, kw_only=True)
class Evolving:
    """An evolution in progress."""

    window: Window
    seed: int
    reason: str
    run: str | None
    """None until the run has its id."""
    like: tuple[int, ...] = ()
    """Numbers of the remembered windows of like work that are evolved on besides."""


@dataclass(frozen=True, kw_only=True)
class ShadowStart:
    """What a candidate in shadow is judged on."""

    candidate: str
    engine: str
    since_us: int
    """By that engine's clock: arrivals from here on, none of which it was evolved on."""
    looks: int = 0
    """How often it was judged."""
    next_us: int = 0
    """By that engine's clock: when there is enough that is new to judge it again."""


@dataclass(frozen=True, kw_only=True)
class CanaryStart:
    """The moment a canary began to decide."""

    engine: str
    at_us: int
    """By that engine's clock."""
    fallbacks: int
    """Steps dropped until then, over all engines."""
    wall_s: float


@dataclass(frozen=True)
class Memory:
    """The state folder of one control plane."""

    folder: Path

    def calibration(self, given: Calibration) -> Calibration:
        """The recalibrated model of an earlier sitting if it is about the same engine; otherwise the given one."""
        path = self.folder / "calibration.json"
        try:
            kept = Calibration.read(path) if path.is_file() else given
        except AutopoiesisError:
            return given
        return kept if kept.engine == given.engine else given

    def keep_calibration(self, calibration: Calibration) -> None:
        """For the next sitting."""
        self.folder.mkdir(parents=True, exist_ok=True)
        calibration.write(self.folder / "calibration.json")

    def reference(self) -> Reference | None:
        """The one kept last."""
        kept = self._read("reference")
        try:
            return Reference(window=Window.read(self.folder / "reference.npz"), replicas=int(kept["replicas"]))
        except (WindowError, KeyError, TypeError, ValueError):
            return None

    def keep_reference(self, reference: Reference) -> None:
        """From now on drift is measured against this."""
        reference.window.write(self.folder / "reference.npz")
        self._write("reference", {"replicas": reference.replicas})

    def forget_reference(self) -> None:
        """Work has changed: the next full window is the reference."""
        (self.folder / "reference.json").unlink(missing_ok=True)

    def remembered(self) -> dict[int, Window]:
        """Settled windows of the past by number, oldest first; what is damaged is left out."""
        found = {}
        for path in self._remembered_paths():
            with suppress(WindowError, FileNotFoundError):
                found[int(path.stem)] = _remembered(path, path.stat().st_mtime_ns)
        return found

    def remember(self, window: Window) -> None:
        """Keep a settled window: work like it may come again. Of the oldest all but REMEMBERED are forgotten."""
        paths = self._remembered_paths()
        number = int(paths[-1].stem) + 1 if paths else 0
        window.write(self.folder / WINDOWS / f"{number:06}.npz")
        for path in paths[: max(0, len(paths) + 1 - REMEMBERED)]:
            path.unlink(missing_ok=True)

    def _remembered_paths(self) -> list[Path]:
        paths = (self.folder / WINDOWS).glob("*.npz")
        return sorted((path for path in paths if path.stem.isdigit()), key=lambda path: int(path.stem))

    @property
    def evolving(self) -> bool:
        """Whether an evolution was begun and not finished."""
        return (self.folder / "evolving.json").is_file()

    def task(self) -> Evolving:
        """The evolution in progress.

        Raises:
            WindowError: its files are damaged.
        """
        kept = self._read("evolving")
        try:
            return Evolving(
                window=Window.read(self.folder / "evolving.npz"), seed=int(kept["seed"]), reason=str(kept["reason"]),
                run=kept["run"], like=tuple(int(number) for number in kept["like"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise WindowError(f"what was kept of the evolution in {self.folder} is damaged ({error})") from None

    def keep_task(self, task: Evolving) -> None:
        """An evolution begins, or has got its run's id."""
        if task.run is None:
            task.window.write(self.folder / "evolving.npz")
        self._write("evolving", {"seed": task.seed, "reason": task.reason, "run": task.run, "like": task.like})

    def forget_task(self) -> None:
        """The evolution is over."""
        (self.folder / "evolving.json").unlink(missing_ok=True)

    def due(self) -> Due | None:
        """What waits for an evolution."""
        try:
            return Due(**self._read("due"))
        except TypeError:
            return None

    def keep_due(self, due: Due) -> None:
        """An evolution is due."""
        self._write("due", asdict(due))

    def forget_due(self) -> None:
        """It was evolved."""
        (self.folder / "due.json").unlink(missing_ok=True)

    def shadow(self, candidate: str) -> ShadowStart | None:
        """What a candidate in shadow is judged on; None when that is not known."""
        try:
            kept = ShadowStart(**self._read("shadow"))
        except TypeError:
            return None
        return kept if kept.candidate == candidate else None

    def keep_shadow(self, start: ShadowStart) -> None:
        """A candidate goes into shadow, or was judged once more."""
        self._write("shadow", asdict(start))

    def canary(self) -> CanaryStart | None:
        """When the canary began."""
        try:
            return CanaryStart(**self._read("canary"))
        except TypeError:
            return None

    def keep_canary(self, start: CanaryStart) -> None:
        """A canary begins."""
        self._write("canary", asdict(start))

    def checked(self) -> tuple[str, int] | None:
        """Engine and end (us) of the last window that was looked at."""
        kept = self._read("checked")
        try:
            return str(kept["engine"]), int(kept["end_us"])
        except (KeyError, TypeError, ValueError):
            return None

    def keep_checked(self, engine: str, end_us: int) -> None:
        """No later window shall have a request from before this."""
        self._write("checked", {"engine": engine, "end_us": end_us})

    def _read(self, name: str) -> dict[str, Any]:
        try:
            kept = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{name}.part"
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(self.folder / f"{name}.json")
