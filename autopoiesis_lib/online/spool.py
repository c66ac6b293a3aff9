"""The telemetry spool: how an engine's records reach the control plane, with nothing but files.

An engine's helper thread leaves numbered pieces in `CHANNEL/telemetry/ENGINE/NUMBER.npz` (see `autopoiesis_adapters.channel`,
which writes them all at once and deletes the oldest); the control plane reads those it has not seen. The arrays of a piece are
int64 columns called `requests.FIELD`, `arrivals.FIELD` and `steps.FIELD`: counts and times, never request contents. Numbers
count up by one while an engine lives and jump when it starts anew, so a jump says that records are missing or that a new clock
began.
"""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Segment", "read_segments"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Segment:
    """One piece of an engine's records, as int64 columns; field names as the engine's telemetry has them."""

    engine: str
    number: int
    requests: Mapping[str, Ints] = field(default_factory=dict)
    """One row a request that left the engine."""
    arrivals: Mapping[str, Ints] = field(default_factory=dict)
    """One row a request that came."""
    steps: Mapping[str, Ints] = field(default_factory=dict)
    """One row a step."""


def read_segments(folder: Path, after: int = -1) -> list[Segment]:
    """The pieces of the engine a folder is called after with numbers above `after`, oldest first; damaged ones are left out."""
    paths = sorted((int(path.stem), path) for path in folder.glob("*.npz") if path.stem.isdigit())
    found = (_load(folder.name, number, path) for number, path in paths if number > after)
    return [segment for segment in found if segment is not None]


def _load(engine: str, number: int, path: Path) -> Segment | None:
    columns: dict[str, dict[str, Ints]] = {"requests": {}, "arrivals": {}, "steps": {}}
    try:
        with np.load(path, allow_pickle=False) as content:
            for key in content.files:
                kind, _, name = key.partition(".")
                if kind in columns:
                    columns[kind][name] = np.asarray(content[key], dtype=np.int64)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None  # deleted while we looked, or damaged: telemetry may be lost, serving and watching go on
    return Segment(engine=engine, number=number, **columns)
