"""Traces in and out: every format, malformed rows, scaling, splitting, splicing, generators."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopoiesis_lib.simulation import MalformedTrace, Prefixes, Trace, TraceError
from autopoiesis_lib.simulation.generators import Lengths, bursty, conversations, diurnal, phases, poisson
from autopoiesis_lib.simulation.trace import SHIPPED, TraceFormat

COLUMNS = ("arrival_us", "num_prompt_tokens", "num_output_tokens", "max_tokens", "priority")
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
)


def assert_same(a: Trace, b: Trace, columns: tuple[str, ...] = COLUMNS) -> None:
    for column in columns:
        assert np.array_equal(getattr(a, column), getattr(b, column)), column


def test_shipped_traces_are_the_published_ones() -> None:
    sizes = {name: len(Trace.shipped(name)) for name in SHIPPED}
    assert sizes == {
        "azure-conv": 19_366,
        "azure-code": 8_819,
        "mooncake": 3_993,
        "vllm-rtx4090": 300,
        "vllm-rtxpro6000": 300,
    }
    conv = Trace.shipped("azure-conv")
    assert np.median(conv.num_prompt_tokens) == 1_020 and np.median(conv.num_output_tokens) == 129
    assert conv.duration_s == pytest.approx(3_501.72, abs=0.01)
    mooncake = Trace.shipped("mooncake").prefixes
    assert mooncake is not None and mooncake.block_tokens == 512


@pytest.mark.parametrize("kind", ["autopoiesis", "azure", "openai", "vllm-run", "mooncake"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_what_is_written_is_read_back(tmp_path: Path, kind: TraceFormat, suffix: str) -> None:
    trace = Trace.shipped("azure-code").split(0.02)[0]
    path = tmp_path / f"trace.txt{suffix}"
    trace.write(path, format=kind)
    back = Trace.read(path)
    kept = COLUMNS if kind == "autopoiesis" else COLUMNS[:3]
    assert_same(trace, back, kept)


def test_prefix_blocks_survive_our_own_format_and_mooncakes(tmp_path: Path) -> None:
    trace = Trace.shipped("mooncake").split(0.05)[0]
    assert trace.prefixes is not None
    kinds: tuple[TraceFormat, ...] = ("autopoiesis", "mooncake")
    for kind in kinds:
        trace.write(tmp_path / kind, format=kind)
        back = Trace.read(tmp_path / kind)
        assert_same(trace, back, COLUMNS[:3])
        assert back.prefixes is not None and back.prefixes.block_tokens == 512
        assert np.array_equal(back.prefixes.ptr, trace.prefixes.ptr)
        assert np.array_equal(back.prefixes.ids, trace.prefixes.ids)


def test_malformed_rows_stop_the_run_with_their_lines_and_count(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(
        AZURE + "2023-11-16 18:15:51.0,12\nyesterday,1,1\n2023-11-16 18:15:52.0,5,0\n2023-11-16 18:15:53.0,9,9\n"
    )
    with pytest.raises(MalformedTrace, match="3 malformed rows") as caught:
        Trace.read(path)
    assert caught.value.lines == (4, 5, 6) and caught.value.count == 3
    assert "\n" not in str(caught.value)
    skipped = Trace.read(path, on_malformed="skip")
    assert (len(skipped), skipped.skipped_rows) == (3, 3)


def test_malformed_json_lines_are_named_too(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(
        '{"timestamp": 1, "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n{"timestamp": 2}\n{oops\n'
    )
    with pytest.raises(MalformedTrace) as caught:
        Trace.read(path)
    assert caught.value.lines == (2, 3)


@pytest.mark.parametrize(
    "text", ["", "hello\n", "arrival_us,a,b\n1,2,3\n", "TIMESTAMP,ContextTokens,GeneratedTokens\n"]
)
def test_files_that_are_no_trace_are_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(TraceError):
        Trace.read(path)
    with pytest.raises(TraceError, match="cannot read"):
        Trace.read(tmp_path / "missing.csv")


def test_a_truncated_gzip_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(AZURE.encode() * 50)[:-20])
    with pytest.raises(TraceError, match="cannot read"):
        Trace.read(path)


def test_openai_logs_with_nested_bodies_and_iso_times_are_read(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(
        '{"timestamp": "2024-05-01T10:00:00Z", "request": {"body": {"max_tokens": 64}}, '
        '"response": {"body": {"usage": {"prompt_tokens": 10, "completion_tokens": 20}}}}\n'
        '{"timestamp": "2024-05-01T10:00:02Z", "request": {"body": {"max_tokens": 32}}, '
        '"response": {"body": {"usage": {"prompt_tokens": 11, "completion_tokens": 21}}}}\n'
    )
    trace = Trace.read(path)
    assert trace.arrival_us.tolist() == [0, 2_000_000]
    assert trace.max_tokens.tolist() == [64, 32]


def test_max_tokens_says_nothing_of_the_output_where_the_trace_is_silent() -> None:
    conv = Trace.shipped("azure-conv")
    assert set(conv.max_tokens.tolist()) == {2_048}


def test_scaling_keeps_requests_and_divides_gaps() -> None:
    conv = Trace.shipped("azure-conv")
    fast = conv.scaled(2.0)
    assert fast.rate == pytest.approx(2 * conv.rate, rel=1e-4)
    assert_same(conv, fast, COLUMNS[1:])
    with pytest.raises(TraceError, match="positive"):
        conv.scaled(0)


@given(st.lists(st.floats(0.05, 0.5), min_size=1, max_size=4).filter(lambda f: sum(f) <= 1))
def test_parts_are_consecutive_and_start_at_zero(fractions: list[float]) -> None:
    trace = Trace.shipped("vllm-rtx4090")
    parts = trace.split(*fractions)
    lengths = np.concatenate([part.num_prompt_tokens for part in parts])
    assert np.array_equal(lengths, trace.num_prompt_tokens[: len(lengths)])
    assert all(part.arrival_us[0] == 0 for part in parts)


def test_splicing_keeps_prefixes_apart() -> None:
    part = Trace.shipped("mooncake").split(0.01)[0]
    both = part.spliced(part, gap_us=1_000)
    assert len(both) == 2 * len(part) and both.prefixes is not None and part.prefixes is not None
    half = len(part.prefixes.ids)
    assert not set(both.prefixes.ids[:half].tolist()) & set(both.prefixes.ids[half:].tolist())
    with pytest.raises(TraceError, match="cannot splice"):
        other = Prefixes(ptr=part.prefixes.ptr, ids=part.prefixes.ids, block_tokens=16)
        part.spliced(Trace.from_columns(**{c: getattr(part, c) for c in COLUMNS}, prefixes=other))


LENGTHS = Lengths.lognormal(prompt_p50=1_000, prompt_p99=4_000, output_p50=130, output_p99=600)


def test_generators_repeat_by_seed_and_keep_their_rate() -> None:
    makers: list[Callable[[int], Trace]] = [
        lambda seed: poisson(20_000, 8.0, LENGTHS, seed=seed),
        lambda seed: bursty(20_000, 8.0, 3.0, LENGTHS, seed=seed),
        lambda seed: diurnal(20_000, 8.0, LENGTHS, peak_to_trough=5, period_s=500, seed=seed),
    ]
    for make in makers:
        assert_same(make(1), make(1))
        assert not np.array_equal(make(1).arrival_us, make(2).arrival_us)
        assert make(1).rate == pytest.approx(8.0, rel=0.1)
    assert np.percentile(poisson(50_000, 8, LENGTHS, seed=1).num_prompt_tokens, 99) == pytest.approx(4_000, rel=0.1)


def test_bursty_gaps_have_the_asked_variation() -> None:
    gaps = np.diff(bursty(50_000, 10.0, 3.0, LENGTHS, seed=4).arrival_us)
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.1)


def test_diurnal_peaks_at_the_asked_ratio() -> None:
    trace = diurnal(200_000, 50.0, LENGTHS, peak_to_trough=4, period_s=400, seed=4)
    phase = (trace.arrival_us / 1e6) % 400
    peak, trough = ((phase > 90) & (phase < 110)).sum(), ((phase > 290) & (phase < 310)).sum()
    assert peak / trough == pytest.approx(4, rel=0.15)


def test_phases_shift_rate_and_lengths() -> None:
    long = Lengths.lognormal(prompt_p50=8_000, prompt_p99=9_000, output_p50=10, output_p99=20)
    trace = phases([(2_000, 20.0, LENGTHS), (2_000, 2.0, long)], seed=9)
    first, second = trace.split(0.5, 0.5)
    assert first.rate > 5 * second.rate
    assert np.median(second.num_prompt_tokens) > 4 * np.median(first.num_prompt_tokens)


def test_conversations_share_what_came_before() -> None:
    trace = conversations(50, 1.0, LENGTHS, turns=4, system_tokens=256, systems=2, seed=1)
    assert trace.prefixes is not None
    ptr, ids = trace.prefixes.ptr, trace.prefixes.ids
    assert np.array_equal(ptr[1:] - ptr[:-1], trace.num_prompt_tokens // 16)
    assert len(np.unique(ids)) < 0.8 * len(ids)
    with pytest.raises(TraceError):
        conversations(10, 1.0, LENGTHS, turns=0.5, seed=1)


@pytest.mark.slow
def test_ten_million_rows_stream_into_columns(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "large.csv"
    rows = np.column_stack([np.arange(500_000) * 7, np.full(500_000, 900), np.full(500_000, 120)])
    with path.open("w") as out:
        out.write("arrival_us,num_prompt_tokens,num_output_tokens\n")
        for block in range(20):
            np.savetxt(out, rows + np.array([block * 3_500_000, 0, 0]), fmt="%d", delimiter=",")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trace = Trace.read(path)
    grown_gb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    assert len(trace) == 10_000_000
    assert grown_gb < 3.0
