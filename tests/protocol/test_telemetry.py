"""Claims about telemetry pieces: what is written is read, and what is hostile is refused, counted and passed over."""

import os
import random
import resource
import socket
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopoiesis_lib.protocol import telemetry
from autopoiesis_lib.protocol.files import FileUnwritableError
from autopoiesis_lib.protocol.telemetry import (
    AHEAD_US,
    COLUMNS,
    MAX_PIECE_BYTES,
    MAX_ROWS,
    MAX_TIME_US,
    Piece,
    TelemetryError,
    TelemetryProblem,
    TelemetryReader,
    pack,
    parse_piece,
    write_piece,
)
from tests.protocol.pieces import (
    ROWS,
    Ints,
    archive,
    columns,
    member_of,
    members,
    patched,
    patched_end,
    with_header,
)

GOOD = archive(members())
AT = "steps.at_us.npy"
DATA = b"\x01" + bytes(8 * ROWS - 1)
BOMB = zipfile.ZIP_DEFLATED
INT64 = np.iinfo(np.int64)


def leave(
    channel: Path, number: int, *, rows: int = ROWS, start_us: int | None = None, engine: str = "engine-0"
) -> Path:
    """Leave a good piece whose times follow from its number."""
    start = 1_000_000 + number % 1_000 * 1_000_000 if start_us is None else start_us
    return write_piece(channel, engine, number, columns(rows, start_us=start, first=1 + number % 1_000 * rows))


def plant(folder: Path, number: int) -> None:
    """Put a good piece there as somebody else would: nothing is removed."""
    start = 1_000_000 + number % 1_000 * 1_000_000
    given = columns(start_us=start, first=1 + number % 1_000 * ROWS)
    (folder / f"{number:08}.npz").write_bytes(pack({"version": np.array([1], np.int64), **given}))


def seen(reader: TelemetryReader) -> list[int]:
    return [piece.number for piece in reader.read().pieces]


