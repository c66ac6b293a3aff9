"""Readers and writers of trace files: Azure 2023, Mooncake, vLLM run, OpenAI-style logs, and the library's own CSV.

Files are read in blocks of lines into columns, so ten million rows need memory for their columns, not for their text. A
regular expression accepts a block of plain CSV rows as a whole, then numpy reads the numbers. Any other block is read
row by row. Both ways accept the same rows with the same values.
"""

import csv
import gzip
import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np

from autopoiesis_lib.protocol.files import FileRefusedError
from autopoiesis_lib.protocol.text import printable
from autopoiesis_lib.simulation._rows import (
    MAX_INT64,
    ROW,
    FieldError,
    field_of,
    in_range,
    integer,
    json_object,
    microseconds,
    number,
    out_of_line,
    shown,
    text_blocks,
)
from autopoiesis_lib.simulation.trace import (
    MAX_TOKENS_IN_VIEW,
    BadRow,
    Ints,
    MalformedTrace,
    Prefixes,
    Trace,
    TraceError,
    TraceFormat,
)

__all__ = ["read_trace", "write_trace"]

_CHUNK_LINES: Final = 200_000
_EXAMPLES: Final = 5
_OWN_HEADER: Final = "arrival_us,num_prompt_tokens,num_output_tokens,max_tokens,priority,prefix_block_tokens,prefix_ids"
_AZURE_HEADER: Final = "TIMESTAMP,ContextTokens,GeneratedTokens"
_MOONCAKE_BLOCK_TOKENS: Final = 512
_MAX_DATE_US: Final = 7_258_118_399_999_999
"""The last microsecond of 2199, counted from 1970."""
_RANGES: Final = ((1, MAX_TOKENS_IN_VIEW), (1, MAX_TOKENS_IN_VIEW), (1, MAX_TOKENS_IN_VIEW), (0, 15))
"""Bounds of the prompt, output, max_tokens and priority of a row."""
_FAR: Final = "lies more than five years from the median, and all arrivals must lie within ten years"
_ARRIVAL_FIELDS: Final[dict[str, str]] = {
    "autopoiesis": "arrival_us",
    "azure": "TIMESTAMP",
    "mooncake": "timestamp",
    "openai": "timestamp",
}

MAX_PREFIX_IDS: Final = 100_000_000

_INTEGER: Final = re.compile(rb"[ \t]*[+-]?[0-9]{1,19}[ \t]*")
_INTEGERS: Final = re.compile(rb"[ \t]*[0-9]{1,19}+(?:[ \t]++[0-9]{1,19}+)*+[ \t]*")
_DATE: Final = re.compile(
    rb"[ \t]*[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[ T][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,18})?)?(?:Z|\+00:00)?)?[ \t]*"
)


def _lines_of(row: bytes) -> re.Pattern[bytes]:
    # Possessive, so that a match needs no memory and a mismatch no second attempt.
    return re.compile(rb"%b(?:\n%b)*+" % (row, row))


_PLAIN_AZURE: Final = _lines_of(
    rb"[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9}+)?+(?:\+00:00)?+,[0-9]{1,7}+,[0-9]{1,7}+"
)
_PLAIN_OWN: Final = {
    **{width: _lines_of(b",".join([rb"-?+[0-9]{1,18}+"] * width)) for width in (3, 4, 5)},
    7: _lines_of(b",".join([rb"-?+[0-9]{1,18}+"] * 6) + rb",(?:[0-9]{1,18}+(?: [0-9]{1,18}+)*+)?+"),
}

Row = tuple[int, int, int, int, int, Sequence[int]]
"""The values of a row: arrival_us, prompt, output, max_tokens (0: unknown), priority (-1: unknown), prefix ids."""


