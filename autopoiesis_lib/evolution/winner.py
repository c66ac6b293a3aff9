"""Selection of the winner: the best candidate over the whole range of rates that can be certified in full."""

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
"""Time limit in seconds of jobs on trusted texts. The first one on a fresh machine compiles the simulator."""
NEAR_BEST, TOLERANCE = 32, 0.02
"""Elites within TOLERANCE of the best fitness, NEAR_BEST at most, are compared at more rates."""
WINDOWS: tuple[Window, ...] = (*SCORED, "other-rates")
LEAST = 1e-9
"""Lower bound on relative metrics, so that their logarithm is finite."""
TRIES = 9
"""Number of candidates that may fail certification before the run fails."""


def steadiest_first(
    archive: Archive, executor: Executor, objectives: Mapping[str, float], default: str | None
) -> list[Elite]:
    """Return the best elites; those within TOLERANCE of the best fitness come first, ranked over all rates.

    Differences this small are noise of the windows that make the fitness: a policy fitted to their coincidences loses
    its advantage at other rates. Each part of each window has equal weight: the rank is the mean logarithm of the
    fitness on the part, relative to the default. `default` is the default baseline's text. Without one the order is the
    order of fitness. An elite that cannot be measured again comes after those that can.
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
    """Return the certificate of the first elite that passes every gate in full, and the elite.

    The reasons why earlier elites failed are appended to `notes`.

    Raises:
        EvolutionError: none of the first TRIES elites passes.
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
    """Return the answer to one measurement.

    Raises:
        EvolutionError: the measurement failed; the message begins with `what`.
    """
    executor.submit(("measure", 0), job, PATIENT_S)
    ((_, found),) = _gather(executor, {("measure", 0)})
    if isinstance(found, Failure):
        raise EvolutionError(f"{what}: {found.reason}: {found.detail}")
    assert isinstance(found, Sequence)
    return found


def _gather(executor: Executor, keys: set[Key]) -> Iterator[tuple[Key, object]]:
    """Yield the answers to the given jobs as they arrive. Drop answers to other jobs, which a deadline left behind."""
    waiting = set(keys)
    while waiting:
        for done in executor.wait(None):
            if done.key in waiting:
                waiting.discard(done.key)
                yield done.key, done.answer