class TestRoundTrip:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        given = columns()
        path = write_piece(tmp_path, "engine-0", 7, given)
        (piece,) = TelemetryReader(path.parent).read().pieces
        assert (piece.engine, piece.number, path.name) == ("engine-0", 7, "00000007.npz")
        for table, part in piece.tables():
            for name, column in part.items():
                assert column.dtype == np.int64
                assert np.array_equal(column, given[f"{table}.{name}"])
        assert path.stat().st_mode & 0o777 == 0o644

    def test_numpys_own_archives_are_accepted(self, tmp_path: Path) -> None:
        for save in (np.savez, np.savez_compressed):
            save(tmp_path / "x.npz", version=np.array([1]), **columns())  # type: ignore[arg-type]
            assert parse_piece((tmp_path / "x.npz").read_bytes(), "e", 1)[0].number == 1

    def test_numpy_reads_a_piece(self, tmp_path: Path) -> None:
        with np.load(leave(tmp_path, 3)) as content:
            assert set(content.files) == {"version", *COLUMNS}

    def test_the_largest_piece_fits_its_bound(self) -> None:
        noise = np.random.default_rng(0).integers(INT64.min, INT64.max, (len(COLUMNS), MAX_ROWS), dtype=np.int64)
        content = pack({"version": np.array([1], np.int64), **dict(zip(COLUMNS, noise, strict=True))})
        assert MAX_PIECE_BYTES * 0.95 < len(content) <= MAX_PIECE_BYTES
        piece, dropped = parse_piece(content, "e", 1)
        assert sum(len(part["priority"]) for _, part in piece.tables() if "priority" in part) < MAX_ROWS
        assert dropped[TelemetryProblem.VALUES] > MAX_ROWS

    def test_importing_the_schema_loads_no_solver_or_compiler(self) -> None:
        code = (
            "import sys; import autopoiesis_lib.protocol.telemetry; "
            "print([m for m in ('numba', 'z3', 'scipy', 'sqlalchemy', 'llvmlite') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


def without(name: str) -> bytes:
    return archive({key: data for key, data in members().items() if key != name})


def replaced(name: str, data: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    return archive(members() | {name: data}, method)


def header(shape: str, descr: str = "'<i8'", fortran: str = "False") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    return (text + " " * (117 - len(text)) + "\n").encode()


def renamed(old: str, new: str) -> bytes:
    return archive([(new if name == old else name, data) for name, data in members().items()])


def with_zip64_locator() -> bytes:
    """Put the locator of a zip64 directory that speaks of a million entries into the comment of the last entry."""
    start = GOOD.rindex(b"PK\x01\x02")
    directory = GOOD.index(b"PK\x01\x02")
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 10**6, 10**6, len(GOOD), 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(GOOD) - 22, 1)
    body = bytearray(GOOD[:-22] + record + locator)
    struct.pack_into("<H", body, start + 32, len(record) + len(locator))
    end = bytearray(GOOD[-22:])
    struct.pack_into("<L", end, 12, len(body) - directory)
    return bytes(body + end)


def many_entries() -> bytes:
    """A directory of 60,000 entries of nothing."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    count = 60_000
    return entry * count + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(entry) * count, 0, 0)


STRUCTURE: dict[str, tuple[bytes, TelemetryProblem]] = {
    "empty": (b"", TelemetryProblem.ARCHIVE),
    "no zip": (b"PK garbage" * 20, TelemetryProblem.ARCHIVE),
    "cut in half": (GOOD[: len(GOOD) // 2], TelemetryProblem.ARCHIVE),
    "last byte missing": (GOOD[:-1], TelemetryProblem.ARCHIVE),
    "text before it": (b"#!/bin/sh\n" + GOOD, TelemetryProblem.ARCHIVE),
    "text after it": (GOOD + b"x", TelemetryProblem.ARCHIVE),
    "two archives": (GOOD + GOOD, TelemetryProblem.ARCHIVE),
    "archive comment": (patched_end(GOOD, 20, "<H", 1) + b"x", TelemetryProblem.ARCHIVE),
    "second disk": (patched_end(GOOD, 4, "<H", 1), TelemetryProblem.ARCHIVE),
    "directory elsewhere": (patched_end(GOOD, 16, "<L", 0), TelemetryProblem.ARCHIVE),
    "entries differ": (patched_end(GOOD, 8, "<H", 3), TelemetryProblem.ARCHIVE),
    "zip64 locator": (with_zip64_locator(), TelemetryProblem.ARCHIVE),
    "60,000 entries": (many_entries(), TelemetryProblem.SCHEMA),
    "encrypted": (patched(GOOD, "flags", lambda old: old | 1), TelemetryProblem.ARCHIVE),
    "strongly encrypted": (patched(GOOD, "flags", lambda old: old | 0x40), TelemetryProblem.ARCHIVE),
    "data descriptor": (patched(GOOD, "flags", lambda old: old | 8), TelemetryProblem.ARCHIVE),
    "patch data": (patched(GOOD, "flags", lambda old: old | 0x20), TelemetryProblem.ARCHIVE),
    "bzip2": (archive(members(), zipfile.ZIP_BZIP2), TelemetryProblem.ARCHIVE),
    "lzma": (archive(members(), zipfile.ZIP_LZMA), TelemetryProblem.ARCHIVE),
    "unknown method": (patched(GOOD, "method", lambda old: 99), TelemetryProblem.ARCHIVE),
    "says stored": (patched(GOOD, "method", lambda old: 0), TelemetryProblem.ARCHIVE),
    "size of 4 GiB": (patched(GOOD, "size", lambda old: 2**32 - 2), TelemetryProblem.ROWS),
    "size too small": (patched(GOOD, "size", lambda old: old - 8, entry=3), TelemetryProblem.ARCHIVE),
    "size too large": (patched(GOOD, "size", lambda old: old + 8, entry=3), TelemetryProblem.HEADER),
    "size of zero": (patched(GOOD, "size", lambda old: 0, entry=3), TelemetryProblem.ARCHIVE),
    "packed too large": (patched(GOOD, "packed", lambda old: 2**31), TelemetryProblem.ARCHIVE),
    "packed too small": (patched(GOOD, "packed", lambda old: 1), TelemetryProblem.ARCHIVE),
    "offset into nowhere": (patched(GOOD, "offset", lambda old: 2**31), TelemetryProblem.ARCHIVE),
    "overlapping members": (patched(GOOD, "offset", lambda old: 0, entry=1), TelemetryProblem.ARCHIVE),
    "offset inside a member": (patched(GOOD, "offset", lambda old: 7), TelemetryProblem.ARCHIVE),
    "local name differs": (GOOD.replace(b"steps.at_us", b"steps.at_uz", 1), TelemetryProblem.ARCHIVE),
    "checksum": (replaced(AT, member_of(columns()["steps.at_us"]), 0).replace(bytes([0x40, 0x42, 0x0F]), bytes(3), 1),
                 TelemetryProblem.ARCHIVE),
    "nested name": (renamed(AT, "../steps.at_us.npy"), TelemetryProblem.SCHEMA),
    "absolute name": (renamed(AT, "/steps.at_us.npy"), TelemetryProblem.SCHEMA),
    "backslash name": (renamed(AT, "x\\steps.at_us.npy"), TelemetryProblem.SCHEMA),
    "no npy": (renamed(AT, "steps.at_us"), TelemetryProblem.SCHEMA),
    "escape in a name": (renamed(AT, "\x1b[2Jsteps.npy"), TelemetryProblem.SCHEMA),
    "name of 200 letters": (renamed(AT, "x" * 200), TelemetryProblem.SCHEMA),
    "name of 60,000 letters": (renamed(AT, "x" * 60_000), TelemetryProblem.ARCHIVE),
    "missing column": (without(AT), TelemetryProblem.SCHEMA),
    "missing version": (without("version.npy"), TelemetryProblem.SCHEMA),
    "extra column": (archive(members() | {"steps.x.npy": member_of(np.zeros(1, np.int64))}), TelemetryProblem.SCHEMA),
    "another version": (replaced("version.npy", member_of(np.array([2]))), TelemetryProblem.VERSION),
    "two versions": (replaced("version.npy", member_of(np.array([1, 1]))), TelemetryProblem.VERSION),
    "unequal columns": (replaced(AT, member_of(np.zeros(ROWS + 1, np.int64))), TelemetryProblem.ROWS),
    "one empty column": (replaced(AT, member_of(np.zeros(0, np.int64))), TelemetryProblem.ROWS),
    "a row too many": (archive(members(columns(MAX_ROWS + 1))), TelemetryProblem.ROWS),
    "empty member": (replaced(AT, b""), TelemetryProblem.HEADER),
    "member without rows": (replaced(AT, b"\x93NUMPY\x01\x00"), TelemetryProblem.HEADER),
}  # fmt: skip

HEADERS: dict[str, bytes] = {
    "big endian": member_of(np.zeros(ROWS, ">i8")),
    "int32": member_of(np.zeros(ROWS, np.int32)),
    "uint64": member_of(np.zeros(ROWS, np.uint64)),
    "float": member_of(np.zeros(ROWS, np.float64)),
    "bool": member_of(np.zeros(ROWS, np.bool_)),
    "complex": member_of(np.zeros(ROWS, np.complex128)),
    "text": member_of(np.array(["x"] * ROWS)),
    "dates": member_of(np.zeros(ROWS, "datetime64[us]")),
    "records": member_of(np.zeros(ROWS, [("a", "<i8")])),
    "pickled objects": member_of(np.array([{}, [], (), print], object)),
    "no dimension": member_of(np.array(1)),
    "two dimensions": member_of(np.zeros((ROWS, 1), np.int64)),
    "two dimensions, fortran": member_of(np.asfortranarray(np.zeros((2, 2), np.int64))),
    "huge shape": with_header(header("(1000000000000,)"), DATA),
    "negative shape": with_header(header("(-4,)"), DATA),
    "shape beyond int64": with_header(header(f"({10**40},)"), DATA),
    "shape of one less": with_header(header("(3,)"), DATA),
    "shape of floats": with_header(header("(4.0,)"), DATA),
    "shape of True": with_header(header("(True,)"), DATA),
    "shape a list": with_header(header("[4]"), DATA),
    "fortran order": with_header(header("(4,)", fortran="True"), DATA),
    "object dtype": with_header(header("(4,)", descr="'|O'"), DATA),
    "dtype with a shape": with_header(header("(4,)", descr="('<i8', (2,))"), DATA),
    "header says too much": with_header(header("(4,)"), DATA, length=60_000),
    "header says too little": with_header(header("(4,)"), DATA, length=4),
    "header of nothing": with_header(b"", DATA),
    "no dictionary": with_header(b"__import__('os').system('true')\n", DATA),
    "expression 60 kB deep": with_header(b"(" * 60_000 + b"\n", DATA),
    "expression 1 MB deep": with_header(b"[" * 1_000_000 + b"\n", DATA, (2, 0)),
    "unary minus 1 MB deep": with_header(b"-" * 1_000_000 + b"1\n", DATA, (2, 0)),
    "npy 2.0": with_header(header("(4,)"), DATA, (2, 0)),
    "npy 3.0": with_header(header("(4,)"), DATA, (3, 0)),
    "npy 9.9": with_header(header("(4,)"), DATA, (9, 9)),
    "half a row missing": member_of(np.zeros(ROWS, np.int64))[:-4],
    "a row missing": member_of(np.zeros(ROWS, np.int64))[:-8],
    "a row more": member_of(np.zeros(ROWS, np.int64)) + bytes(8),
}


class TestForm:
    @pytest.mark.parametrize("kind", STRUCTURE)
    def test_an_archive_of_another_form_is_refused(self, kind: str) -> None:
        content, problem = STRUCTURE[kind]
        with pytest.raises(TelemetryError) as found:
            parse_piece(content, "e", 1)
        assert found.value.problem is problem
        assert str(found.value).isprintable()

    @pytest.mark.parametrize("kind", HEADERS)
    def test_a_column_of_another_type_is_refused(self, kind: str, recwarn: pytest.WarningsRecorder) -> None:
        with pytest.raises(TelemetryError) as found:
            parse_piece(replaced(AT, HEADERS[kind]), "e", 1)
        assert found.value.problem is TelemetryProblem.HEADER
        assert not recwarn.list

    @pytest.mark.parametrize("kind", [*STRUCTURE, *HEADERS])
    def test_a_refused_piece_hides_no_other(self, kind: str, tmp_path: Path) -> None:
        for number in (1, 2, 3):
            path = leave(tmp_path, number)
        content = STRUCTURE[kind][0] if kind in STRUCTURE else replaced(AT, HEADERS[kind])
        path.with_name("00000002.npz").write_bytes(content)
        reader = TelemetryReader(path.parent)
        found = reader.read()
        assert [piece.number for piece in found.pieces] == [1, 3]
        assert sum(found.refused.values()) == 1
        leave(tmp_path, 4)
        again = reader.read()
        assert [piece.number for piece in again.pieces] == [4]
        assert not again.refused

    def test_a_bomb_is_refused_before_it_is_inflated(self) -> None:
        bomb = replaced(AT, bytes(2**27))
        assert len(bomb) < 2**18
        tracemalloc.start()
        with pytest.raises(TelemetryError):
            parse_piece(bomb, "e", 1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**21

    def test_a_bomb_that_lies_of_its_size_is_cut_short(self) -> None:
        size = len(members()[AT])
        bomb = patched(replaced(AT, bytes(2**27)), "size", lambda old: size, entry=1)
        tracemalloc.start()
        with pytest.raises(TelemetryError):
            parse_piece(bomb, "e", 1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**22

    def test_bombs_are_read_in_little_memory(self, tmp_path: Path) -> None:
        leave(tmp_path, 1)
        size = len(members()[AT])
        folder = tmp_path / "telemetry" / "engine-0"
        for number, content in enumerate((
            replaced(AT, bytes(2**28)),
            patched(replaced(AT, bytes(2**28)), "size", lambda old: size, entry=1),
            archive({name: member_of(np.zeros(MAX_ROWS, np.int64)) for name in members()}),
        ), start=2):  # fmt: skip
            (folder / f"{number:08}.npz").write_bytes(content)
        leave(tmp_path, 5)
        code = f"""
import resource, sys
from pathlib import Path
from autopoiesis_lib.protocol.telemetry import TelemetryReader
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 128 * 2**20,) * 2)
found = TelemetryReader(Path({str(folder)!r})).read()
print([piece.number for piece in found.pieces], sum(found.refused.values()))
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "[1, 5] 3", done.stderr


