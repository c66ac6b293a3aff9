"""The pinned workload of `online.py`: three phases of open-loop arrivals, drawn from a published seed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["PHASES", "Job", "Phase", "digest", "workload"]

VOCABULARY = 31_000


@dataclass(frozen=True)
class Job:
    """One request: when it comes, how long its prompt is, how many tokens it wants."""

    number: int
    at_s: float
    num_prompt_tokens: int
    max_tokens: int
    phase: int

    def prompt(self) -> list[int]:
        """Token ids that depend on the number alone."""
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
    """Arrivals a second, on average."""
    kinds: tuple[Kind, ...]
    burst_every_s: float = 0.0
    """Period of the bursts; 0: Poisson arrivals."""
    burst_s: float = 0.0
    """Length of one burst."""
    burst_share: float = 0.0
    """Share of the arrivals that come in bursts."""


PHASES = (
    Phase(
        name="short-heavy",
        rate=30.0,
        kinds=(
            Kind(share=0.88, prompt=(16, 64), output=(4, 16)),
            Kind(share=0.12, prompt=(64, 256), output=(96, 192)),
        ),
    ),
    Phase(
        name="long-heavy",
        rate=11.0,
        kinds=(
            Kind(share=0.45, prompt=(256, 768), output=(4, 16)),
            Kind(share=0.55, prompt=(16, 64), output=(96, 192)),
        ),
    ),
    Phase(
        name="bursty",
        rate=20.0,
        kinds=(
            Kind(share=0.80, prompt=(16, 256), output=(4, 24)),
            Kind(share=0.20, prompt=(16, 256), output=(96, 192)),
        ),
        burst_every_s=10.0,
        burst_s=1.5,
        burst_share=0.8,
    ),
)


def workload(seed: int, phase_s: float, phases: Sequence[Phase] = PHASES, speed: float = 1.0) -> list[Job]:
    """The jobs of all phases by arrival; each phase lasts `phase_s` seconds, and `speed` multiplies every rate."""
    draw = np.random.Generator(np.random.PCG64(seed))
    jobs: list[Job] = []
    for index, phase in enumerate(phases):
        count = round(phase.rate * speed * phase_s)
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
    """What pins a workload: SHA-256 over all its numbers, 16 hex digits."""
    rows = [(job.number, round(job.at_s * 1e6), job.num_prompt_tokens, job.max_tokens, job.phase) for job in jobs]
    return hashlib.sha256(np.array(rows, np.int64).tobytes()).hexdigest()[:16]


def _arrivals(phase: Phase, count: int, phase_s: float, draw: np.random.Generator) -> NDArray[np.float64]:
    """A Poisson process given its number of arrivals; a share of them moved into the bursts."""
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
