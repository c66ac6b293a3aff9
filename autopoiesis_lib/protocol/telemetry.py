"""Telemetry from engines to the control plane: one schema, the writer of pieces and their reader.

An engine writes numbered pieces to `CHANNEL/telemetry/ENGINE/NUMBER.npz`. A piece is an archive of int64 columns, named
`steps.FIELD`, `requests.FIELD` and `arrivals.FIELD`, beside the version of this schema: counts and times, never
contents of requests. Numbers increase by one while an engine lives and begin higher when it starts again.

Pieces are hostile. The reader relies on these rules, and on no other claim of a piece or its folder:

- *Form.* A piece has a bounded size, the very members of the schema and no others, stored or deflated without
  encryption, each with the header that this module writes and as many rows as its table. All of this is checked before
  anything is inflated.
- *Values.* A row that no engine could report is dropped and counted. Priorities and token limits, which users choose,
  are clipped instead, so that no user can hide a request with them.
- *Numbers.* The pieces of an engine are a run of consecutive numbers. Of several runs in a folder, that one counts
  whose last piece was written last, by the time that the file system set; a lone piece counts only while there is no
  longer run. A piece numbered ahead of the others therefore hides none of them.
- *Clock.* Times lie within `AHEAD_US` of what earlier pieces and the time between the files allow. Single rows beyond
  that are dropped. A piece that lies beyond it as a whole is held back until the next one: if that goes on from it, the
  engine has another clock and earlier records are forgotten; otherwise the piece is refused.
"""

import heapq
import io
import os
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..errors import AutopoiesisError
from .files import FileProblem, FileRefusedError, FileUnwritableError, opened_folder, read_bounded, write_in
from .text import printable

__all__ = [
    "ARRIVAL_FIELDS",
    "COLUMNS",
    "ENGINE_NAME",
    "KEPT_PIECES",
    "MAX_PIECE_BYTES",
    "MAX_ROWS",
    "MAX_TIME_US",
    "REQUEST_FIELDS",
    "STEP_FIELDS",
    "TELEMETRY",
    "VERSION",
    "Piece",
    "Pieces",
    "TelemetryError",
    "TelemetryProblem",
    "TelemetryReader",
    "faulty_requests",
    "faulty_steps",
    "pack",
    "parse_piece",
    "unpack",
    "write_piece",
]

Int64s = NDArray[np.int64]
Bools = NDArray[np.bool_]

VERSION: Final = 1
"""Version of this schema; a reader refuses pieces of another."""

STEP_FIELDS: Final = (
    "at_us",
    "num_waiting",
    "num_running",
    "free_blocks",
    "scheduled_tokens",
    "admitted",
    "preempted",
    "adapter_ns",
    "fallbacks",
)
"""`at_us`: the step's clock; `adapter_ns`: time spent in the adapter during the step; `fallbacks`: total so far."""
ARRIVAL_FIELDS: Final = ("number", "stamp_us", "num_prompt_tokens", "max_tokens", "priority")
"""Fields of a new request: `number` counts an engine's requests from 1, and is in its request record again."""
REQUEST_FIELDS: Final = (
    "number",
    "stamp_us",
    "admitted_us",
    "first_token_us",
    "finished_us",
    "num_prompt_tokens",
    "num_cached_tokens",
    "num_output_tokens",
    "max_tokens",
    "priority",
    "num_preemptions",
    "aborted",
)
"""Fields of a finished request.

Times are in microseconds of the engine's monotonic clock, 0 for an event that never happened.

A first token is recorded when vLLM has processed it, at the beginning of the next step. `priority` is vLLM's own value.
"""

TABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "steps": STEP_FIELDS,
    "requests": REQUEST_FIELDS,
    "arrivals": ARRIVAL_FIELDS,
}
COLUMNS: Final = tuple(f"{table}.{name}" for table, names in TABLES.items() for name in names)
"""Names of a piece's columns."""
EVENT: Final = {"steps": "at_us", "requests": "finished_us", "arrivals": "stamp_us"}
"""The column of each table with the time at which its row was recorded."""

MAX_ROWS: Final = 131_072
"""Greatest number of rows of a table in one piece: twice the default size of an engine's ring buffers."""
MAX_TIME_US: Final = 2**50
"""36 years on a monotonic clock."""
MAX_TOKENS: Final = 2**31
MAX_COUNT: Final = 2**40
MAX_NUMBER: Final = 10**12