@dataclass
class _Columns:
    """The columns of a file, which grow while it is read."""

    numbers: list[Ints] = field(default_factory=list)
    """Pieces of shape (5, n): arrival_us, prompt, output, max_tokens, priority."""
    prefix_lengths: list[Ints] = field(default_factory=list)
    prefix_ids: list[Ints] = field(default_factory=list)
    num_prefix_ids: int = 0
    lines: list[Sequence[int] | Ints] = field(default_factory=list)
    """The line of each row, in the same pieces."""
    block_tokens: int = 0
    """Tokens per prefix block; 0 until a row has one."""
    clock: str = ""
    """The field that the first row took its arrival from, for a format with several clocks."""
    bad_count: int = 0
    bad: list[BadRow] = field(default_factory=list)

    def malformed(self, line: int, wrong: FieldError) -> None:
        self.bad_count += 1
        if len(self.bad) < _EXAMPLES:
            self.bad.append(BadRow(line, wrong.field, wrong.why))

    def append(self, rows: Ints, lines: Sequence[int] | Ints, lengths: Ints, ids: Ints) -> None:
        self.numbers.append(rows)
        self.lines.append(lines)
        self.prefix_lengths.append(lengths)
        self.prefix_ids.append(ids)
        self.num_prefix_ids += len(ids)
        if self.num_prefix_ids > MAX_PREFIX_IDS:
            raise TraceError(f"has more than {MAX_PREFIX_IDS:,} prefix ids up to line {lines[-1]}")


def read_trace(
    path: Path,
    *,
    format: TraceFormat | None,  # noqa: A002
    on_malformed: Literal["stop", "skip"],
    name: str | None,
) -> Trace:
    """Read a trace file. See Trace.read."""
    columns = _Columns()
    try:
        with closing(text_blocks(path)) as blocks:
            line, text = next(blocks, (1, b""))
            kind = format or _recognise(text)
            if kind in _JSON_ROWS:
                _read_json_lines(chain([(line, text)], blocks), _JSON_ROWS[kind], columns)
            else:
                header, _, text = text.partition(b"\n")
                _read_csv(chain([(line + 1, text)], blocks), header, kind, columns)
    except FileRefusedError as refused:
        raise TraceError(f"cannot read trace: {printable(refused)}") from None
    except TraceError as wrong:
        raise TraceError(f"{printable(path)}: {wrong}") from None
    if columns.bad_count == 0 or on_malformed == "skip":
        return _assemble(columns, kind, path, name, on_malformed)
    raise MalformedTrace(printable(path), columns.bad_count, columns.bad)


def write_trace(trace: Trace, path: Path, *, format: TraceFormat) -> None:  # noqa: A002
    """Write a trace file. See Trace.write."""
    if format not in _WRITERS:
        raise TraceError(f"cannot write the format {format!r}; there are {', '.join(_WRITERS)}")
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as out:
        _WRITERS[format](trace, out)


def _recognise(text: bytes) -> TraceFormat:
    """Return the format of a file, recognised from its first line or from its first rows of JSON.

    Raises:
        TraceError: the file is empty or has no known format.
    """
    if not text.strip():
        raise TraceError("it is empty")
    first = text.partition(b"\n")[0].strip()
    if first.upper().startswith(_AZURE_HEADER.upper().encode()):
        return "azure"
    if first.startswith(b"arrival_us,"):
        return "autopoiesis"
    why = ""
    for raw in text.split(b"\n"):
        if not raw.lstrip().startswith(b"{"):
            continue
        try:
            keys = json_object(raw).keys()
        except FieldError as wrong:
            why = why or f"; its first row of JSON is malformed: {wrong}"
            continue
        if {"timestamp", "input_length", "output_length"} <= keys:
            return "mooncake"
        if {"input_toks", "output_toks"} <= keys:
            return "vllm-run"
        if keys & {"usage", "response", "prompt_tokens"}:
            return "openai"
    raise TraceError(
        "it starts as no known trace format (Azure CSV, Mooncake, vLLM run or OpenAI log JSON lines, own CSV starting "
        f"with 'arrival_us,'); name it with format=...{why}"
    )


# --- CSV ------


def _read_csv(blocks: Iterable[tuple[int, bytes]], header: bytes, kind: TraceFormat, columns: _Columns) -> None:
    names = [part.strip() for part in header.decode("ascii", "replace").split(",")]
    if kind == "autopoiesis":
        if len(names) < 3 or names != _OWN_HEADER.split(",")[: len(names)]:
            raise TraceError(f"the header must be {_OWN_HEADER}, of which the last four may be missing")
        parse: Callable[[bytes, _Columns], Row] = partial(_own_row, names)
        at_once: Callable[[int, bytes, _Columns], bool] = partial(_own_block, len(names))
    elif kind == "azure":
        if ",".join(names).upper() != _AZURE_HEADER.upper():
            raise TraceError(f"the header must be {_AZURE_HEADER}")
        parse, at_once = _azure_row, _azure_block
    else:
        raise TraceError(f"there is no trace format {kind!r}; there are {', '.join(_WRITERS)}")
    for line, text in blocks:
        if not at_once(line, text, columns):
            _parse_slowly(line, text, parse, columns)


