"""Who wins: of the best candidates the one whose gain is surest, once it is certified in full."""

from collections.abc import Iterator, Sequence

from ..certificate import Certificate
from .archive import Archive, Elite
from .compare import improvement
from .errors import EvolutionError
from .evaluator import Measurement
from .executor import Executor, Failure, Key
from .work import SCORED, Certify, Judged, Measure

__all__ = ["answer", "certified", "surest_first"]

PATIENT_S = 900.0
"""Time limit of jobs on trusted texts; the first on a fresh machine compiles the simulator."""
NEAR_BEST, TOLERANCE = 32, 0.02
"""Elites within TOLERANCE of the best fitness, NEAR_BEST at most, are told apart by how sure their gain is."""
TRIES = 9
"""Candidates that may fail to be certified before the run does."""


def surest_first(archive: Archive, executor: Executor, objective: str, default: str | None) -> list[Elite]:
    """The best elites; those within TOLERANCE of the best lead, the surest gain over the default (on the windows that make the
    fitness) first.

    So close together the ranking is noise of those windows, and the very best of many often bought its mean with a few
    enormous waits: the lower end of the bootstrap interval tells them apart without looking at held-out windows. `default` is
    the default baseline's text; without one the order is that of fitness. One that cannot be
    measured again comes after those that can.
    """
    ranked = list(archive.runners_up(NEAR_BEST))
    near = [elite for elite in ranked if elite.fitness <= ranked[0].fitness * (1 + TOLERANCE)]
    if default is None or len(near) < 2:
        return ranked
    texts = {-1: default, **{elite.id: elite.source for elite in near}}
    jobs: dict[Key, Measure] = {
        (window, number): Measure(source=text, window=window, samples=True)
        for number, text in texts.items()
        for window in SCORED
    }
    for key, job in jobs.items():
        executor.submit(key, job, PATIENT_S)
    answers = {key: parts for key, parts in _gather(executor, set(jobs)) if isinstance(parts, Sequence)}
    found = {
        number: [part for window in SCORED for part in answers[window, number]]
        for number in texts
        if all((window, number) in answers for window in SCORED)
    }
    if -1 not in found:
        return ranked
    surest = {
        elite.id: improvement(objective, "default", found[-1], found[elite.id]).ci95[0]
        for elite in near
        if elite.id in found
    }
    lead = sorted((elite for elite in near if elite.id in surest), key=lambda elite: (-surest[elite.id], *elite.rank))
    return [*lead, *(elite for elite in ranked if elite.id not in surest)]


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
        raise EvolutionError(f"{what}: {found.kind}: {found.detail}")
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