def changed(**values: Any) -> dict[str, Ints]:
    """Return good columns with values of row 1 replaced; `requests__x` is the column `requests.x`."""
    found = columns()
    for name, value in values.items():
        column = found[name.replace("__", ".")] = found[name.replace("__", ".")].copy()
        column[1] = value
    return found


TOO_LARGE = [-1, INT64.min, 2**62, INT64.max, MAX_TIME_US + 1]
VALUES: list[dict[str, int]] = [
    *({f"{table}__{name}": value}
      for table, names in {"requests": ("number", "stamp_us", "admitted_us", "first_token_us", "finished_us",
                                        "num_prompt_tokens", "num_cached_tokens", "num_output_tokens", "num_preemptions",
                                        "aborted"),
                           "arrivals": ("number", "stamp_us", "num_prompt_tokens"),
                           "steps": ("at_us", "num_waiting", "num_running", "free_blocks", "scheduled_tokens", "admitted",
                                     "preempted")}.items()
      for name in names
      for value in (TOO_LARGE if name != "number" else [-1, 0, INT64.min, INT64.max])),
    {"requests__aborted": 2},
    {"requests__first_token_us": 1_050_000},
    {"requests__admitted_us": 1_050_000},
    {"requests__finished_us": 1_050_000},
    {"requests__finished_us": 0},
    {"requests__first_token_us": 1_105_000, "requests__admitted_us": 1_110_000},
    {"requests__finished_us": 1_115_000},
    {"requests__number": 1},
    {"arrivals__number": 1},
    {"steps__at_us": 1_000_000 + 10**8},
    {"steps__at_us": 3},
]  # fmt: skip


