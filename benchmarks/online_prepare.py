"""Preparation for `online.py`: the speed of this machine, and the best static order in hindsight."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from autopoiesis_contracts.request_ordering import RequestOrdering
from online_server import replay, serving, warm_up
from online_workload import MAX_TOKENS, Job

from autopoiesis_lib.evolution import Budget, SimulationEvaluator, evolve
from autopoiesis_lib.online.observer import Observer
from autopoiesis_lib.online.recalibration import recalibrate, with_limits
from autopoiesis_lib.protocol.channel import Channel
from autopoiesis_lib.simulation.calibration import Calibration
from autopoiesis_lib.simulation.result import Slo
from autopoiesis_lib.simulation.trace import Trace

__all__ = ["Prepared", "prepare", "stretched"]

REFERENCE_STEP_S = 0.005
"""A decoding step, in seconds, of the engine for which the workload's arrivals are published.

At 0.006 the engine is so near saturation that small changes of the host's speed decide the result, whatever the policy.
"""
PACE_JOBS, PACE_TOKENS = 256, 64
HINDSIGHT_CANDIDATES = 600


@dataclass(frozen=True)
class Prepared:
    """Results of the preparation: found once, and the same for every arm."""

    stretch: float
    """Factor of all arrival times here: this machine's decoding step over the reference's."""
    hindsight: str
    """The best order of a search on the whole workload in the simulator, calibrated to this engine."""


def prepare(jobs: Sequence[Job], results: Path) -> Prepared:
    """Read the results of an earlier preparation, or make them: it takes a minute, on an otherwise idle machine."""
    kept = results / "prepared.json"
    if not kept.is_file():
        calibration = _calibrate(jobs, results / "prepare-server.log")
        stretch = calibration.step_time.step_seconds(prefill_tokens=0, attention=0.0, decodes=4, context=400)
        stretch = round(stretch / REFERENCE_STEP_S, 3)
        kept.write_text(json.dumps(asdict(Prepared(stretch, _hindsight(stretched(jobs, stretch), calibration)))))
    return Prepared(**json.loads(kept.read_text()))


def stretched(jobs: Sequence[Job], stretch: float) -> list[Job]:
    """Return the same jobs with all arrival times multiplied by `stretch`."""
    return [replace(job, at_s=round(job.at_s * stretch, 6)) for job in jobs]


def _calibrate(jobs: Sequence[Job], log: Path) -> Calibration:
    """Return the step-time model of a never idle engine, fitted to its telemetry as the control plane does."""
    lot = [replace(job, at_s=0.0, num_output_tokens=PACE_TOKENS) for job in jobs[:: len(jobs) // PACE_JOBS]]
    with tempfile.TemporaryDirectory() as folder:
        channel = Channel(Path(folder) / "channel")
        extra = {"AUTOPOIESIS_CHANNEL": str(channel.root), "AUTOPOIESIS_STATE": folder, "AUTOPOIESIS_SNAPSHOT_S": "1"}
        with serving(extra, ours=True, log=log) as url:
            warm_up(url, jobs[:8])
            replay(url, lot)
            engines = channel.engines()
        observer = Observer(channel.root, 600.0)
        observer.look()
    engine = observer.busiest()
    if engine is None:
        raise SystemExit(f"no telemetry came out of the engine; see {log}")
    given = with_limits(Calibration.shipped(Calibration.names()[0]), engines)
    found = recalibrate(engine.between(0, engine.now_us), given)
    if not found.accepted:
        raise SystemExit(f"the engine's speed could not be fitted: {found}")
    return found.calibration


def _hindsight(jobs: Sequence[Job], calibration: Calibration) -> str:
    trace = Trace.from_columns(
        arrival_us=np.array([round(job.at_s * 1e6) for job in jobs]),
        num_prompt_tokens=np.array([job.num_prompt_tokens for job in jobs]),
        num_output_tokens=np.array([job.num_output_tokens for job in jobs]),
        max_tokens=np.full(len(jobs), MAX_TOKENS),
        name="the whole workload",
    )
    contract = RequestOrdering()
    evaluator = SimulationEvaluator(
        train=(trace,), held_out=(trace,), engine=calibration.engine, step_time=calibration.step_time,
        slo=Slo(ttft_s=2.0, tpot_s=0.1), slots=dict(contract.slots), name=trace.name,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        found = evolve(
            contract, evaluator, budget=Budget(candidates=HINDSIGHT_CANDIDATES), seed=1, workers=1,
            store=f"{folder}/store.db", objectives={"e2e_mean_us": 1.0},
        )  # fmt: skip
    return found.best.source
