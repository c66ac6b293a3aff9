"""Trace files of strangers: damaged, hostile, or larger than memory. A reader refuses them, or gives a sound trace."""

import gzip
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autopoiesis_lib.simulation import CalibrationError, MalformedTrace, Trace, TraceError, _rows, formats
from autopoiesis_lib.simulation.fitting import MeasuredRequests
from autopoiesis_lib.simulation.trace import TraceFormat

OWN = "arrival_us,num_prompt_tokens,num_output_tokens\n"
OWN5 = "arrival_us,num_prompt_tokens,num_output_tokens,max_tokens,priority\n"
OWN7 = "arrival_us,num_prompt_tokens,num_output_tokens,max_tokens,priority,prefix_block_tokens,prefix_ids\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
TEN_YEARS_US = 10 * 366 * 86_400_000_000


def line(**fields: Any) -> str:
    return json.dumps(fields) + "\n"


def mooncake(**fields: Any) -> str:
    return line(**{"timestamp": 5, "input_length": 600, "output_length": 7, "hash_ids": [1, 2], **fields})


def vllm(**fields: Any) -> str:
    times = {"scheduled_ts": 1.5, "first_token_ts": 2.5, "last_token_ts": 3.5}
    return line(**{"input_toks": 9, "output_toks": 3, "queued_ts": 1.25, **times, **fields})


def openai(**fields: Any) -> str:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    return line(**{"timestamp": 1.5, "request": {"max_tokens": 9}, "usage": usage, **fields})


GOOD = {
    "own": OWN + "10,374,44\n20,396,109\n",
    "own5": OWN5 + "10,374,44,100,8\n20,396,109,200,0\n",
    "own7": OWN7 + "10,374,44,100,8,16,4 5 6\n20,396,109,200,0,16,\n",
    "azure": AZURE + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n",
    "mooncake": mooncake() + mooncake(timestamp=2_000, hash_ids=[]),
    "vllm": vllm() + vllm(queued_ts=1.375),
    "openai": openai() + openai(timestamp="1970-01-01T00:01:00Z"),
}
HUGE = "9" * 5_000
INT64 = 1 << 63