KEPT_PIECES: Final = 512
"""Number of pieces that an engine keeps: at one per ten seconds, a control plane may be away for 85 minutes."""
MAX_ENTRIES: Final = 131_072
"""Greatest number of entries of one engine's folder that are read."""
MAX_RUNS: Final = 1_024
"""Greatest number of runs of numbers in one engine's folder that are considered, the longest first."""
MAX_PIECES: Final = 1_024
"""Greatest number of pieces of one engine that are opened in one reading, the newest of their run."""
MAX_READ_ROWS: Final = 1_048_576
"""Number of rows after which a reading ends; the next one continues from there."""
AHEAD_US: Final = 600_000_000
"""Tolerance of the clock rule: the greatest delay between recording and writing."""
SPAN_US: Final = 86_400_000_000
"""Greatest distance of a time from the median of its piece, for a piece without earlier ones."""

TELEMETRY: Final = "telemetry"
"""The folder of a channel that holds one folder per engine."""
ENGINE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
"""Names of engines; a name must match in full."""
_PIECE_NAME: Final = re.compile(r"([0-9]{8}|[1-9][0-9]{8,11})\.npz", re.ASCII)

_END: Final = struct.Struct("<4s4H2LH")
"""End of a zip directory: signature, two disk numbers, entries here and in all, its size and start, comment."""
_ENTRY_BYTES: Final = 256
"""Greatest size of a directory entry with its name, for every schema."""
_MEMBER_BYTES: Final = 512
"""Size that an archive needs for a member beside its rows: npy header, local header and directory entry."""


class TelemetryProblem(StrEnum):
    """The reason why a piece, a folder or rows of a piece were not taken."""

    FOLDER = "folder"
    """An engine's folder is a symbolic link, no folder, or cannot be listed."""
    NAME = "name"
    """An entry is not named as a piece, or a folder not as an engine."""
    CROWDED = "crowded"
    """A folder with more entries than are read."""
    SEQUENCE = "sequence"
    """A piece that is numbered ahead of the run that counts."""
    FILE = "file"
    """A piece that is no regular file, too large or unreadable."""
    ARCHIVE = "archive"
    """The zip archive is damaged, or not of the plain form that is accepted."""
    HEADER = "header"
    """A column is not one-dimensional little-endian int64."""
    SCHEMA = "schema"
    """Columns are missing, unknown, or given twice."""
    VERSION = "version"
    """A piece of another version of the schema."""
    ROWS = "rows"
    """The columns of a table differ in length, or there are too many rows."""
    VALUES = "values"
    """Rows hold values that no engine could report."""
    CLOCK = "clock"
    """Times are not those of the engine's clock."""
    DUPLICATE = "duplicate"
    """Rows repeat a request's number."""


class TelemetryError(AutopoiesisError):
    """Telemetry that was refused; `problem` says why."""

    def __init__(self, problem: TelemetryProblem, detail: str) -> None:
        super().__init__(f"telemetry is refused ({problem}): {detail}")
        self.problem = problem


@dataclass(frozen=True, eq=False, kw_only=True)
class Piece:
    """One piece of an engine's records, as int64 columns by field."""

    engine: str
    number: int
    requests: Mapping[str, Int64s] = field(default_factory=dict)
    """One row per request that left the engine; `REQUEST_FIELDS`."""
    arrivals: Mapping[str, Int64s] = field(default_factory=dict)
    """One row per request that arrived; `ARRIVAL_FIELDS`."""
    steps: Mapping[str, Int64s] = field(default_factory=dict)
    """One row per step; `STEP_FIELDS`."""
    new_clock: bool = False
    """True when its times are not comparable with those of earlier pieces."""

    def tables(self) -> Iterator[tuple[str, Mapping[str, Int64s]]]:
        """Yield the name and the columns of each table."""
        yield from (("steps", self.steps), ("requests", self.requests), ("arrivals", self.arrivals))


@dataclass(frozen=True, eq=False, kw_only=True)
class Pieces:
    """The outcome of one reading of an engine's folder."""

    pieces: tuple[Piece, ...] = ()
    """Pieces not seen before, oldest first."""
    written_ns: int = 0
    """Time at which the last of them was written, by the file system's clock; 0 without any."""
    refused: Mapping[TelemetryProblem, int] = field(default_factory=dict)
    """Pieces and rows refused in this reading."""
    standing: Mapping[TelemetryProblem, int] = field(default_factory=dict)
    """Entries of the folder that every reading skips, with their current number."""