class TestValues:
    @pytest.mark.parametrize("values", VALUES, ids=str)
    def test_a_row_no_engine_could_report_is_dropped(self, values: dict[str, int]) -> None:
        given = changed(**values)
        piece, dropped = parse_piece(archive(members(given)), "e", 1)
        table = next(iter(values)).partition("__")[0]
        assert dropped.total() == 1
        for name, part in piece.tables():
            for field, column in part.items():
                expected = given[f"{name}.{field}"]
                assert np.array_equal(column, np.delete(expected, 1) if name == table else expected)

    @pytest.mark.parametrize("value", [INT64.min, -1, 2**40, INT64.max])
    @pytest.mark.parametrize("name", ["max_tokens", "priority"])
    def test_a_users_extreme_hides_no_request(self, name: str, value: int) -> None:
        piece, dropped = parse_piece(
            archive(members(changed(**{f"requests__{name}": value, f"arrivals__{name}": value}))), "e", 1
        )
        assert not dropped
        for part in (piece.requests, piece.arrivals):
            assert len(part[name]) == ROWS
            assert abs(int(part[name][1])) <= 2**31

    def test_a_step_from_the_future_hides_no_other(self) -> None:
        given = columns(100)
        given["steps.at_us"][10] = MAX_TIME_US
        piece, _ = parse_piece(archive(members(given)), "e", 1)
        assert len(piece.steps["at_us"]) == 99

    def test_a_step_from_the_past_hides_no_other(self) -> None:
        given = columns(100)
        given["steps.at_us"][90] = 0
        piece, _ = parse_piece(archive(members(given)), "e", 1)
        assert len(piece.steps["at_us"]) == 99