BAD_ROWS: list[tuple[str, str | bytes, str]] = [
    # kind of file, row, field that is named
    *(("own", row, "arrival_us") for row in ("1.5,1,1", "nan,1,1", "1e3,1,1", f"{INT64},1,1", f"-{INT64},1,1")),
    *(
        ("own", row, "arrival_us")
        for row in (f"{HUGE},1,1", "1_0,1,1", "١,1,1", ",1,1", '"1",1,1', "0x1,1,1", "1\0,1,1")
    ),
    *(("own", row, "num_prompt_tokens") for row in ("1,0,1", "1,-3,1", "1,1048577,1", "1,3.7,1", "1,,1", "1")),
    *(("own", row, "num_output_tokens") for row in ("1,1,0", "1,1,True", f"1,1,{HUGE}", "1,1")),
    *(("own", row, "row") for row in ("1,1,1,1", "1,1,1,", b"1,1,1,\xff")),
    ("own", b"\xff\xfe,1,1", "arrival_us"),
    *(("own5", row, "max_tokens") for row in ("1,1,1,0,8", "1,1,1,-5,8", "1,1,1,1048577,8", "1,1,1")),
    *(("own5", row, "priority") for row in ("1,1,1,1,-1", "1,1,1,1,16", "1,1,1,1")),
    *(("own7", f"1,40,1,1,8,16,{ids}", "prefix_ids") for ids in ("-1", str(INT64), HUGE, "1 2 3 4", "1.5", "a", "1;2")),
    *(("own7", f"1,40,1,1,8,{size},1", "prefix_block_tokens") for size in ("0", "-16", "", "1048577", "32", HUGE)),
    *(("azure", f"{stamp},1,1", "TIMESTAMP") for stamp in ("NaT", "", "now", "today", "2023", "12", "-1", "inf")),
    *(
        ("azure", f"{stamp} 00:00:00,1,1", "TIMESTAMP")
        for stamp in ("2500-01-01", "2607-12-01", "1969-12-31", "0000-01-01")
    ),
    *(
        ("azure", f"{stamp},1,1", "TIMESTAMP")
        for stamp in ("2023-02-30 00:00:00", "2023-01-01 25:00:00", "+12023-01-01")
    ),
    *(("azure", f"2023-01-01 00:00:00{zone},1,1", "TIMESTAMP") for zone in ("+05:00", "-00:30", " UTC", "Zz")),
    *(("azure", f"2023-11-16 18:15:50,{n},1", "ContextTokens") for n in ("0", "-1", "1.0", "1048577", "nan", HUGE, "")),
    *(("azure", f"2023-11-16 18:15:50,1,{n}", "GeneratedTokens") for n in ("0", "1e1", "9999999", " ")),
    ("azure", "2023-11-16 18:15:50,1,1,1", "row"),
    *(("mooncake", mooncake(timestamp=t), "timestamp") for t in (float("nan"), float("inf"), -float("inf"), True, "7")),
    *(("mooncake", mooncake(timestamp=t), "timestamp") for t in (None, [1], {}, 1e300, INT64, -INT64)),
    ("mooncake", mooncake().replace('"timestamp": 5', '"timestamp": 1e400'), "timestamp"),
    *(
        ("mooncake", mooncake(input_length=n), "input_length")
        for n in (0, -1, 1.0, 3.7, True, "3", None, INT64, 1 << 80)
    ),
    *(("mooncake", mooncake(output_length=n), "output_length") for n in (0, 1_048_577, float("nan"), [], {})),
    *(
        ("mooncake", mooncake(hash_ids=h), "hash_ids")
        for h in ([-1], [INT64], [1.0], [True], ["1"], [None], [[1]], 3, None)
    ),
    ("mooncake", mooncake(hash_ids=[1, 2, 3]), "hash_ids"),
    ("mooncake", line(timestamp=1, input_length=1), "output_length"),
    ("mooncake", mooncake().replace("600", HUGE), "row"),
    ("mooncake", '{"timestamp": 1, "timestamp": 2, "input_length": 3, "output_length": 4}', "row"),
    ("mooncake", '{"timestamp":' * 100_000, "row"),
    ("mooncake", "[" * 100_000, "row"),
    ("mooncake", '{"timestamp": 1, "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "row"),
    *(("mooncake", row, "row") for row in ("[1, 2]", "3", '"x"', "null", "{", "{}}", "NaN", "{oops", "\0", "{'a': 1}")),
    *(("mooncake", row, "row") for row in (b'{"timestamp": "\xff"}', b"\xc3\x28", b"\x1f\x8b\x08\x00")),
    *(("vllm", vllm(queued_ts=t), "queued_ts") for t in (float("nan"), "1.5", True, None, 1e13, [])),
    *(("vllm", vllm(input_toks=n), "input_toks") for n in (0, 1.5, "9", False, 1 << 64)),
    *(("vllm", vllm(output_toks=n), "output_toks") for n in (-2, None, {}, 1_048_577)),
    ("vllm", line(arrival_time=1.7e9, input_toks=1, output_toks=1), "queued_ts"),
    *(
        ("openai", openai(timestamp=t), "timestamp")
        for t in (float("inf"), True, None, [], "1", "NaT", "now", "2500-01-01")
    ),
    *(
        ("openai", openai(timestamp=t), "timestamp")
        for t in ("1969-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00", "\x1b[31m", "")
    ),
    ("openai", line(usage={"prompt_tokens": 1, "completion_tokens": 1}), "created"),
    ("openai", openai(usage={"prompt_tokens": 1.5, "completion_tokens": 1}), "prompt_tokens"),
    ("openai", openai(usage={"prompt_tokens": 1, "completion_tokens": "1"}), "completion_tokens"),
    ("openai", openai(usage={"prompt_tokens": 1}), "completion_tokens"),
    *(("openai", openai(usage=usage), "usage") for usage in (None, [], 3, "x")),
    *(("openai", openai(request={"max_tokens": n}), "max_tokens") for n in (-1, 1_048_577, 1.5, "9", True, 1 << 70)),
    ("openai", openai(request={"max_completion_tokens": -1}), "max_completion_tokens"),
    ("openai", openai(request=[]), "request"),
    ("openai", openai(response=7), "response"),
    ("openai", openai(response={"body": []}), "body"),
]


def columns(trace: Trace) -> list[Any]:
    names = ("arrival_us", "num_prompt_tokens", "num_output_tokens", "max_tokens", "priority")
    found: list[Any] = [getattr(trace, name).tolist() for name in names]
    if trace.prefixes is not None:
        found += [trace.prefixes.ptr.tolist(), trace.prefixes.ids.tolist(), trace.prefixes.block_tokens]
    return found


def read(folder: Path, content: str | bytes, name: str = "file.txt", **options: Any) -> Trace:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Trace.read(path, **options)


class TestRows:
    @pytest.mark.parametrize(
        ("kind", "row", "field"), BAD_ROWS, ids=[f"{i}-{kind}-{field}" for i, (kind, _, field) in enumerate(BAD_ROWS)]
    )
    def test_bad_row_is_named_or_skipped(self, tmp_path: Path, kind: str, row: str | bytes, field: str) -> None:
        good = GOOD[kind].encode()
        content = good + (row.encode() if isinstance(row, str) else row).strip(b"\n") + b"\n"
        with pytest.raises(MalformedTrace) as caught:
            read(tmp_path, content)
        (bad,) = caught.value.examples
        assert (bad.line, bad.field, caught.value.count) == (good.count(b"\n") + 1, field, 1)
        message = str(caught.value)
        assert str(tmp_path / "file.txt") in message and field in message and f"line {bad.line}" in message
        assert message.isprintable() and len(message) < 1_000
        skipped = read(tmp_path, content, on_malformed="skip")
        assert skipped.skipped_rows == 1
        assert columns(skipped) == columns(read(tmp_path, good))

    def test_a_bad_first_row_of_json_is_a_row_too(self, tmp_path: Path) -> None:
        content = "[" * 100_000 + "\n" + mooncake(input_length=0) + GOOD["mooncake"]
        with pytest.raises(MalformedTrace) as caught:
            read(tmp_path, content)
        assert caught.value.lines == (1, 2)
        assert read(tmp_path, content, on_malformed="skip").skipped_rows == 2

    def test_a_refused_row_does_not_set_the_block_size(self, tmp_path: Path) -> None:
        rows = "1,16,1,1,8,4,1 2 3 4 5\n2,16,1,1,8,16,1\n"
        found = read(tmp_path, OWN7 + rows, on_malformed="skip").prefixes
        assert found is not None and (found.block_tokens, found.ids.tolist()) == (16, [1])

    def test_text_of_the_file_cannot_reach_a_terminal(self, tmp_path: Path) -> None:
        hostile = "\x1b]0;x\x07\u202e"
        for content in (GOOD["mooncake"] + mooncake(timestamp=hostile), OWN + f"{hostile},1,1\n", hostile):
            with pytest.raises(TraceError) as caught:
                read(tmp_path, content, name=f"{hostile}.txt")
            assert str(caught.value).isprintable()


class TestWholeFiles:
    def check(self, folder: Path, content: bytes, name: str = "file.txt", **options: Any) -> str:
        """Both ways of reading stop with the same error of the whole file."""
        messages = set()
        ways: tuple[Literal["stop", "skip"], ...] = ("stop", "skip")
        for way in ways:
            with pytest.raises(TraceError) as caught:
                read(folder, content, name, on_malformed=way, **options)
            assert not isinstance(caught.value, MalformedTrace)
            messages.add(str(caught.value))
        (message,) = messages
        assert message.isprintable() and str(folder / name) in message
        return message

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\n",
            b"\xef\xbb\xbf",
            bytes(range(256)) * 40,
            b"\0" * 10_000,
            GOOD["azure"].encode("utf-16"),
            gzip.compress(GOOD["azure"].encode()),
            b'{"a": 1}\n' * 3,
            b'{"timestamp":' * 100_000,
            b"[" * 100_000,
            (AZURE.strip() + ",Extra\n2023-11-16 18:15:50,1,1,1\n").encode(),
            b"arrival_us,num_output_tokens,num_prompt_tokens\n1,2,3\n",
            OWN5.replace("max_tokens,priority", "priority,max_tokens").encode() + b"1,2,3,4,5\n",
        ],
        ids=range(13),
    )
    def test_no_trace_is_one_error_of_the_file(self, tmp_path: Path, content: bytes) -> None:
        self.check(tmp_path, content)

    def test_a_named_format_needs_its_header(self, tmp_path: Path) -> None:
        for kind in ("azure", "autopoiesis"):
            assert "header" in self.check(tmp_path, b"2023-11-16 18:15:50,1,1\n", format=kind)

    @pytest.mark.parametrize("kind", ["azure", "mooncake"])
    def test_any_cut_or_changed_gzip_is_refused_or_whole(self, tmp_path: Path, kind: str) -> None:
        packed = gzip.compress(GOOD[kind].encode() * 5 if kind == "mooncake" else GOOD[kind].encode(), mtime=0)
        whole = columns(read(tmp_path, packed, "file.gz"))
        for cut in range(len(packed)):
            self.check(tmp_path, packed[:cut], "file.gz")
        refused = 0
        for place in range(len(packed)):
            for flip in (0x01, 0x80):
                changed = bytearray(packed)
                changed[place] ^= flip
                try:
                    assert columns(read(tmp_path, bytes(changed), "file.gz")) == whole  # a flag or time of the header
                except TraceError:
                    refused += 1
        assert refused > len(packed)

    def test_text_called_gz_and_garbage_behind_gzip_are_refused(self, tmp_path: Path) -> None:
        self.check(tmp_path, GOOD["azure"].encode(), "file.csv.gz")
        self.check(tmp_path, gzip.compress(GOOD["azure"].encode()) + b"garbage", "file.csv.gz")

    def test_a_long_line_is_refused_wherever_it_is(self, tmp_path: Path) -> None:
        long = b"1" * (_rows.MAX_LINE_BYTES + 1)
        for content in (long, OWN.encode() + long, OWN.encode() + b"1,1,1\n" + long + b"\n1,1,1\n"):
            message = self.check(tmp_path, content)
            assert f"line {content.count(10, 0, 100) + 1}" in message
            self.check(tmp_path, gzip.compress(content), "file.gz")
        rows = GOOD["mooncake"] + " " * (_rows.MAX_LINE_BYTES - 200) + mooncake()
        assert len(read(tmp_path, rows)) == 3

    @pytest.mark.parametrize(
        ("module", "bound"), [(_rows, "MAX_FILE_BYTES"), (_rows, "MAX_LINES"), (formats, "MAX_PREFIX_IDS")]
    )
    def test_bytes_lines_and_prefix_ids_are_bounded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, bound: str
    ) -> None:
        content = "".join(mooncake(timestamp=i) for i in range(400)).encode()
        monkeypatch.setattr(module, bound, 390)
        self.check(tmp_path, content)
        self.check(tmp_path, gzip.compress(content), "file.gz")

    def test_only_regular_files_are_opened(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "folder").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "fifo")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        for name in ("fifo", "folder", "link", "loop", "missing", "x" * 300, "a\0b"):
            with pytest.raises(TraceError, match="cannot read trace"):
                Trace.read(tmp_path / name)
        for device in ("/dev/zero", "/dev/null", "/dev/full"):
            with pytest.raises(TraceError, match="not a regular file"):
                Trace.read(device)
        (tmp_path / "good").write_text(GOOD["own"])
        (tmp_path / "to-good").symlink_to(tmp_path / "good")
        assert len(Trace.read(tmp_path / "to-good")) == 2


