"""The control plane: it watches engines, evolves policies for a changed workload, and rolls out proved better ones.

The control plane is a separate process and never in the serving path. It reads telemetry files and writes channel
files. Engines keep serving without it. Its whole state is in the store and in its state folder, so it resumes after
SIGKILL: the rollout from the audit log, an interrupted evolution from its run, the reference window from disk.
"""

import fcntl
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np

from ..certificate import Rejected, verify
from ..contract import Contract
from ..errors import AutopoiesisError
from ..evolution import EvolutionResult, Progress, SimulationEvaluator, evolve
from ..logs import log_event
from ..policy import Policy
from ..protocol.channel import ChannelError
from ..simulation.calibration import Calibration
from ..simulation.trace import Trace
from ..simulation.workload import Workload
from ..store import Store
from ..synthesis import Proposer
from .drift import DriftReport, describe
from .evidence import Judge
from .lookout import Look, Lookout
from .memory import Due, Evolving, Memory, ShadowStart
from .observer import Observer
from .recalibration import recalibrate, with_limits
from .repertoire import KNOWN_LOOKS, Repertoire
from .rollout import Evidence, Rollout
from .settings import WatchSettings
from .state import RolloutState, Stage
from .trial import Trial
from .window import Window, WindowError

__all__ = ["Controller", "ControllerError"]

logger = logging.getLogger("autopoiesis.online")

TRAIN = 0.75
"""Share of a window's requests to evolve on.

Later requests judge the result; more of them arrive while the evolution runs.
"""

MOST_REST = 0.75
"""Greatest share of an evolution's time that it pauses for the engines. Overloaded engines need another policy most."""


_FEW = Trace.from_columns(
    arrival_us=np.arange(4), num_prompt_tokens=np.arange(1, 5), num_output_tokens=np.arange(1, 5), name="a few requests"
)
"""A trace replayed to warm up, and to list the metrics that are measured."""


class ControllerError(AutopoiesisError):
    """The control plane cannot start."""


class _Outdated(Exception):
    """The workload that the running evolution is for has changed again."""


