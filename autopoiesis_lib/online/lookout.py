"""The lookout: is work still as it was when it was last answered?"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..simulation.calibration import Calibration
from .drift import DriftReport, Profile, detect, profile
from .memory import Due, Memory, Reference
from .observer import Observer
from .settings import WatchSettings
from .window import Window

__all__ = ["REFERENCE", "Look", "Lookout"]

REFERENCE = 8
"""How many windows the reference grows to: of one burst, no test tells whether it is unlike the one before."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at the telemetry found."""

    said: str
    """In a line, for people; empty when there is a reason."""
    reason: str | None = None
    """Why something is due from now on, if anything is."""
    report: DriftReport | None = None
    """When windows were compared."""
    early: bool = False
    """Whether it was at what had not settled yet."""


class Lookout:
    """Compares what engines serve with how it was, window by window, and before a window has settled what is known of it.

    What it finds is due is kept in memory, and so is the reference: the first full windows since work last changed, REFERENCE of
    them once there are so many. An engine that has become faster or slower is no change of work: the reference stays, and only
    its speed is compared with a newer window's.
    """

    def __init__(
        self, observer: Observer, memory: Memory, settings: WatchSettings, evolved: Callable[[], bool]
    ) -> None:
        self.reference = memory.reference()
        self.last_drift: DriftReport | None = None
        self._observer, self._memory, self._settings = observer, memory, settings
        self._evolved = evolved
        """Whether anything was evolved on this channel before."""
        self._looked_us = 0
        """By the busiest engine's clock: up to where arrivals were looked at before they had settled."""
        self._busy_until: tuple[str, int] = ("", 0)
        """An engine, and by its clock until when an evolution of ours took CPU time that a neighbouring engine may miss."""
        self._speed = None if self.reference is None else self.reference.window
        """Whose speed the engine's is compared with; None where an evolution of ours ran in the reference, or beside it."""

    def look(self, calibration: Calibration, *, frozen: bool = False) -> Look:
        """Look at what is new. While `frozen` a change is only told, and told again at the next look."""
        window = self.fresh()
        early = window is None
        if window is None:
            window = self._arrived()
            if window is None:
                return Look(said="watching: no new full window yet")
        else:
            self._memory.keep_checked(window.engine, window.end_us)
        if len(window) < self._settings.drift.min_requests:
            return Look(said=f"watching: {len(window)} requests in the last window are too few")
        if self._settings.back_to_back or self._first_is_due():
            if not early:
                self._keep_reference(window)
            reason = "back to back" if self._settings.back_to_back else "the first requests"
            return self._due(Look(said="", reason=reason, early=early), window, window.start_us, frozen)
        if self.reference is None or not self._comparable(self.reference.window, window):
            self._keep_reference(window)
            return Look(said="watching: the first full window is the reference from now on")
        report = self.last_drift = self._compare(self.reference, window, calibration, early)
        if not report.drifted:
            if not early:
                self._lengthen_reference(self.reference, window)
            return Look(said="watching: no drift", report=report, early=early)
        bin_us = (window.end_us - window.start_us) / self._settings.drift.bins
        since_us = window.start_us + round(report.begin_bin * bin_us)
        if not frozen and report.features == {"speed"}:
            self._speed = window
        elif not frozen:
            # The window may hold some of how it was before: the first that does not is the reference from now on.
            self.reference = self._speed = None
            self._memory.forget_reference()
            self._memory.keep_checked(window.engine, since_us)
        return self._due(Look(said="", reason=str(report), report=report, early=early), window, since_us, frozen)

    def fresh(self) -> Window | None:
        """The newest settled window of the busiest engine that shares no request with one that was looked at; None if there is
        none."""
        busiest = self._observer.busiest()
        if busiest is None:
            return None
        since, checked = 0, self._memory.checked()
        if checked is not None and checked[0] == busiest.engine and checked[1] <= busiest.now_us:
            since = checked[1]  # a clock behind that is a restarted engine's
        return busiest.window(since_us=since)

    def mark_busy(self) -> None:
        """An evolution has just ended: what engines did meanwhile says nothing of their speed."""
        busiest = self._observer.busiest()
        self._busy_until = (busiest.engine, busiest.now_us) if busiest is not None else ("", 0)

    def _was_busy(self, window: Window) -> bool:
        engine, until_us = self._busy_until
        return window.engine == engine and window.start_us < until_us

    def _arrived(self) -> Window | None:
        """What came in the time of a window up to now, or all since the first request; None when it is too early to look."""
        busiest = self._observer.busiest()
        if busiest is None or self._settings.back_to_back or not self._settings.drift.early_looks:
            return None
        if busiest.last_us < self._looked_us:  # a restarted engine's clock
            self._looked_us = 0
        if busiest.last_us < self._looked_us + busiest.length_us // self._settings.drift.early_looks:
            return None
        self._looked_us = busiest.last_us
        if self._first_is_due():
            return busiest.between(busiest.first_us, busiest.last_us)
        if self.reference is None or self.reference.window.engine != busiest.engine:
            return None
        return busiest.arrived(since_us=self.reference.window.end_us)

    def _comparable(self, reference: Window, window: Window) -> bool:
        """Whether they are of one engine, and the reference was not left by a control plane with windows of another length."""
        lengths = self._lengths(reference)
        same = reference.end_us - reference.start_us == lengths * (window.end_us - window.start_us)
        return same and lengths <= REFERENCE and reference.engine == window.engine

    def _first_is_due(self) -> bool:
        unanswered = self.reference is None and self._memory.due() is None and not self._evolved()
        return self._settings.evolve_first and unanswered

    def _due(self, look: Look, window: Window, since_us: int, frozen: bool) -> Look:
        if look.reason is not None and not frozen:
            self._memory.keep_due(Due(reason=look.reason, engine=window.engine, since_us=since_us))
        return look

    def _keep_reference(self, window: Window) -> None:
        self.reference = Reference(window=window, replicas=max(1, self._observer.replicas))
        self._speed = None if self._was_busy(window) else window
        self._memory.keep_reference(self.reference)

    def _lengthen_reference(self, reference: Reference, window: Window) -> None:
        """Take in what came before a settled window that showed no drift."""
        busiest = self._observer.busiest()
        start_us = reference.window.start_us
        if busiest is None or busiest.engine != window.engine or busiest.first_us > start_us:
            return
        lengths = min((window.start_us - start_us) // busiest.length_us, REFERENCE)
        end_us = start_us + lengths * busiest.length_us
        if end_us > reference.window.end_us:
            longer = busiest.between(start_us, end_us).completed()
            self.reference = replace(reference, window=longer)
            self._memory.keep_reference(self.reference)

    def _compare(self, reference: Reference, window: Window, calibration: Calibration, early: bool) -> DriftReport:
        before = self._profile(reference.window, calibration, reference.replicas, speed_of=self._speed)
        busy = self._memory.evolving or self._was_busy(window)
        now = self._profile(
            window, calibration, self._observer.replicas, speed_of=None if busy else window, early=early
        )
        return detect(before, now, self._settings.drift, early=early)

    def _profile(
        self, window: Window, calibration: Calibration, replicas: int, *, speed_of: Window | None, early: bool = False
    ) -> Profile:
        """With the engine's speed of that window or another's; without where our own evolution may have slowed it, which would
        raise alarm after alarm."""
        settings = self._settings.drift
        found = profile(window, calibration, settings, lengths=self._lengths(window), replicas=replicas, early=early)
        if speed_of is window:
            return found
        if speed_of is None:
            return replace(found, slowness=None)
        other = profile(speed_of, calibration, settings, lengths=self._lengths(speed_of))
        return replace(found, slowness=other.slowness)

    def _lengths(self, window: Window) -> int:
        """How many windows long it is."""
        return max(1, round(window.seconds / self._settings.window_s))