class TestSpan:
    def test_the_row_out_of_line_is_named_not_shifted(self, tmp_path: Path) -> None:
        rows = [f"{at},1,1\n" for at in (5, 6, TEN_YEARS_US + 6, 7)]
        with pytest.raises(MalformedTrace) as caught:
            read(tmp_path, OWN + "".join(rows))
        assert [(bad.line, bad.field) for bad in caught.value.examples] == [(4, "arrival_us")]
        skipped = read(tmp_path, OWN + "".join(rows), on_malformed="skip")
        assert (skipped.arrival_us.tolist(), skipped.skipped_rows) == ([0, 1, 2], 1)

    def test_exactly_ten_years_are_accepted(self, tmp_path: Path) -> None:
        assert read(tmp_path, OWN + f"-1,1,1\n{TEN_YEARS_US - 1},1,1\n").arrival_us.tolist() == [0, TEN_YEARS_US]

    @pytest.mark.parametrize(
        "content",
        [
            OWN + f"-{INT64 - 1},1,1\n0,1,1\n0,1,1\n",
            OWN + f"{INT64 - 1},1,1\n0,1,1\n0,1,1\n",
            OWN + f"-{INT64 - 1},1,1\n{INT64 - 1},1,1\n",
            AZURE + "1970-01-01 00:00:00,1,1\n2199-12-31 23:59:59,1,1\n",
            mooncake(timestamp=0) + mooncake(timestamp=1.7e12),
            vllm(queued_ts=5) + vllm(queued_ts=1.7e9),
            openai(timestamp=0) + openai(timestamp="2024-01-01T00:00:00Z"),
        ],
        ids=range(7),
    )
    def test_spans_of_many_years_stop_the_reader(self, tmp_path: Path, content: str) -> None:
        with pytest.raises(MalformedTrace, match="ten years"):
            read(tmp_path, content)

    def test_prefixes_stay_with_their_rows(self, tmp_path: Path) -> None:
        rows = [mooncake(timestamp=i, hash_ids=[i]) for i in (1, 2, 10**15, 3)]
        found = read(tmp_path, "".join(rows), on_malformed="skip").prefixes
        assert found is not None and found.ids.tolist() == [1, 2, 3] and found.ptr.tolist() == [0, 1, 2, 3]

    def test_a_trace_cannot_be_scaled_past_the_clock(self, tmp_path: Path) -> None:
        trace = read(tmp_path, OWN + f"0,1,1\n{TEN_YEARS_US},1,1\n")
        for factor in (1e-3, 1e-300, float("nan"), float("inf")):
            with pytest.raises(TraceError):
                trace.scaled(factor)

    def test_columns_whose_differences_overflow_are_refused(self) -> None:
        ones = np.ones(3, dtype=np.int64)
        for arrivals in ([0, INT64 - 1, 1 - INT64], [0, 1, INT64 - 1]):
            with pytest.raises(TraceError):
                Trace.from_columns(
                    arrival_us=np.array(arrivals, dtype=np.int64), num_prompt_tokens=ones, num_output_tokens=ones
                )
            with pytest.raises(TraceError):
                Trace(
                    arrival_us=np.array(arrivals, dtype=np.int64),
                    num_prompt_tokens=ones,
                    num_output_tokens=ones,
                    max_tokens=ones,
                    priority=ones,
                )

    def test_splicing_ids_of_63_bits_does_not_overflow(self, tmp_path: Path) -> None:
        trace = read(tmp_path, mooncake(hash_ids=[INT64 - 1, INT64 - 2]))
        found = trace.spliced(trace).prefixes
        assert found is not None and len(set(found.ids.tolist())) == 4 and int(found.ids.min()) >= 0


