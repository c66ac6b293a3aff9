"""Synthetic workloads with a seed: Poisson, bursty and diurnal arrivals, phase shifts, and conversations.

The prompts of a conversation share prefixes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from autopoiesis_lib.simulation.trace import Ints, Prefixes, Trace, TraceError

__all__ = ["Lengths", "bursty", "conversations", "diurnal", "phases", "poisson"]

_P99_SIGMAS: Final = 2.3263478740408408
"""Standard deviations from the median to the 99th percentile of a normal distribution."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Lengths:
    """A pool of prompt and output lengths, from which pairs are drawn with replacement."""

    prompt: Ints
    output: Ints

    @classmethod
    def like(cls, trace: Trace) -> Self:
        """Return the pairs of a trace, which keeps the correlation of prompt and output."""
        return cls(prompt=trace.num_prompt_tokens, output=trace.num_output_tokens)

    @classmethod
    def lognormal(
        cls, *, prompt_p50: float, prompt_p99: float, output_p50: float, output_p99: float, seed: int = 0
    ) -> Self:
        """Return independent lognormal lengths with the given medians and 99th percentiles (a pool of 65,536 pairs).

        Raises:
            TraceError: a median is not positive, or exceeds its 99th percentile.
        """
        if not (0 < prompt_p50 <= prompt_p99 and 0 < output_p50 <= output_p99):
            raise TraceError("medians must be positive and at most the 99th percentiles")
        random = np.random.default_rng(seed)

        def draw(p50: float, p99: float) -> Ints:
            sigma = np.log(p99 / p50) / _P99_SIGMAS
            lengths = np.rint(random.lognormal(np.log(p50), sigma, 65_536))
            return np.clip(lengths, 1, 1_048_576).astype(np.int64)

        return cls(prompt=draw(prompt_p50, prompt_p99), output=draw(output_p50, output_p99))

    def draw(self, count: int, random: np.random.Generator) -> tuple[Ints, Ints]:
        rows = random.integers(0, len(self.prompt), count)
        return self.prompt[rows], self.output[rows]


def poisson(count: int, rate: float, lengths: Lengths, *, seed: int) -> Trace:
    """Return a trace with independent arrivals at `rate` per second."""
    return bursty(count, rate, 1.0, lengths, seed=seed)


def bursty(count: int, rate: float, cv: float, lengths: Lengths, *, seed: int) -> Trace:
    """Return a trace with gamma-distributed gaps of the coefficient of variation `cv`.

    1 is Poisson, above 1 arrivals come in bursts, and below 1 they are regular.
    """
    _check(count, rate)
    if not cv > 0:
        raise TraceError(f"the coefficient of variation must be positive, not {cv}")
    random = np.random.default_rng(seed)
    gaps = random.gamma(1.0 / cv**2, cv**2 / rate, count)
    return _trace(np.cumsum(gaps), lengths, random, f"gamma-cv{cv:g}-{rate:g}rps-seed{seed}")


def diurnal(
    count: int, rate: float, lengths: Lengths, *, peak_to_trough: float, period_s: float = 86_400.0, seed: int
) -> Trace:
    """Return Poisson arrivals whose rate follows a sine around `rate`.

    `peak_to_trough` is the ratio of the highest to the lowest rate.
    """
    _check(count, rate)
    if peak_to_trough < 1 or not period_s > 0:
        raise TraceError(f"peak_to_trough must be at least 1 and period_s positive, not {peak_to_trough}, {period_s}")
    random = np.random.default_rng(seed)
    swing = (peak_to_trough - 1) / (peak_to_trough + 1)
    targets = np.cumsum(random.exponential(1.0, count)) / rate
    # unit-rate arrivals mapped through the inverse of t - swing * period/2pi * (cos(2pi t/period) - 1)
    grid = np.linspace(0.0, float(targets[-1]) + 2 * period_s, max(4_096, count))
    turns = 2 * np.pi * grid / period_s
    cumulative = grid - swing * period_s / (2 * np.pi) * (np.cos(turns) - 1.0)
    return _trace(np.interp(targets, cumulative, grid), lengths, random, f"diurnal-{rate:g}rps-seed{seed}")


def phases(parts: Sequence[tuple[int, float, Lengths]], *, seed: int) -> Trace:
    """Return consecutive Poisson phases, each given as (count, rate, lengths): a workload that shifts abruptly."""
    if not parts:
        raise TraceError("give at least one phase")
    traces = [poisson(count, rate, lengths, seed=seed + i) for i, (count, rate, lengths) in enumerate(parts)]
    return traces[0].spliced(*traces[1:])


def conversations(
    count: int,
    rate: float,
    lengths: Lengths,
    *,
    turns: float = 4.0,
    think_s: float = 30.0,
    system_tokens: int = 512,
    systems: int = 8,
    block_tokens: int = 16,
    seed: int,
) -> Trace:
    """Return `count` conversations that start at `rate` per second. Each prompt contains all earlier turns.

    The number of turns per conversation is geometric with mean `turns`. The time from one arrival to the next is
    exponential with mean `think_s`. Every conversation begins with one of `systems` shared system prompts. Lengths are
    those of the user's part of a prompt and of the answer. A conversation ends before a prompt would exceed 131,072
    tokens.
    """
    _check(count, rate)
    if turns < 1 or think_s < 0 or system_tokens < 0 or systems < 1 or block_tokens < 1:
        raise TraceError("turns, systems and block_tokens must be at least 1, think_s and system_tokens not negative")
    random = np.random.default_rng(seed)
    starts = np.cumsum(random.exponential(1.0 / rate, count))
    lengths_of = random.geometric(1.0 / turns, count)
    arrival, prompt, output, rows = [], [], [], []
    next_id = systems * (system_tokens // block_tokens + 1)
    for start, rounds in zip(starts.tolist(), lengths_of.tolist(), strict=True):
        system = int(random.integers(systems))
        shared = system_tokens // block_tokens
        ids = [system * (shared + 1) + j for j in range(shared)]
        tokens, clock = system_tokens, start
        for user, answer in zip(*(x.tolist() for x in lengths.draw(rounds, random)), strict=True):
            if tokens + user > 131_072:
                break
            tokens += user
            while len(ids) < tokens // block_tokens:
                ids.append(next_id)
                next_id += 1
            arrival.append(clock)
            prompt.append(tokens)
            output.append(answer)
            rows.append(np.array(ids, dtype=np.int64))
            tokens += answer
            clock += float(random.exponential(think_s)) if think_s else 0.0
    ptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Trace.from_columns(
        arrival_us=np.rint(np.array(arrival) * 1e6).astype(np.int64),
        num_prompt_tokens=np.array(prompt, dtype=np.int64),
        num_output_tokens=np.array(output, dtype=np.int64),
        prefixes=Prefixes(ptr=ptr, ids=np.concatenate(rows), block_tokens=block_tokens),
        name=f"conversations-{rate:g}rps-seed{seed}",
        source="synthetic",
    )


def _check(count: int, rate: float) -> None:
    if count < 1 or not rate > 0:
        raise TraceError(f"count must be at least 1 and rate positive, not {count} and {rate}")


def _trace(seconds: NDArray[np.float64], lengths: Lengths, random: np.random.Generator, name: str) -> Trace:
    prompt, output = lengths.draw(len(seconds), random)
    return Trace.from_columns(
        arrival_us=np.rint(seconds * 1e6).astype(np.int64),
        num_prompt_tokens=prompt,
        num_output_tokens=output,
        name=name,
        source="synthetic",
    )
