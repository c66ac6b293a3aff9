"""Our one thread beside the engine: looks at the channel, loads and compiles policies, writes dumps and status.

Everything slow happens here, so that a step only ever sees a finished policy behind one pointer. The engine does not
need this thread: when it is late, stuck or dead, requests are served as before.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from queue import SimpleQueue
from typing import Any

from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.logs import log_event

from ..channel import ORDERING, Channel, ChannelError, Mode, Notice, OutOfReachError
from .seat import Fault, Runnable, Seat, digest_of
from .short_turns import ShortTurns
from .telemetry import Telemetry

__all__ = ["Load", "Watcher"]

logger = logging.getLogger("autopoiesis.vllm")

Load = Callable[[str, str], Any]
"""(policy text, certificate text) -> a policy that may run; raises `AutopoiesisError` with one line when it may not."""

SLOTS = (ORDERING, "admission", "preemption")
"""The slots watched, whether or not this engine has the lever: one without says so."""
STATUS_EVERY_S = 1.0
RETRY_S = 1.0
"""How long until what could not be read is tried again."""
IDLE_POLL_S = 0.5
"""Without a channel only dumps of faults are to be written."""


class Watcher:
    """Watches one channel for one engine. `look` is one round and may be called by hand, as tests do."""

    def __init__(
        self,
        engine: str,
        seats: Mapping[str, Seat[Any]],
        loads: Mapping[str, Load],
        clock_us: Callable[[], int],
        channel: Channel | None = None,
        poll_s: float = 0.01,
        keep_disabled: bool = False,
        telemetry: Telemetry | None = None,
        snapshot_s: float = 0.0,
    ) -> None:
        self.engine = engine
        self.faults: SimpleQueue[Fault] = SimpleQueue()
        self.refusal = ""
        """Why the policy last wanted is not running; empty when it is."""
        self.refused = 0
        self.errors = 0
        """Rounds that failed for a reason of their own: an unreadable channel, a full disk."""
        self.limits: Mapping[str, int] = {}
        """What the engine is bounded by, under the simulator's names: a control plane calibrates with it."""
        self.loads: deque[tuple[int, int]] = deque(maxlen=64)
        """Wall and CPU nanoseconds of the last loads: reading, checking, compiling."""
        self._short_turns = ShortTurns()
        self._seats = seats
        self._governor = seats[ORDERING]
        self._loads = loads
        self._clock_us = clock_us
        self._channel = channel
        self._poll_s = poll_s if channel is not None else IDLE_POLL_S
        self._notice_paths = {name: str(channel.slot_path(name)) for name in SLOTS} if channel is not None else {}
        self._disabled_path = str(channel.disabled_path) if channel is not None else ""
        self._keep_disabled = keep_disabled
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._retry_at: dict[str, float] = {}
        """Slots whose notice, or what it names, could not be read -> when to try again."""
        self._said: dict[str, str] = {}
        """What each piece of the work last failed of: a condition that lasts is logged once, not once a round."""
        self._undumped: Fault | None = None
        """A fault whose dump could not be written yet: a full disk must not cost what a person needs to see."""
        self._starting = True
        self._status: dict[str, Any] = {}
        self._status_at = 0.0
        self._telemetry = telemetry if snapshot_s > 0 else None
        self._snapshot_s = snapshot_s
        self._snapshot_at = time.monotonic()
        self._next_rows = (0, 0, 0)
        self._pieces = time.time_ns() // 1_000_000_000  # later than any piece a former engine of this name left
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, again if it has died."""
        if not self.alive and not self._stop.is_set():
            self._thread = threading.Thread(target=self._run, name="autopoiesis-watcher", daemon=True)
            self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """Stop the thread and write what is still to be written."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        self._guarded("faults", self._write_faults)
        self._guarded("telemetry", lambda: self._write_telemetry(force=True))
        self._guarded("status", lambda: self._write_status(force=True))

    def look(self) -> None:
        """One round: kill switch, notice, dumps, status. Never raises."""
        self._guarded("channel", self._read_channel)
        self._guarded("faults", self._write_faults)
        self._guarded("telemetry", self._write_telemetry)
        self._guarded("status", self._write_status)

    def bring_in(
        self,
        source: str,
        certificate: str,
        requested_us: int | None = None,
        *,
        contract: str = ORDERING,
        mode: Mode = "active",
        base: Any = None,
        seconds: float | None = None,
        decisions: int | None = None,
    ) -> Any:
        """Verify, compile and offer one policy to the engine; see `Notice` for how it is to be used.

        Raises:
            AutopoiesisError: it may not run; `refusal` holds the line, and what ran before goes on.
        """
        requested_us = self._clock_us() if requested_us is None else requested_us
        try:
            if mode == "canary" and seconds is None and decisions is None:
                raise AutopoiesisError("a canary needs a bound: seconds or decisions")
            policy = self._checked(contract, source, certificate)
        except AutopoiesisError as error:
            self._refuse(str(error))
            raise
        limit_us = round(seconds * 1e6) if seconds is not None else None
        self._seats[contract].offer(policy, requested_us, mode, base, limit_us, decisions)
        self.refusal = ""
        said = f"policy {policy.digest[:12]} accepted ({mode}); from the next step on"
        log_event(logger, "policy.accepted", said, {"contract": contract, "digest": policy.digest, "mode": mode})
        return policy

    def _checked(self, contract: str, source: str, certificate: str) -> Any:
        if contract not in self._seats:
            raise AutopoiesisError(no_lever(contract, self._seats))
        with self._short_turns:
            started, cpu = time.perf_counter_ns(), time.thread_time_ns()
            policy = self._loads[contract](source, certificate)
            self.loads.append((time.perf_counter_ns() - started, time.thread_time_ns() - cpu))
        quarantined = self._seats[contract].quarantined
        if policy.digest in quarantined:
            raise AutopoiesisError(f"policy {policy.digest[:12]} is in quarantine here ({quarantined[policy.digest]})")
        return policy

    def _run(self) -> None:
        while not self._stop.wait(self._poll_s):
            self.look()

    def _read_channel(self) -> None:
        if self._channel is None:
            return
        # One call a slot and round, whatever the channel holds: each round takes the interpreter away from the engine.
        disabled = self._keep_disabled or os.path.exists(self._disabled_path)  # noqa: PTH110
        if disabled != self._governor.disabled:
            for seat in self._seats.values():
                seat.disabled = disabled
            self._status_at = 0.0
        starting, self._starting = self._starting, False
        gone = ""
        for contract, path in self._notice_paths.items():
            try:
                stat = os.stat(path)  # noqa: PTH116
            except FileNotFoundError:
                if self._seen.pop(contract, None) is not None:
                    gone = path
                continue
            seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            due = self._retry_at.get(contract)
            if seen != self._seen.get(contract) or (due is not None and time.monotonic() >= due):
                requested_us = self._clock_us()
                self._seen[contract] = seen
                self._retry_at.pop(contract, None)
                self._status_at = 0.0  # what comes of it is worth telling at once
                with self._short_turns:
                    self._guarded(contract, partial(self._follow, self._channel, contract, requested_us, starting))
        if gone:
            self._status_at = 0.0
            raise ChannelError(f"{gone} is gone; what decided goes on deciding")

    def _follow(self, channel: Channel, contract: str, requested_us: int, starting: bool) -> None:
        """Do what a slot's notice says; a second later again when it, or what it names, is out of reach just now."""
        try:
            self._read_notice(channel, contract, requested_us, starting)
        except OutOfReachError:
            self._retry_at[contract] = time.monotonic() + RETRY_S
            raise
        except UnreadableError as error:
            self._retry_at[contract] = time.monotonic() + RETRY_S
            if str(error) != self.refusal:
                self._refuse(str(error))

    def _read_notice(self, channel: Channel, contract: str, requested_us: int, starting: bool) -> None:
        notice = channel.read(contract)
        if notice is None:
            return
        if contract not in self._seats:
            if notice.digest is not None:
                self._refuse(no_lever(contract, self._seats))
            return
        if notice.digest is None:
            self._seats[contract].offer(None, requested_us)
            self.refusal = ""
            return
        base = self._base(channel, notice)
        if starting and notice.mode == "canary":
            # How much of its bound was used before this engine stopped is not known, so it is over.
            self._seats[contract].offer(base, requested_us)
            self._refuse(f"policy {notice.digest[:12]}: the engine started during its canary; publish it again")
            return
        try:
            source, certificate = texts_of(channel, notice.digest)
            policy = self.bring_in(
                source,
                certificate,
                requested_us,
                contract=contract,
                mode=notice.mode,
                base=base,
                seconds=notice.seconds,
                decisions=notice.decisions,
            )
        except UnreadableError:
            raise
        except AutopoiesisError:
            return  # refused, logged and in the status: the policy that ran goes on
        if policy.digest != notice.digest:
            said = f"the notice says {notice.digest[:12]}, the policy is {policy.digest[:12]}"
            about = {"contract": notice.contract, "digest": policy.digest, "noticed": notice.digest}
            log_event(logger, "notice.mismatch", said, about, level=logging.WARNING)

    def _base(self, channel: Channel, notice: Notice) -> Runnable | None:
        """What decides beside or after a trial: what already decides here, or else the same policy from the channel."""
        if notice.mode == "active" or notice.base is None:
            return None
        seat = self._seats[notice.contract]
        for known in (seat.active, seat.base):
            if digest_of(known) == notice.base:
                return known
        try:
            base: Runnable = self._checked(notice.contract, *texts_of(channel, notice.base))
        except AutopoiesisError as error:
            said = f"the built-in rule stands in for {notice.base[:12]}: {error}"
            about = {"contract": notice.contract, "digest": notice.base, "reason": str(error)}
            log_event(logger, "base.missing", said, about, level=logging.WARNING)
            return None
        return base

    def _refuse(self, why: str) -> None:
        self.refused += 1
        self.refusal = " ".join(why.split())
        said = f"refused: {self.refusal}"
        log_event(logger, "policy.refused", said, {"reason": self.refusal}, level=logging.WARNING)

    def _write_faults(self) -> None:
        while self._undumped is not None or not self.faults.empty():
            fault = self._undumped or self.faults.get()
            if fault is not self._undumped:
                what = f"{fault.contract}: {fault.kind} under policy {fault.digest[:12]}: {fault.detail}"
                then = "it was in shadow" if fault.shadow else "served by the built-in rule"
                said = f"{what}; {then}{' and quarantined the policy' if fault.quarantined else ''}"
                names = ("contract", "digest", "kind", "detail", "shadow", "quarantined")
                about = {name: getattr(fault, name) for name in names}
                log_event(logger, "policy.fault", said, about, level=logging.WARNING)
            self._undumped = fault
            if self._channel is not None:
                self._channel.dump(f"{fault.digest[:16] or 'none'}-{fault.kind}-{fault.at_us}", _dump(fault))
            self._undumped = None

    def _write_telemetry(self, force: bool = False) -> None:
        if self._telemetry is None or self._channel is None:
            return
        if not (force or time.monotonic() - self._snapshot_at >= self._snapshot_s):
            return
        self._snapshot_at = time.monotonic()
        taken = self._telemetry.snapshot(self._next_rows)
        if taken.next == self._next_rows:
            return
        columns = {f"steps.{name}": column for name, column in taken.steps.items()}
        columns |= {f"requests.{name}": column for name, column in taken.requests.items()}
        columns |= {f"arrivals.{name}": column for name, column in taken.arrivals.items()}
        self._channel.record(self.engine, self._pieces + 1, columns)
        # Only now: what could not be written is in the next piece, as long as the ring holds it.
        self._next_rows = taken.next
        self._pieces += 1

    def _write_status(self, force: bool = False) -> None:
        if self._channel is None or not (force or time.monotonic() - self._status_at >= STATUS_EVERY_S):
            return
        self._status_at = time.monotonic()
        status = self.status()
        if force or status != self._status or not self._channel.engine_path(self.engine).exists():
            self._channel.report(self.engine, status)
            self._status = status

    def status(self) -> dict[str, Any]:
        """What the engine runs, has refused and has dropped, ready for JSON.

        The top level speaks of request ordering; `levers` has the other policy types, each with its counters.
        """
        governor = self._governor
        return {
            "engine": self.engine,
            "pid": os.getpid(),
            **governor.status(),
            "aging_us": getattr(governor.active, "aging_us", None),
            "disabled": governor.disabled,
            "refusal": self.refusal,
            "limits": dict(self.limits),
            "counters": {**governor.counters, "refused": self.refused, "watcher_errors": self.errors},
            "levers": {
                name: {**seat.status(), "counters": dict(seat.counters)}
                for name, seat in self._seats.items()
                if seat is not governor
            },
        }

    def drift(self) -> dict[str, float]:
        """What the control plane last measured of drift on this channel."""
        return self._channel.drift() if self._channel is not None else {}

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.errors += 1
            said = " ".join(f"{error}".split()) or type(error).__name__
            if said != self._said.get(name):
                self._said[name] = said
                about = {"part": name, "reason": said}
                log_event(logger, "watcher.error", f"{said}; serving is not affected", about, level=logging.WARNING)
        else:
            self._said.pop(name, None)


