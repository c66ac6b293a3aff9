"""Step-time models: fitted to the shared vLLM runs, to step logs, and read from files."""

import gzip
import json
import math
import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from autopoiesis_lib.simulation import Calibration, CalibrationError, EngineConfig, StepTimeModel, Trace, simulate
from autopoiesis_lib.simulation.fitting import MeasuredRequests, StepRecords, calibrate, fit_steps

RUNS = {"rtxpro6000-llama31-8b": "vllm_rtxpro6000_llama31_8b", "rtx4090-llama31-8b": "vllm_rtx4090_llama31_8b"}


def measured(name: str, folder: Path) -> MeasuredRequests:
    path = folder / f"{name}.jsonl"
    path.write_bytes(gzip.decompress((files("autopoiesis_lib") / "data" / f"{RUNS[name]}.jsonl.gz").read_bytes()))
    return MeasuredRequests.read(path)


@pytest.mark.parametrize("name", RUNS)
def test_the_unseen_half_of_the_vllm_runs_is_predicted_within_the_bars(name: str, tmp_path: Path) -> None:
    shipped = Calibration.shipped(name)
    fitted = calibrate(measured(name, tmp_path), shipped.engine, name=name, source=shipped.source)
    for measure in ("ttft", "e2e"):
        assert abs(fitted.errors[f"{measure}_mean"]) <= 0.03
        assert abs(fitted.errors[f"{measure}_p99"]) <= 0.05
    assert fitted.errors == pytest.approx(dict(shipped.errors), abs=0.01)


def test_coefficients_of_a_known_engine_are_found_again_from_its_step_log() -> None:
    truth = StepTimeModel(c0=0.011, c1=5e-5, c2=4e-5, c3=9e-8, c4=2e-9)
    trace = Trace.shipped("azure-conv").split(0.05)[0].scaled(1.5)
    log = simulate(trace, EngineConfig(total_blocks=20_000), truth, step_log=True).step_log
    assert log is not None
    single = log.steps == 1
    seconds = (log.end_ns - log.start_ns)[single] / 1e9
    fitted = fit_steps(
        StepRecords(
            seconds=seconds,
            prefill_tokens=log.prefill_tokens[single],
            attention=log.attention2[single] / 2,
            decodes=log.decodes[single],
            context=log.context[single],
        )
    )
    for coefficient in ("c0", "c1", "c2", "c3", "c4"):
        assert getattr(fitted, coefficient) == pytest.approx(getattr(truth, coefficient), rel=0.01)


def test_a_prefill_floor_is_found() -> None:
    random = np.random.default_rng(0)
    tokens = random.integers(0, 2_000, 2_000) * (random.random(2_000) < 0.5)
    decodes = random.integers(1, 100, 2_000)
    truth = StepTimeModel(c0=0.01, c1=5e-5, c2=1e-4, c3=0, c4=0, floor=0.03)
    seconds = np.array(
        [
            truth.step_seconds(prefill_tokens=int(t), attention=0.0, decodes=int(d), context=0)
            for t, d in zip(tokens, decodes, strict=True)
        ]
    )
    zeros = np.zeros(2_000, dtype=np.int64)
    records = StepRecords(
        seconds=seconds, prefill_tokens=tokens, attention=zeros.astype(float), decodes=decodes, context=zeros
    )
    assert fit_steps(records).floor == pytest.approx(0.03, rel=0.25)


def test_every_shipped_calibration_loads_and_names_its_source() -> None:
    for name in Calibration.names():
        calibration = Calibration.shipped(name)
        assert calibration.name == name and "MIT" in calibration.source and calibration.errors
    with pytest.raises(CalibrationError, match="no shipped calibration 'h900'"):
        Calibration.shipped("h900")


