"""The drift monitor: it compares the current workload with the workload that was last answered."""

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
"""Greatest length of the reference, in windows.

No test on a single burst tells whether it differs from the one before.
"""


@dataclass(frozen=True, kw_only=True)
class Look:
    """The result of one check of the telemetry."""

    said: str
    """One line for people; empty when there is a reason."""
    reason: str | None = None
    """The reason why a change is due from now on; None when none is."""
    report: DriftReport | None = None
    """The drift report, when windows were compared."""
    early: bool = False
    """True when the check was of a window that had not settled yet."""


class Lookout:
    """A drift monitor that compares the engines' workload with the reference, window by window and early.

    An early check is before a window has settled.

    Due changes are kept in memory, and so is the reference: the first full windows since the workload last changed, up
    to REFERENCE of them. A faster or slower engine is no change of the workload: the reference stays, and only its
    speed is replaced by that of a newer window.
    """

    def __init__(
        self, observer: Observer, memory: Memory, settings: WatchSettings, evolved: Callable[[], bool]
    ) -> None:
        self.reference = memory.reference()
        self.last_drift: DriftReport | None = None
        self._observer, self._memory, self._settings = observer, memory, settings
        self._evolved = evolved
        """Function that returns true when any evolution was begun on this channel."""
        self._looked_us = 0
        """End of the arrivals that were checked early, by the busiest engine's clock."""
        self._busy_until: tuple[str, int] = ("", 0)
        """An engine, and the time by its clock until which our evolution may have slowed it."""
        self._speed = None if self.reference is None else self.reference.window
        """The window whose speed is the reference; None if our evolution ran in it or beside it."""

    def look(self, calibration: Calibration, *, frozen: bool = False) -> Look:
        """Check the new telemetry. While `frozen`, a change is only reported, and reported again at the next check."""
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
            # The window may hold some of the earlier workload. The first window that holds none is the reference from
            # now on.
            self.reference = self._speed = None
            self._memory.forget_reference()
            self._memory.keep_checked(window.engine, since_us)
        return self._due(Look(said="", reason=str(report), report=report, early=early), window, since_us, frozen)

    def fresh(self) -> Window | None:
        """Return the busiest engine's newest settled window that shares no request with a checked one, or None."""
        busiest = self._observer.busiest()
        if busiest is None:
            return None
        since, checked = 0, self._memory.checked()
        if checked is not None and checked[0] == busiest.engine and checked[1] <= busiest.now_us:
            since = checked[1]  # an older time is the clock of a restarted engine
        return busiest.window(since_us=since)

    def mark_busy(self) -> None:
        """Record that an evolution has just ended: the engines' speed during it must not be compared."""
        busiest = self._observer.busiest()
        self._busy_until = (busiest.engine, busiest.now_us) if busiest is not None else ("", 0)

    def _was_busy(self, window: Window) -> bool:
        engine, until_us = self._busy_until
        return window.engine == engine and window.start_us < until_us

    def _arrived(self) -> Window | None:
        """Return the arrivals of the last window's length, or all since the first request.

        The result is None when it is too early to check.
        """
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
        """Return true for windows of one engine, with a reference that was built from windows of this length."""
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
        """Extend the reference by the time before a settled window that showed no drift."""
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
        """Return the profile of a window with the engine's speed in `speed_of`.

        It has no speed when `speed_of` is None: our own evolution may have slowed that engine, which would raise false
        alarms.
        """
        settings = self._settings.drift
        found = profile(window, calibration, settings, lengths=self._lengths(window), replicas=replicas, early=early)
        if speed_of is window:
            return found
        if speed_of is None:
            return replace(found, slowness=None)
        other = profile(speed_of, calibration, settings, lengths=self._lengths(speed_of))
        return replace(found, slowness=other.slowness)

    def _lengths(self, window: Window) -> int:
        """Return the window's length in multiples of the window setting, at least 1."""
        return max(1, round(window.seconds / self._settings.window_s))
