"""Evaluation of one generation: screening, the novelty test, judging, and an immediate commit of each result.

The choice of duplicates depends only on ids, never on the speed of workers. A candidate is judged only after every
earlier candidate of its generation has been screened.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from ..gates.verdict import Reason
from ..store import CandidateRow, ProposalRow
from .evaluator import Window
from .executor import Done, Executor, Failure
from .work import Judge, Judged, Reference, Screen, Screened, packed

__all__ = ["Pace", "evaluate"]

STUCK = 20.0
"""Multiple of the median duration from which a judgement counts as stuck."""
STUCK_S = 2.0
"""Minimum duration in seconds of a judgement that counts as stuck."""
KNOWN = 3
"""Number of judgements needed before a usual duration is known. The baselines are judged first."""


class Pace:
    """A record of the durations of judgements, which gives the time limit of the next ones.

    Z3 has loops that its own limits do not reach. In a run of limited time, a stuck judgement must not block its
    generation until the general limit.
    """

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=256)

    def add(self, seconds: float) -> None:
        """Record the wall seconds of one judgement."""
        self._seconds.append(seconds)

    def limit(self, usual: float) -> float | None:
        """Return the seconds after which a judgement is stuck.

        None means the `usual` limit: too few judgements are known, or the computed limit is not below it.
        """
        if len(self._seconds) < KNOWN:
            return None
        found = max(STUCK_S, STUCK * median(self._seconds))
        return found if found < usual else None


def evaluate(
    proposals: Sequence[ProposalRow],
    executor: Executor,
    *,
    fingerprints: Mapping[str, int],
    known: Mapping[int, CandidateRow],
    reference: Reference,
    cutoffs: Mapping[Window, float],
    regressions: Mapping[str, Sequence[Any]],
    commit: Callable[[CandidateRow], None],
    deadline: float | None = None,
    time_limit_s: float | None = None,
    pace: Pace,
) -> list[CandidateRow]:
    """Evaluate the candidates of a generation and return their rows in id order.

    The result has fewer rows if the deadline (monotonic seconds) comes first. `fingerprints` holds those of earlier
    generations, and `known` the candidates of this generation that were committed before a restart. `commit` is called
    as soon as a candidate's outcome is known, in any order. `time_limit_s` limits a judgement in place of the
    executor's own limit. `pace` records the duration of each judgement.
    """
    rows: dict[int, CandidateRow] = {row.id: known[row.id] for row in proposals if row.id in known}
    sources = {row.id: row.source for row in proposals}
    order = sorted(sources)
    screens: dict[int, Screened | Failure] = {}
    seen = dict(fingerprints)
    position = 0

    def settle(row: CandidateRow) -> None:
        rows[row.id] = row
        commit(row)

    kept = packed(regressions)
    for number in order:
        if number not in rows:
            executor.submit(("screen", number), Screen(source=sources[number], regressions=kept))
    while len(rows) < len(order) or position < len(order):
        while position < len(order) and (order[position] in screens or order[position] in rows):
            number = order[position]
            position += 1
            if number in rows:
                fingerprint = rows[number].fingerprint
                if fingerprint is not None:
                    seen.setdefault(fingerprint, number)
                continue
            screened = screens[number]
            settled = _screened_row(number, screened, seen)
            if settled is not None:
                settle(settled)
                continue
            assert isinstance(screened, Screened) and screened.fingerprint is not None
            seen[screened.fingerprint] = number
            job = Judge(source=sources[number], reference=reference, cutoffs=cutoffs)
            executor.submit(("judge", number), job, time_limit_s)
        if len(rows) == len(order):
            break
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            break
        for done in executor.wait(left):
            stage, number = done.key
            if stage == "screen":
                assert isinstance(done.answer, (Screened, Failure))
                screens[number] = done.answer
            else:
                first = screens[number]
                assert isinstance(first, Screened)
                pace.add(done.seconds)
                settle(_judged_row(number, first, done))
    return [rows[number] for number in order if number in rows]


def _screened_row(number: int, screened: Screened | Failure, seen: Mapping[str, int]) -> CandidateRow | None:
    """Return the row of a candidate that is rejected by its screening; None if it is to be judged."""
    if isinstance(screened, Failure):
        return _failed(number, screened, None)
    gate, reason, detail = screened.gate, screened.reason, screened.detail
    if gate is None and screened.fingerprint in seen:
        gate, reason = "duplicate", Reason.DUPLICATE
        detail = f"behaves like candidate {seen[screened.fingerprint or '']} on every probe"
    if gate is None:
        return None
    return CandidateRow(
        id=number,
        verdict=screened.verdict,
        gate=gate,
        reason=reason,
        obligation=screened.obligation,
        detail=detail,
        digest=screened.digest,
        fingerprint=screened.fingerprint,
        descriptor=screened.descriptor,
        counterexample=screened.counterexample,
        seconds=screened.seconds,
    )


def _judged_row(number: int, screened: Screened, done: Done) -> CandidateRow:
    answer = done.answer
    if isinstance(answer, Failure):
        return _failed(number, answer, screened)
    assert isinstance(answer, Judged)
    return CandidateRow(
        id=number,
        verdict=answer.verdict,
        gate=answer.gate,
        reason=answer.reason,
        obligation=answer.obligation,
        detail=answer.detail,
        digest=screened.digest,
        fingerprint=screened.fingerprint,
        descriptor=screened.descriptor,
        counterexample=answer.counterexample,
        scores=answer.scores,
        fitness=answer.fitness,
        seconds={**screened.seconds, **answer.seconds},
    )


def _failed(number: int, failure: Failure, screened: Screened | None) -> CandidateRow:
    """Return the row of a candidate whose worker gave no answer. Its behaviour is unproved, so it is not used."""
    return CandidateRow(
        id=number,
        verdict="UNKNOWN",
        gate="replay" if screened is not None else "types",
        reason=failure.reason,
        detail=failure.detail,
        digest=None if screened is None else screened.digest,
        fingerprint=None if screened is None else screened.fingerprint,
        descriptor=None if screened is None else screened.descriptor,
    )