class TestGoodFiles:
    @pytest.mark.parametrize("kind", GOOD)
    def test_marks_line_ends_and_blank_lines_change_nothing(self, tmp_path: Path, kind: str) -> None:
        plain = GOOD[kind].encode()
        expected = columns(read(tmp_path, plain))
        head, _, tail = plain.partition(b"\n")
        for content in (
            b"\xef\xbb\xbf" + plain,
            plain.replace(b"\n", b"\r\n"),
            plain.replace(b"\n", b"\r"),
            plain[:-1],
            plain[:-1] + b"\r",
            head + b"\n\n  \r\n" + tail + b"\n\n",
        ):
            assert columns(read(tmp_path, content)) == expected

    @pytest.mark.parametrize("kind", GOOD)
    def test_the_size_of_pieces_changes_nothing(
        self, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for content in (GOOD[kind], GOOD[kind].replace("\n", "\r\n"), GOOD[kind].replace("\n", "\r")):
            expected = columns(read(tmp_path, content))
            for size in range(1, 40):
                with monkeypatch.context() as smaller:
                    smaller.setattr(_rows, "_PIECE_BYTES", size)
                    assert columns(read(tmp_path, content)) == expected
                    assert columns(read(tmp_path, gzip.compress(content.encode()), "file.gz")) == expected

    def test_a_mooncake_row_of_2000_ids_is_read(self, tmp_path: Path) -> None:
        ids = list(range(INT64 - 2_000, INT64))
        found = read(tmp_path, mooncake(input_length=2_000 * 512, hash_ids=ids)).prefixes
        assert found is not None and found.ids.tolist() == ids

    def test_dates_without_a_zone_are_utc(self, tmp_path: Path) -> None:
        trace = read(tmp_path, openai(timestamp="2024-03-31T02:30:00") + openai(timestamp="2024-03-31T02:30:01Z"))
        assert trace.arrival_us.tolist() == [0, 1_000_000]

    def test_logs_without_a_limit_are_read(self, tmp_path: Path) -> None:
        content = openai(request={"max_tokens": 0}) + openai(request={"max_tokens": None}) + openai(request={})
        assert set(read(tmp_path, content).max_tokens.tolist()) == {2_048}


NUMBER_TEXTS = st.one_of(
    st.integers(1, 2_000).map(str),
    st.integers(-(1 << 65), 1 << 65).map(str),
    st.sampled_from(
        ["0", "007", "+5", "-5", " 5", "5 ", "5.0", "1e3", "nan", "", "1_0", "\t7", "--5", "5-", "1 2", "1\r2"]
    ),
)
DATE_TEXTS = st.one_of(
    st.datetimes().map(lambda at: at.isoformat(" ")),
    st.integers(0, 10**9).map(lambda n: f"2023-11-16 18:15:46.{n}"),
    st.sampled_from(["NaT", "", "2023-11-16", "2023-11-16T18:15", "2023-02-30 00:00:00", "2023-11-16 18:15:46+00:00"]),
    st.sampled_from(
        ["2023-11-16 18:15:60", "2023-11-16 24:00:00", "2023-11-16 18:15:46Z", "now", "2300-01-01 00:00:00"]
    ),
)
ID_TEXTS = st.one_of(
    st.lists(st.integers(0, 100).map(str), max_size=5).map(" ".join),
    st.lists(NUMBER_TEXTS, max_size=5).map(" ".join),
)


def outcome(path: Path, content: str, way: Literal["stop", "skip"]) -> object:
    path.write_bytes(content.encode())
    try:
        trace = Trace.read(path, on_malformed=way)
    except MalformedTrace as wrong:
        return wrong.count, wrong.examples
    except TraceError as wrong:
        return str(wrong)
    return columns(trace), trace.skipped_rows


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as made:
        yield Path(made)


class TestBothWays:
    """A block of plain rows is read at once, a block with a blank line row by row: the same rows give the same trace."""

    def both(self, folder: Path, text: str) -> None:
        ways: tuple[Literal["stop", "skip"], ...] = ("stop", "skip")
        for way in ways:
            assert outcome(folder / "file", text, way) == outcome(folder / "file", text + "\n\n", way)

    @settings(max_examples=400, deadline=None)
    @given(
        st.sampled_from([OWN, OWN5, OWN7]).flatmap(
            lambda header: st.tuples(
                st.just(header),
                st.lists(
                    st.tuples(
                        *[st.integers(1, 15).map(str) | NUMBER_TEXTS] * min(header.count(",") + 1, 5),
                        *[st.just("16") | NUMBER_TEXTS, ID_TEXTS] * (header == OWN7),
                    ).map(",".join),
                    min_size=1,
                    max_size=4,
                ),
            )
        )
    )
    @example((OWN, ["1,2,3", "1,2,3.7"]))
    @example((OWN7, ["1,16,3,4,5,16,1", "1,16,3,4,5,8,1 2"]))
    @pytest.mark.slow
    def test_own_rows(self, folder: Path, table: tuple[str, list[str]]) -> None:
        self.both(folder, table[0] + "\n".join(table[1]))

    @settings(max_examples=400, deadline=None)
    @given(
        st.lists(
            st.tuples(DATE_TEXTS, st.integers(1, 9).map(str) | NUMBER_TEXTS, NUMBER_TEXTS).map(",".join),
            min_size=1,
            max_size=4,
        )
    )
    @example(["NaT,1,1"])
    @example(["2607-12-01 00:00:00,1,1"])
    def test_azure_rows(self, folder: Path, rows: list[str]) -> None:
        self.both(folder, AZURE + "\n".join(rows))

    @pytest.mark.parametrize("kind", ["own", "own5", "own7", "azure"])
    def test_plain_rows_are_read_at_once(self, kind: str, tmp_path: Path) -> None:
        header, _, text = GOOD[kind].strip().partition("\n")
        found = formats._Columns()
        if kind == "azure":
            assert formats._azure_block(2, text.encode(), found)
            assert not formats._azure_block(2, text.encode() + b"\n", found)
        else:
            assert formats._own_block(header.count(",") + 1, 2, text.encode(), found)
            assert not formats._own_block(header.count(",") + 1, 2, text.encode() + b"\n", found)


CHILD = """
import resource, sys
from autopoiesis_lib.simulation import Trace, TraceError
Trace.shipped("vllm-rtx4090")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
try:
    Trace.read(sys.argv[1], on_malformed="skip")
except TraceError as refused:
    print(refused)
"""


class TestMemory:
    def refused(self, path: Path) -> str:
        done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    @pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
    @pytest.mark.parametrize("start", [OWN, mooncake()[:-3] + ', "x": "'])
    def test_a_line_of_gigabytes_costs_no_memory(self, tmp_path: Path, start: str) -> None:
        plain = tmp_path / "line.txt"
        with plain.open("wb") as out:
            out.write(start.encode())
            out.truncate(3 << 30)  # zeros that take no place on the disk
        assert "bytes in line" in self.refused(plain)
        bomb = tmp_path / "bomb.gz"
        member = gzip.compress(b"1" * (16 << 20))
        bomb.write_bytes(gzip.compress(start.encode()) + member * 200)
        assert bomb.stat().st_size < 5 << 20
        assert "bytes in line" in self.refused(bomb)

    @pytest.mark.slow
    @pytest.mark.parametrize("text", [b"\n" * 4_096, b" " * 8_191 + b"\n"], ids=["empty", "blank"])
    def test_a_bomb_of_blank_lines_costs_no_memory(self, tmp_path: Path, text: bytes) -> None:
        bomb = tmp_path / "bomb.gz"
        bomb.write_bytes(gzip.compress(OWN.encode()) + gzip.compress(text * ((16 << 20) // len(text))) * 300)
        assert "more than" in self.refused(bomb)


# --- fuzz ------

FORMATS: dict[str, TraceFormat] = {
    "own": "autopoiesis",
    "own5": "autopoiesis",
    "own7": "autopoiesis",
    "azure": "azure",
    "mooncake": "mooncake",
    "vllm": "vllm-run",
    "openai": "openai",
}
TOKENS = [
    *("NaN", "-Infinity", "1e400", "-1e400", "1e-400", "null", "true", '"7"', "[]", "{}", "[[1]]", "0", "-1", "-0.0"),
    *("9223372036854775807", "9223372036854775808", "-9223372036854775808", "9" * 4_301, "1048576", "1048577", "3.7"),
    *(
        "NaT",
        "now",
        "2500-01-01 00:00:00",
        "1969-12-31 23:59:59",
        "2023-02-30",
        "",
        " ",
        "\r",
        "\n",
        ",",
        '"',
        "\0",
        "\\",
    ),
    *(
        "[" * 300,
        '{"a":' * 300,
        "1_0",
        "+1",
        "١",
        "\ud800",
        "\u202e",
        "1e18",
        "1e13",
        "hash_ids",
        "queued_ts",
        "timestamp",
    ),
]
PLACES = re.compile(rb'-?[0-9][0-9.:T-]*|"[^"]*"|[\[\]{},:\n ]')


def mutated(base: bytes, chance: random.Random) -> bytes:
    """Return a valid file with one to three changes."""
    for _ in range(chance.randint(1, 3)):
        kind = chance.random()
        if kind < 0.6 and (places := list(PLACES.finditer(base))):
            place = chance.choice(places)
            base = base[: place.start()] + chance.choice(TOKENS).encode("utf-8", "surrogatepass") + base[place.end() :]
        elif kind < 0.75:
            rows = base.split(b"\n")
            rows.insert(chance.randrange(len(rows) + 1), chance.choice(rows))
            base = b"\n".join(rows)
        elif kind < 0.9:
            start = chance.randrange(len(base) + 1)
            base = base[:start] + base[start + chance.randint(0, 30) :]
        else:
            start = chance.randrange(len(base) + 1)
            base = base[:start] + chance.randbytes(chance.randint(1, 8)) + base[start:]
    return base


def check_sound(trace: Trace) -> None:
    n = len(trace)
    assert n >= 1
    arrivals = trace.arrival_us.tolist()
    assert arrivals == sorted(arrivals) and arrivals[0] == 0 and arrivals[-1] <= TEN_YEARS_US
    for column, low, high in (
        (trace.num_prompt_tokens, 1, 1_048_576),
        (trace.num_output_tokens, 1, 1_048_576),
        (trace.max_tokens, 1, 1_048_576),
        (trace.priority, 0, 15),
    ):
        assert column.dtype == np.int64 and column.shape == (n,)
        assert low <= int(column.min()) and int(column.max()) <= high
    if trace.prefixes is not None:
        lengths = np.diff(trace.prefixes.ptr)
        assert len(lengths) == n and trace.prefixes.ptr[0] == 0 and trace.prefixes.ptr[-1] == len(trace.prefixes.ids)
        assert 1 <= trace.prefixes.block_tokens <= 1_048_576
        assert bool(np.all((lengths >= 0) & (lengths <= -(-trace.num_prompt_tokens // trace.prefixes.block_tokens))))
        assert int(trace.prefixes.ids.min(initial=0)) >= 0


def check_reading(path: Path, kind: TraceFormat | None, way: Literal["stop", "skip"]) -> bool:
    """Read a file; the reader refuses it in one printable line, or gives a sound trace."""
    try:
        trace = Trace.read(path, format=kind, on_malformed=way)
    except TraceError as refused:
        message = str(refused)
        assert message.isprintable() and len(message) < 2_000
        assert way == "stop" or not isinstance(refused, MalformedTrace)
        return False
    check_sound(trace)
    assert way == "skip" or trace.skipped_rows == 0
    return True


BATCH = 50
"""Files of one example: most of the time would go to drawing otherwise."""


@pytest.mark.slow
class TestFuzz:
    @pytest.mark.parametrize("kind", GOOD)
    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 1 << 48))
    def test_changed_files_are_refused_or_sound(self, folder: Path, kind: str, seed: int) -> None:
        chance = random.Random(seed)
        path = folder / "fuzzed"
        for _ in range(BATCH):
            path.write_bytes(mutated(GOOD[kind].encode(), chance))
            check_reading(path, chance.choice([None, FORMATS[kind]]), chance.choice(["stop", "skip"]))
            if kind == "vllm":
                rows = mutated((GOOD[kind] * 5).encode(), chance)
                path.write_bytes(rows)
                try:
                    measured = MeasuredRequests.read(path)
                except CalibrationError as refused:
                    assert str(refused).isprintable()
                else:
                    assert all(np.isfinite(values).all() for values in measured.measures().values())
                    check_sound(measured.trace())

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 1 << 48), content=st.binary(max_size=200))
    def test_raw_bytes_and_gzip_are_refused_or_sound(self, folder: Path, seed: int, content: bytes) -> None:
        chance = random.Random(seed)
        for turn in range(BATCH):
            name = chance.choice(list(GOOD))
            base = GOOD[name].encode()
            text = content if turn == 0 else base + chance.randbytes(chance.randint(0, 60))
            if turn % 2:
                packed = bytearray(gzip.compress(text, mtime=0))
                for _ in range(chance.randint(0, 3)):
                    packed[chance.randrange(len(packed))] = chance.randrange(256)
                path, text = folder / "fuzzed.gz", bytes(packed[: chance.randint(len(packed) // 2, len(packed) * 2)])
            else:
                path = folder / "fuzzed"
            path.write_bytes(text)
            kind = chance.choice([None, *FORMATS.values()])
            check_reading(path, kind, chance.choice(["stop", "skip"]))
