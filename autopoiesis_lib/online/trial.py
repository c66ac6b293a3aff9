"""The trial of a candidate: in shadow, where recorded windows are replayed, then as a canary for a limited time."""

from collections.abc import Callable
from dataclasses import replace

from ..store import Store
from .evidence import Judge
from .guard import LiveTimes, Slowdown, ended_by_engine, fallbacks_of, heard_since, live_times, slowdown, tripped
from .lookout import Lookout
from .memory import CanaryStart, Memory, ShadowStart
from .observer import Observer
from .rollout import Evidence, Rollout
from .settings import WatchSettings
from .state import RolloutState, Stage
from .window import SlidingWindow

__all__ = ["Trial"]

WORTH = 0.03
"""Gain below which a candidate that is not better beyond noise is rejected at once instead of checked again."""
QUARANTINE_HEARD_S = 3_600.0
"""Seconds for which the quarantine of a silent engine still counts: its policy may be the reason why it ended."""
LOOKS = 2
"""Number of comparisons with the active policy, on a growing stretch of telemetry, before a candidate is rejected."""


class Trial:
    """The steps of a rollout's candidate, forward or back.

    Each step returns one line that says what it found or did.

    Args:
        judge: replays recorded windows.
        observer: telemetry of the engines.
        canary_observer: telemetry of the engines that canaries run on.
        wall_s: the clock of this machine, in seconds.
    """

    def __init__(
        self,
        judge: Judge,
        rollout: Rollout,
        store: Store,
        memory: Memory,
        observer: Observer,
        canary_observer: Observer,
        lookout: Lookout,
        settings: WatchSettings,
        wall_s: Callable[[], float],
    ) -> None:
        self._judge, self._rollout, self._store, self._memory = judge, rollout, store, memory
        self._observer, self._canary_observer, self._lookout = observer, canary_observer, lookout
        self._settings, self._wall_s = settings, wall_s

    def shadow(self, state: RolloutState) -> str:
        """Compare the candidate in shadow with the active policy; a better one becomes the canary."""
        assert state.candidate is not None
        short = state.candidate[:12]
        found = self._kept_evidence(state) or self._look_at_shadow(state)
        if isinstance(found, str):
            return found
        if self._rollout.held(state):
            return f"held: {short} waits for approval"
        if state.frozen:
            return f"frozen: {short} waits"
        self.begin_canary()
        self._rollout.start_canary(found)
        return f"canary: {short}, {found.reduction:.0%} better on what it was not evolved on"

    def _look_at_shadow(self, state: RolloutState) -> Evidence | str:
        """Return a comparison of the candidate with the active policy, or a line that says why it is not better yet.

        The comparison is on all arrivals since those that the candidate was evolved on.

        Arrivals during the evolution count at once. If they are too few for a decision and the gain is worth another
        check, the candidate is checked again after another window, LOOKS times in all. The intervals are widened so
        that all checks hold together.
        """
        assert state.candidate is not None
        short = state.candidate[:12]
        start = self._memory.shadow(state.candidate)
        seen = self._observer.busiest() if start is None else self._observer.named(start.engine)
        since = None
        if start is not None and seen is not None and seen.settled_us >= start.next_us:
            since = seen.between(start.since_us, seen.settled_us).completed()
        if since is None or start is None or len(since) < self._settings.drift.min_requests:
            return self._wait_in_shadow(state.candidate, start)
        (evidence,) = self._judge.evidence(
            [since.trace()], [self._judge.policy(state.candidate)], self._judge.policy(state.active), looks=LOOKS
        )
        start = replace(start, looks=start.looks + 1, next_us=since.end_us + round(self._settings.window_s * 1e6))
        self._memory.keep_shadow(start)
        self._rollout.note("evidence", state.candidate, stage=str(state.stage), look=start.looks, **evidence.to_json())
        if evidence.better:
            return evidence
        if start.looks < LOOKS and evidence.reduction >= WORTH:
            return f"shadow: {short}, {evidence.reduction:+.0%}, is looked at again after another window"
        self._rollout.reject("not better beyond noise on what it was not evolved on")
        return f"rejected: {short} is not better beyond noise on what it was not evolved on"

    def _wait_in_shadow(self, candidate: str, start: ShadowStart | None) -> str:
        """Keep the start of a candidate's telemetry: now, if it was lost or if its engine is replaced by another."""
        seen = self._observer.busiest() if start is None else self._observer.replaced(start.engine)
        if seen is not None:
            fresh = ShadowStart(candidate=candidate, engine=seen.engine, since_us=seen.now_us)
            self._memory.keep_shadow(replace(fresh, looks=start.looks) if start is not None else fresh)
        elif start is None or self._observer.named(start.engine) is None:
            return f"shadow: {candidate[:12]} waits for telemetry"
        return f"shadow: {candidate[:12]} waits for a new window"

    def canary(self, state: RolloutState) -> str:
        """Promote the canary when its time is over and no guard tripped; roll it back as soon as one does."""
        assert state.candidate is not None and state.since is not None
        short = state.candidate[:12]
        start = self._memory.canary() or self.begin_canary()  # lost: the canary's time begins again
        engines = self._rollout.canary_channel.engines()
        canary = self._canary_observer.named(start.engine)
        other = self._canary_observer.replaced(start.engine)
        if other is not None:  # its time begins again, but neither the timeout nor the count of fallbacks
            fallbacks = min(start.fallbacks, fallbacks_of(engines))
            canary, start = other, replace(start, engine=other.engine, at_us=other.now_us, fallbacks=fallbacks)
            self._memory.keep_canary(start)
        served_us = canary.now_us - start.at_us if canary is not None else 0
        heard = heard_since(engines, start.wall_s)
        reason = tripped(
            heard, state.candidate, self._settings.guards, fallbacks_before=start.fallbacks,
            slower=self._slowdown(canary, start.at_us, state),
        )  # fmt: skip
        if reason is not None:
            self._rollout.roll_back(f"a guard tripped: {reason}", quarantine=True)
            return f"rolled back: {short}: {reason}"
        ended = ended_by_engine(heard, state.candidate)
        if ended is not None:
            self._rollout.roll_back(ended)
            return f"rolled back: {short}: {ended}"
        if served_us < self._settings.canary_s * 1e6:
            waited = self._wall_s() - start.wall_s
            if waited > self._settings.canary_timeout_s:
                self._rollout.roll_back(f"no telemetry for a verdict in {waited:.0f} s")
                return f"rolled back: {short}: no telemetry for a verdict"
            return f"canary: {short} has decided for {max(served_us, 0) / 1e6:.0f} s"
        evidence = self._evidence_on_fresh(state)
        if evidence is None:
            return f"canary: {short} waits for a new window"
        if evidence.worse:
            self._rollout.roll_back("worse beyond noise on the canary's window")
            return f"rolled back: {short} is worse beyond noise on the canary's window"
        if state.frozen:
            return f"frozen: {short} waits"
        self._rollout.promote(evidence)
        return f"promoted: {short}, {evidence.reduction:+.0%} on the canary's window"

    def _evidence_on_fresh(self, state: RolloutState) -> Evidence | None:
        """Return a comparison of the candidate with the active policy on the newest unused window, or None.

        No earlier judgement used that window.
        """
        assert state.candidate is not None
        window = self._lookout.fresh()
        if window is None or len(window) < self._settings.drift.min_requests:
            return None
        self._memory.keep_checked(window.engine, window.end_us)
        (evidence,) = self._judge.evidence(
            [window.trace()], [self._judge.policy(state.candidate)], self._judge.policy(state.active)
        )
        self._rollout.note("evidence", state.candidate, stage=str(state.stage), **evidence.to_json())
        return evidence

    def _kept_evidence(self, state: RolloutState) -> Evidence | None:
        """Return the evidence of a candidate that waits for a person, or None. It is not gathered again."""
        for row in reversed(self._store.deployments(self._rollout.name)):
            if row.action in ("propose", "canary"):
                return None
            if row.action == "evidence" and row.policy_digest == state.candidate and row.detail["better"]:
                fields = {name: row.detail[name] for name in Evidence.__dataclass_fields__ if name in row.detail}
                return Evidence(**{**fields, "ci95": (fields["ci95"][0], fields["ci95"][1])})
        return None

    def _slowdown(self, seen: SlidingWindow | None, at_us: int, state: RolloutState) -> Slowdown | None:
        """Return the candidate's effect on live times since `at_us`; None while too little is known."""
        # Only a stretch that an operator calls long enough separates bursts from harm.
        shortest, longest = (round(1e6 * pick(self._settings.window_s, self._settings.canary_s)) for pick in (min, max))
        length = 0 if seen is None else min(seen.settled_us - at_us, longest)
        if seen is None or length < shortest:
            return None
        before, after = (
            self._live_times(seen, start, length, digest)
            for start, digest in ((at_us - length, state.active), (at_us, state.candidate))
        )
        return None if before is None or after is None else slowdown(before, after, self._settings.seed)

    def harm_of_active(self, state: RolloutState) -> str | None:
        """Roll back the active policy if an engine quarantined it. Return a line about it, or None if none did."""
        if state.active is None or state.active in state.quarantined or not state.history:
            return None
        for name, status in heard_since(self._rollout.channel.engines(), self._wall_s() - QUARANTINE_HEARD_S).items():
            reason = dict(status.get("quarantined") or {}).get(state.active)
            if reason is not None:
                why = f"{name} quarantined it: {reason}"
                if state.stage is not Stage.IDLE:
                    self._rollout.roll_back("the active policy is being taken out")
                self._rollout.roll_back(why, quarantine=True)
                return f"rolled back: {state.active[:12]}: {why}"
        return None

    def begin_canary(self) -> CanaryStart:
        """Keep the start of a canary, now, and return it."""
        busiest = self._canary_observer.busiest()
        start = CanaryStart(
            engine=busiest.engine if busiest is not None else "",
            at_us=busiest.now_us if busiest is not None else 0,
            fallbacks=fallbacks_of(self._rollout.canary_channel.engines()),
            wall_s=self._wall_s(),
        )
        self._memory.keep_canary(start)
        return start

    def _live_times(self, seen: SlidingWindow, start_us: int, length_us: int, digest: str | None) -> LiveTimes | None:
        # All that is known of the time before: it shows the queue at the start.
        window = seen.between(seen.first_us, start_us + length_us).completed().resumed(start_us)
        if len(window) < self._settings.drift.min_requests:
            return None
        replays = self._judge.replayer([window.trace()])
        return live_times(window, self._judge.policy(digest), replays, self._settings.guards.bins)