def no_lever(contract: str, seats: Mapping[str, Seat[Any]]) -> str:
    """Why a policy of a type this engine cannot run is refused."""
    return f"this engine has no lever for {contract}; it has {', '.join(seats)}"


class UnreadableError(AutopoiesisError):
    """A policy's files are not there or are no text."""


def texts_of(channel: Channel, digest: str) -> tuple[str, str]:
    """A policy's text and certificate as the channel has them.

    Raises:
        UnreadableError: one of the two cannot be read.
    """
    try:
        source = channel.policy_path(digest).read_text(encoding="utf-8")
        return source, channel.certificate_path(digest).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, AutopoiesisError) as error:
        raise UnreadableError(
            f"policy {digest[:12]}: its text or certificate cannot be read ({error}); publish it again"
        ) from None


def _dump(fault: Fault) -> dict[str, Any]:
    arrays = {"columns": fault.columns, "stamps": fault.stamps, "seqs": fault.seqs}
    return {
        "contract": fault.contract,
        "kind": fault.kind,
        "detail": fault.detail,
        "digest": fault.digest,
        "at_us": fault.at_us,
        "quarantined": fault.quarantined,
        "shadow": fault.shadow,
        "engine": list(fault.engine),
        **{name: array.tolist() if array is not None else None for name, array in arrays.items()},
    }
