"""Trace files in and out: Azure 2023, Mooncake, the vLLM run format, OpenAI-style request logs, and our own CSV.

Files are read in chunks of lines into columns, so that ten million rows cost their columns and not their text.
"""

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np

from autopoiesis_lib.simulation.trace import Ints, MalformedTrace, Prefixes, Trace, TraceError, TraceFormat

__all__ = ["read_trace", "write_trace"]

_CHUNK_LINES: Final = 200_000
_EXAMPLES: Final = 5
_OWN_HEADER: Final = "arrival_us,num_prompt_tokens,num_output_tokens,max_tokens,priority,prefix_block_tokens,prefix_ids"
_AZURE_HEADER: Final = "TIMESTAMP,ContextTokens,GeneratedTokens"
_MOONCAKE_BLOCK_TOKENS: Final = 512

Row = tuple[int, int, int, int, int, Sequence[int]]
"""arrival_us, prompt, output, max_tokens (0: not known), priority (-1: not known), prefix ids."""


@dataclass
class _Columns:
    """Grows while a file is read."""

    numbers: list[Ints] = field(default_factory=list)
    prefix_lengths: list[Ints] = field(default_factory=list)
    prefix_ids: list[Ints] = field(default_factory=list)
    block_tokens: int = 0
    bad_count: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)

    def malformed(self, line: int, why: str) -> None:
        self.bad_count += 1
        if len(self.bad) < _EXAMPLES:
            self.bad.append((line, why))


def read_trace(
    path: Path,
    *,
    format: TraceFormat | None,  # noqa: A002
    on_malformed: Literal["stop", "skip"],
    name: str | None,
) -> Trace:
    """See Trace.read."""
    try:
        with _open(path) as lines:
            first = lines.readline()
            kind = format or _recognise(first, path)
            columns = _Columns()
            if kind in ("azure", "autopoiesis"):
                _read_csv(lines, first, kind, columns, path)
            else:
                _read_json_lines(_with_first(first, lines), _JSON_ROWS[kind], columns)
    except (OSError, UnicodeDecodeError, EOFError) as problem:
        raise TraceError(f"cannot read trace {path}: {problem}") from problem
    if columns.bad_count and on_malformed == "stop":
        raise MalformedTrace(str(path), columns.bad_count, columns.bad)
    return _assemble(columns, kind, path, name)


def write_trace(trace: Trace, path: Path, *, format: TraceFormat) -> None:  # noqa: A002
    """See Trace.write."""
    if format not in _WRITERS:
        raise TraceError(f"cannot write the format {format!r}; there are {', '.join(_WRITERS)}")
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as out:
        _WRITERS[format](trace, out)


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "rt") if path.suffix == ".gz" else path.open()


def _recognise(first: str, path: Path) -> TraceFormat:
    text = first.strip()
    if text.upper().startswith("TIMESTAMP,CONTEXTTOKENS,GENERATEDTOKENS"):
        return "azure"
    if text.startswith("arrival_us,"):
        return "autopoiesis"
    if text.startswith("{"):
        try:
            keys = set(json.loads(text))
        except ValueError:
            keys = set()
        if {"timestamp", "input_length", "output_length"} <= keys:
            return "mooncake"
        if {"input_toks", "output_toks"} <= keys:
            return "vllm-run"
        if "usage" in keys or "response" in keys or "prompt_tokens" in keys:
            return "openai"
    raise TraceError(
        f"{path}: its first line is of no known trace format (Azure CSV, Mooncake, vLLM run or OpenAI log JSON lines, "
        f"own CSV starting with 'arrival_us,'); name it with format=..."
    )