GARBAGE_NAMES = [
    "².npz", "٣.npz", "1.npz", "0000001.npz", "000000001.npz", "-0000001.npz", "+0000001.npz", "00000001.npz ",
    " 0000001.npz", "00000001.npz\n", "0000_001.npz", "9" * 30 + ".npz", "9" * 200 + ".npz", "00000001.NPZ", "00000001",
    "00000001.npz.npz", "00000001.npy", "0x000001.npz", "1e000001.npz", "\x1b[2J.npz", "\u202e00000001.npz", "..npz",
    "...", "00000001..npz", "NaN.npz", "inf.npz", "１２３４５６７８.npz", "00000001.npz\x7f",
]  # fmt: skip


class TestNames:
    @pytest.mark.parametrize("name", GARBAGE_NAMES)
    def test_what_is_not_named_as_a_piece_is_passed_over(self, name: str, tmp_path: Path) -> None:
        folder = leave(tmp_path, 100).parent
        (folder / name).write_bytes(GOOD)
        reader = TelemetryReader(folder)
        found = reader.read()
        assert [piece.number for piece in found.pieces] == [100]
        assert found.standing.get(TelemetryProblem.NAME, 0) == (not name.startswith("."))
        leave(tmp_path, 101)
        assert seen(reader) == [101]

    def test_a_name_of_no_text_is_passed_over(self, tmp_path: Path) -> None:
        folder = leave(tmp_path, 100).parent
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.npz")).write_bytes(GOOD)
        assert seen(TelemetryReader(folder)) == [100]

    @pytest.mark.slow
    def test_a_hundred_thousand_files_hide_nothing(self, tmp_path: Path) -> None:
        folder = leave(tmp_path, 5).parent
        for number in range(100_000):
            os.close(
                os.open(folder / (f"{number}.npz" if number % 2 else f"{10**8 + 2 * number}.npz"), os.O_CREAT, 0o600)
            )
        reader = TelemetryReader(folder)
        reader.read()
        leave(tmp_path, 6)
        assert seen(reader)[-1] == 6
        leave(tmp_path, 7)
        assert seen(reader) == [7]

    def test_more_entries_than_are_looked_at_are_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(telemetry, "MAX_ENTRIES", 4)
        folder = [leave(tmp_path, number).parent for number in range(1, 8)][-1]
        assert TelemetryReader(folder).read().standing[TelemetryProblem.CROWDED] == 1


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder_of_that_name(path: Path) -> None:
    path.mkdir()


