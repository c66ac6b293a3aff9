"""Telemetry streams for tests: drawn from distributions, or recorded from the simulator serving a trace."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autopoiesis_lib.online.window import Window
from autopoiesis_lib.protocol.telemetry import ARRIVAL_FIELDS, REQUEST_FIELDS, STEP_FIELDS, Piece, write_piece
from autopoiesis_lib.simulation import EngineConfig, SimulationResult, StepTimeModel, Trace, simulate
from autopoiesis_lib.simulation.slots import NativeFunctionLike

Ints = NDArray[np.int64]

ENGINE = EngineConfig(block_size=16, total_blocks=4_096, max_num_seqs=32, max_num_batched_tokens=1_024)
STEP_TIME = StepTimeModel(c0=0.012, c1=4.5e-5, c2=1.2e-4, c3=2e-8, c4=0.0)


def drawn_window(
    draw: np.random.Generator,
    *,
    rate: float = 5.0,
    seconds: float = 300.0,
    burstiness: float = 1.0,
    prompt: float = 600.0,
    output: float = 150.0,
    slowness: float = 1.0,
) -> Window:
    """Gamma arrivals (`burstiness` is the squared coefficient of variation, 1 being Poisson), log-normal lengths, and steps
    of a decoding engine that takes `slowness` times what STEP_TIME says."""
    gaps = draw.gamma(1 / burstiness, burstiness / rate, size=int(3 * rate * seconds) + 100)
    arrivals = np.cumsum(gaps)
    stamps: Ints = (arrivals[arrivals < seconds] * 1e6).astype(np.int64)
    count = len(stamps)
    lengths = {
        "num_prompt_tokens": np.clip(draw.lognormal(np.log(prompt), 1.0, count), 1, 30_000).astype(np.int64),
        "num_output_tokens": np.clip(draw.lognormal(np.log(output), 0.8, count), 1, 4_000).astype(np.int64),
    }
    zeros = np.zeros(count, np.int64)
    requests: dict[str, Ints] = dict.fromkeys(REQUEST_FIELDS, zeros)
    requests |= {
        "number": np.arange(1, count + 1),
        "stamp_us": stamps,
        "admitted_us": stamps + 1_000,
        "first_token_us": stamps + 200_000,
        "finished_us": stamps + 4_000_000,
        "max_tokens": zeros + 4_096,
        **lengths,
    }
    running = draw.integers(8, 24, size=int(seconds * 100))
    predicted = np.array([STEP_TIME.step_seconds(prefill_tokens=0, attention=0, decodes=r, context=0) for r in running])
    at = np.cumsum(predicted * slowness * draw.lognormal(0.0, 0.05, len(running)))
    kept = at < seconds
    blank = np.zeros(int(kept.sum()), np.int64)
    steps: dict[str, Ints] = dict.fromkeys(STEP_FIELDS, blank)
    steps |= {
        "at_us": (at[kept] * 1e6).astype(np.int64),
        "num_running": running[kept].astype(np.int64),
        "scheduled_tokens": running[kept].astype(np.int64),
        "free_blocks": blank + ENGINE.total_blocks,
    }
    return Window(engine="engine-0", start_us=0, end_us=int(seconds * 1e6), requests=requests, steps=steps)


def served(
    trace: Trace,
    *,
    step_time: StepTimeModel = STEP_TIME,
    engine: EngineConfig = ENGINE,
    policies: Mapping[str, NativeFunctionLike] | None = None,
) -> SimulationResult:
    """The simulator in the engine's place."""
    return simulate(trace, engine, step_time, policies, step_log=True)


