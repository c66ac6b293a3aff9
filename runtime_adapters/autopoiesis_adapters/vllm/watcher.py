"""The threads beside the engine: one follows the channel, loads policies and writes status; one reads the kill switch.

All slow work happens in these threads, so that a step only reads one pointer to a finished policy. The engine does not
need the threads: when they are late, stuck or dead, requests are served as before. The kill switch has its own thread,
which makes only one `stat` call per round, so that no read, proof or compilation can delay it.
"""

import logging
import os
import re
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from queue import SimpleQueue
from typing import Any

from pydantic import BaseModel, ValidationError

from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.logs import log_event
from autopoiesis_lib.protocol.channel import ORDERING, Channel, ChannelError, ChannelProblem, Mode, Notice
from autopoiesis_lib.protocol.files import MAX_STATUS_BYTES, FileRefusedError, read_bounded
from autopoiesis_lib.protocol.freshness import FreshnessError
from autopoiesis_lib.protocol.keys import SignatureRefused, SigningError
from autopoiesis_lib.protocol.notices import StandingOrders
from autopoiesis_lib.protocol.status import HEARTBEAT_S, IGNORES_PRIORITY, is_silent
from autopoiesis_lib.protocol.text import printable

from .engine_model import EngineShape
from .seat import Fault, Runnable, Seat, digest_of
from .short_turns import ShortTurns
from .telemetry import Telemetry

__all__ = ["Load", "Watcher", "engine_name"]

logger = logging.getLogger("autopoiesis.vllm")

Load = Callable[[str, str | bytes], Any]
"""(policy text, certificate file) -> a policy that may run; it raises `AutopoiesisError` with one line when the policy
may not."""

SLOTS = (ORDERING, "admission", "preemption")
"""The channel's slots that are watched. The engine refuses a policy in a slot for which it has no control point."""
ORDERS = "orders"
"""The name of the standing orders among the followed files."""
STATUS_EVERY_S = 1.0
KILL_SWITCH_S = 0.05
"""Interval in seconds between two checks of the kill switch by its own thread."""
DAMAGED = frozenset({ChannelProblem.UNREADABLE, ChannelProblem.MALFORMED, ChannelProblem.VERSION})
"""Problems of a file itself; the other problems are those of a well-formed notice that must not be followed."""
RETRY_S = 1.0
"""Interval in seconds before another read of a file that could not be read."""
IDLE_POLL_S = 0.5
"""Interval in seconds between two rounds without a channel, when only dumps of faults are written."""


