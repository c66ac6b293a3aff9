"""What the control plane keeps on disk beside the store, so that it may be killed at any moment: windows and where it was.

Every file is replaced by one rename. A file that is missing or damaged costs a new reference or a canary's time, never a
decision: decisions are in the store's log.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from ..protocol.files import FileRefusedError, read_bounded, write_atomically
from ..protocol.telemetry import MAX_TIME_US
from ..simulation.calibration import Calibration
from .window import Window, WindowError

__all__ = ["WINDOWS", "CanaryStart", "Due", "Evolving", "Memory", "Reference", "ShadowStart"]

WINDOWS = "windows"
"""The folder in the state folder that holds what is remembered of past work."""
REMEMBERED = 32
MAX_BYTES: Final = 65_536
"""Size of a JSON file of the state folder; one has a few hundred bytes."""
_NUMBERED: Final = re.compile(r"[0-9]{6,9}\.npz", re.ASCII)

Kept = TypeVar("Kept")
Micros = Annotated[int, Field(ge=0, le=2 * MAX_TIME_US)]
"""A time by an engine's clock, or a little beyond it."""
Count = Annotated[int, Field(ge=0, le=2**31)]
Seconds = Annotated[float, Field(allow_inf_nan=False)]


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
    since_us: Micros
    """By that engine's clock: where the window to evolve on may begin."""
    looks: Count = 0
    """How often known policies were compared on what came since."""
    next_look_us: Micros = 0
    """By that engine's clock: when there is enough that is new to compare them again."""
    rounds: Count = 0
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
    since_us: Micros
    """By that engine's clock: arrivals from here on, none of which it was evolved on."""
    looks: Count = 0
    """How often it was judged."""
    next_us: Micros = 0
    """By that engine's clock: when there is enough that is new to judge it again."""


@dataclass(frozen=True, kw_only=True)
class CanaryStart:
    """The moment a canary began to decide."""

    engine: str
    at_us: Micros
    """By that engine's clock."""
    fallbacks: Count
    """Steps dropped until then, over all engines."""
    wall_s: Seconds


@dataclass(frozen=True, kw_only=True)
class _Task:
    """`Evolving` as its JSON file has it."""

    seed: Annotated[int, Field(ge=-(2**63), le=2**63)]
    reason: str
    run: str | None
    like: tuple[Count, ...]


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """`Reference` as its JSON file has it."""

    replicas: Annotated[int, Field(ge=1, le=2**31)]


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """The window that was looked at last."""

    engine: str
    end_us: Micros


_KINDS: Final[Mapping[type, TypeAdapter[Any]]] = {
    kind: TypeAdapter(with_config(ConfigDict(strict=True))(kind))
    for kind in (Due, ShadowStart, CanaryStart, _Task, _Measured, _Checked)
}


@dataclass(frozen=True)
class Memory:
    """The state folder of one control plane."""

    folder: Path

    def calibration(self, given: Calibration) -> Calibration:
        """The recalibrated model of an earlier sitting if it is about the same engine; otherwise the given one."""
        try:
            kept = Calibration.model_validate_json(read_bounded(self.folder / "calibration.json", MAX_BYTES))
        except (FileRefusedError, ValidationError):
            return given
        return kept if kept.engine == given.engine else given

    def keep_calibration(self, calibration: Calibration) -> None:
        """For the next sitting."""
        self._write("calibration", calibration.model_dump(mode="json"))

    def reference(self) -> Reference | None:
        """The one kept last."""
        kept = self._read("reference", _Measured)
        try:
            window = Window.read(self.folder / "reference.npz")
        except WindowError:
            return None
        return None if kept is None else Reference(window=window, replicas=kept.replicas)

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
            with suppress(WindowError, OSError):
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
        return sorted((path for path in paths if _NUMBERED.fullmatch(path.name)), key=lambda path: int(path.stem))

    @property
    def evolving(self) -> bool:
        """Whether an evolution was begun and not finished."""
        return (self.folder / "evolving.json").is_file()

    def task(self) -> Evolving:
        """The evolution in progress.

        Raises:
            WindowError: its files are damaged.
        """
        kept = self._read("evolving", _Task)
        if kept is None:
            raise WindowError(f"what was kept of the evolution in {self.folder} is damaged")
        window = Window.read(self.folder / "evolving.npz")
        return Evolving(window=window, seed=kept.seed, reason=kept.reason, run=kept.run, like=kept.like)

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
        return self._read("due", Due)

    def keep_due(self, due: Due) -> None:
        """An evolution is due."""
        self._write("due", asdict(due))

    def forget_due(self) -> None:
        """It was evolved."""
        (self.folder / "due.json").unlink(missing_ok=True)

    def shadow(self, candidate: str) -> ShadowStart | None:
        """What a candidate in shadow is judged on; None when that is not known."""
        kept = self._read("shadow", ShadowStart)
        return kept if kept is not None and kept.candidate == candidate else None

    def keep_shadow(self, start: ShadowStart) -> None:
        """A candidate goes into shadow, or was judged once more."""
        self._write("shadow", asdict(start))

    def canary(self) -> CanaryStart | None:
        """When the canary began."""
        return self._read("canary", CanaryStart)

    def keep_canary(self, start: CanaryStart) -> None:
        """A canary begins."""
        self._write("canary", asdict(start))

    def checked(self) -> tuple[str, int] | None:
        """Engine and end (us) of the last window that was looked at."""
        kept = self._read("checked", _Checked)
        return None if kept is None else (kept.engine, kept.end_us)

    def keep_checked(self, engine: str, end_us: int) -> None:
        """No later window shall have a request from before this."""
        self._write("checked", {"engine": engine, "end_us": end_us})

    def _read(self, name: str, kind: type[Kept]) -> Kept | None:
        try:
            kept: Kept = _KINDS[kind].validate_json(read_bounded(self.folder / f"{name}.json", MAX_BYTES))
        except (FileRefusedError, ValidationError):
            return None
        return kept

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        write_atomically(self.folder / f"{name}.json", json.dumps(content))