def test_calibrations_round_trip_and_bad_files_are_one_clear_line(tmp_path: Path) -> None:
    calibration = Calibration.shipped("rtx4090-llama31-8b")
    calibration.write(tmp_path / "mine.json")
    assert Calibration.read(tmp_path / "mine.json") == calibration
    (tmp_path / "bad.json").write_text('{"name": "x", "step_time": {"c0": -1}}')
    with pytest.raises(CalibrationError, match=r"step_time\.c0") as caught:
        Calibration.read(tmp_path / "bad.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(CalibrationError, match="line 1"):
        (tmp_path / "log.jsonl").write_text('{"input_toks": 3}\n')
        MeasuredRequests.read(tmp_path / "log.jsonl")


def request(second: float, **fields: object) -> str:
    times = {"queued_ts": second, "scheduled_ts": second, "first_token_ts": second + 0.1, "last_token_ts": second + 0.5}
    return json.dumps({**times, "input_toks": 100, "output_toks": 20, **fields}) + "\n"


class TestHostileFiles:
    @pytest.mark.parametrize(
        ("row", "field"),
        [
            *(
                (request(9, queued_ts=value), "queued_ts")
                for value in (math.nan, -math.inf, "9", True, None, 1e300, 1e13, 10**400)
            ),
            *((request(9, scheduled_ts=value), "scheduled_ts") for value in (8.9, math.nan)),
            *((request(9, first_token_ts=value), "first_token_ts") for value in (-9, math.inf, [])),
            *((request(9, last_token_ts=value), "last_token_ts") for value in (9, 1e10)),
            *((request(9, input_toks=value), "input_toks") for value in (0, -1, 1.5, True, "1", 1 << 70, 1_048_577)),
            *((request(9, output_toks=value), "output_toks") for value in (0, math.nan, None)),
            (request(1e9, first_token_ts=1e9, last_token_ts=1e9), "queued_ts"),
            ('{"queued_ts": 1}', "scheduled_ts"),
            *((text, "row") for text in ("[" * 100_000, "{oops", "\0", "[1]", '{"a": 1, "a": 1}', "9" * 5_000)),
        ],
    )
    def test_a_bad_measured_row_is_named(self, tmp_path: Path, row: str, field: str) -> None:
        path = tmp_path / "run.jsonl"
        path.write_text("".join(map(request, range(9))) + row + "\n")
        with pytest.raises(CalibrationError, match=f"line 10: `{field}`"):
            MeasuredRequests.read(path)

    def test_measured_requests_are_read_gzipped(self, tmp_path: Path) -> None:
        text = "".join(map(request, range(9))).encode()
        (tmp_path / "run.jsonl.gz").write_bytes(gzip.compress(text))
        assert len(MeasuredRequests.read(tmp_path / "run.jsonl.gz").queued_s) == 9
        for damaged in (gzip.compress(text)[:-9], text, b""):
            (tmp_path / "run.jsonl.gz").write_bytes(damaged)
            with pytest.raises(CalibrationError):
                MeasuredRequests.read(tmp_path / "run.jsonl.gz")

    def test_measures_of_zero_are_no_division(self, tmp_path: Path) -> None:
        path = tmp_path / "run.jsonl"
        path.write_text("".join(request(at, output_toks=1, last_token_ts=at + 0.1) for at in range(20)))
        with pytest.raises(CalibrationError, match="tpot is 0"):
            calibrate(MeasuredRequests.read(path), EngineConfig(total_blocks=999), name="x", source="y")

    @pytest.mark.parametrize(
        ("old", "new", "field"),
        [
            *(('"c0": 0.0', f'"c0": {value}', "step_time.c0") for value in ("NaN", "1e400", '"0.1"', "true", "-1")),
            ('"block_size": 16', '"block_size": true', "engine.block_size"),
            ('"block_size": 16', '"block_size": "16"', "engine.block_size"),
            ('"block_size": 16', '"block_size": 16.0', "engine.block_size"),
            ('"block_size": 16', f'"block_size": {1 << 80}', "engine.block_size"),
            ('"errors": {', '"errors": {"x": Infinity, ', "errors.x"),
            ('"errors": {', '"errors": {"x": "1", ', "errors.x"),
            ('"name": ', '"name": "x", "name": ', "name"),
            ('"name": ', '"\\u001b[31m": 1, "name": ', "Extra"),
            ('"name": ', '"x": ' + "[" * 100_000 + ', "name": ', "recursion"),
            ('"name": ', '"x": ' + "9" * 5_000 + ', "name": ', "out of range"),
        ],
        ids=range(15),
    )
    def test_a_bad_calibration_names_its_field(self, tmp_path: Path, old: str, new: str, field: str) -> None:
        path = tmp_path / "mine.json"
        engine = EngineConfig(total_blocks=9)
        step_time = StepTimeModel(c0=0, c1=0.1, c2=0.1, c3=0, c4=0)
        Calibration(name="x", step_time=step_time, engine=engine, source="y", errors={"a": 1.0}).write(path)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(CalibrationError, match=field) as caught:
            Calibration.read(path)
        assert str(caught.value).isprintable()

    def test_files_that_are_no_calibration_are_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        for name, content in {"none": b"", "text": b"\xff\xfe", "list": b"[]", "large": b" " * (2 << 20)}.items():
            (tmp_path / name).write_bytes(content)
        for path in (*sorted(tmp_path.iterdir()), tmp_path, tmp_path / "missing", Path("/dev/zero")):
            with pytest.raises(CalibrationError):
                Calibration.read(path)
            with pytest.raises(CalibrationError):
                MeasuredRequests.read(path)


def test_models_under_which_time_stands_still_are_refused() -> None:
    with pytest.raises(ValidationError, match="must take time"):
        StepTimeModel(c0=0, c1=0, c2=0, c3=0, c4=0)
    with pytest.raises(ValidationError, match="as vLLM demands"):
        EngineConfig(total_blocks=10, max_num_seqs=256, max_num_batched_tokens=128)