def _azure_block(line: int, text: bytes, columns: _Columns) -> bool:
    """Read a whole block. Return False if one of its rows must be read by itself."""
    if not _PLAIN_AZURE.fullmatch(text):
        return False
    parts = text.replace(b"+00:00", b"").replace(b"\n", b",").split(b",")
    try:
        arrival = np.array(parts[0::3], dtype="datetime64[us]").astype(np.int64)
    except ValueError:
        return False
    if int(arrival.min()) < 0 or int(arrival.max()) > _MAX_DATE_US:
        return False
    rows = np.column_stack([arrival, list(map(int, parts[1::3])), list(map(int, parts[2::3]))])
    return _append_checked(line, rows, columns)


def _own_block(width: int, line: int, text: bytes, columns: _Columns) -> bool:
    """Read a whole block. Return False if one of its rows must be read by itself."""
    if width not in _PLAIN_OWN or not _PLAIN_OWN[width].fullmatch(text):
        return False
    if width <= 5:
        return _append_checked(line, _integers(text.replace(b"\n", b","), ",").reshape(-1, width), columns)
    halves = [row.rpartition(b",") for row in text.split(b"\n")]
    rows = _integers(b",".join(numbers for numbers, _, _ in halves), ",").reshape(-1, 6)
    lengths = np.array([ids.count(b" ") + 1 if ids else 0 for _, _, ids in halves], dtype=np.int64)
    size = int(rows[0, 5])
    if not 1 <= size <= MAX_TOKENS_IN_VIEW or columns.block_tokens not in (0, size) or bool(np.any(rows[:, 5] != size)):
        return False
    if bool(np.any(lengths > -(-rows[:, 1] // size))):
        return False
    ids = _integers(b" ".join(ids for _, _, ids in halves if ids), " ")
    if not _append_checked(line, rows[:, :5], columns, lengths, ids):
        return False
    if len(ids):
        columns.block_tokens = size
    return True


def _integers(text: bytes, separator: str) -> Ints:
    """Return the numbers of a text that a regular expression has accepted."""
    return np.fromstring(text, dtype=np.int64, sep=separator) if text else np.empty(0, dtype=np.int64)


def _append_checked(
    line: int, rows: Ints, columns: _Columns, lengths: Ints | None = None, ids: Ints | None = None
) -> bool:
    """Append rows of 3 to 5 columns. Return False and append nothing if a value is out of range."""
    if lengths is None:
        lengths = np.zeros(len(rows), dtype=np.int64)
    full = np.empty((5, len(rows)), dtype=np.int64)
    full[3], full[4] = 0, -1
    full[: rows.shape[1]] = rows.T
    for values, (low, high) in zip(full[1 : rows.shape[1]], _RANGES, strict=False):
        if int(values.min()) < low or int(values.max()) > high:
            return False
    columns.append(full, range(line, line + len(rows)), lengths, np.empty(0, dtype=np.int64) if ids is None else ids)
    return True


def _parts(raw: bytes, names: Sequence[str]) -> list[bytes]:
    parts = raw.split(b",")
    if len(parts) < len(names):
        raise FieldError(names[len(parts)], "is missing")
    if len(parts) > len(names):
        raise FieldError(ROW, f"has {len(parts)} fields, its header {len(names)}")
    return parts


def _whole(name: str, raw: bytes, low: int, high: int) -> int:
    if not _INTEGER.fullmatch(raw):
        raise FieldError(name, f"must be an integer of at most 19 digits, not {_shown_bytes(raw)}")
    return in_range(name, int(raw), low, high)


def _shown_bytes(raw: bytes) -> str:
    return shown(raw.decode("utf-8", "backslashreplace"))


def _azure_row(raw: bytes, _: _Columns) -> Row:
    names = _AZURE_HEADER.split(",")
    stamp, prompt, output = _parts(raw, names)
    if not _DATE.fullmatch(stamp):
        raise FieldError(names[0], f"must be YYYY-MM-DD HH:MM:SS.FRACTION in UTC, not {_shown_bytes(stamp)}")
    try:
        moment = np.datetime64(stamp.strip().decode("ascii").removesuffix("+00:00").removesuffix("Z"), "us")
    except ValueError:
        raise FieldError(names[0], f"{_shown_bytes(stamp)} is no date") from None
    return (
        _date_us(names[0], int(moment.astype(np.int64)), _shown_bytes(stamp)),
        _whole(names[1], prompt, 1, MAX_TOKENS_IN_VIEW),
        _whole(names[2], output, 1, MAX_TOKENS_IN_VIEW),
        0,
        -1,
        (),
    )


def _date_us(name: str, stamp: int, text: str) -> int:
    if not 0 <= stamp <= _MAX_DATE_US:
        raise FieldError(name, f"{text} lies outside the years 1970 to 2199")
    return stamp


def _own_row(names: Sequence[str], raw: bytes, columns: _Columns) -> Row:
    parts = _parts(raw, names)
    arrival = _whole(names[0], parts[0], -MAX_INT64, MAX_INT64)
    values = [_whole(name, part, *bounds) for name, part, bounds in zip(names[1:], parts[1:], _RANGES, strict=False)]
    prompt, output, limit, priority = values + [0, -1][len(values) - 2 :]
    ids: list[int] = []
    if len(parts) == 7 and parts[6].strip():
        if not _INTEGERS.fullmatch(parts[6]):
            raise FieldError(names[6], f"must be integers of at most 19 digits, not {_shown_bytes(parts[6])}")
        ids = list(map(int, parts[6].split()))
    if len(parts) > 5 and (ids or parts[5].strip()):
        size = _whole(names[5], parts[5], 1, MAX_TOKENS_IN_VIEW)
        _check_prefix(ids, prompt, size, columns, "prefix_ids")
    return arrival, prompt, output, limit, priority, ids


# --- JSON lines ------


def _read_json_lines(
    blocks: Iterable[tuple[int, bytes]], parse: Callable[[dict[str, Any], _Columns], Row], columns: _Columns
) -> None:
    def row(raw: bytes, into: _Columns) -> Row:
        return parse(json_object(raw), into)

    for line, text in blocks:
        _parse_slowly(line, text, row, columns)


def _mooncake_row(record: dict[str, Any], columns: _Columns) -> Row:
    arrival = microseconds("timestamp", number(record, "timestamp"), 1_000)
    prompt = integer(record, "input_length", 1, MAX_TOKENS_IN_VIEW)
    output = integer(record, "output_length", 1, MAX_TOKENS_IN_VIEW)
    ids = record.get("hash_ids", [])
    if not isinstance(ids, list) or not set(map(type, ids)) <= {int}:
        raise FieldError("hash_ids", "must be a list of integers")
    _check_prefix(ids, prompt, _MOONCAKE_BLOCK_TOKENS, columns, "hash_ids")
    return arrival, prompt, output, 0, -1, ids


def _check_prefix(ids: list[int], prompt: int, size: int, columns: _Columns, name: str) -> None:
    """Check the prefix ids of a row that is otherwise right, and keep the size of their blocks.

    Raises:
        FieldError: an id is out of range, there are too many ids, or the block size differs from that of earlier rows.
    """
    if not ids:
        return
    in_range(name, min(ids), 0, MAX_INT64)
    in_range(name, max(ids), 0, MAX_INT64)
    if len(ids) > -(-prompt // size):
        raise FieldError(name, f"{len(ids)} blocks of {size} tokens are more than {prompt} prompt tokens fill")
    if columns.block_tokens not in (0, size):
        raise FieldError("prefix_block_tokens", f"{size} differs from the {columns.block_tokens} of an earlier row")
    columns.block_tokens = size


def _vllm_row(record: dict[str, Any], columns: _Columns) -> Row:
    # queued_ts is the time at which the engine core saw the request; arrival_time is the clock of another process
    clock = "queued_ts" if "queued_ts" in record else "arrival_time"
    arrival = microseconds(clock, number(record, clock), 1_000_000)
    prompt = integer(record, "input_toks", 1, MAX_TOKENS_IN_VIEW)
    output = integer(record, "output_toks", 1, MAX_TOKENS_IN_VIEW)
    if columns.clock not in ("", clock):
        raise FieldError(columns.clock, f"is missing; {clock} is of another clock than the one of earlier rows")
    columns.clock = clock
    return arrival, prompt, output, 0, -1, ()


def _openai_row(record: dict[str, Any], _: _Columns) -> Row:
    """Read one request of a log.

    The request has `created` (or `timestamp`, `created_at`) and `usage`, at the top level or under `response` (`body`).
    """
    response, request = _body(record, "response"), _body(record, "request")
    usage = _object(response, "usage") if "usage" in response else record
    stamped, clock = response, "created"
    for key in ("timestamp", "created_at", "created"):
        if key in record:
            stamped, clock = record, key
            break
    stamp = field_of(stamped, clock)
    arrival = (
        _iso_us(clock, stamp) if isinstance(stamp, str) else microseconds(clock, number(stamped, clock), 1_000_000)
    )
    prompt = integer(usage, _either(usage, "prompt_tokens", "input_tokens"), 1, MAX_TOKENS_IN_VIEW)
    output = integer(usage, _either(usage, "completion_tokens", "output_tokens"), 1, MAX_TOKENS_IN_VIEW)
    limit = 0  # like null, 0 is the value with which some gateways log that there was no limit
    for key in ("max_completion_tokens", "max_tokens"):
        if not limit and request.get(key) is not None:
            limit = integer(request, key, 0, MAX_TOKENS_IN_VIEW)
    return arrival, prompt, output, limit, -1, ()


def _body(record: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the `body` of the object in a field, or the enclosing object if the field or the `body` is missing."""
    found = _object(record, key) if key in record else record
    return _object(found, "body") if "body" in found else found


def _object(record: dict[str, Any], key: str) -> dict[str, Any]:
    found = record[key]
    if not isinstance(found, dict):
        raise FieldError(key, f"must be an object, not {shown(found)}")
    return found


def _either(record: dict[str, Any], key: str, other: str) -> str:
    return other if key not in record and other in record else key


def _iso_us(name: str, text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise FieldError(name, f"{shown(text)} is no ISO 8601 date") from None
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return _date_us(name, (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1), shown(text))


_JSON_ROWS: Final[dict[str, Callable[[dict[str, Any], _Columns], Row]]] = {
    "mooncake": _mooncake_row,
    "vllm-run": _vllm_row,
    "openai": _openai_row,
}


# --- common ------


def _parse_slowly(first: int, text: bytes, parse: Callable[[bytes, _Columns], Row], columns: _Columns) -> None:
    """Parse a block row by row, and record the malformed rows."""
    numbers: list[tuple[int, int, int, int, int]] = []
    lines: list[int] = []
    lengths: list[int] = []
    ids: list[int] = []
    for line, raw in enumerate(text.split(b"\n"), first):
        stripped = raw.strip()
        if not stripped:
            continue
        try:
            arrival, prompt, output, limit, priority, prefix = parse(stripped, columns)
        except FieldError as wrong:
            columns.malformed(line, wrong)
            continue
        numbers.append((arrival, prompt, output, limit, priority))
        lines.append(line)
        lengths.append(len(prefix))
        ids.extend(prefix)
    if numbers:
        columns.append(
            np.array(numbers, dtype=np.int64).T,
            np.array(lines, dtype=np.int64),
            np.array(lengths, dtype=np.int64),
            np.array(ids, dtype=np.int64),
        )


def _assemble(
    columns: _Columns, kind: TraceFormat, path: Path, name: str | None, on_malformed: Literal["stop", "skip"]
) -> Trace:
    shown_path = printable(path)
    if not columns.numbers:
        raise TraceError(f"{shown_path}: no usable request in it ({columns.bad_count} malformed rows)")
    table = np.concatenate(columns.numbers, axis=1)
    ids = np.concatenate(columns.prefix_ids)
    prefixes = None
    if len(ids):
        ptr = np.concatenate([[0], np.cumsum(np.concatenate(columns.prefix_lengths))]).astype(np.int64)
        prefixes = Prefixes(ptr=ptr, ids=ids, block_tokens=columns.block_tokens)
    columns.numbers.clear()
    far = out_of_line(table[0])
    if len(far):
        wrong = FieldError(columns.clock or _ARRIVAL_FIELDS[kind], _FAR)
        for line in np.concatenate([np.asarray(piece) for piece in columns.lines])[far].tolist():
            columns.malformed(line, wrong)
        if on_malformed == "stop":
            raise MalformedTrace(shown_path, columns.bad_count, columns.bad)
        kept = np.setdiff1d(np.arange(table.shape[1], dtype=np.int64), far, assume_unique=True)
        table, prefixes = table[:, kept], None if prefixes is None else prefixes.select(kept)
    known_limits = bool(np.all(table[3] > 0))
    known_priorities = bool(np.all(table[4] >= 0))
    return Trace.from_columns(
        arrival_us=table[0],
        num_prompt_tokens=table[1],
        num_output_tokens=table[2],
        max_tokens=table[3] if known_limits else None,
        priority=table[4] if known_priorities else None,
        prefixes=prefixes,
        name=name or printable(path.name.split(".")[0]),
        source=f"{kind} format, {printable(path.name)}",
        skipped_rows=columns.bad_count,
    )


def _write_own(trace: Trace, out: IO[str]) -> None:
    columns = np.column_stack(
        [trace.arrival_us, trace.num_prompt_tokens, trace.num_output_tokens, trace.max_tokens, trace.priority]
    )
    if trace.prefixes is None:
        out.write(",".join(_OWN_HEADER.split(",")[:5]) + "\n")
        for start in range(0, len(columns), _CHUNK_LINES):
            np.savetxt(out, columns[start : start + _CHUNK_LINES], fmt="%d", delimiter=",")
        return
    out.write(_OWN_HEADER + "\n")
    ptr, ids = trace.prefixes.ptr, trace.prefixes.ids
    for i, row in enumerate(columns.tolist()):
        prefix = " ".join(map(str, ids[ptr[i] : ptr[i + 1]].tolist()))
        out.write(f"{','.join(map(str, row))},{trace.prefixes.block_tokens},{prefix}\n")


def _write_azure(trace: Trace, out: IO[str]) -> None:
    epoch = datetime(2023, 11, 16, tzinfo=UTC).replace(tzinfo=None)
    writer = csv.writer(out)
    writer.writerow(_AZURE_HEADER.split(","))
    for i in range(len(trace)):
        stamp = epoch + timedelta(microseconds=int(trace.arrival_us[i]))
        text = stamp.strftime("%Y-%m-%d %H:%M:%S.%f") + "0"
        writer.writerow([text, int(trace.num_prompt_tokens[i]), int(trace.num_output_tokens[i])])


def _write_mooncake(trace: Trace, out: IO[str]) -> None:
    if trace.prefixes is not None and trace.prefixes.block_tokens != _MOONCAKE_BLOCK_TOKENS:
        raise TraceError(f"the Mooncake format has {_MOONCAKE_BLOCK_TOKENS}-token blocks, this trace has others")
    for i in range(len(trace)):
        ids: list[int] = []
        if trace.prefixes is not None:
            ids = trace.prefixes.ids[trace.prefixes.ptr[i] : trace.prefixes.ptr[i + 1]].tolist()
        record = {
            "timestamp": int(trace.arrival_us[i]) / 1_000,
            "input_length": int(trace.num_prompt_tokens[i]),
            "output_length": int(trace.num_output_tokens[i]),
            "hash_ids": ids,
        }
        out.write(json.dumps(record) + "\n")


def _write_openai(trace: Trace, out: IO[str]) -> None:
    for i in range(len(trace)):
        record = {
            "timestamp": int(trace.arrival_us[i]) / 1e6,
            "request": {"max_tokens": int(trace.max_tokens[i])},
            "usage": {
                "prompt_tokens": int(trace.num_prompt_tokens[i]),
                "completion_tokens": int(trace.num_output_tokens[i]),
            },
        }
        out.write(json.dumps(record) + "\n")


def _write_vllm(trace: Trace, out: IO[str]) -> None:
    for i in range(len(trace)):
        record = {
            "request_id": f"{trace.name}-{i}",
            "input_toks": int(trace.num_prompt_tokens[i]),
            "output_toks": int(trace.num_output_tokens[i]),
            "queued_ts": int(trace.arrival_us[i]) / 1e6,
        }
        out.write(json.dumps(record) + "\n")


_WRITERS: Final[dict[str, Callable[[Trace, IO[str]], None]]] = {
    "autopoiesis": _write_own,
    "azure": _write_azure,
    "mooncake": _write_mooncake,
    "openai": _write_openai,
    "vllm-run": _write_vllm,
}
