"""Who wins: of the best candidates the one that does well over the whole range of rates, once it is certified in full."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..certificate import Certificate
from .archive import Archive, Elite
from .errors import EvolutionError
from .evaluator import Measurement, Window
from .executor import Executor, Failure, Key
from .work import SCORED, Certify, Judged, Measure, fitness_of

__all__ = ["answer", "certified", "steadiest_first"]

PATIENT_S = 900.0
"""Time limit of jobs on trusted texts; the first on a fresh machine compiles the simulator."""
NEAR_BEST, TOLERANCE = 32, 0.02
"""Elites within TOLERANCE of the best fitness, NEAR_BEST at most, are told apart at more rates."""
WINDOWS: tuple[Window, ...] = (*SCORED, "other-rates")
LEAST = 1e-9
"""Relative metrics below this count as this: a logarithm must be finite."""
TRIES = 9
"""Candidates that may fail to be certified before the run does."""


def steadiest_first(
    archive: Archive, executor: Executor, objectives: Mapping[str, float], default: str | None
) -> list[Elite]:
    """The best elites; those within TOLERANCE of the best lead, the best over all rates of the train windows first.

    So close together the ranking is noise of the windows that make the fitness: who fits their coincidences loses it at other
    rates. Each part of each window counts alike (the mean log of what fitness is there, relative to the default). `default` is
    the default baseline's text; without one the order is that of fitness. One that cannot be measured again comes after those
    that can.
    """
    ranked = list(archive.runners_up(NEAR_BEST))
    near = [elite for elite in ranked if elite.fitness <= ranked[0].fitness * (1 + TOLERANCE)]
    if default is None or len(near) < 2:
        return ranked
    texts = {-1: default, **{elite.id: elite.source for elite in near}}
    jobs: dict[Key, Measure] = {
        (window, number): Measure(source=text, window=window) for number, text in texts.items() for window in WINDOWS
    }
    for key, job in jobs.items():
        executor.submit(key, job, PATIENT_S)
    answers = {key: parts for key, parts in _gather(executor, set(jobs)) if isinstance(parts, Sequence)}
    found: dict[int, list[Measurement]] = {
        number: [part for window in WINDOWS for part in answers[window, number]]
        for number in texts
        if all((window, number) in answers for window in WINDOWS)
    }
    if -1 not in found:
        return ranked

    def steadiness(parts: Sequence[Measurement]) -> float:
        pairs = zip(parts, found[-1], strict=True)
        relative = [fitness_of(part.metrics, reference.metrics, objectives) for part, reference in pairs]
        return float(np.mean(np.log(np.maximum(relative, LEAST))))

    steady = {elite.id: steadiness(found[elite.id]) for elite in near if elite.id in found}
    lead = sorted((elite for elite in near if elite.id in steady), key=lambda elite: (steady[elite.id], *elite.rank))
    return [*lead, *(elite for elite in ranked if elite.id not in steady)]


def certified(executor: Executor, elites: Sequence[Elite], notes: list[str]) -> tuple[Certificate, Elite]:
    """The first of some elites that passes every gate in full; why others before it did not goes to `notes`.

    Raises:
        EvolutionError: none of the first TRIES does.
    """
    for elite in elites[:TRIES]:
        executor.submit(("certify", elite.id), Certify(source=elite.source), PATIENT_S)
        ((_, found),) = _gather(executor, {("certify", elite.id)})
        if isinstance(found, Certificate):
            return found, elite
        why = found.detail if isinstance(found, (Judged, Failure)) else "no answer"
        notes.append(f"candidate {elite.id} could not be certified: {why}")
    raise EvolutionError(f"none of the best candidates could be certified: {notes[-1]}")


def answer(executor: Executor, job: Measure, what: str) -> Sequence[Measurement]:
    """The answer to one measurement; raises `EvolutionError`, `what` first, when there is none."""
    executor.submit(("measure", 0), job, PATIENT_S)
    ((_, found),) = _gather(executor, {("measure", 0)})
    if isinstance(found, Failure):
        raise EvolutionError(f"{what}: {found.reason}: {found.detail}")
    assert isinstance(found, Sequence)
    return found


def _gather(executor: Executor, keys: set[Key]) -> Iterator[tuple[Key, object]]:
    """The answers to some jobs as they come; answers to jobs that a deadline left behind are dropped."""
    waiting = set(keys)
    while waiting:
        for done in executor.wait(None):
            if done.key in waiting:
                waiting.discard(done.key)
                yield done.key, done.answer
