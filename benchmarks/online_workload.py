"""The pinned workload of `online.py`: three phases of open-loop arrivals, drawn from a published seed.

All clients ask for at most `MAX_TOKENS`, as most clients do whatever they expect. Output lengths can therefore only be
estimated from the prompt, and the prompt means something else in each phase. Among chats, a long prompt begins a long
answer. When documents for extraction arrive beside stories that are written from a line, the long prompt has the short
answer. In the third phase neither holds. No one order is good in all of them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_TOKENS", "PHASES", "Job", "Phase", "digest", "workload"]

VOCABULARY = 31_000
MAX_TOKENS = 200
"""Greatest output length that every client asks for."""


@dataclass(frozen=True)
class Job:
    """One request: its arrival, its prompt length, and its output length, which no scheduler is told."""

    number: int
    at_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    phase: int

    def prompt(self) -> list[int]:
        """Return token ids that depend on the number alone."""
        return [(7_919 * self.number + 31 * k) % VOCABULARY + 3 for k in range(self.num_prompt_tokens)]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of request: its share, and the ranges that its lengths are drawn from (log-uniformly)."""

    share: float
    prompt: tuple[int, int]
    output: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of one kind of traffic."""

    name: str
    rate: float
    """Mean number of arrivals per second."""
    kinds: tuple[Kind, ...]
    burst_every_s: float = 0.0
    """Period of the bursts; 0: Poisson arrivals."""
    burst_s: float = 0.0
    """Length of one burst."""
    burst_share: float = 0.0
    """Share of the arrivals that are in bursts."""


PHASES = (
    Phase(
        name="short-heavy",
        rate=16.0,
        kinds=(
            Kind(share=0.85, prompt=(8, 48), output=(4, 16)),
            Kind(share=0.15, prompt=(96, 384), output=(96, 192)),
        ),
        burst_every_s=10.0,
        burst_s=2.0,
        burst_share=0.75,
    ),
    Phase(
        name="long-heavy",
        rate=7.2,
        kinds=(
            Kind(share=0.70, prompt=(256, 768), output=(4, 16)),
            Kind(share=0.30, prompt=(16, 64), output=(96, 192)),
        ),
        burst_every_s=10.0,
        burst_s=2.0,
        burst_share=0.75,
    ),
    Phase(
        name="bursty",
        rate=8.0,
        kinds=(
            Kind(share=0.65, prompt=(64, 160), output=(4, 16)),
            Kind(share=0.18, prompt=(8, 32), output=(96, 192)),
            Kind(share=0.17, prompt=(384, 768), output=(96, 192)),
        ),
        burst_every_s=10.0,
        burst_s=1.5,
        burst_share=0.8,
    ),
)


def workload(seed: int, phase_s: float, phases: Sequence[Phase] = PHASES) -> list[Job]:
    """Return the jobs of all phases by arrival; each phase lasts `phase_s` seconds."""
    draw = np.random.Generator(np.random.PCG64(seed))
    jobs: list[Job] = []
    for index, phase in enumerate(phases):
        count = round(phase.rate * phase_s)
        at = np.sort(_arrivals(phase, count, phase_s, draw))
        kind = draw.choice(len(phase.kinds), size=count, p=[kind.share for kind in phase.kinds])
        prompts = [_log_uniform(phase.kinds[k].prompt, draw) for k in kind]
        outputs = [_log_uniform(phase.kinds[k].output, draw) for k in kind]
        jobs += [
            Job(len(jobs) + i, round(index * phase_s + float(at[i]), 6), prompts[i], outputs[i], index)
            for i in range(count)
        ]
    return jobs


def digest(jobs: Sequence[Job]) -> str:
    """Return the digest that pins a workload: SHA-256 over all its numbers, 16 hex digits."""
    rows = [
        (job.number, round(job.at_s * 1e6), job.num_prompt_tokens, job.num_output_tokens, job.phase) for job in jobs
    ]
    return hashlib.sha256(np.array(rows, np.int64).tobytes()).hexdigest()[:16]


def _arrivals(phase: Phase, count: int, phase_s: float, draw: np.random.Generator) -> NDArray[np.float64]:
    """Return the arrivals of a Poisson process given their number; a share of them is moved into the bursts."""
    at = draw.uniform(0, phase_s, count)
    if phase.burst_every_s:
        bursts = int(phase_s // phase.burst_every_s)
        inside = draw.random(count) < phase.burst_share
        start = draw.integers(0, bursts, count) * phase.burst_every_s + phase.burst_every_s / 2
        at = np.where(inside, start + draw.uniform(0, phase.burst_s, count), at)
    return np.asarray(at)


def _log_uniform(edges: tuple[int, int], draw: np.random.Generator) -> int:
    low, high = np.log(edges)
    return int(np.rint(np.exp(draw.uniform(low, high))))
