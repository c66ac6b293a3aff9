"""State that the control plane keeps on disk beside the store, so that it may be killed at any moment.

Every file is replaced by one rename. A missing or damaged file costs a new reference or a canary's time, never a
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
"""The folder in the state folder that holds the remembered windows."""
REMEMBERED = 32
MAX_BYTES: Final = 65_536
"""Greatest size of a JSON file of the state folder; such a file has a few hundred bytes."""
_NUMBERED: Final = re.compile(r"[0-9]{6,9}\.npz", re.ASCII)

Kept = TypeVar("Kept")
Micros = Annotated[int, Field(ge=0, le=2 * MAX_TIME_US)]
"""A time by an engine's clock, or a little beyond its limit."""
Count = Annotated[int, Field(ge=0, le=2**31)]
Seconds = Annotated[float, Field(allow_inf_nan=False)]


@lru_cache(maxsize=REMEMBERED)
def _remembered(path: Path, changed_ns: int) -> Window:
    """Read a remembered window, once: each check asks for all of them while a change is due, and they do not change."""
    del changed_ns  # except for a file that was damaged since
    return Window.read(path)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The reference for drift: the first full windows since the workload last changed."""

    window: Window
    replicas: int


@dataclass(frozen=True, kw_only=True)
class Due:
    """A change of the workload that no evolution has answered yet."""

    reason: str
    engine: str
    since_us: Micros
    """Earliest start of the window to evolve on, by that engine's clock."""
    looks: Count = 0
    """Number of comparisons of the known policies since the change."""
    next_look_us: Micros = 0
    """Time of the next such comparison, by that engine's clock."""
    rounds: Count = 0
    """Number of evolutions for this change so far."""


@dataclass(frozen=True, kw_only=True)
class Evolving:
    """An evolution in progress."""

    window: Window
    seed: int
    reason: str
    run: str | None
    """None until the run has its id."""
    like: tuple[int, ...] = ()
    """Numbers of the remembered windows of a similar workload that the evolution also trains on."""


@dataclass(frozen=True, kw_only=True)
class ShadowStart:
    """The start of the telemetry that a candidate in shadow is judged on."""

    candidate: str
    engine: str
    since_us: Micros
    """First arrival to judge on, by that engine's clock; the candidate was evolved on none of the later ones."""
    looks: Count = 0
    """Number of times it was judged."""
    next_us: Micros = 0
    """Time of the next judgement, by that engine's clock."""


@dataclass(frozen=True, kw_only=True)
class CanaryStart:
    """The moment a canary started."""

    engine: str
    at_us: Micros
    """The start by that engine's clock."""
    fallbacks: Count
    """Steps dropped to the built-in order until then, over all engines."""
    wall_s: Seconds


@dataclass(frozen=True, kw_only=True)
class _Task:
    """The JSON form of `Evolving`."""

    seed: Annotated[int, Field(ge=-(2**63), le=2**63)]
    reason: str
    run: str | None
    like: tuple[Count, ...]


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """The JSON form of `Reference`."""

    replicas: Annotated[int, Field(ge=1, le=2**31)]


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """The window that was checked last."""

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
        """Return the recalibrated model of an earlier session, if its engine is the same, else the given one."""
        try:
            kept = Calibration.model_validate_json(read_bounded(self.folder / "calibration.json", MAX_BYTES))
        except (FileRefusedError, ValidationError):
            return given
        return kept if kept.engine == given.engine else given

    def keep_calibration(self, calibration: Calibration) -> None:
        """Keep the calibration for the next session."""
        self._write("calibration", calibration.model_dump(mode="json"))

    def reference(self) -> Reference | None:
        """Return the reference kept last; None when there is none, or it is damaged."""
        kept = self._read("reference", _Measured)
        try:
            window = Window.read(self.folder / "reference.npz")
        except WindowError:
            return None
        return None if kept is None else Reference(window=window, replicas=kept.replicas)

    def keep_reference(self, reference: Reference) -> None:
        """Keep the reference that drift is measured against from now on."""
        reference.window.write(self.folder / "reference.npz")
        self._write("reference", {"replicas": reference.replicas})

    def forget_reference(self) -> None:
        """Drop the reference, because the workload has changed; the next full window replaces it."""
        (self.folder / "reference.json").unlink(missing_ok=True)

    def remembered(self) -> dict[int, Window]:
        """Return the settled windows of the past by number, oldest first; damaged ones are left out."""
        found = {}
        for path in self._remembered_paths():
            with suppress(WindowError, OSError):
                found[int(path.stem)] = _remembered(path, path.stat().st_mtime_ns)
        return found

    def remember(self, window: Window) -> None:
        """Keep a settled window, because a similar workload may come again; keep at most the newest REMEMBERED."""
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
        """True when an evolution was begun and not finished."""
        return (self.folder / "evolving.json").is_file()

    def task(self) -> Evolving:
        """Return the evolution in progress.

        Raises:
            WindowError: its files are damaged.
        """
        kept = self._read("evolving", _Task)
        if kept is None:
            raise WindowError(f"what was kept of the evolution in {self.folder} is damaged")
        window = Window.read(self.folder / "evolving.npz")
        return Evolving(window=window, seed=kept.seed, reason=kept.reason, run=kept.run, like=kept.like)

    def keep_task(self, task: Evolving) -> None:
        """Keep an evolution that begins, or that has received its run's id."""
        if task.run is None:
            task.window.write(self.folder / "evolving.npz")
        self._write("evolving", {"seed": task.seed, "reason": task.reason, "run": task.run, "like": task.like})

    def forget_task(self) -> None:
        """Drop the evolution in progress, because it is over."""
        (self.folder / "evolving.json").unlink(missing_ok=True)

    def due(self) -> Due | None:
        """Return the change that waits for an evolution; None if there is none."""
        return self._read("due", Due)

    def keep_due(self, due: Due) -> None:
        """Keep a change that waits for an evolution."""
        self._write("due", asdict(due))

    def forget_due(self) -> None:
        """Drop the change, because it was answered."""
        (self.folder / "due.json").unlink(missing_ok=True)

    def shadow(self, candidate: str) -> ShadowStart | None:
        """Return the start of a candidate's telemetry in shadow; None when it is not known."""
        kept = self._read("shadow", ShadowStart)
        return kept if kept is not None and kept.candidate == candidate else None

    def keep_shadow(self, start: ShadowStart) -> None:
        """Keep the start of a candidate that enters shadow or was judged again."""
        self._write("shadow", asdict(start))

    def canary(self) -> CanaryStart | None:
        """Return the moment the canary started; None when it is not known."""
        return self._read("canary", CanaryStart)

    def keep_canary(self, start: CanaryStart) -> None:
        """Keep the moment a canary started."""
        self._write("canary", asdict(start))

    def checked(self) -> tuple[str, int] | None:
        """Return the engine and the end (us) of the last window that was checked."""
        kept = self._read("checked", _Checked)
        return None if kept is None else (kept.engine, kept.end_us)

    def keep_checked(self, engine: str, end_us: int) -> None:
        """Keep the end of the last checked window; a later window must have no request from before it."""
        self._write("checked", {"engine": engine, "end_us": end_us})

    def _read(self, name: str, kind: type[Kept]) -> Kept | None:
        try:
            kept: Kept = _KINDS[kind].validate_json(read_bounded(self.folder / f"{name}.json", MAX_BYTES))
        except (FileRefusedError, ValidationError):
            return None
        return kept

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        write_atomically(self.folder / f"{name}.json", json.dumps(content))