def link(target: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        (path.parent.parent / "good.npz").write_bytes(GOOD)
        path.symlink_to(target)

    return make


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


THINGS = {
    "fifo": fifo,
    "folder": folder_of_that_name,
    "socket": bound_socket,
    "link to a piece": link("../good.npz"),
    "link to nothing": link("nothing"),
    "link to itself": link("00000002.npz"),
    "link to a device": link("/dev/zero"),
    "a tebibyte": sparse,
}


class TestFiles:
    @pytest.mark.parametrize("kind", THINGS)
    def test_what_is_no_small_regular_file_is_refused(self, kind: str, tmp_path: Path) -> None:
        folder = leave(tmp_path, 1).parent
        THINGS[kind](folder / "00000002.npz")
        leave(tmp_path, 3)
        reader = TelemetryReader(folder)
        found = reader.read()
        assert [piece.number for piece in found.pieces] == [1, 3]
        assert found.refused == {TelemetryProblem.FILE: 1}
        assert not reader.read().refused

    @pytest.mark.parametrize("kind", ["fifo", "link to a device", "link to nothing", "link to itself", "socket"])
    def test_a_folder_that_is_none_is_told(self, kind: str, tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        path = tmp_path / "x" / "00000002.npz"
        THINGS[kind](path)
        assert TelemetryReader(path).read().standing == {TelemetryProblem.FOLDER: 1}

    def test_a_linked_folder_is_not_read(self, tmp_path: Path) -> None:
        folder = leave(tmp_path, 1).parent
        (folder.parent / "other").symlink_to(folder)
        found = TelemetryReader(folder.parent / "other").read()
        assert not found.pieces
        assert found.standing == {TelemetryProblem.FOLDER: 1}


class TestNumbers:
    def test_a_piece_from_the_future_hides_none(self, tmp_path: Path) -> None:
        reader = TelemetryReader(leave(tmp_path, 1).parent)
        leave(tmp_path, 2)
        assert seen(reader) == [1, 2]
        plant(reader.folder, 10**11)
        found = reader.read()
        assert not found.pieces
        assert found.standing == {TelemetryProblem.SEQUENCE: 1}
        for number in (3, 4, 5):
            leave(tmp_path, number)
            assert seen(reader) == [number]

    @pytest.mark.parametrize("ahead", [2, 3, 100, 513, 10**9])
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_later_pieces_are_seen_wherever_one_is_planted(self, ahead: int, count: int, tmp_path: Path) -> None:
        reader = TelemetryReader(leave(tmp_path, 1).parent)
        leave(tmp_path, 2)
        assert seen(reader) == [1, 2]
        for number in range(count):
            plant(reader.folder, 2 + ahead + number)
        reader.read()
        numbers = range(3, 3 + count + ahead) if ahead < 4 else range(3, 5)  # past the planted ones, or long before
        for number in numbers:
            leave(tmp_path, number)
            found = seen(reader)
        assert found[-1] == numbers[-1]

    def test_a_restart_under_one_name_is_followed(self, tmp_path: Path) -> None:
        reader = TelemetryReader(leave(tmp_path, 1).parent)
        leave(tmp_path, 2)
        assert seen(reader) == [1, 2]
        for number in (1_700_000_000, 1_700_000_001):
            leave(tmp_path, number)
        assert seen(reader) == [1_700_000_000, 1_700_000_001]
        leave(tmp_path, 1_700_000_002)
        assert seen(reader) == [1_700_000_002]

    def test_a_restart_with_a_clock_set_back_is_followed(self, tmp_path: Path) -> None:
        reader = TelemetryReader(leave(tmp_path, 1_700_000_001).parent)
        leave(tmp_path, 1_700_000_002)
        reader.read()
        for number in (5, 6):
            leave(tmp_path, number)
        assert seen(reader) == [5, 6]

    def test_bad_pieces_of_the_future_do_not_stand_for_an_only_good_one(self, tmp_path: Path) -> None:
        folder = leave(tmp_path, 1).parent
        (folder / "4294967295.npz").write_bytes(b"bad")
        found = TelemetryReader(folder).read()
        assert [piece.number for piece in found.pieces] == [1]
        assert found.refused == {TelemetryProblem.ARCHIVE: 1}

    def test_what_was_not_read_comes_at_the_next_reading(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(telemetry, "MAX_READ_ROWS", 3 * ROWS * 2)
        folder = [leave(tmp_path, number).parent for number in range(1, 8)][-1]
        reader = TelemetryReader(folder)
        assert [seen(reader) for _ in range(5)] == [[1, 2], [3, 4], [5, 6], [7], []]


class TestClock:
    def test_a_piece_of_another_clock_is_refused(self, tmp_path: Path) -> None:
        reader = TelemetryReader(leave(tmp_path, 1).parent)
        leave(tmp_path, 2)
        reader.read()
        leave(tmp_path, 3, start_us=2**49)
        assert seen(reader) == []
        leave(tmp_path, 4)
        found = reader.read()
        assert [piece.number for piece in found.pieces] == [4]
        assert found.refused == {TelemetryProblem.CLOCK: 1}

    @pytest.mark.parametrize("start", [0, 10**6 + 3 * AHEAD_US, 2**49])
    def test_a_new_clock_is_believed_at_the_second_piece(self, start: int, tmp_path: Path) -> None:
        reader = TelemetryReader(leave(tmp_path, 1, start_us=10**10).parent)
        leave(tmp_path, 2, start_us=10**10 + 10**6)
        reader.read()
        leave(tmp_path, 3, start_us=start)
        assert seen(reader) == []
        leave(tmp_path, 4, start_us=start + 10**6)
        found = reader.read()
        assert [(piece.number, piece.new_clock) for piece in found.pieces] == [(3, True), (4, False)]
        leave(tmp_path, 5, start_us=start + 2 * 10**6)
        assert seen(reader) == [5]

    def test_a_wrong_first_piece_is_overruled(self, tmp_path: Path) -> None:
        reader = TelemetryReader(leave(tmp_path, 1, start_us=2**49).parent)
        assert seen(reader) == [1]
        for number in (2, 3, 4):
            leave(tmp_path, number)
        assert seen(reader) == [2, 3, 4]

    @pytest.mark.parametrize(("table", "name"), list(telemetry.EVENT.items()))
    def test_a_row_of_another_clock_is_dropped(self, table: str, name: str, tmp_path: Path) -> None:
        reader = TelemetryReader(leave(tmp_path, 1).parent)
        reader.read()
        given = columns(start_us=2_000_000, first=5)
        given[f"{table}.{name}"][-1] = 2**49
        write_piece(tmp_path, "engine-0", 2, given)
        found = reader.read()
        (piece,) = found.pieces
        assert found.refused == {TelemetryProblem.CLOCK: 1}
        assert {key: len(part[telemetry.EVENT[key]]) for key, part in piece.tables()} == {
            key: ROWS - (key == table) for key in telemetry.EVENT
        }

    def test_a_row_of_another_clock_in_the_first_piece_is_dropped(self, tmp_path: Path) -> None:
        given = columns()
        given["steps.at_us"][-1] = 2**49
        path = write_piece(tmp_path, "engine-0", 1, given)
        found = TelemetryReader(path.parent).read()
        assert found.refused == {TelemetryProblem.CLOCK: 1}
        assert int(found.pieces[0].steps["at_us"].max()) < 2_000_000


class TestWriting:
    @pytest.mark.parametrize("linked", ["telemetry", "telemetry/engine-0"])
    def test_a_link_is_never_written_through(self, linked: str, tmp_path: Path) -> None:
        foreign = tmp_path / "foreign"
        precious = foreign / ("engine-0" if linked == "telemetry" else "") / "00000001.npz"
        precious.parent.mkdir(parents=True)
        precious.write_text("precious")
        channel = tmp_path / "channel"
        (channel / linked).parent.mkdir(parents=True)
        (channel / linked).symlink_to(foreign)
        with pytest.raises(FileUnwritableError):
            write_piece(channel, "engine-0", 9, columns(), keep=1)
        assert [path for path in foreign.rglob("*") if path.is_file()] == [precious]
        assert precious.read_text() == "precious"

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
    def test_a_folder_of_another_user_is_not_written(self, tmp_path: Path) -> None:
        folder = leave(tmp_path, 1).parent
        os.chown(folder, 12_345, -1)
        with pytest.raises(FileUnwritableError, match="another user"):
            leave(tmp_path, 2)
        assert [path.name for path in folder.iterdir()] == ["00000001.npz"]

    def test_only_its_own_old_pieces_are_removed(self, tmp_path: Path) -> None:
        folder = leave(tmp_path, 1).parent
        (tmp_path / "precious").write_text("precious")
        (folder / "00000000.npz").symlink_to(tmp_path / "precious")
        (folder / "00000002.npz").mkdir()
        strange = {"zzz.npz", "-1.npz", "1.npz", "²²²²²²²².npz", "00000001.npz.bak", ".00000001.npz", "00000002.npz"}
        for name in strange - {"00000002.npz"}:
            (folder / name).write_text("not a piece")
        for number in range(3, 8):
            write_piece(tmp_path, "engine-0", number, columns(), keep=3)
        write_piece(tmp_path, "engine-0", 10**9, columns(), keep=3)
        write_piece(tmp_path, "engine-0", 8, columns(), keep=3)
        assert {path.name for path in folder.iterdir()} == {*strange, "00000008.npz", "1000000000.npz"}
        assert (tmp_path / "precious").read_text() == "precious"

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"steps.at_us": None}, TelemetryProblem.SCHEMA),
            ({"steps.more": np.zeros(ROWS, np.int64)}, TelemetryProblem.SCHEMA),
            ({"steps.at_us": np.zeros(ROWS + 1, np.int64)}, TelemetryProblem.ROWS),
            ({"steps.at_us": np.zeros(ROWS)}, TelemetryProblem.HEADER),
            ({"steps.at_us": np.zeros((ROWS, 1), np.int64)}, TelemetryProblem.HEADER),
        ],
    )
    def test_a_piece_that_no_reader_takes_is_not_written(
        self, change: dict[str, Any], problem: TelemetryProblem, tmp_path: Path
    ) -> None:
        given = {name: column for name, column in (columns() | change).items() if column is not None}
        with pytest.raises(TelemetryError) as found:
            write_piece(tmp_path, "engine-0", 1, given)
        assert found.value.problem is problem
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\n", "é", "x" * 129, ".hidden", "a\x00"])
    def test_a_name_that_no_reader_takes_is_not_written(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(TelemetryError) as found:
            write_piece(tmp_path, name, 1, columns())
        assert found.value.problem is TelemetryProblem.NAME
        assert not list(tmp_path.iterdir())


INPUTS = 100_000


def mutated(rng: random.Random, files: dict[str, bytes]) -> bytes:
    """Return a piece that was changed in its values, its npy files or its archive."""
    kind = rng.randrange(8)
    if kind == 0:
        given = columns(rng.choice([0, 1, ROWS]))
        for _ in range(rng.randrange(1, 4)):
            column = given[rng.choice(COLUMNS)]
            if len(column):
                column[rng.randrange(len(column))] = rng.choice([-1, 0, 1, 2**31, 2**50, 2**62, -(2**63), 2**63 - 1])
        return pack({"version": np.array([1], np.int64), **given})
    if kind == 1:
        changed_files = dict(files)
        name = rng.choice(list(files))
        changed_files[name] = damaged(rng, changed_files[name])
        return archive(changed_files, zipfile.ZIP_STORED)
    if kind == 2:
        return archive(dict(files) | {rng.choice(list(files)): rng.choice(list(HEADERS.values()))[:4096]}, 0)
    if kind == 3:
        field = rng.choice(["flags", "method", "packed", "size", "offset"])
        top = 2**16 if field in ("flags", "method") else 2**32
        value = rng.choice([0, 1, 8, 128, top - 1, rng.randrange(top)])
        return patched(GOOD, field, lambda old: value, entry=rng.randrange(len(files)), local=rng.random() < 0.5)
    if kind == 4:
        return patched_end(GOOD, rng.choice([4, 6, 8, 10, 20]), "<H", rng.randrange(2**16))
    if kind == 5:
        return rng.randbytes(rng.randrange(400))
    return damaged(rng, GOOD)


def damaged(rng: random.Random, content: bytes) -> bytes:
    found = bytearray(content)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(found) + 1)
        match rng.randrange(4):
            case 0:
                found[at : at + 1] = rng.randbytes(1)
            case 1:
                del found[at : at + rng.randrange(1, 64)]
            case 2:
                found[at:at] = rng.randbytes(rng.randrange(1, 16))
            case _:
                found[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 2**16, 2**31, 2**32 - 1]))
    return bytes(found)


