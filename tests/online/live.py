"""A serving engine for tests of the control plane: the simulator behind the real channel, loader and telemetry.

It does what an engine does: follows the channel, verifies what it finds with the trusted keys, serves with it or with its
built-in order, and writes telemetry. Each stretch of work is served from empty to empty.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopoiesis_adapters.loading import PolicyRefusedError, load_ordering
from autopoiesis_contracts.request_ordering import RequestOrdering

from autopoiesis_lib import Policy
from autopoiesis_lib.protocol.channel import Channel
from autopoiesis_lib.simulation import StepTimeModel, Trace
from autopoiesis_lib.simulation.slots import ORDERING_LAYOUT
from tests.online.streams import STEP_TIME, leave, recorded, served

GAP_US = 1_000_000


@dataclass
class LiveEngine:
    """One engine on a channel."""

    channel: Channel
    keys: Path
    name: str = "engine-0"
    step_time: StepTimeModel = STEP_TIME
    now_us: int = 1_000_000
    digest: str | None = None
    wanted: str | None = None
    refusal: str = ""
    quarantined: dict[str, str] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    """Canaries that this engine no longer lets decide, and why."""
    fallbacks: int = 0
    completed: int = 0
    decided_by: list[str | None] = field(default_factory=list)
    """Which policy served each stretch."""
    segments: int = 0
    source: str | None = None

    def serve(self, trace: Trace, leave_first_s: float | None = None) -> float:
        """Serve a stretch; returns its mean time to first token in seconds.

        With `leave_first_s` only what had happened up to then has been told, as in the middle of it.
        """
        self._follow()
        native: dict[str, Any] = {}
        if self.source is not None:
            native = {"ordering": Policy.from_source(self.source, RequestOrdering()).native("score", ORDERING_LAYOUT)}
        result = served(trace, step_time=self.step_time, policies=native)
        stretch = recorded(
            result, trace, every_s=10.0, start_us=self.now_us, first=self.segments, first_number=self.completed + 1,
            engine=self.name,
        )  # fmt: skip
        if leave_first_s is not None:
            stretch = stretch[: round(leave_first_s / 10.0)]
        leave(self.channel.root, stretch)
        self.segments += len(stretch)
        self.now_us += int(result.times.finish_ns.max()) // 1_000 + GAP_US
        self.completed += result.num_served
        self.decided_by.append(self.digest)
        self._report()
        return result.ttft.mean

    def _follow(self) -> None:
        channel = self.channel
        notice = channel.accept()
        self.wanted = None if notice is None else notice.digest
        if notice is None or notice.digest == self.digest:
            return
        if notice.digest is None:
            self.digest, self.source = None, None
            return
        source, certificate = channel.files_of(notice, notice.digest)
        try:
            if notice.digest in self.quarantined:
                raise PolicyRefusedError(f"policy {notice.digest[:12]} is in quarantine here")
            load_ordering(source, certificate, keys=self.keys, allow_single_solver=True)
            self.digest, self.source, self.refusal = notice.digest, source, ""
        except PolicyRefusedError as error:
            self.refusal = str(error)

    def _report(self) -> None:
        status = {
            "engine": self.name,
            "digest": self.digest,
            "wanted": self.wanted,
            "refusal": self.refusal,
            "heartbeat": time.time(),
            "quarantined": self.quarantined,
            "trial": {"digest": self.digest, "ended": self.ended.get(self.digest or "", "")},
            "counters": {"fallbacks": self.fallbacks},
        }
        self.channel.report(self.name, status)