class Controller(AbstractContextManager["Controller"]):
    """The control plane of one channel. Enter it (it takes the channel's lock), then call `run`, or `tick` by hand.

    Args:
        contract: the policy type that the engines run.
        rollout: publishes policies and keeps the audit log.
        store: keeps runs, policies and certificates.
        calibration: the engines' latency model and limits to start from.
        state_dir: a folder of its own for windows and the evolution in progress.
        proposer: writes candidates; None is the built-in search.
        known: policies to try, besides the contract's baselines and the store's certified ones, as soon as the workload
            has changed and before any evolution; evolutions start from them too.
    """

    def __init__(
        self,
        contract: Contract,
        rollout: Rollout,
        store: Store,
        calibration: Calibration,
        state_dir: Path,
        settings: WatchSettings | None = None,
        *,
        proposer: Proposer | None = None,
        known: Sequence[Policy] = (),
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.contract, self.rollout, self.store, self.proposer = contract, rollout, store, proposer
        self.settings = settings or WatchSettings()
        self.known = tuple(known)
        self.memory = Memory(state_dir.resolve())  # a person may have made it a link
        self.observer = Observer(rollout.channel.root, self.settings.window_s, longest_s=self.settings.longest_window_s)
        separate = rollout.canary_channel is not rollout.channel
        self.canary_observer = (
            Observer(rollout.canary_channel.root, self.settings.window_s) if separate else self.observer
        )
        limited = self.memory.calibration(with_limits(calibration, rollout.channel.engines()))
        self._judge = Judge(contract, rollout, self.settings, limited)
        self._lock: IO[bytes] | None = None
        self.repertoire = Repertoire(
            contract, rollout, store, self.memory, self.known, self.settings.drift, self._judge.evidence
        )
        self.lookout = Lookout(self.observer, self.memory, self.settings, lambda: self._runs() > 0)
        self._trial = Trial(
            self._judge,
            rollout,
            store,
            self.memory,
            self.observer,
            self.canary_observer,
            self.lookout,
            self.settings,
            wall_s,
        )
        self._begun = False
        """True once the known policies were compared on the remembered windows."""
        self._said = ""

    @property
    def calibration(self) -> Calibration:
        """The engines' current latency model and limits."""
        return self._judge.calibration

    def __enter__(self) -> Self:
        """Take the channel's lock; the kernel releases it when the process dies.

        Raises:
            ControllerError: another control plane watches this channel, or the folder cannot be written.
        """
        root = self.rollout.channel.root
        try:
            self.rollout.channel.prepare()
            self.memory.folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            lock = os.fdopen(os.open(root / ".controller.lock", flags, 0o600), "r+b", buffering=0)
        except OSError as error:
            raise ControllerError(f"{error.filename or root} cannot be written: {error.strerror or error}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise ControllerError(f"another control plane watches {root}; stop it first") from None
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def run(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Tick until `stop` returns true. An error of one round is logged, and the next round tries again.

        Raises:
            ControllerError: an objective is not a metric.
        """
        self._check_objectives()
        try:
            self._get_ready()
        except AutopoiesisError as error:
            log_event(logger, "watch.unready", f"not everything could be loaded beforehand: {error}", {})
        self.rollout.note("watch", detail="started", window_s=self.settings.window_s)
        self.rollout.channel.prune()
        while not stop():
            try:
                said = self.tick()
            except (AutopoiesisError, OSError) as error:
                said = f"this round failed: {error}"
            if said != self._said:
                log_event(logger, "watch.round", said, {"channel": self.rollout.name})
                self._said = said
            time.sleep(self.settings.poll_s)

    def _check_objectives(self) -> None:
        replays = self._judge.replayer([_FEW])
        measured = replays.measurement(replays.replay(self._judge.policy(None), _FEW)).metrics
        for name in self.settings.objectives:
            if name not in measured:
                raise ControllerError(f"objective {name!r} is not measured; there are {', '.join(sorted(measured))}")

    def _get_ready(self) -> None:
        """Load the slow components (solvers, type checker, compiled simulator) before the workload changes."""
        builtin = self._judge.policy(None)
        verify(builtin)
        self._judge.evidence([_FEW], [builtin], builtin)
        for policy in self.known:
            policy.native()

    def tick(self) -> str:
        """Run one round, and return one line that says what it found or did.

        Raises:
            AutopoiesisError: the store or the channel cannot be used; nothing is lost, the next round tries again.
        """
        self.observer.look()
        if self.canary_observer is not self.observer:
            self.canary_observer.look()
        state = self.rollout.reconcile()
        foreign = self.rollout.foreign
        if foreign is not None:
            what = (
                f"a {foreign.mode} of somebody else (publication {foreign.sequence}, policy {str(foreign.digest)[:12]})"
            )
            return f"waiting: {what} stands on this channel until it is over, promoted or rolled back"
        harm = self._trial.harm_of_active(state)
        if harm is not None:
            return harm
        if state.stage is Stage.SHADOW:
            return self._outdated(state) or self._trial.shadow(state)
        if state.stage is Stage.CANARY:
            return self._trial.canary(state)
        if self.memory.evolving:
            return self._evolve(self._interrupted())
        return self._watch(state)

    # watching

    def _watch(self, state: RolloutState) -> str:
        if self.settings.known_first and not self._begun:
            begun = self._begin_with_known(state)
            if begun is not None:
                return begun
        look = self._look_for_change(state)
        if look.reason is not None and state.frozen:
            return f"frozen: {look.reason}, but nothing is done about it"
        due = self.memory.due()
        if due is None or state.frozen:
            return look.said
        due = self._on_a_serving_engine(due)
        if self.settings.known_first:
            answered = self._answer_with_known(due, state)
            if answered is not None:
                return answered
        return self._evolve_when_it_may(self.memory.due() or due)  # the check may have postponed it

    def _on_a_serving_engine(self, due: Due) -> Due:
        """Return the due change, moved to another engine if its own was replaced too early.

        It is then moved to that engine's clock, from now on. Too early means before its own engine had reported enough
        telemetry.
        """
        other, seen = self.observer.replaced(due.engine), self.observer.named(due.engine)
        if other is None:
            return due
        if seen is not None and seen.window(since_us=due.since_us, length_s=self._round_s(due)) is not None:
            return due
        due = replace(due, engine=other.engine, since_us=other.now_us, next_look_us=0)
        self.memory.keep_due(due)
        return due

    def _look_for_change(self, state: RolloutState) -> Look:
        """Check for a change of the workload. A change is due from now on, unless the channel is frozen."""
        look = self.lookout.look(self.calibration, frozen=state.frozen)
        if look.report is not None:
            self._publish_drift(look.report)
        if look.report is not None and look.report.drifted:
            self.rollout.note("drift", early=look.early, **look.report.to_json())
        return look

    def _publish_drift(self, report: DriftReport) -> None:
        """Report the drift of each feature, and the amount of refused telemetry, for the engines' metrics."""
        refused = sum(sum(counts.values()) for counts in self.observer.refused.values())
        changes: dict[str, float] = {signal.feature: signal.change for signal in report.signals}
        try:
            self.rollout.channel.report_drift({**changes, "telemetry-refused": float(refused)})
        except ChannelError as error:
            log_event(logger, "drift.unpublished", str(error), {"reason": str(error)}, level=logging.WARNING)

    def _evolve_when_it_may(self, due: Due) -> str:
        """Evolve once enough requests have arrived since the workload changed."""
        seen = self.observer.named(due.engine)
        length_s = self._round_s(due)
        window = None if seen is None else seen.window(since_us=due.since_us, length_s=length_s)
        if window is None:
            return f"watching: evolution waits for {length_s:g} s since the change"
        like = self.repertoire.recalled(window)
        self.memory.remember(window)
        return self._evolve(
            Evolving(
                window=window, seed=self.settings.seed + self._runs(), reason=due.reason, run=None, like=tuple(like)
            )
        )

    def _round_s(self, due: Due) -> float:
        """Return the window length, in seconds, that the next evolution for a change needs."""
        return min(self.settings.window_s * 2.0**due.rounds, self.settings.longest_window_s)

    @property
    def _last_round(self) -> int:
        """The round of the longest window."""
        return math.ceil(math.log2(self.settings.longest_window_s / self.settings.window_s))

    # answering with what is known

    def _begin_with_known(self, state: RolloutState) -> str | None:
        """Start a canary of a known policy from the first request on, if one was better in the past.

        Better means on all remembered windows. Return None if none was, or if the channel is not new: frozen, with a
        history, a due change or a reference.
        """
        busiest = self.observer.busiest()
        if busiest is None:
            return None  # no engine has reported yet
        self._begun = True
        untouched = state.active is None and not state.history and not state.frozen
        if not untouched or self.memory.due() is not None or self.lookout.reference is not None:
            return None
        found = self.repertoire.best_on_remembered(self._judge.policy(None), state.quarantined)
        return None if found is None else self._decide_with_known(*found, busiest.engine, busiest.now_us)

    def _answer_with_known(self, due: Due, state: RolloutState) -> str | None:
        """Start a canary of a known policy at once, if one is better since the change.

        Return None if none is, or if it is too early to tell.
        """
        seen = self.observer.named(due.engine)
        if seen is None or due.looks >= KNOWN_LOOKS or seen.now_us < due.next_look_us:
            return None
        since = seen.between(due.since_us, seen.last_us)
        like = self.repertoire.like(since)
        if like is None:
            return None
        next_look_us = seen.now_us + round(self.settings.window_s * 5e5)
        # If a similar workload is in memory, the short windows are skipped and evolution uses the longest one only.
        rounds = self._last_round if like else due.rounds
        self.memory.keep_due(replace(due, looks=due.looks + 1, next_look_us=next_look_us, rounds=rounds))
        self._recalibrate(since)
        found = self.repertoire.best_since(since, like, self._judge.policy(state.active), state.quarantined)
        return None if found is None else self._decide_with_known(*found, due.engine, due.since_us)

    def _decide_with_known(self, best: Policy, evidence: Evidence, engine: str, since_us: int) -> str:
        refusal = self._certify_and_propose(best)
        if refusal is not None:
            return refusal
        if self.rollout.held(self.rollout.state):
            self.memory.keep_shadow(ShadowStart(candidate=best.digest, engine=engine, since_us=since_us))
            return f"held: {best.digest[:12]} waits for approval"
        self._trial.begin_canary()
        self.rollout.start_canary(evidence)
        return f"canary: {best.digest[:12]}, known and {evidence.reduction:.0%} better"

    def _certify_and_propose(self, candidate: Policy) -> str | None:
        """Run every gate again, with or without a certificate.

        Return the reason if the candidate does not pass, else None.
        """
        short = candidate.digest[:12]
        try:
            certificate = verify(candidate)
        except Rejected as error:
            self.rollout.note("refused", candidate.digest, reason=str(error))
            return f"no candidate: {short} did not pass the gates: {error}"
        if certificate.single_solver and not self.settings.allow_single_solver:
            reason = f"only one solver proved `{certificate.single_solver[0]}`"  # engines would refuse it
            self.rollout.note("refused", candidate.digest, reason=reason)
            return f"no candidate: {short}: {reason}"
        self.rollout.propose(certificate)
        return None

    def _outdated(self, state: RolloutState) -> str | None:
        """Drop the candidate in shadow when the workload has changed again.

        It was evolved for the previous workload.
        """
        if self.settings.back_to_back or state.frozen or self.rollout.held(state):
            return None
        look = self._look_for_change(state)
        if look.reason is None:
            return None
        self.rollout.reject(f"work changed again: {look.reason}")
        return f"rejected: {(state.candidate or '')[:12]}, because work changed again: {look.reason}"

    # evolving

    def _evolve(self, task: Evolving) -> str:
        self.memory.keep_task(task)
        if task.run is None:
            self._recalibrate(task.window)
        workload = Workload.of(task.window.trace(), self.calibration, slo=self.settings.slo, train_fraction=TRAIN)
        evaluator = SimulationEvaluator.of(self.contract, workload)
        remembered = self.memory.remembered()
        like = [remembered[number].trace() for number in task.like if number in remembered]
        self.rollout.note(
            "evolve", reason=task.reason, seed=task.seed, resumed=task.run, window=describe(task.window), like=len(like)
        )

        begun = looked = time.monotonic()
        rested_s = 0.0

        def look() -> None:
            nonlocal looked
            self.observer.look()  # engines keep only their last pieces of telemetry
            looked = time.monotonic()
            self._stop_if_outdated()

        def progress(news: Progress) -> None:
            nonlocal task, rested_s
            if task.run != news.run:
                task = replace(task, run=news.run)
                self.memory.keep_task(task)
            if time.monotonic() - looked >= self.settings.poll_s:
                look()
            while (
                self.settings.give_way
                and news.phase == "search"
                and self.observer.num_waiting > 0
                and rested_s < MOST_REST * (time.monotonic() - begun)
            ):
                at = time.monotonic()
                time.sleep(self.settings.poll_s / 4)
                look()
                rested_s += time.monotonic() - at

        try:
            result = evolve(
                self.contract,
                replace(evaluator, train=(*evaluator.train, *like)),
                self.proposer,
                None if task.run is not None else self.settings.budget,
                seed=task.seed,
                workers=self.settings.workers,
                store=self.store,
                resume=task.run,
                objectives=self.settings.objectives,
                warm_start=self.repertoire.texts(),
                certify=False,
                progress=progress,
            )
        except _Outdated as outdated:
            self._mark_busy()
            self.memory.forget_task()
            self.rollout.note("outdated", run=task.run, reason=str(outdated))
            return f"stopped evolving, because work changed again: {outdated}"
        except AutopoiesisError as error:
            self._mark_busy()
            self.memory.forget_task()  # the change is not answered yet: a later window tries again
            due = self.memory.due()
            if due is not None:
                self.memory.keep_due(replace(due, since_us=task.window.end_us))
            self.rollout.note("no-candidate", reason=str(error))
            return f"no candidate: {error}"
        said = self._propose(result, workload, task.window)
        self._finish_task(task)
        self._mark_busy()
        return said

    def _stop_if_outdated(self) -> None:
        """End the running evolution when the workload has changed again.

        Known policies may answer the new change at once.

        Raises:
            _Outdated: the workload has changed; the text says how.
        """
        state = self.rollout.state
        if self.settings.back_to_back or state.frozen:
            return
        look = self._look_for_change(state)
        if look.reason is not None:
            raise _Outdated(look.reason)

    def _recalibrate(self, window: Window) -> None:
        engines = self.rollout.channel.engines()
        self._judge.calibration = with_limits(self.calibration, engines, window.engine)
        found = recalibrate(window, self.calibration)
        self.rollout.note("calibrate", detail=str(found), accepted=found.accepted)
        if found.accepted:
            self._judge.calibration = found.calibration
            self.memory.keep_calibration(found.calibration)

    def _mark_busy(self) -> None:
        self.observer.look()
        self.lookout.mark_busy()

    def _propose(self, result: EvolutionResult, workload: Workload, window: Window) -> str:
        """Put the winner into shadow, or the next best candidate if the winner does not pass the gates here."""
        self.rollout.note("evolved", result.best.digest, run=result.run, seconds=round(result.seconds, 1))
        state = self.rollout.state
        active = self._judge.policy(state.active)
        said = ""
        for candidate in (result.best, *result.runners_up):
            (evidence,) = self._judge.evidence([workload.held_out], [candidate], active)
            self.rollout.note("evidence", candidate.digest, stage="held-out", **evidence.to_json())
            why = (
                "it is active already" if candidate.digest == active.digest
                else f"it is in quarantine ({state.quarantined[candidate.digest]})"
                if candidate.digest in state.quarantined
                else "it is worse beyond noise on what was held out" if evidence.worse else ""
            )  # fmt: skip
            if why:
                self.rollout.note("no-candidate", candidate.digest, reason=why)
                return f"no candidate: {candidate.digest[:12]}: {why}"
            refusal = self._certify_and_propose(candidate)
            if refusal is None:
                unseen = window.requests["stamp_us"][window.usable][-len(workload.held_out) :]
                self.memory.keep_shadow(
                    ShadowStart(candidate=candidate.digest, engine=window.engine, since_us=int(unseen[0]))
                )
                return f"shadow: {candidate.digest[:12]}, {evidence.reduction:+.0%} on what was held out"
            said = refusal
        return said

    def _finish_task(self, task: Evolving) -> None:
        """Mark the change as answered, unless a longer window of it is still to be evolved on."""
        checked, due = self.memory.checked(), self.memory.due()
        if checked is None or checked[0] != task.window.engine or checked[1] < task.window.end_us:
            self.memory.keep_checked(task.window.engine, task.window.end_us)
        if due is None or due.rounds >= self._last_round:
            self.memory.forget_due()
        else:
            self.memory.keep_due(replace(due, rounds=due.rounds + 1))
        self.memory.forget_task()

    def _interrupted(self) -> Evolving:
        try:
            return self.memory.task()
        except WindowError as error:
            self.memory.forget_task()
            raise ControllerError(f"the interrupted evolution cannot be resumed: {error}; watching goes on") from None

    def _runs(self) -> int:
        """Return the number of evolutions begun on this channel; each has its own seed."""
        return sum(1 for row in self.store.deployments(self.rollout.name) if row.action == "evolve")
