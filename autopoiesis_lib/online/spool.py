"""The telemetry spool: how an engine's records reach the control plane, with nothing but files.

An engine's own helper thread appends segments (`Spool.append`), the control plane reads those it has not seen
(`Spool.read`). A segment is one `.npz` file, written under a hidden name and renamed, so a reader sees all of it or nothing;
the oldest are deleted beyond a fixed number, so an engine that nobody reads from fills no disk. Segments hold counts and
times, never request contents.

File names are `BOOT-NUMBER.npz`: BOOT names one start of the engine (its clock and row numbers begin anew with each),
NUMBER counts its segments.
"""

import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import AutopoiesisError

__all__ = ["KEPT_SEGMENTS", "Segment", "Spool", "SpoolError"]

Ints = NDArray[np.int64]

KEPT_SEGMENTS = 4_096
"""Segments of one engine kept on disk: over an hour at one a second."""


class SpoolError(AutopoiesisError):
    """A segment cannot be written."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Segment:
    """Records of one engine since its last segment, as int64 columns; field names as the engine's telemetry has them."""

    engine: str
    boot: str
    """One start of the engine; letters and digits."""
    number: int
    requests: Mapping[str, Ints] = field(default_factory=dict)
    """One row a request that left the engine."""
    steps: Mapping[str, Ints] = field(default_factory=dict)
    """One row a step."""
    lost_requests: int = 0
    """Rows overwritten in the engine's ring before they were written here."""
    lost_steps: int = 0

    @property
    def position(self) -> tuple[str, int]:
        """What `Spool.read` takes as `after`."""
        return (self.boot, self.number)


@dataclass(frozen=True)
class Spool:
    """The spool of one engine: a folder. Creating the value touches nothing."""

    folder: Path

    def append(self, segment: Segment, *, keep: int = KEPT_SEGMENTS) -> None:
        """Write one segment; at most `keep` stay on disk.

        Raises:
            SpoolError: the folder cannot be written; what was there is unharmed.
        """
        arrays: dict[str, Ints] = {"lost": np.array([segment.lost_requests, segment.lost_steps], np.int64)}
        arrays |= {f"requests.{name}": column for name, column in segment.requests.items()}
        arrays |= {f"steps.{name}": column for name, column in segment.steps.items()}
        temporary: str | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".", suffix=".part")
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            Path(temporary).replace(self.folder / f"{segment.boot}-{segment.number:012d}.npz")
            for path in self._paths()[:-keep]:
                path.unlink(missing_ok=True)
        except OSError as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise SpoolError(f"telemetry cannot be written to {self.folder}: {error.strerror or error}") from None

    def read(self, after: tuple[str, int] | None = None) -> list[Segment]:
        """The segments written after a position, oldest first; unreadable ones are left out.

        After a restart of the engine the new boot's segments follow the old one's.
        """
        found: list[Segment] = []
        passed = after is None or all(self._position(path) != after for path in self._paths())
        for path in self._paths():
            position = self._position(path)
            if passed and (after is None or position[0] != after[0] or position[1] > after[1]):
                segment = self._load(path)
                if segment is not None:
                    found.append(segment)
            passed = passed or position == after
        return found

    def _paths(self) -> list[Path]:
        """By boot in the order the boots began, then by number."""
        paths = [path for path in self.folder.glob("*-*.npz") if not path.name.startswith(".")]
        began: dict[str, int] = {}
        for path in paths:
            try:
                changed = path.stat().st_mtime_ns
            except FileNotFoundError:
                changed = 0
            boot = self._position(path)[0]
            began[boot] = min(began.get(boot, changed), changed)
        return sorted(paths, key=lambda path: (began[self._position(path)[0]], path.name))

    def _position(self, path: Path) -> tuple[str, int]:
        boot, _, number = path.stem.rpartition("-")
        return (boot, int(number) if number.isdigit() else -1)

    def _load(self, path: Path) -> Segment | None:
        columns: dict[str, dict[str, Ints]] = {"requests": {}, "steps": {}}
        try:
            with np.load(path, allow_pickle=False) as content:
                lost = content["lost"]
                for key in content.files:
                    kind, _, name = key.partition(".")
                    if kind in columns:
                        columns[kind][name] = np.asarray(content[key], dtype=np.int64)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
            return None  # deleted while we looked, or damaged: telemetry may be lost, serving and watching go on
        boot, number = self._position(path)
        return Segment(
            engine=self.folder.name, boot=boot, number=number, requests=columns["requests"], steps=columns["steps"],
            lost_requests=int(lost[0]), lost_steps=int(lost[1]),
        )  # fmt: skip
