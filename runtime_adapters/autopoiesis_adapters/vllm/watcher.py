"""Our one thread beside the engine: looks at the channel, loads and compiles policies, writes dumps and status.

Everything slow happens here, so that a step only ever sees a finished policy behind one pointer. The engine does not
need this thread: when it is late, stuck or dead, requests are served as before.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from autopoiesis_lib.errors import AutopoiesisError

from ..channel import Channel, Notice
from ..loading import VerifiedPolicy
from .governor import Fault, Governor
from .telemetry import Telemetry

__all__ = ["Load", "Watcher"]

logger = logging.getLogger("autopoiesis.vllm")

Load = Callable[[str, str], VerifiedPolicy]
"""(policy text, certificate text) -> a policy that may run; raises `AutopoiesisError` with one line when it may not."""

STATUS_EVERY_S = 1.0
IDLE_POLL_S = 0.5
"""Without a channel only dumps of faults are to be written."""


class Watcher:
    """Watches one channel for one engine. `look` is one round and may be called by hand, as tests do."""

    def __init__(
        self,
        engine: str,
        governor: Governor,
        load: Load,
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
        """Why the policy now wanted is not running; empty when it is."""
        self.refused = 0
        self.errors = 0
        """Rounds that failed for a reason of their own: an unreadable channel, a full disk."""
        self._governor = governor
        self._load = load
        self._clock_us = clock_us
        self._channel = channel
        self._poll_s = poll_s if channel is not None else IDLE_POLL_S
        self._notice_path = str(channel.notice_path) if channel is not None else ""
        self._disabled_path = str(channel.disabled_path) if channel is not None else ""
        self._keep_disabled = keep_disabled
        self._seen: tuple[int, int, int] | None = None
        self._status: dict[str, Any] = {}
        self._status_at = 0.0
        self._telemetry = telemetry if snapshot_s > 0 else None
        self._snapshot_s = snapshot_s
        self._snapshot_at = time.monotonic()
        self._next_rows = (0, 0)
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
        self._guarded(self._write_faults)
        self._guarded(lambda: self._write_telemetry(force=True))
        self._guarded(lambda: self._write_status(force=True))

    def look(self) -> None:
        """One round: kill switch, notice, dumps, status. Never raises."""
        self._guarded(self._read_channel)
        self._guarded(self._write_faults)
        self._guarded(self._write_telemetry)
        self._guarded(self._write_status)

    def bring_in(self, source: str, certificate: str, requested_us: int | None = None) -> VerifiedPolicy:
        """Verify, compile and offer one policy to the engine.

        Raises:
            AutopoiesisError: it may not run; `refusal` holds the line, and what ran before goes on.
        """
        requested_us = self._clock_us() if requested_us is None else requested_us
        try:
            policy = self._load(source, certificate)
            if policy.digest in self._governor.quarantined:
                raise AutopoiesisError(
                    f"policy {policy.digest[:12]} is in quarantine here ({self._governor.quarantined[policy.digest]})"
                )
        except AutopoiesisError as error:
            self._refuse(str(error))
            raise
        self._governor.offer(policy, requested_us)
        self.refusal = ""
        logger.info("autopoiesis: policy %s accepted; active from the next step", policy.digest[:12])
        return policy

    def _run(self) -> None:
        while not self._stop.wait(self._poll_s):
            self.look()

    def _read_channel(self) -> None:
        if self._channel is None:
            return
        # Two calls a round, whatever the channel holds: each round takes the interpreter away from the engine.
        disabled = self._keep_disabled or os.path.exists(self._disabled_path)  # noqa: PTH110
        if disabled != self._governor.disabled:
            self._governor.disabled = disabled
            self._status_at = 0.0
        try:
            stat = os.stat(self._notice_path)  # noqa: PTH116
        except FileNotFoundError:
            return
        seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if seen == self._seen:
            return
        requested_us = self._clock_us()
        self._seen = seen
        self._status_at = 0.0  # what comes of it is worth telling at once
        notice = self._channel.read()
        if notice is not None:
            self._follow(self._channel, notice, requested_us)

    def _follow(self, channel: Channel, notice: Notice, requested_us: int) -> None:
        if notice.digest is None:
            self._governor.offer(None, requested_us)
            self.refusal = ""
            return
        try:
            source = channel.policy_path(notice.digest).read_text(encoding="utf-8")
            certificate = channel.certificate_path(notice.digest).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError, AutopoiesisError) as error:
            self._refuse(
                f"policy {notice.digest[:12]}: its text or certificate cannot be read ({error}); publish it again"
            )
            return
        try:
            policy = self.bring_in(source, certificate, requested_us)
        except AutopoiesisError:
            return  # refused, logged and in the status: the policy that ran goes on
        if policy.digest != notice.digest:
            logger.warning("autopoiesis: the notice says %s, the policy is %s", notice.digest[:12], policy.digest[:12])

    def _refuse(self, why: str) -> None:
        self.refused += 1
        self.refusal = " ".join(why.split())
        logger.warning("autopoiesis: refused: %s", self.refusal)

    def _write_faults(self) -> None:
        while not self.faults.empty():
            fault = self.faults.get()
            logger.warning(
                "autopoiesis: %s under policy %s: %s; served in the built-in order%s",
                fault.kind,
                fault.digest[:12],
                fault.detail,
                " and quarantined the policy" if fault.quarantined else "",
            )
            if self._channel is not None:
                self._channel.dump(f"{fault.digest[:16] or 'none'}-{fault.kind}-{fault.at_us}", _dump(fault))

    def _write_telemetry(self, force: bool = False) -> None:
        if self._telemetry is None or self._channel is None:
            return
        if not (force or time.monotonic() - self._snapshot_at >= self._snapshot_s):
            return
        self._snapshot_at = time.monotonic()
        taken = self._telemetry.snapshot(*self._next_rows)
        if (taken.next_step, taken.next_request) == self._next_rows:
            return
        self._next_rows = (taken.next_step, taken.next_request)
        self._pieces += 1
        columns = {f"steps.{name}": column for name, column in taken.steps.items()}
        columns |= {f"requests.{name}": column for name, column in taken.requests.items()}
        self._channel.record(self.engine, self._pieces, columns)

    def _write_status(self, force: bool = False) -> None:
        if self._channel is None or not (force or time.monotonic() - self._status_at >= STATUS_EVERY_S):
            return
        self._status_at = time.monotonic()
        status = self.status()
        if force or status != self._status:
            self._status = status
            self._channel.report(self.engine, status)

    def status(self) -> dict[str, Any]:
        """What the engine runs, has refused and has dropped, ready for JSON."""
        governor = self._governor
        active = governor.active
        last = governor.swaps[-1] if governor.swaps else None
        return {
            "engine": self.engine,
            "pid": os.getpid(),
            "digest": active.digest if active is not None and not governor.disabled else None,
            "aging_us": active.aging_us if active is not None else None,
            "disabled": governor.disabled,
            "refusal": self.refusal,
            "quarantined": dict(governor.quarantined),
            "request_to_active_us": last.at_us - last.requested_us if last is not None else None,
            "swap_step_ns": last.step_ns if last is not None else None,
            "counters": {**governor.counters, "refused": self.refused, "watcher_errors": self.errors},
        }

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.errors += 1
            logger.warning("autopoiesis: %s; serving is not affected", error)


def _dump(fault: Fault) -> dict[str, Any]:
    arrays = {"columns": fault.columns, "stamps": fault.stamps, "seqs": fault.seqs}
    return {
        "kind": fault.kind,
        "detail": fault.detail,
        "digest": fault.digest,
        "at_us": fault.at_us,
        "quarantined": fault.quarantined,
        "engine": list(fault.engine),
        **{name: array.tolist() if array is not None else None for name, array in arrays.items()},
    }