def recorded(
    result: SimulationResult,
    trace: Trace,
    *,
    every_s: float = 1.0,
    start_us: int = 0,
    first: int = 0,
    first_number: int = 1,
    engine: str = "engine-0",
) -> list[Piece]:
    """What an engine would have put into its folder while serving the trace: a piece every `every_s` seconds.

    A row of the simulator's step log may stand for several alike steps; they are written out one by one.
    """
    times, log = result.times, result.step_log
    assert log is not None
    rows = np.flatnonzero(times.served)
    requests: dict[str, Ints] = {name: np.zeros(len(rows), np.int64) for name in REQUEST_FIELDS}
    requests |= {
        "number": first_number + rows,
        "stamp_us": start_us + times.arrival_ns[rows] // 1_000,
        "admitted_us": start_us + times.scheduled_ns[rows] // 1_000,
        "first_token_us": start_us + times.first_token_ns[rows] // 1_000,
        "finished_us": start_us + times.finish_ns[rows] // 1_000,
        "num_prompt_tokens": times.num_prompt_tokens[rows],
        "num_output_tokens": times.num_output_tokens[rows],
        "max_tokens": trace.max_tokens[rows],
        "num_preemptions": times.num_preemptions[rows],
    }
    repeats = np.maximum(log.steps, 1)
    number = np.arange(int(repeats.sum())) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    begins = np.repeat(log.start_ns, repeats) + number * np.repeat((log.end_ns - log.start_ns) // repeats, repeats)
    tokens = np.repeat((log.prefill_tokens + log.decodes) // repeats, repeats)
    steps: dict[str, Ints] = {name: np.zeros(len(begins), np.int64) for name in STEP_FIELDS}
    prefills = np.repeat(log.running - log.decodes // repeats, repeats)
    steps |= {
        "at_us": start_us + begins // 1_000,
        "num_waiting": np.repeat(log.waiting, repeats),
        "num_running": np.repeat(log.running, repeats),
        "free_blocks": np.repeat(log.free_blocks, repeats),
        "scheduled_tokens": tokens,
        "admitted": np.where(number == 0, np.maximum(prefills, 0), 0),
    }
    # `rows` are in order of arrival, so these are too
    arrivals = {name: requests[name] for name in ARRIVAL_FIELDS}
    order = np.argsort(requests["finished_us"], kind="stable")
    requests = {name: column[order] for name, column in requests.items()}
    last = int(max(requests["finished_us"].max(initial=0), steps["at_us"].max(initial=0)))
    edges = np.arange(start_us, last + round(every_s * 1e6), round(every_s * 1e6)) + round(every_s * 1e6)
    whens = (requests["finished_us"], steps["at_us"], arrivals["stamp_us"])
    cuts = [np.searchsorted(when, edges).tolist() for when in whens]
    pieces, before = [], (0, 0, 0)
    for index, cut in enumerate(zip(*cuts, strict=True)):
        pieces.append(
            Piece(
                engine=engine,
                number=first + index,
                requests={name: column[before[0] : cut[0]] for name, column in requests.items()},
                steps={name: column[before[1] : cut[1]] for name, column in steps.items()},
                arrivals={name: column[before[2] : cut[2]] for name, column in arrivals.items()},
            )
        )
        before = cut
    return pieces


def columns_of(piece: Piece) -> dict[str, Ints]:
    """Return a piece's columns as `write_piece` takes them."""
    return {f"{table}.{name}": column for table, part in piece.tables() for name, column in part.items()}


def leave(channel: Path, pieces: Sequence[Piece], keep: int = 64) -> Path:
    """Put pieces into a channel as the adapter does; return the folder of the last one's engine."""
    folder = channel
    for piece in pieces:
        folder = write_piece(channel, piece.engine, piece.number, columns_of(piece), keep=keep).parent
    return folder


def poisson_trace(
    seed: int,
    *,
    rate: float,
    seconds: float,
    prompts: tuple[int, ...] = (40, 2_000),
    outputs: tuple[int, ...] = (20, 60),
) -> Trace:
    """Poisson arrivals whose prompts and outputs are drawn evenly from a few lengths."""
    draw = np.random.default_rng(seed)
    count = int(rate * seconds)
    return Trace.from_columns(
        arrival_us=np.sort(draw.uniform(0, seconds * 1e6, count)).astype(np.int64),
        num_prompt_tokens=draw.choice(np.array(prompts, np.int64), count),
        num_output_tokens=draw.choice(np.array(outputs, np.int64), count),
        name=f"poisson-{seed}",
    )
