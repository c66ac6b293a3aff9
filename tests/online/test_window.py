"""Claims about telemetry on its way from an engine to a trace and a calibration."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autopoiesis_lib.online.recalibration import recalibrate, step_residuals
from autopoiesis_lib.online.window import OPEN, SlidingWindow, Window, WindowError
from autopoiesis_lib.protocol.telemetry import Piece, TelemetryReader
from autopoiesis_lib.simulation import Calibration, StepTimeModel
from tests.online.streams import ENGINE, STEP_TIME, leave, poisson_trace, recorded, served

TRACE = poisson_trace(1, rate=6.0, seconds=120)
SLOWER = StepTimeModel(c0=0.018, c1=6e-5, c2=2.4e-4, c3=2e-8, c4=0.0)


@pytest.fixture(scope="module")
def segments() -> list[Piece]:
    return recorded(served(TRACE), TRACE)


def sliding(segments: list[Piece], length_s: float = 60.0) -> SlidingWindow:
    window = SlidingWindow("engine-0", length_s)
    window.add(segments)
    return window


def known(segments: list[Piece]) -> int:
    """Requests that have come or left."""
    return len({number for item in segments for part in (item.requests, item.arrivals) for number in part["number"]})


def read_back(folder: Path) -> list[Piece]:
    return list(TelemetryReader(folder).read().pieces)


def test_a_damaged_piece_leaves_no_hole_in_a_window(segments: list[Piece], tmp_path: Path) -> None:
    folder = leave(tmp_path, segments[:6])
    path = folder / "00000002.npz"
    path.write_bytes(path.read_bytes()[:200])
    read = read_back(folder)
    assert [segment.number for segment in read] == [0, 1, 3, 4, 5]
    assert len(sliding(read).between(0, 10**12)) == known(segments[3:6])


def test_a_restarted_engines_old_clock_is_forgotten(segments: list[Piece], tmp_path: Path) -> None:
    again = [replace(segment, number=segment.number + 1_700_000_000) for segment in segments[:2]]
    read = read_back(leave(tmp_path, [*segments[:3], *again]))
    window = sliding(read)
    assert window.position == 1_700_000_001
    assert len(window.between(0, 10**12)) == known(segments[:2])


def test_a_settled_window_is_the_trace_that_was_served(segments: list[Piece]) -> None:
    window = sliding(segments).window()
    assert window is not None
    trace = window.trace()
    rows = np.flatnonzero((TRACE.arrival_us >= window.start_us) & (TRACE.arrival_us < window.end_us))
    expected = TRACE.select(rows)
    assert np.array_equal(trace.arrival_us, expected.arrival_us)
    assert np.array_equal(trace.num_prompt_tokens, expected.num_prompt_tokens)
    guessed = trace.num_output_tokens != expected.num_output_tokens
    assert guessed.mean() <= OPEN
    finished = sliding(segments).between(0, 10**12).trace()
    assert np.array_equal(finished.arrival_us, TRACE.arrival_us)
    assert np.array_equal(finished.num_prompt_tokens, TRACE.num_prompt_tokens)
    assert np.array_equal(finished.num_output_tokens, TRACE.num_output_tokens)


def test_what_unfinished_requests_will_cost_is_drawn_from_those_with_the_nearest_prompts(
    segments: list[Piece],
) -> None:
    now = sliding(segments[:30], 10.0)
    arrived = now.arrived()
    assert arrived is not None and arrived.unfinished.any()
    assert arrived.end_us == now.last_us > now.settled_us
    seen = dict(
        zip(arrived.requests["stamp_us"].tolist(), arrived.completed().requests["num_output_tokens"], strict=True)
    )
    truth = dict(zip(TRACE.arrival_us.tolist(), TRACE.num_output_tokens, strict=True))
    assert all(seen[stamp] == truth[stamp] for stamp in arrived.requests["stamp_us"][~arrived.unfinished].tolist())
    # By another window's requests, where a prompt tells the answer exactly:
    whole = sliding(segments).between(0, 10**12)
    telling = replace(whole, requests={**whole.requests, "num_output_tokens": 3 * whole.requests["num_prompt_tokens"]})
    guessed = arrived.completed([telling])
    waiting = arrived.unfinished
    assert np.array_equal(
        guessed.requests["num_output_tokens"][waiting], 3 * arrived.requests["num_prompt_tokens"][waiting]
    )
    assert len(guessed.trace()) == len(arrived)


def test_there_is_no_window_until_one_is_full(segments: list[Piece]) -> None:
    assert sliding(segments[:30]).window() is None
    full = sliding(segments).window()
    assert full is not None
    assert full.seconds == 60
    assert sliding(segments).window(since_us=full.start_us + 1) is None


def test_vllm_priorities_become_ours_and_unserved_aborts_are_left_out(segments: list[Piece]) -> None:
    window = sliding(segments).between(0, 10**12)
    count = len(window)
    requests = dict(window.requests)
    requests["priority"] = np.arange(count, dtype=np.int64) % 30 - 10
    requests["num_output_tokens"] = requests["num_output_tokens"].copy()
    requests["num_output_tokens"][:7] = 0
    trace = replace(window, requests=requests).trace()
    assert len(trace) == count - 7
    assert np.array_equal(trace.priority, np.clip(8 - requests["priority"][7:], 0, 15))


def test_a_window_survives_the_disk_and_a_damaged_one_is_named(segments: list[Piece], tmp_path: Path) -> None:
    window = sliding(segments).between(0, 50_000_000)
    window.write(tmp_path / "w.npz")
    read = Window.read(tmp_path / "w.npz")
    assert (read.engine, read.start_us, read.end_us, len(read)) == ("engine-0", 0, 50_000_000, len(window))
    (tmp_path / "w.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(WindowError, match=r"w\.npz cannot be read"):
        Window.read(tmp_path / "w.npz")


def test_an_empty_window_says_so() -> None:
    empty = SlidingWindow("engine-0", 10)
    assert empty.window() is None
    with pytest.raises(WindowError, match="too few for a trace"):
        empty.between(0, 1_000_000).trace()
    with pytest.raises(WindowError, match="above 0"):
        SlidingWindow("engine-0", 0)


def test_residuals_are_nil_where_the_model_is_right() -> None:
    window = sliding(recorded(served(TRACE), TRACE)).between(0, 10**12)
    _, residuals = step_residuals(window, ENGINE, STEP_TIME)
    assert len(residuals) > 1_000
    assert abs(float(np.median(residuals))) < 0.02


def test_recalibration_follows_an_engine_that_became_slower_and_keeps_a_model_that_is_right() -> None:
    current = Calibration(name="gpu", step_time=STEP_TIME, engine=ENGINE, source="test")
    slow = recalibrate(sliding(recorded(served(TRACE, step_time=SLOWER), TRACE)).between(0, 10**12), current)
    assert slow.accepted
    assert slow.error_after < 0.05 < slow.error_before
    assert slow.calibration.engine == ENGINE
    same = recalibrate(sliding(recorded(served(TRACE), TRACE)).between(0, 10**12), current)
    assert same.error_before < 0.05
    few = recalibrate(sliding(recorded(served(TRACE), TRACE)).between(0, 500_000), current)
    assert not few.accepted
    assert few.calibration is current
    assert "too few" in str(few)
