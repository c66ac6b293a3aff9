"""Rows of user-supplied files: bounded reading, strict JSON, and fields that are checked one by one.

A file may be hostile or damaged. Every size is bounded before memory is spent on it. A fault is either a
`FileRefusedError` of the whole file or a `FieldError` of one row.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Final

import jiter
import numpy as np
from numpy.typing import NDArray

from autopoiesis_lib.protocol.files import FileProblem, FileRefusedError, opened_regular
from autopoiesis_lib.protocol.text import printable

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_INT64",
    "MAX_LINES",
    "MAX_LINE_BYTES",
    "MAX_SPAN_US",
    "ROW",
    "FieldError",
    "field_of",
    "in_range",
    "integer",
    "json_object",
    "microseconds",
    "number",
    "out_of_line",
    "shown",
    "text_blocks",
]

MAX_FILE_BYTES: Final = 4 << 30
"""Maximum number of bytes of a file, both as stored and as decompressed."""
MAX_LINE_BYTES: Final = 4 << 20
MAX_LINES: Final = 50_000_000
MAX_SPAN_US: Final = 10 * 366 * 86_400_000_000
"""Ten years: the longest time from the first arrival of a file to the last."""
MAX_INT64: Final = (1 << 63) - 1

ROW: Final = "row"
"""Substitute for the name of a field if a row as a whole is wrong."""

_PIECE_BYTES: Final = 4 << 20  # at most MAX_LINE_BYTES: a line within one piece is then short enough
_SHOWN_CHARACTERS: Final = 60
_MISSING: Final = object()


class FieldError(ValueError):
    """A fault in one row of a file. `field` names the field, or is ROW."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"`{field}` {why}")
        self.field, self.why = field, why


# --- bounded reading ------


def text_blocks(path: Path) -> Generator[tuple[int, bytes], None, None]:
    """Yield blocks of whole lines, each as the number of its first line and its text.

    Lines are separated by `\\n`, whatever separator the file has, and a block does not end with one. Files whose names
    end in `.gz` are decompressed. A UTF-8 byte order mark at the start is removed.

    Raises:
        FileRefusedError: the file cannot be read, or it exceeds a bound of this module.
    """
    with (
        opened_regular(path, MAX_FILE_BYTES, follow_links=True) as handle,
        open(handle, "rb", buffering=0, closefd=False) as stored,
    ):
        source = gzip.GzipFile(fileobj=stored, mode="rb") if path.suffix == ".gz" else stored
        line, total, rest = 1, 0, b""
        while True:
            try:
                piece = source.read(_PIECE_BYTES) or b""
            except (OSError, EOFError, zlib.error) as error:
                why = getattr(error, "strerror", None) or error
                raise FileRefusedError(path, FileProblem.UNREADABLE, f"is damaged beyond line {line}: {why}") from None
            total += len(piece)
            if total > MAX_FILE_BYTES:
                raise FileRefusedError(path, FileProblem.TOO_LARGE, f"holds more than {MAX_FILE_BYTES:,} bytes of text")
            data = rest + piece
            if total == len(data):
                data = data.removeprefix(codecs.BOM_UTF8)
            # A last \r may be half of \r\n.
            cut = max(data.rfind(b"\n"), data.rfind(b"\r", 0, len(data) - 1)) + 1 if piece else len(data)
            text, rest = data[:cut], data[cut:]
            if b"\r" in text:
                text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            if not text.endswith(b"\n") and text:
                text += b"\n"
            if text.find(b"\n") > MAX_LINE_BYTES:
                raise _too_long(path, line)
            if text:
                yield line, text[:-1]
            line += text.count(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                raise _too_long(path, line)
            if line > MAX_LINES + 1:
                raise FileRefusedError(path, FileProblem.TOO_LARGE, f"has more than {MAX_LINES:,} lines")
            if not piece:
                return


def _too_long(path: Path, line: int) -> FileRefusedError:
    return FileRefusedError(path, FileProblem.TOO_LARGE, f"has more than {MAX_LINE_BYTES:,} bytes in line {line}")


# --- strict JSON ------


def json_object(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in a row or in a whole small file. Numbers may be NaN or infinite.

    Raises:
        FieldError: the text is not UTF-8, not JSON, not an object, nested deeper than 200 levels, has a number of more
            than 4,300 digits, or has a key twice.
    """
    try:
        found = jiter.from_json(raw, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError as error:
        raise FieldError(ROW, f"is no JSON object: {printable(str(error)[: _SHOWN_CHARACTERS * 2])}") from None
    if not isinstance(found, dict):
        raise FieldError(ROW, f"must be a JSON object, not {shown(found)}")
    return found


# --- fields ------


def shown(value: object) -> str:
    """Return a JSON value as short, printable text for a message."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value[: _SHOWN_CHARACTERS + 1] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def field_of(record: Mapping[str, Any], key: str) -> Any:
    """Return a field's value.

    Raises:
        FieldError: the field is missing.
    """
    value = record.get(key, _MISSING)
    if value is _MISSING:
        raise FieldError(key, "is missing")
    return value


def in_range(field: str, value: int, low: int, high: int) -> int:
    """Return the value if it lies in [low, high].

    Raises:
        FieldError: the value lies outside [low, high].
    """
    if not low <= value <= high:
        raise FieldError(field, f"{shown(value)} lies outside [{low:,}, {high:,}]")
    return value


def integer(record: Mapping[str, Any], key: str, low: int, high: int) -> int:
    """Return an integer field in [low, high].

    Raises:
        FieldError: the field is missing, out of range, or not an integer. A boolean, a text and 1.0 are not integers.
    """
    value = field_of(record, key)
    if type(value) is not int:
        raise FieldError(key, f"must be an integer, not {shown(value)}")
    return in_range(key, value, low, high)


def number(record: Mapping[str, Any], key: str) -> int | float:
    """Return a numeric field, which may be infinite.

    Raises:
        FieldError: the field is missing or not a number. A boolean and a text are not numbers.
    """
    value = field_of(record, key)
    if type(value) is not int and type(value) is not float:
        raise FieldError(key, f"must be a number, not {shown(value)}")
    return value


def microseconds(field: str, value: int | float, scale: int) -> int:
    """Return `value * scale`, rounded.

    Raises:
        FieldError: the product is not finite, or does not fit 64 bits.
    """
    scaled = value * scale
    if not -MAX_INT64 <= scaled <= MAX_INT64:  # this includes infinite values and NaN
        raise FieldError(field, f"{shown(value)} is not a finite time of at most 64 bits in microseconds")
    return round(scaled)


def out_of_line(stamps_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices of stamps far from the others, if all stamps together span more than MAX_SPAN_US.

    Far means more than half of MAX_SPAN_US from the median, so the other stamps span at most MAX_SPAN_US.
    """
    if not len(stamps_us) or int(stamps_us.max()) - int(stamps_us.min()) <= MAX_SPAN_US:
        return np.empty(0, dtype=np.int64)
    middle = (len(stamps_us) - 1) // 2
    median = int(np.partition(stamps_us, middle)[middle])
    low, high = max(median - MAX_SPAN_US // 2, -MAX_INT64), min(median + MAX_SPAN_US // 2, MAX_INT64)
    return np.flatnonzero((stamps_us < low) | (stamps_us > high)).astype(np.int64)