class Watcher:
    """The watcher of one channel for one engine. `look` is one round and may be called by hand, as tests do."""

    def __init__(
        self,
        engine: str,
        shape: EngineShape,
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
        self._shape = shape
        self.faults: SimpleQueue[Fault] = SimpleQueue()
        self.refusals: dict[str, str] = {}
        """Slot -> the reason why the policy last wanted there does not run; slots whose policy runs have no entry."""
        self.wanted: dict[str, Notice] = {}
        """Slot -> the notice last accepted."""
        self.orders: StandingOrders | None = None
        """The standing orders last accepted."""
        self.started = time.time()
        self.refused = 0
        self.errors = 0
        """Rounds that failed for a cause outside the policies: an unreadable channel, a full disk."""
        self.limits: Mapping[str, int] = {}
        """The engine's limits, under the simulator's names, with which a control plane calibrates."""
        self.loads: deque[tuple[int, int]] = deque(maxlen=64)
        """Wall and CPU nanoseconds of the last loads: reading, checking and compiling."""
        self._short_turns = ShortTurns()
        self._seats = seats
        self._governor = seats[ORDERING]
        self._loads = loads
        self._clock_us = clock_us
        self._channel = channel
        self._poll_s = poll_s if channel is not None else IDLE_POLL_S
        self._paths: dict[str, str] = {}
        """File name -> path. The orders come first, because they say which notices may be followed."""
        if channel is not None:
            self._paths = {ORDERS: str(channel.orders_path), **{name: str(channel.slot_path(name)) for name in SLOTS}}
        self._disabled_path = str(channel.disabled_path) if channel is not None else ""
        self._keep_disabled = keep_disabled
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._unread = set(SLOTS)
        """Slots in which this engine has not read a notice yet. A canary found there may have begun before the engine
        did."""
        self._followed: dict[str, tuple[Notice, str]] = {}
        """Slot -> the last followed notice, and the refusal that resulted. The same notice, put back, starts nothing
        again."""
        self._retry_at: dict[str, float] = {}
        """Slots whose notice, or a file that it names, could not be read -> the time of the next try."""
        self._said: dict[str, str] = {}
        """Part of the work -> its last failure, so that a lasting failure is logged once and not every round."""
        self._undumped: Fault | None = None
        """A fault whose dump could not be written yet, kept so that a full disk does not lose it."""
        self._claimed = False
        """True when the channel has a status of this engine under its name."""
        self._status: dict[str, Any] = {}
        self._status_at = 0.0
        self._heartbeat_at = 0.0
        self._telemetry = telemetry if snapshot_s > 0 else None
        self._snapshot_s = snapshot_s
        self._snapshot_at = time.monotonic()
        self._next_rows = (0, 0, 0)
        self._pieces = time.time_ns() // 1_000_000_000  # later than any piece of a former engine of this name
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._switch: threading.Thread | None = None

    @property
    def refusal(self) -> str:
        """Return the refusal of the ordering slot, or else of another slot; empty when every wanted policy runs."""
        return self.refusals.get(ORDERING) or next(iter(self.refusals.values()), "")

    def start(self) -> None:
        """Start the threads, again if they have died."""
        if self._stop.is_set():
            return
        if not _runs(self._thread):
            self._thread = threading.Thread(target=self._run, name="autopoiesis-watcher", daemon=True)
            self._thread.start()
        if self._channel is not None and not _runs(self._switch):
            self._switch = threading.Thread(target=self._watch_switch, name="autopoiesis-kill-switch", daemon=True)
            self._switch.start()

    @property
    def alive(self) -> bool:
        """Return true while both threads run."""
        return _runs(self._thread) and (self._channel is None or _runs(self._switch))

    def stop(self) -> None:
        """Stop the threads and write the pending output."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        self._guarded("faults", self._write_faults)
        self._guarded("telemetry", lambda: self._write_telemetry(force=True))
        self._guarded("status", lambda: self._write_status(force=True))

    def look(self) -> None:
        """Run one round: kill switch, orders, notices, dumps, status. Never raises."""
        self._guarded("kill switch", self.check_kill_switch)
        self._guarded("channel", self._read_channel)
        self._guarded("faults", self._write_faults)
        self._guarded("telemetry", self._write_telemetry)
        self._guarded("status", self._write_status)

    def read_orders(self) -> None:
        """Follow the standing orders before the first policy arrives.

        These are the orders in the channel, or else the last accepted ones.
        """
        if self._channel is not None:
            self._guarded(ORDERS, partial(self._first_orders, self._channel))

    def _first_orders(self, channel: Channel) -> None:
        try:
            self._obey(channel.accept_orders(), self._clock_us())
        except AutopoiesisError:
            self._obey(channel.freshness.read().orders, self._clock_us())
            raise

    def check_kill_switch(self) -> None:
        """Put every policy slot on its built-in rule while the channel has an entry called `DISABLED`.

        A file of any kind counts, including a FIFO or a dangling link: it is never opened, and removing it releases the
        switch. While the channel cannot be read, the switch stays as it is.
        """
        disabled = self._keep_disabled
        if self._disabled_path and not disabled:
            try:
                os.lstat(self._disabled_path)
                disabled = True
            except FileNotFoundError:
                disabled = False
            except OSError:
                return
        # Every slot is checked: two threads run this, and one may have overtaken the other halfway.
        if any(seat.disabled != disabled for seat in self._seats.values()):
            for seat in self._seats.values():
                seat.disabled = disabled
            self._status_at = 0.0

    def bring_in(
        self,
        source: str,
        certificate: str | bytes,
        requested_us: int | None = None,
        *,
        contract: str = ORDERING,
        mode: Mode = "active",
        base: Any = None,
        seconds: float | None = None,
        decisions: int | None = None,
    ) -> Any:
        """Verify, compile and offer one policy to the engine; the arguments are those of a `Notice`.

        Raises:
            AutopoiesisError: the policy may not run; `refusals` holds the line, and the active policy goes on.
        """
        requested_us = self._clock_us() if requested_us is None else requested_us
        try:
            if mode == "canary" and seconds is None and decisions is None:
                raise AutopoiesisError("a canary needs a bound: seconds or decisions")
            if self.orders is not None and self.orders.frozen:
                raise AutopoiesisError(
                    "the channel is frozen, and nothing new runs; `autopoiesis deploy unfreeze` it first"
                )
            return self._bring_in(source, certificate, requested_us, contract, mode, base, seconds, decisions)
        except AutopoiesisError as error:
            self._refuse(contract, str(error))
            raise

    def _bring_in(
        self,
        source: str,
        certificate: str | bytes,
        requested_us: int,
        contract: str,
        mode: Mode,
        base: Any,
        seconds: float | None,
        decisions: int | None,
        wanted: str | None = None,
    ) -> Any:
        policy = self._checked(contract, source, certificate)
        if wanted is not None and policy.digest != wanted:
            raise AutopoiesisError(
                f"the notice says {wanted[:12]}, and its files hold policy {policy.digest[:12]}; publish it again"
            )
        limit_us = round(seconds * 1e6) if seconds is not None else None
        self._seats[contract].offer(policy, requested_us, mode, base, limit_us, decisions)
        self.refusals.pop(contract, None)
        said = f"policy {policy.digest[:12]} accepted ({mode}); from the next step on"
        log_event(logger, "policy.accepted", said, {"contract": contract, "digest": policy.digest, "mode": mode})
        if contract == ORDERING and ignores_priority(self._shape.scheduling, policy):
            about = {"contract": contract, "digest": policy.digest}
            log_event(logger, "policy.ignores_priority", IGNORES_PRIORITY, about, level=logging.WARNING)
        return policy

    def _checked(self, contract: str, source: str, certificate: str | bytes) -> Any:
        if contract not in self._seats:
            raise AutopoiesisError(self._no_control_point(contract))
        with self._short_turns:
            started, cpu = time.perf_counter_ns(), time.thread_time_ns()
            policy = self._loads[contract](source, certificate)
            self.loads.append((time.perf_counter_ns() - started, time.thread_time_ns() - cpu))
        quarantined = self._seats[contract].quarantined
        if policy.digest in quarantined:
            raise AutopoiesisError(f"policy {policy.digest[:12]} is in quarantine here ({quarantined[policy.digest]})")
        if self.orders is not None and policy.digest in self.orders.quarantined:
            raise AutopoiesisError(_in_quarantine(policy.digest, self.orders))
        return policy

    def _run(self) -> None:
        while not self._stop.wait(self._poll_s):
            self.look()

    def _watch_switch(self) -> None:
        while not self._stop.wait(KILL_SWITCH_S):
            self._guarded("kill switch", self.check_kill_switch)

    def _read_channel(self) -> None:
        if self._channel is None:
            return
        # One call per file and round, whatever the channel holds: each round takes the interpreter from the engine.
        gone = ""
        for name, path in self._paths.items():
            try:
                stat = os.lstat(path)
            except FileNotFoundError:
                self._unread.discard(name)
                if self._seen.pop(name, None) is not None:
                    gone = path
                    if name == ORDERS:
                        self._look_again()
                continue
            seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            due = self._retry_at.get(name)
            if seen != self._seen.get(name) or (due is not None and time.monotonic() >= due):
                requested_us = self._clock_us()
                self._seen[name] = seen
                self._retry_at.pop(name, None)
                self._status_at = 0.0  # the outcome is reported at once
                with self._short_turns:
                    self._guarded(name, partial(self._follow, self._channel, name, requested_us))
        if gone:
            self._status_at = 0.0
            raise ChannelError(f"{gone} is gone; what decided goes on deciding", ChannelProblem.UNREADABLE)

    def _follow(self, channel: Channel, name: str, requested_us: int) -> None:
        """Follow one file of the channel.

        The watcher tries again a second later when it cannot read the file, or another file that it needs, at the
        moment.
        """
        try:
            if name == ORDERS:
                self._obey(channel.accept_orders(), requested_us)
                return
            notice = channel.accept(name)
        except AutopoiesisError as error:
            if _may_pass(error):
                self._retry_at[name] = time.monotonic() + RETRY_S
            if name == ORDERS:
                raise
            if getattr(error, "problem", None) in DAMAGED:
                self.refusals[name] = _line(error)
                raise
            self._refuse_once(name, str(error))
            return
        self._say_if_forgetful(channel)
        if notice is None:
            return
        try:
            self._follow_notice(channel, notice, requested_us)
        except AutopoiesisError as error:  # the active policy goes on
            if _may_pass(error):
                self._retry_at[name] = time.monotonic() + RETRY_S
            self._refuse_once(name, str(error))

    def _obey(self, orders: StandingOrders | None, requested_us: int) -> None:
        """Apply the standing orders.

        Quarantined policies are removed, and policies refused under earlier orders are checked again.
        """
        self.orders = orders
        self._look_again()
        if orders is None:
            return
        barred = frozenset(orders.quarantined)
        for contract, seat in self._seats.items():
            seat.barred = barred
            # An offer replaces the deciding policy before the next decision; its base is checked when it is taken.
            pending, shadow = seat.pending, seat.shadow
            if pending is not None:
                out, refuge = pending.policy, seat.standing if pending.mode == "active" else pending.base
            elif digest_of(shadow) in barred:
                out, refuge = shadow, seat.active
            else:
                out, refuge = seat.active, seat.standing
            if out is not None and out.digest in barred:
                seat.offer(refuge if digest_of(refuge) not in barred else None, requested_us)
                self._followed.pop(contract, None)  # once the policy is released, the current notice is followed again
                self._refuse_once(contract, _in_quarantine(out.digest, orders))

    def _look_again(self) -> None:
        """Mark the notices of the refused slots for another read, because the cause of a refusal may be over."""
        for name in self.refusals:
            self._seen.pop(name, None)

    def _follow_notice(self, channel: Channel, notice: Notice, requested_us: int) -> None:
        contract = notice.contract
        began_before, self._unread = contract in self._unread, self._unread - {contract}
        self.wanted[contract] = notice
        followed, refusal = self._followed.get(contract, (None, ""))
        if notice == followed:
            self.refusals.pop(contract, None)
            if refusal:
                self.refusals[contract] = refusal
            return
        if contract not in self._seats:
            if notice.digest is not None:
                self._refuse_once(contract, self._no_control_point(contract))
            return
        if notice.digest is None:
            self._seats[contract].offer(None, requested_us)
            self.refusals.pop(contract, None)
            self._followed[contract] = (notice, "")
            return
        base = self._base(channel, notice)
        if began_before and notice.mode == "canary":
            # The part of its bound that was used before this engine stopped is unknown, so the canary ends.
            self._seats[contract].offer(base, requested_us)
            self._refuse_once(
                contract, f"policy {notice.digest[:12]}: the engine started during its canary; publish it again"
            )
            self._followed[contract] = (notice, self.refusals[contract])
            return
        source, certificate = channel.files_of(notice, notice.digest)
        self._bring_in(
            source,
            certificate,
            requested_us,
            contract,
            notice.mode,
            base,
            notice.seconds,
            notice.decisions,
            notice.digest,
        )
        self._followed[contract] = (notice, "")

    def _say_if_forgetful(self, channel: Channel) -> None:
        """Log once that the record of accepted notices cannot be written, so that a restart forgets them."""
        problem = channel.freshness.problem
        if problem != self._said.get("freshness", ""):
            self._said["freshness"] = problem
            if problem:
                said = f"{problem}; after a restart an older notice could be put back: set AUTOPOIESIS_STATE"
                log_event(logger, "freshness.unwritable", said, {"reason": problem}, level=logging.WARNING)

    def _base(self, channel: Channel, notice: Notice) -> Runnable | None:
        """Return the policy that decides beside or after a trial.

        It is the active policy or base with that digest when the slot has one, or else the policy loaded from the
        channel. The result is None, the built-in rule, when the notice names no base or the base is refused.
        """
        if notice.mode == "active" or notice.base is None:
            return None
        seat = self._seats[notice.contract]
        for known in (seat.active, seat.base):
            if digest_of(known) == notice.base:
                return known
        try:
            base: Runnable = self._checked(notice.contract, *channel.files_of(notice, notice.base))
        except AutopoiesisError as error:
            said = f"the built-in rule stands in for {notice.base[:12]}: {error}"
            about = {"contract": notice.contract, "digest": notice.base, "reason": str(error)}
            log_event(logger, "base.missing", said, about, level=logging.WARNING)
            return None
        return base

    def _refuse_once(self, contract: str, why: str) -> None:
        """Refuse, unless the slot is already refused for the same reason: a repeated try is not counted again."""
        if _line(why) != self.refusals.get(contract):
            self._refuse(contract, why)

    def _refuse(self, contract: str, why: str) -> None:
        self.refused += 1
        self.refusals[contract] = _line(why)
        said = f"refused for {contract}: {self.refusals[contract]}"
        about = {"contract": contract, "reason": self.refusals[contract]}
        log_event(logger, "policy.refused", said, about, level=logging.WARNING)

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
        # Set only after the write: rows that could not be written are in the next piece, while the ring holds them.
        self._next_rows = taken.next
        self._pieces += 1

    def _write_status(self, force: bool = False) -> None:
        now = time.monotonic()
        if self._channel is None or not (force or now - self._status_at >= STATUS_EVERY_S):
            return
        self._status_at = now
        status = self.status()
        self._yield_name()
        status["engine"] = self.engine
        changed = force or status != self._status
        if changed or now - self._heartbeat_at >= HEARTBEAT_S or not self._channel.engine_path(self.engine).exists():
            self._channel.report(self.engine, {**status, "heartbeat": time.time()}, durable=changed)
            self._status, self._heartbeat_at, self._claimed = status, now, True

    def _yield_name(self) -> None:
        """Take another name when another engine reports under this one, as two engines started at once would."""
        assert self._channel is not None
        found = _claim_on(self._channel, self.engine) if self._claimed else None
        if found is None or (found.host, found.pid, found.started) == (socket.gethostname(), os.getpid(), self.started):
            return
        if not found.silent:
            self.engine, self._claimed = _renamed(self.engine), False

    def status(self) -> dict[str, Any]:
        """Return the engine's status, ready for JSON (see `protocol.status`).

        The top level is about request ordering; `levers` has the other policy types, each with its counters.
        """
        governor = self._governor
        return {
            "engine": self.engine,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": self.started,
            "channel": self.wanted[next(iter(self.wanted))].channel if self.wanted else None,
            **governor.status(),
            **self._slot(ORDERING),
            "aging_us": getattr(governor.active, "aging_us", None),
            "disabled": governor.disabled,
            "frozen": self.orders is not None and self.orders.frozen,
            "limits": dict(self.limits),
            "serves": f"vLLM {self._shape.version}",
            "scheduling": self._shape.scheduling,
            "off": dict(self._shape.off),
            "uncovered": list(self._shape.uncovered),
            "warnings": [IGNORES_PRIORITY] if ignores_priority(self._shape.scheduling, governor.active) else [],
            "counters": {**governor.counters, "refused": self.refused, "watcher_errors": self.errors},
            "levers": {
                name: {**seat.status(), **self._slot(name), "counters": dict(seat.counters)}
                for name, seat in self._seats.items()
                if seat is not governor
            },
        }

    def _slot(self, contract: str) -> dict[str, Any]:
        """Return the wanted policy of a slot, and the reason why it does not run."""
        notice = self.wanted.get(contract)
        return {
            "wanted": None if notice is None else notice.digest,
            "sequence": 0 if notice is None else notice.sequence,
            "refusal": self.refusals.get(contract, ""),
        }

    def _no_control_point(self, contract: str) -> str:
        """Return the reason why a policy of a type that this engine cannot run is refused."""
        why = self._shape.off.get(contract)
        known = f": {why}" if why else f"; it has {', '.join(self._seats)}"
        return f"this engine has no control point for {contract}{known}"

    def drift(self) -> dict[str, float]:
        """Return the drift that the control plane last measured on this channel."""
        return self._channel.drift() if self._channel is not None else {}

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.errors += 1
            said = _line(error) or type(error).__name__
            if said != self._said.get(name):
                self._said[name] = said
                about = {"part": name, "reason": said}
                log_event(logger, "watcher.error", f"{said}; serving is not affected", about, level=logging.WARNING)
        else:
            self._said.pop(name, None)


def ignores_priority(scheduling: str, policy: Runnable | None) -> bool:
    """Return true for an ordering policy under which requests lose the precedence that their priorities give."""
    return scheduling == "priority" and not getattr(policy, "by_priority", True)


def engine_name(chosen: str | None, rank: int, channel: Channel | None) -> str:
    """Return a name that no other engine of the channel has.

    Args:
        chosen: the operator's name, to which a data-parallel rank above 0 is added; None for a name made of the host,
            the process and random characters.
        rank: the data-parallel rank.
        channel: the channel, whose engines are asked for their names.
    """
    host = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname()).strip("-")[:40] or "host"
    name = chosen or f"{host}-{os.getpid()}-{secrets.token_hex(3)}"
    name = f"{name}-dp{rank}" if rank else name
    taken = _claim_on(channel, name) if channel is not None else None
    if taken is None or taken.silent:
        return name
    here = taken.host == socket.gethostname()
    if here and (taken.pid == os.getpid() or not os.path.exists(f"/proc/{taken.pid}")):  # noqa: PTH110
        return name
    return _renamed(name)


def _renamed(name: str) -> str:
    other = f"{name}-{secrets.token_hex(3)}"
    log_event(logger, "engine.renamed", f"another engine is called {name}; this one is {other}", {"engine": other})
    return other


class _Claim(BaseModel):
    """The parts of a status that say which process wrote it, and when."""

    host: str
    pid: int
    started: float
    heartbeat: float

    @property
    def silent(self) -> bool:
        return is_silent(self.model_dump())


def _claim_on(channel: Channel, name: str) -> _Claim | None:
    """Return the claim on an engine's name; None when no status under it can be read."""
    try:
        return _Claim.model_validate_json(read_bounded(channel.engine_path(name), MAX_STATUS_BYTES))
    except (FileRefusedError, ValidationError):
        return None


def _may_pass(error: AutopoiesisError) -> bool:
    """Return true when another try may succeed although the file stays as it is.

    The cause may lie in a disk, in the keys or in the engine's own record.
    """
    if isinstance(error, SigningError):
        return not isinstance(error, SignatureRefused)
    passing = (ChannelProblem.UNREADABLE, ChannelProblem.EXPIRED)  # a clock may be corrected
    return isinstance(error, FreshnessError) or getattr(error, "problem", None) in passing


def _in_quarantine(digest: str, orders: StandingOrders) -> str:
    return f"policy {digest[:12]} is in quarantine on this channel ({orders.quarantined[digest]})"


def _runs(thread: threading.Thread | None) -> bool:
    return thread is not None and thread.is_alive()


def _line(text: object) -> str:
    return printable(" ".join(str(text).split()))[:2_000]


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
