"""The jobs of a worker: the cascade of gates, cheapest first, as plain functions of a job.

Candidate text is parsed and generated again from the IR; it is never executed as written.
"""

import gc
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..certificate import Certificate, Rejected, verify
from ..contract import Contract
from ..gates import quick_fuzz, ranges, types
from ..gates.cache import ProofCache
from ..gates.counterexample import Arguments
from ..gates.counterexample import Evaluator as Values
from ..gates.trials import Trials, trials_of
from ..gates.verdict import GateResult, Reason, Verdict
from ..language import LanguageError
from ..policy import Policy
from .compare import pooled
from .evaluator import HIGHER_IS_BETTER, Evaluator, Measurement, Window
from .fingerprint import Probes, behaviour

__all__ = [
    "LOOKS",
    "SCORED",
    "Certify",
    "Judge",
    "Judged",
    "Measure",
    "Reference",
    "Screen",
    "Screened",
    "Setup",
    "Worker",
    "fitness_of",
    "packed",
]

SCORED: tuple[Window, ...] = ("busier", "train")
"""Windows whose parts together make the fitness. The windows that separate candidates best come first."""
LOOKS: tuple[Window, ...] = ("short", "busier")
"""Windows after which a hopeless candidate is stopped."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The state that every worker starts from. It must be picklable."""

    contract: Contract
    evaluator: Evaluator
    objectives: Mapping[str, float]
    """Metric -> weight. The fitness is the weighted mean of metrics relative to the reference."""


@dataclass(frozen=True, kw_only=True)
class Screen:
    """A job that checks grammar, ranges and quick fuzz, and takes the fingerprint on the probes."""

    source: str
    regressions: bytes = b""
    """Kept counterexamples by invariant, in the form that `packed` returns.

    They are the same for a whole generation and are pickled once.
    """