# archives


def pack(columns: Mapping[str, Int64s]) -> bytes:
    """Return int64 columns as a compressed npz archive that `unpack` accepts."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, column in columns.items():
            rows = np.ascontiguousarray(column, "<i8")
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), _header(len(rows)) + rows.tobytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def unpack(content: bytes, names: Collection[str], max_rows: int) -> dict[str, Int64s]:
    """Return the columns of an archive that holds the named ones and nothing else.

    Args:
        content: the archive, of bounded size.
        names: the columns it must hold.
        max_rows: the largest number of rows of a column.

    Raises:
        TelemetryError: the archive does not hold exactly these, or is not such an archive.
    """
    _check_end(content, len(names))
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = _members(archive, len(content), names, max_rows)
            return {name: _column(archive, member) for name, member in members.items()}
    except TelemetryError:
        raise
    except Exception as error:  # zipfile raises many kinds of error for damaged archives
        raise TelemetryError(TelemetryProblem.ARCHIVE, f"the archive is damaged ({printable(error)[:200]})") from None


def _check_end(content: bytes, count: int) -> None:
    """Refuse an archive whose directory is not small and at its very end, before `zipfile` makes objects of it."""
    end = content[-_END.size :]
    if len(end) < _END.size:
        raise TelemetryError(TelemetryProblem.ARCHIVE, f"{len(content)} bytes hold no archive")
    signature, disk, first_disk, here, entries, size, start, comment = _END.unpack(end)
    plain = signature == b"PK\x05\x06" and not (disk or first_disk or comment) and here == entries
    if not plain or start + size != len(content) - _END.size or content[-_END.size - 20 :].startswith(b"PK\x06\x07"):
        raise TelemetryError(TelemetryProblem.ARCHIVE, "it does not end with the directory of a plain zip archive")
    if entries != count:
        raise TelemetryError(TelemetryProblem.SCHEMA, f"it has {entries} members, not {count}")
    if size > entries * _ENTRY_BYTES:
        raise TelemetryError(TelemetryProblem.ARCHIVE, f"its directory takes {size} bytes for {entries} members")


def _members(archive: zipfile.ZipFile, size: int, names: Collection[str], max_rows: int) -> dict[str, zipfile.ZipInfo]:
    """Return the member of each column after checks of all entries of the directory."""
    members = archive.infolist()
    found = {member.orig_filename.removesuffix(".npy"): member for member in members}
    if sorted(member.orig_filename for member in members) != sorted(f"{name}.npy" for name in names):
        strange = sorted(found.keys() ^ set(names)) or ["given twice"]
        raise TelemetryError(
            TelemetryProblem.SCHEMA, f"its columns are not those wanted: {printable(strange[0])[:100]}"
        )
    starts = {member.header_offset for member in members}
    if len(starts) < len(members) or sum(member.compress_size for member in members) > size:
        raise TelemetryError(TelemetryProblem.ARCHIVE, "its members overlap")
    for name, member in found.items():
        if member.flag_bits or member.extra or member.comment:
            raise TelemetryError(TelemetryProblem.ARCHIVE, f"`{name}` is encrypted or has flags or extra fields")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise TelemetryError(TelemetryProblem.ARCHIVE, f"`{name}` is neither stored nor deflated")
        if member.file_size > len(_header(0)) + 8 * max_rows:
            raise TelemetryError(
                TelemetryProblem.ROWS, f"`{name}` takes {member.file_size} bytes, over {max_rows} rows"
            )
    return {name: found[name] for name in names}


def _column(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Int64s:
    with archive.open(member) as file:
        content = file.read(member.file_size + 1)  # never more than the directory says, which was checked
    start = len(_header(0))
    rows, rest = divmod(len(content) - start, 8)
    # The header is not parsed, but compared with the only valid one for this number of bytes.
    if len(content) != member.file_size or rest or rows < 0 or content[:start] != _header(rows):
        raise TelemetryError(
            TelemetryProblem.HEADER, f"`{member.filename}` is not one dimension of little-endian int64"
        )
    return np.frombuffer(content, "<i8", offset=start).astype(np.int64, copy=False)


# Typed in some supported versions of NumPy and not in others.
_write_header: Final[Callable[[io.BytesIO, dict[str, object]], None]] = npy.write_array_header_1_0


@lru_cache(maxsize=64)
def _header(rows: int) -> bytes:
    """Return the npy header of an int64 column; it is equally long for every number of rows."""
    buffer = io.BytesIO()
    _write_header(buffer, {"descr": "<i8", "fortran_order": False, "shape": (rows,)})
    return buffer.getvalue()


MAX_PIECE_BYTES: Final = (len(COLUMNS) + 1) * (8 * MAX_ROWS + MAX_ROWS // 100 + _MEMBER_BYTES)
"""Size of a piece whose columns have the greatest number of rows and do not compress.