def check(content: bytes) -> str:
    """Assert that a piece is refused with the one error there is, or holds nothing out of bounds; return which."""
    try:
        piece, _ = parse_piece(content, "e", 1)
    except TelemetryError as error:
        return str(error.problem)
    assert_in_bounds(piece)
    return "taken"


def assert_in_bounds(piece: Piece) -> None:
    for table, part in piece.tables():
        assert len({len(column) for column in part.values()}) == 1
        for column in part.values():
            assert column.dtype == np.int64 and column.ndim == 1 and len(column) <= MAX_ROWS
            assert not len(column) or (column.min() >= -(2**31) and column.max() <= 2**62)
        times = [column for name, column in part.items() if name.endswith("_us")]
        assert all(not len(column) or (column.min() >= 0 and column.max() <= MAX_TIME_US) for column in times)
        if table == "requests":
            assert (part["stamp_us"] <= part["finished_us"]).all()
        if "number" in part:
            assert len(np.unique(part["number"])) == len(part["number"])
    assert (np.diff(piece.steps["at_us"]) >= 0).all()


@pytest.mark.slow
class TestFuzz:
    def test_mutated_pieces_are_refused_or_within_bounds(self) -> None:
        limit = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        files, found = members(), Counter[str]()
        resource.setrlimit(resource.RLIMIT_AS, (used + 256 * 2**20, limit[1]))
        try:

            @settings(max_examples=INPUTS // 100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(st.integers(0, 2**64))
            def hundred(seed: int) -> None:
                rng = random.Random(seed)
                found.update(check(mutated(rng, files)) for _ in range(100))

            hundred()
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limit)
        assert found.total() >= INPUTS
        assert {"taken", "archive", "header", "schema"} <= found.keys(), found