@dataclass(frozen=True, kw_only=True)
class Screened:
    """The answer to `Screen`. `gate` is the gate that rejected the candidate, or None."""

    verdict: str
    gate: str | None = None
    reason: Reason | None = None
    obligation: str | None = None
    detail: str = ""
    digest: str | None = None
    fingerprint: str | None = None
    descriptor: str | None = None
    counterexample: Mapping[str, Any] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    """CPU seconds by stage."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The default baseline's metrics, which fitness is relative to. If it is empty, fitness uses the plain metrics."""

    scored: Mapping[str, float] = field(default_factory=dict)
    """Metrics over all windows that make the fitness."""
    looks: Mapping[Window, Mapping[str, float]] = field(default_factory=dict)
    """Metrics on each window after which a candidate may be stopped, for those windows that the evaluator has."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A job that checks types and the proof, then measures the windows in turn until a cut-off stops the candidate.

    Types are checked here and not with the other cheap gates. mypy costs more than all of those together, and a quarter
    of a search's candidates are found to be duplicates before.
    """

    source: str
    reference: Reference
    cutoffs: Mapping[Window, float] = field(default_factory=dict)
    """Fitness on some of `LOOKS` above which the later windows are not run."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The answer to `Judge`."""

    verdict: str
    gate: str | None = None
    reason: Reason | None = None
    """Set if a gate rejected the candidate, or if the replays were stopped early."""
    obligation: str | None = None
    detail: str = ""
    counterexample: Mapping[str, Any] | None = None
    scores: Mapping[str, float] | None = None
    fitness: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A job that measures a policy without gates: a baseline, an elite, or the winner on held-out windows.

    It is for texts that have passed the gates.
    """

    source: str
    window: Window
    samples: bool = False


@dataclass(frozen=True, kw_only=True)
class Certify:
    """A job that runs the whole gate chain and makes a certificate.

    The answer is a `Certificate`, or a `Judged` that names the gate that rejected the policy.
    """

    source: str


def packed(regressions: Mapping[str, Sequence[Arguments]]) -> bytes:
    """Return kept counterexamples by invariant in the form that jobs carry."""
    return pickle.dumps(regressions) if regressions else b""


def fitness_of(scores: Mapping[str, float], reference: Mapping[str, float], objectives: Mapping[str, float]) -> float:
    """Return the weighted mean of metrics relative to the reference, where 1 equals the reference and lower is better.

    A metric of `HIGHER_IS_BETTER` enters inverted. If the denominator is 0, the metric enters as 1 plus the numerator.
    """
    total = 0.0
    for name, weight in objectives.items():
        ours, theirs = scores[name], reference.get(name, 0.0)
        if name in HIGHER_IS_BETTER:
            ours, theirs = theirs, ours
        total += weight * (ours / theirs if theirs else 1.0 + ours)
    return total / sum(objectives.values())


GATE_NAMES = {"quick-fuzz": "fuzz"}
SCREENED = 256
"""Number of policies a worker keeps between screening and judgement, so that it does not parse them twice."""


class Worker:
    """The executor of jobs of one setup. Each process has one."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._screened: dict[str, Policy] = {}
        self._regressions = b""
        self._trials: tuple[Trials, ...] | None = None

    def warm(self) -> None:
        """Build what every job needs, so that no candidate pays for it, and exclude it from garbage collection."""
        types.warm(self.setup.contract)
        _ = self.probes, self.trials(b"")
        gc.collect()
        gc.freeze()

    def __call__(self, job: object) -> object:
        """Return the answer to a job."""
        match job:
            case Screen():
                return self.screen(job)
            case Judge():
                return self.judge(job)
            case Measure():
                policy = self._policy(job.source)
                return self.setup.evaluator.measure(policy, job.window, samples=job.samples)
            case Certify():
                return self.certify(job)
        raise TypeError(f"unknown job {type(job).__name__}")

    @cached_property
    def probes(self) -> list[Probes]:
        """Probe columns of every decision."""
        contract = self.setup.contract
        return [Probes.of(contract, name, self.setup.evaluator.probes(contract, name)) for name in contract.decisions]

    def trials(self, regressions: bytes) -> tuple[Trials, ...]:
        """Return the trials of candidates, built again if the kept counterexamples have changed."""
        if self._trials is None or regressions != self._regressions:
            kept = pickle.loads(regressions) if regressions else {}
            self._regressions, self._trials = regressions, trials_of(self.setup.contract, kept)
        return self._trials

    def screen(self, job: Screen) -> Screened:
        """Run the gates that cost microseconds to milliseconds."""
        clock = _Clock()
        try:
            policy = self._policy(job.source)
            digest = policy.digest
        except LanguageError as error:
            clock.lap("grammar")
            return Screened(
                verdict=str(error.verdict),
                gate="grammar",
                reason=Reason.LANGUAGE,
                detail=str(error),
                seconds=clock.seconds,
            )
        clock.lap("grammar")
        values = Values(policy)
        checks: tuple[Callable[[], GateResult], ...] = (
            lambda: ranges.check(policy, values),
            lambda: quick_fuzz.check(policy, values, self.trials(job.regressions)),
        )
        for check in checks:
            result = check()
            clock.lap(_gate(result))
            if not result.verdict.green:
                return Screened(digest=digest, seconds=clock.seconds, **_rejection(result))
        found = behaviour(policy, self.probes)
        self._screened[job.source] = policy
        if len(self._screened) > SCREENED:
            del self._screened[next(iter(self._screened))]
        clock.lap("fingerprint")
        return Screened(
            verdict=str(Verdict.PASSED),
            digest=digest,
            fingerprint=found.fingerprint,
            descriptor=found.descriptor,
            seconds=clock.seconds,
        )

    def judge(self, job: Judge) -> Judged:
        """Run the type check, the proof and the replays."""
        clock = _Clock()
        policy = self._screened.pop(job.source, None) or self._policy(job.source)
        result = types.check_alike(policy)
        clock.lap("types")
        if not result.verdict.green:
            return Judged(seconds=clock.seconds, **_rejection(result))
        result = ProofCache.default().check(policy, least=False)
        clock.lap("proof")
        if not result.verdict.green:
            return Judged(seconds=clock.seconds, **_rejection(result))
        evaluator, objectives = self.setup.evaluator, self.setup.objectives
        measured: dict[Window, Sequence[Measurement]] = {}
        for window in dict.fromkeys((*job.cutoffs, *SCORED)):
            measured[window] = evaluator.measure(policy, window)
            clock.lap("replay")
            if window not in job.cutoffs:
                continue
            scores = pooled(measured[window])
            if fitness_of(scores, job.reference.looks[window], objectives) > job.cutoffs[window]:
                return Judged(
                    verdict=str(result.verdict), reason=Reason.HOPELESS, detail=f"stopped after the {window} window",
                    scores=scores, seconds=clock.seconds,
                )  # fmt: skip
        scores = pooled([part for window in SCORED for part in measured[window]])
        return Judged(
            verdict=str(result.verdict),
            scores=scores,
            fitness=fitness_of(scores, job.reference.scored, objectives),
            seconds=clock.seconds,
        )

    def certify(self, job: Certify) -> Certificate | Judged:
        """Run every gate in full, with both solvers."""
        policy = self._policy(job.source)
        try:
            return verify(policy)
        except Rejected as rejected:
            failed = rejected.report.failed
            if failed is None:
                return Judged(verdict=str(rejected.report.verdict), gate="proof", detail=str(rejected))
            return Judged(**_rejection(failed))

    def _policy(self, source: str) -> Policy:
        return Policy.from_source(source, self.setup.contract)


class _Clock:
    """CPU seconds of this thread by stage, without gaps between stages. The load of the machine hardly changes them.

    Process time is not used: under a limit on CPU time the kernel updates it only at its timer ticks.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.thread_time()

    def lap(self, stage: str) -> None:
        """Add the CPU time since the last call to a stage."""
        now = time.thread_time()
        self.seconds[stage], self._last = self.seconds.get(stage, 0.0) + now - self._last, now


def _gate(result: GateResult) -> str:
    return GATE_NAMES.get(result.name, result.name)


def _rejection(result: GateResult) -> dict[str, Any]:
    example = result.counterexample
    return {
        "verdict": str(result.verdict),
        "gate": _gate(result),
        "reason": result.reason,
        "obligation": result.obligation,
        "detail": result.detail,
        "counterexample": None
        if example is None
        else {
            "obligation": example.obligation,
            "arguments": {
                key: dict(value) if not isinstance(value, int) else value for key, value in example.arguments.items()
            },
            "explanation": example.explanation,
            "pytest": example.pytest,
        },
    }