It is rows times columns times eight bytes, plus 1% for the overhead of deflating, plus the headers.
"""


# pieces


def parse_piece(content: bytes, engine: str, number: int) -> tuple[Piece, Counter[TelemetryProblem]]:
    """Return the piece, and how many of its rows were dropped because no engine could report them.

    Raises:
        TelemetryError: the piece as a whole is refused.
    """
    columns = unpack(content, ("version", *COLUMNS), MAX_ROWS)
    if columns["version"].tolist() != [VERSION]:
        raise TelemetryError(
            TelemetryProblem.VERSION, f"it is not of version {VERSION}; run the same release in engines and here"
        )
    tables = {table: {name: columns[f"{table}.{name}"] for name in names} for table, names in TABLES.items()}
    for table, part in tables.items():
        if len({len(column) for column in part.values()}) > 1:
            raise TelemetryError(TelemetryProblem.ROWS, f"the columns of {table} differ in length")
    faults = {
        "steps": faulty_steps(tables["steps"]),
        "requests": faulty_requests(tables["requests"]) | (tables["requests"]["finished_us"] == 0),
        "arrivals": _faulty_arrivals(tables["arrivals"]),
    }
    dropped: Counter[TelemetryProblem] = Counter()
    kept: dict[str, dict[str, Int64s]] = {}
    for table, part in tables.items():
        rows = ~faults[table]
        dropped[TelemetryProblem.VALUES] += len(rows) - int(rows.sum())
        kept[table] = {name: _clipped(name, column[rows]) for name, column in part.items()}
        if "number" in kept[table]:
            numbers = kept[table]["number"]
            first = np.sort(np.unique(numbers, return_index=True)[1])
            dropped[TelemetryProblem.DUPLICATE] += len(numbers) - len(first)
            kept[table] = {name: column[first] for name, column in kept[table].items()}
    return _piece(engine, number, kept), +dropped


def _piece(engine: str, number: int, tables: Mapping[str, Mapping[str, Int64s]]) -> Piece:
    return Piece(
        engine=engine, number=number, requests=tables["requests"], arrivals=tables["arrivals"], steps=tables["steps"]
    )


def faulty_requests(columns: Mapping[str, Int64s]) -> Bools:
    """Return a mask of the request rows with values that no engine could report.

    Times that are present are in order; an unfinished request has 0 for each event that has not happened.
    """
    stamp, admitted, first, finished = (
        columns[f"{name}_us"] for name in ("stamp", "admitted", "first_token", "finished")
    )
    wrong = _faulty_arrivals(columns)
    for name in ("admitted_us", "first_token_us", "finished_us"):
        wrong |= _outside(columns[name], 0, MAX_TIME_US) | ((columns[name] != 0) & (columns[name] < stamp))
    wrong |= (first != 0) & (first < admitted)
    wrong |= (finished != 0) & ((finished < admitted) | (finished < first))
    for name in ("num_cached_tokens", "num_output_tokens"):
        wrong |= _outside(columns[name], 0, MAX_TOKENS)
    return wrong | _outside(columns["num_preemptions"], 0, MAX_COUNT) | _outside(columns["aborted"], 0, 1)


def _faulty_arrivals(columns: Mapping[str, Int64s]) -> Bools:
    """Return a mask of the rows with an impossible number, stamp or prompt length."""
    return (
        _outside(columns["number"], 1, 2**62)
        | _outside(columns["stamp_us"], 0, MAX_TIME_US)
        | _outside(columns["num_prompt_tokens"], 0, MAX_TOKENS)
    )


def faulty_steps(columns: Mapping[str, Int64s]) -> Bools:
    """Return a mask of the step rows with values that no engine could report, or that are out of time order."""
    wrong = _outside(columns["at_us"], 0, MAX_TIME_US)
    for name in STEP_FIELDS[1:-2]:  # the last two are clipped: nothing depends on them
        wrong |= _outside(columns[name], 0, MAX_COUNT)
    rows = np.flatnonzero(~wrong)
    at = columns["at_us"][rows]
    if len(at):
        early = at < np.maximum.accumulate(at)
        late = at > np.minimum.accumulate(at[::-1])[::-1]
        wrong[rows[early if early.sum() <= late.sum() else late]] = True
    return wrong


def _outside(column: Int64s, low: int, high: int) -> Bools:
    return np.asarray((column < low) | (column > high))


CLIPPED: Final = {
    "max_tokens": (0, MAX_TOKENS),
    "priority": (-MAX_TOKENS, MAX_TOKENS),
    "adapter_ns": (0, MAX_COUNT),
    "fallbacks": (0, MAX_COUNT),
}


def _clipped(name: str, column: Int64s) -> Int64s:
    return np.clip(column, *CLIPPED[name]) if name in CLIPPED else column


# writing


def write_piece(
    channel: Path, engine: str, number: int, columns: Mapping[str, Int64s], *, keep: int = KEPT_PIECES
) -> Path:
    """Write one piece of telemetry and remove the engine's own pieces that are `keep` or more behind it.

    Folders are never reached through a symbolic link below the channel, and an engine's folder must belong to this
    user.

    Args:
        channel: the channel's folder.
        engine: the engine's name.
        number: one more than the previous piece's, or the seconds of the Unix epoch for an engine's first.
        columns: `COLUMNS`, int64; those of one table equally long, of at most `MAX_ROWS` rows.
        keep: pieces to keep, this one included.

    Raises:
        TelemetryError: a name, number or column is not accepted by the reader.
        FileUnwritableError: the piece cannot be written, or the folder is another user's.
    """
    _check(engine, number, columns)
    path = channel / TELEMETRY / engine / _piece_name(number)
    ordered = {name: np.asarray(columns[name]) for name in COLUMNS}
    content = pack({"version": np.array([VERSION], np.int64), **ordered})
    try:
        channel.mkdir(parents=True, exist_ok=True)
        with (
            opened_folder(channel / TELEMETRY) as above,
            opened_folder(engine, inside=above) as folder,
        ):
            if os.fstat(folder).st_uid != os.geteuid():
                raise FileUnwritableError(
                    f"{path.parent} belongs to another user; remove it, or give this engine a name of its own"
                )
            write_in(folder, path.name, content, durable=False)  # its reader refuses a truncated piece
            _remove_old(folder, number - keep)
    except OSError as error:
        raise FileUnwritableError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


def _check(engine: str, number: int, columns: Mapping[str, Int64s]) -> None:
    if not ENGINE_NAME.fullmatch(engine):
        raise TelemetryError(TelemetryProblem.NAME, f"`{printable(engine)}` is not an engine's name")
    if not 0 <= number < MAX_NUMBER:
        raise TelemetryError(TelemetryProblem.NAME, f"{number} is not a piece's number")
    if columns.keys() != set(COLUMNS):
        strange = min(columns.keys() ^ set(COLUMNS))
        raise TelemetryError(TelemetryProblem.SCHEMA, f"`{printable(strange)}` is missing or no column of a piece")
    for table, names in TABLES.items():
        parts = [np.asarray(columns[f"{table}.{name}"]) for name in names]
        if any(part.dtype != np.int64 or part.ndim != 1 for part in parts):
            raise TelemetryError(TelemetryProblem.HEADER, f"columns of {table} are not one dimension of int64")
        if len({len(part) for part in parts}) > 1 or len(parts[0]) > MAX_ROWS:
            raise TelemetryError(
                TelemetryProblem.ROWS, f"columns of {table} differ in length or exceed {MAX_ROWS} rows"
            )


def _remove_old(folder: int, last: int) -> None:
    """Remove the pieces numbered `last` and lower. Higher ones are not this engine's, or not old."""
    for number in _numbers(folder):
        if number > last:
            break
        with suppress(FileNotFoundError, IsADirectoryError, PermissionError):  # other entries than files stay
            os.unlink(_piece_name(number), dir_fd=folder)


