"""Telemetry pieces for tests: good ones, and archives made to any wish."""

import io
import struct
import zipfile
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from autopoiesis_lib.protocol.telemetry import COLUMNS, VERSION

Ints = NDArray[np.int64]

ROWS = 4


def columns(rows: int = ROWS, *, start_us: int = 1_000_000, first: int = 1) -> dict[str, Ints]:
    """Return the columns of a piece: each request comes, is served and leaves within a second, 100 ms after the one before."""
    row = np.arange(rows, dtype=np.int64)
    found = {name: np.zeros(rows, np.int64) for name in COLUMNS}
    stamps = start_us + row * 100_000
    for table in ("requests", "arrivals"):
        found[f"{table}.number"] = first + row
        found[f"{table}.stamp_us"] = stamps.copy()
        found[f"{table}.num_prompt_tokens"] = 100 + row
        found[f"{table}.max_tokens"] = 64 + row
    for place, name in enumerate(("admitted", "first_token", "finished")):
        found[f"requests.{name}_us"] = stamps + 10_000 * (place + 1)
    found["requests.num_output_tokens"] = 8 + row
    found["steps.at_us"] = stamps.copy()
    found["steps.num_running"] = 1 + row
    return found


def member_of(column: NDArray[np.generic]) -> bytes:
    """Return an npy file of a column."""
    buffer = io.BytesIO()
    np.save(buffer, column, allow_pickle=True)
    return buffer.getvalue()


def with_header(header: bytes, data: bytes, version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    """Return an npy file with any header text, and any length said of it."""
    length = len(header) if length is None else length
    size = struct.pack("<H", length & 0xFFFF) if version == (1, 0) else struct.pack("<I", length)
    return b"\x93NUMPY" + bytes(version) + size + header + data


def members(given: Mapping[str, Ints] | None = None) -> dict[str, bytes]:
    """Return the members of a piece's archive by file name."""
    found = {"version.npy": member_of(np.array([VERSION], np.int64))}
    return found | {f"{name}.npy": member_of(column) for name, column in (given or columns()).items()}


def archive(content: Mapping[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip archive of the members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in content if isinstance(content, list) else content.items():
            file.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def patched(content: bytes, field: str, change: Callable[[int], int], *, entry: int = 0, local: bool = True) -> bytes:
    """Return the archive with one number of a directory entry changed, and of its local header too.

    Args:
        content: an archive without comments.
        field: `flags`, `method`, `packed`, `size` or `offset` (the directory alone has that).
        change: the new number by the old one.
        entry: which member.
        local: change the local header as well.
    """
    places = {"flags": (8, "<H", 6), "method": (10, "<H", 8), "packed": (20, "<I", 18), "size": (24, "<I", 22)}
    at, form, in_local = places.get(field, (42, "<I", None))
    found = bytearray(content)
    start = content.index(b"PK\x01\x02")
    for _ in range(entry):
        start = content.index(b"PK\x01\x02", start + 4)
    (old,) = struct.unpack_from(form, content, start + at)
    struct.pack_into(form, found, start + at, change(old))
    (header,) = struct.unpack_from("<I", content, start + 42)
    if local and in_local is not None:
        struct.pack_into(form, found, header + in_local, change(old))
    return bytes(found)


def patched_end(content: bytes, place: int, form: str, value: int) -> bytes:
    """Return the archive with one number of its last 22 bytes changed."""
    found = bytearray(content)
    struct.pack_into(form, found, len(found) - 22 + place, value)
    return bytes(found)