def _with_first(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


# --- CSV ------


def _read_csv(lines: Iterator[str], header: str, kind: TraceFormat, columns: _Columns, path: Path) -> None:
    own = [h.strip() for h in header.strip().split(",")]
    if kind == "autopoiesis" and own[:3] != _OWN_HEADER.split(",")[:3]:
        raise TraceError(f"{path}: the header must start with {','.join(_OWN_HEADER.split(',')[:3])}")
    parse = _azure_row if kind == "azure" else _own_row
    number = 2
    while chunk := list(islice(lines, _CHUNK_LINES)):
        fast = _azure_chunk(chunk) if kind == "azure" else _own_chunk(chunk, len(own))
        if fast is not None:
            columns.numbers.append(fast)
            columns.prefix_lengths.append(np.zeros(len(fast), dtype=np.int64))
        else:
            _parse_slowly(enumerate(chunk, number), parse, columns)
        number += len(chunk)


def _azure_chunk(chunk: list[str]) -> Ints | None:
    """All rows at once, or None when one of them needs a closer look."""
    try:
        parts = [line.rstrip("\r\n").split(",") for line in chunk]
        stamps, prompt, output = zip(*parts, strict=True)
        arrival = np.array([s.removesuffix("+00:00") for s in stamps], dtype="datetime64[ns]").astype(np.int64) // 1_000
        rows = np.column_stack([arrival, np.array(prompt).astype(np.int64), np.array(output).astype(np.int64)])
    except ValueError:
        return None
    return _completed(rows)


def _own_chunk(chunk: list[str], width: int) -> Ints | None:
    if width > 5:
        return None
    try:
        rows = np.loadtxt(chunk, delimiter=",", dtype=np.int64, ndmin=2, comments=None)
    except ValueError:
        return None
    return _completed(rows) if rows.shape == (len(chunk), width) else None


def _completed(rows: Ints) -> Ints | None:
    if bool(np.any(rows[:, 1:3] < 1)) or bool(np.any(rows[:, 1:3] > 1_048_576)):
        return None
    full = np.empty((len(rows), 5), dtype=np.int64)
    full[:, 3], full[:, 4] = 0, -1
    full[:, : rows.shape[1]] = rows
    return full


def _azure_row(text: str, _: _Columns) -> Row:
    parts = text.split(",")
    if len(parts) != 3:
        raise ValueError(f"{len(parts)} fields, expected {_AZURE_HEADER}")
    stamp = int(np.datetime64(parts[0].removesuffix("+00:00"), "ns").astype(np.int64)) // 1_000
    return stamp, int(parts[1]), int(parts[2]), 0, -1, ()


def _own_row(text: str, columns: _Columns) -> Row:
    parts = text.split(",")
    if not 3 <= len(parts) <= 7:
        raise ValueError(f"{len(parts)} fields, expected {_OWN_HEADER}")
    values = [int(p) for p in parts[:5]]
    ids = [int(p) for p in parts[6].split()] if len(parts) == 7 else []
    if ids:
        columns.block_tokens = int(parts[5])
    return values[0], values[1], values[2], *(values[3:5] + [0, -1][len(values) - 3 :]), ids  # type: ignore[return-value]


# --- JSON lines ------


def _read_json_lines(lines: Iterator[str], parse: Callable[[Any, _Columns], Row], columns: _Columns) -> None:
    def row(text: str, into: _Columns) -> Row:
        return parse(json.loads(text), into)

    number = 1
    while chunk := list(islice(lines, _CHUNK_LINES)):
        _parse_slowly(enumerate(chunk, number), row, columns)
        number += len(chunk)


def _mooncake_row(record: Any, columns: _Columns) -> Row:
    columns.block_tokens = _MOONCAKE_BLOCK_TOKENS
    ids = [int(h) for h in record.get("hash_ids", ())]
    return round(record["timestamp"] * 1_000), int(record["input_length"]), int(record["output_length"]), 0, -1, ids


def _vllm_row(record: Any, _: _Columns) -> Row:
    # queued_ts is when the engine core saw the request; arrival_time is another clock, in another process
    stamp = record.get("queued_ts", record.get("arrival_time"))
    return round(float(stamp) * 1e6), int(record["input_toks"]), int(record["output_toks"]), 0, -1, ()


def _openai_row(record: Any, _: _Columns) -> Row:
    """One request a line: `created` (or `timestamp`) and `usage`, at the top level or under `response` (`body`)."""
    response = record.get("response", record)
    response = response.get("body", response)
    request = record.get("request", record)
    request = request.get("body", request)
    usage = response.get("usage", record)
    stamp = record.get("timestamp", record.get("created_at", record.get("created", response.get("created"))))
    if stamp is None:
        raise ValueError("no timestamp, created_at or created")
    seconds = datetime.fromisoformat(stamp).timestamp() if isinstance(stamp, str) else float(stamp)
    limit = request.get("max_completion_tokens") or request.get("max_tokens") or 0
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    output = usage.get("completion_tokens", usage.get("output_tokens"))
    return round(seconds * 1e6), int(prompt), int(output), int(limit), -1, ()


_JSON_ROWS: Final[dict[str, Callable[[Any, _Columns], Row]]] = {
    "mooncake": _mooncake_row,
    "vllm-run": _vllm_row,
    "openai": _openai_row,
}


# --- common ------


def _parse_slowly(
    numbered: Iterator[tuple[int, str]], parse: Callable[[str, _Columns], Row], columns: _Columns
) -> None:
    numbers: list[tuple[int, int, int, int, int]] = []
    lengths: list[int] = []
    ids: list[int] = []
    for line, raw in numbered:
        text = raw.strip()
        if not text:
            continue
        try:
            arrival, prompt, output, limit, priority, prefix = parse(text, columns)
            if not 1 <= prompt <= 1_048_576 or not 1 <= output <= 1_048_576:
                raise ValueError(f"{prompt} prompt and {output} output tokens; both must be 1 to 1,048,576")
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            what = f"no field {problem}" if isinstance(problem, KeyError) else str(problem)
            columns.malformed(line, what)
            continue
        numbers.append((arrival, prompt, output, limit, priority))
        lengths.append(len(prefix))
        ids.extend(prefix)
    columns.numbers.append(np.array(numbers, dtype=np.int64).reshape(-1, 5))
    columns.prefix_lengths.append(np.array(lengths, dtype=np.int64))
    columns.prefix_ids.append(np.array(ids, dtype=np.int64))


def _assemble(columns: _Columns, kind: str, path: Path, name: str | None) -> Trace:
    rows = np.concatenate(columns.numbers) if columns.numbers else np.empty((0, 5), dtype=np.int64)
    if len(rows) == 0:
        raise TraceError(f"{path}: no usable request in it ({columns.bad_count} malformed rows)")
    ids = np.concatenate(columns.prefix_ids) if columns.prefix_ids else np.empty(0, dtype=np.int64)
    prefixes = None
    if len(ids):
        ptr = np.concatenate([[0], np.cumsum(np.concatenate(columns.prefix_lengths))]).astype(np.int64)
        prefixes = Prefixes(ptr=ptr, ids=ids, block_tokens=columns.block_tokens)
    known_limits = bool(np.all(rows[:, 3] > 0))
    known_priorities = bool(np.all(rows[:, 4] >= 0))
    return Trace.from_columns(
        arrival_us=rows[:, 0],
        num_prompt_tokens=rows[:, 1],
        num_output_tokens=rows[:, 2],
        max_tokens=rows[:, 3] if known_limits else None,
        priority=rows[:, 4] if known_priorities else None,
        prefixes=prefixes,
        name=name or path.name.split(".")[0],
        source=f"{kind} format, {path.name}",
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