def _piece_name(number: int) -> str:
    return f"{number:08}.npz"


# reading


class TelemetryReader:
    """The reader of one engine's folder.

    It remembers what it has read, and raises nothing for any content of the folder.

    Args:
        folder: `CHANNEL/telemetry/ENGINE`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._position: int | None = None
        """Number of the last piece that was read or refused in the run that counts."""
        self._refused: dict[int, tuple[int, int]] = {}
        """Map from the number of a refused file to its change time and inode: it is not read again."""
        self._clock: _Clock | None = None
        self._held: tuple[Piece, _Clock] | None = None
        """A piece of another clock, until the next one confirms or refutes it."""

    def read(self) -> Pieces:
        """Return the new pieces, and how much was refused."""
        refused: Counter[TelemetryProblem] = Counter()
        standing: Counter[TelemetryProblem] = Counter()
        taken: list[Piece] = []
        written_ns = 0
        try:
            with opened_folder(self.folder, create=False) as folder:
                numbers = _numbers(folder, standing)
                present = set(numbers)
                self._refused = {number: about for number, about in self._refused.items() if number in present}
                for run in self._preferred(folder, numbers):
                    inside = self._inside(run)
                    loaded, last = self._load(folder, self._unread(run), refused)
                    if inside or loaded:
                        if not inside:
                            self._forget_clock(refused)
                        self._position = last
                        taken = self._in_time(loaded, refused)
                        written_ns = loaded[-1][1] if loaded else 0
                        standing[TelemetryProblem.SEQUENCE] = sum(number >= run.stop for number in numbers)
                        break
                    if refused.total() >= MAX_PIECES:
                        break
        except OSError:
            standing[TelemetryProblem.FOLDER] = 1
        return Pieces(pieces=tuple(taken), written_ns=written_ns, refused=+refused, standing=+standing)

    def _inside(self, run: range) -> bool:
        """Return true for the current run, or one that continues it."""
        return self._position is not None and run.start - 1 <= self._position < run.stop

    def _unread(self, run: range) -> range:
        first = self._position + 1 if self._position is not None and self._inside(run) else run.start
        return range(max(first, run.stop - MAX_PIECES), run.stop)

    def _preferred(self, folder: int, numbers: Sequence[int]) -> list[range]:
        """Return the runs of consecutive numbers, the one that counts first."""
        runs = heapq.nlargest(MAX_RUNS, _runs(numbers), key=lambda run: (len(run), run.stop))
        if len(runs) < 2:
            return runs
        written = {run: (_about(folder, run.stop - 1) or (0, 0))[0] for run in runs}
        lone = {run: len(run) == 1 for run in runs}
        return sorted(
            runs, key=lambda run: (not lone[run], lone[run] and self._inside(run), written[run], run.stop), reverse=True
        )

    def _load(
        self, folder: int, numbers: range, refused: Counter[TelemetryProblem]
    ) -> tuple[list[tuple[Piece, int]], int]:
        """Return the good pieces of a run with their times of writing, and the last number that was checked."""
        loaded: list[tuple[Piece, int]] = []
        rows, last = 0, numbers.stop - 1
        for number in numbers:
            about = _about(folder, number)
            if about is None or self._refused.get(number) == about:
                continue
            try:
                content = read_bounded(self.folder / _piece_name(number), MAX_PIECE_BYTES)
                piece, dropped = parse_piece(content, self.folder.name, number)
            except FileRefusedError as error:
                if error.problem is not FileProblem.MISSING:  # removed meanwhile by the engine
                    refused[TelemetryProblem.FILE] += 1
                    self._refused[number] = about
                continue
            except TelemetryError as error:
                refused[error.problem] += 1
                self._refused[number] = about
                continue
            refused.update(dropped)
            loaded.append((piece, about[0]))
            rows += sum(len(part[EVENT[table]]) for table, part in piece.tables())
            if rows >= MAX_READ_ROWS:
                last = number
                break
        return loaded, last

    def _forget_clock(self, refused: Counter[TelemetryProblem]) -> None:
        refused[TelemetryProblem.CLOCK] += self._held is not None
        self._clock = self._held = None

    def _in_time(self, loaded: Sequence[tuple[Piece, int]], refused: Counter[TelemetryProblem]) -> list[Piece]:
        """Return the pieces that satisfy the clock rule of this module, without rows that do not."""
        taken: list[Piece] = []
        for piece, written_ns in loaded:
            written_us = written_ns // 1_000
            times = np.sort(np.concatenate([part[EVENT[table]] for table, part in piece.tables()]))
            if not len(times):
                taken.append(piece)
                continue
            middle = int(times[len(times) // 2])
            if self._clock is None or self._clock.allows(middle, written_us):
                refused[TelemetryProblem.CLOCK] += self._held is not None
                self._held = None
                piece, self._clock = _tidied(piece, times, self._clock, written_us, refused)
                taken.append(piece)
            elif self._held is not None and self._held[1].allows(middle, written_us):
                before, clock = self._held
                self._held = None
                piece, self._clock = _tidied(piece, times, clock, written_us, refused)
                taken += [replace(before, new_clock=True), piece]
            else:
                refused[TelemetryProblem.CLOCK] += self._held is not None
                self._held = _tidied(piece, times, None, written_us, refused)
        return taken


@dataclass(frozen=True)
class _Clock:
    """The known bounds of an engine's clock."""

    newest_us: int
    """Newest time in any piece."""
    reach_us: int
    """Greatest lead of a piece's newest time over the time at which the piece was written.

    The smaller the delay of a piece, the closer this is to the difference of both clocks.
    """

    def limits(self, written_us: int) -> tuple[int, int]:
        """Return the smallest and the greatest time in a piece that was written at a given time."""
        return self.newest_us - AHEAD_US, written_us + self.reach_us + AHEAD_US

    def allows(self, time_us: int, written_us: int) -> bool:
        """Return true if a piece that was written then may hold the time."""
        low, high = self.limits(written_us)
        return low <= time_us <= high


