"""The status that an engine writes about itself, as others read it: bounded and typed, but not trusted.

A status is not signed. It can make a control plane withdraw a policy; it can never make it publish one.
"""

import math
import time
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

__all__ = [
    "HEARTBEAT_S",
    "IGNORES_PRIORITY",
    "SILENT_S",
    "EngineStatus",
    "SlotStatus",
    "TrialStatus",
    "is_silent",
    "silent_since",
]

HEARTBEAT_S: Final = 5.0
"""Seconds between two statuses of an engine in which nothing changes."""

SILENT_S: Final = 4 * HEARTBEAT_S
"""Seconds without a heartbeat after which an engine counts as silent."""

IGNORES_PRIORITY: Final = (
    "the engine orders requests by priority and the policy does not: urgent requests lose their precedence; "
    "deploy one that is proved with --set priority_order=true, or serve with --scheduling-policy fcfs"
)
"""Warning of an engine whose own order is by priority while the policy's scores do not depend on it."""

Name = Annotated[str, Field(max_length=256)]
Text = Annotated[str, BeforeValidator(lambda text: text[:2_000] if isinstance(text, str) else text)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Seconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Texts = Annotated[dict[Name, Text], Field(max_length=4_096)]


class _Status(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class TrialStatus(_Status):
    """A shadow or canary in one engine."""

    digest: Name
    base: Name | None = None
    decisions: Count = 0
    agreed: Count = 0
    ended: Text = ""
    """The reason why it ended by itself; empty while it runs."""


class SlotStatus(_Status):
    """One policy type in one engine."""

    digest: Name | None = None
    """The policy that decides; None: the built-in rule."""
    mode: Name = "active"
    trial: TrialStatus | None = None
    quarantined: Texts = Field(default_factory=dict)
    """Map from a digest to the reason why it is never active again in this process."""
    request_to_active_us: int | None = None
    swap_step_ns: int | None = None
    wanted: Name | None = None
    """The policy in the notice last accepted."""
    sequence: Count = 0
    """Sequence number of the notice last accepted; 0: none was."""
    refusal: Text = ""
    """The reason why the policy last wanted does not run; empty when it does."""
    counters: Annotated[dict[Name, Count], Field(max_length=256)] = Field(default_factory=dict)


class EngineStatus(SlotStatus):
    """The status of one engine.

    Its own slot fields are those of request ordering; `levers` holds the other policy types.
    """

    engine: Name = ""
    host: Name = ""
    pid: Count = 0
    channel: Name | None = None
    """Id of the channel that the engine follows."""
    started: Seconds = 0.0
    """Unix time of its start."""
    heartbeat: Seconds = 0.0
    """Unix time at which the engine wrote this status."""
    aging_us: int | None = None
    disabled: bool = False
    frozen: bool = False
    limits: Annotated[dict[Name, int], Field(max_length=64)] = Field(default_factory=dict)
    levers: Annotated[dict[Name, SlotStatus], Field(max_length=64)] = Field(default_factory=dict)
    serves: Name = ""
    """The serving engine and its version."""
    scheduling: Name = ""
    """The engine's own order of requests, such as `fcfs` or `priority`."""
    off: Texts = Field(default_factory=dict)
    """Map from a policy type to the reason why no policy of it can decide in this engine."""
    uncovered: Annotated[list[Text], Field(max_length=64)] = Field(default_factory=list)
    """Aspects of this engine that no certificate covers, beyond those that every certificate names."""
    warnings: Annotated[list[Text], Field(max_length=64)] = Field(default_factory=list)
    """Settings that an operator may have chosen by mistake."""


def silent_since(status: Mapping[str, Any], now: float | None = None) -> float | None:
    """Return the Unix time of the last heartbeat of an engine that is silent, and None for one that is not.

    Args:
        status: a status as `EngineStatus` dumps it.
        now: Unix time; None: the clock of this machine.
    """
    now = time.time() if now is None else now
    heartbeat = float(status.get("heartbeat") or 0.0)
    return heartbeat if not math.isfinite(heartbeat) or now - heartbeat > SILENT_S else None


def is_silent(status: Mapping[str, Any], now: float | None = None) -> bool:
    """Return true for an engine without a recent heartbeat."""
    return silent_since(status, now) is not None