def _tidied(
    piece: Piece, times: Int64s, clock: _Clock | None, written_us: int, refused: Counter[TelemetryProblem]
) -> tuple[Piece, _Clock]:
    """Return the piece without rows that the clock does not allow, and the known bounds of the clock after it.

    Args:
        piece: a piece with rows.
        times: the times of its rows, in order.
        clock: the earlier bounds; None: the rows are compared with the median of all.
        written_us: the time at which the piece was written.
        refused: receives the number of dropped rows.
    """
    middle = int(times[len(times) // 2])
    low, high = (middle - SPAN_US, middle + SPAN_US) if clock is None else clock.limits(written_us)
    newest = int(times[np.searchsorted(times, high, "right") - 1])
    reach = newest - written_us
    after = _Clock(newest, reach) if clock is None else _Clock(max(clock.newest_us, newest), max(clock.reach_us, reach))
    if low <= times[0] and times[-1] <= high:
        return piece, after
    kept = {}
    for table, part in piece.tables():
        rows = ~_outside(part[EVENT[table]], low, high)
        refused[TelemetryProblem.CLOCK] += len(rows) - int(rows.sum())
        kept[table] = {name: column[rows] for name, column in part.items()}
    return _piece(piece.engine, piece.number, kept), after


def _numbers(folder: int, passed_over: Counter[TelemetryProblem] | None = None) -> list[int]:
    """Return the numbers of the pieces in an open folder, in order; hidden files are still being written."""
    numbers, strange = [], 0
    with os.scandir(folder) as entries:
        for entry in islice(entries, MAX_ENTRIES):
            match = _PIECE_NAME.fullmatch(entry.name)
            if match is not None:
                numbers.append(int(match[1]))
            else:
                strange += not entry.name.startswith(".")
        crowded = next(entries, None) is not None
    if passed_over is not None:
        passed_over[TelemetryProblem.NAME] = strange
        passed_over[TelemetryProblem.CROWDED] = int(crowded)
    return sorted(numbers)


def _runs(numbers: Sequence[int]) -> Iterator[range]:
    start = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[end - 1] + 1:
            yield range(numbers[start], numbers[end - 1] + 1)
            start = end


def _about(folder: int, number: int) -> tuple[int, int] | None:
    """Return the last change time of a piece's file and its inode, or None when it is gone.

    The owner of the file cannot choose that time.
    """
    try:
        found = os.stat(_piece_name(number), dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None
    return found.st_ctime_ns, found.st_ino
