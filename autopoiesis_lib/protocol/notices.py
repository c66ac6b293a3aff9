"""Notices: the signed messages of a control plane to the engines of one channel.

A notice names the policy that is wanted in one slot. Standing orders hold for all slots: freeze and quarantine. Both
are payloads of signed envelopes. Both carry the channel's id and a sequence number, so that neither can be moved to
another channel or replayed later.
"""

import time
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import AutopoiesisError
from .envelope import first_problem

__all__ = [
    "ORDERING",
    "VALID_S",
    "ChannelId",
    "Digest",
    "Files",
    "LogHeadNotice",
    "Mode",
    "Notice",
    "NoticeError",
    "Slot",
    "StandingOrders",
    "content_of",
]

ORDERING: Final = "request-ordering"
"""The policy type whose notice is `active.json`."""

VALID_S: Final = 90 * 86_400
"""Seconds for which a notice may be accepted, unless its publisher sets another duration."""

MAX_SEQUENCE: Final = 2**53

Mode = Literal["active", "shadow", "canary"]
"""Mode of a policy. `active`: it decides.

`shadow`: it is evaluated beside the policy that decides; its results are compared and change nothing. `canary`: it
decides for a bounded time or number of decisions; then the engine returns to `base` by itself.
"""

Digest = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
ChannelId = Annotated[str, Field(pattern=r"\A[0-9a-f]{32}\z")]
Slot = Annotated[str, Field(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}\z")]
Sequence = Annotated[int, Field(ge=1, le=MAX_SEQUENCE)]
Text = Annotated[str, Field(max_length=2_000)]


class NoticeError(AutopoiesisError):
    """A payload that is no notice of this version."""


class _Payload(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    version: Literal[2] = 2
    channel: ChannelId
    """The channel that the message is for."""
    sequence: Sequence
    """Sequence number; each publication of the same kind has the next one."""
    issued: int = Field(default_factory=lambda: int(time.time()), ge=0, le=MAX_SEQUENCE)
    """Unix time in seconds."""

    def to_bytes(self) -> bytes:
        """Return the payload as JSON."""
        return self.model_dump_json().encode()


class Files(BaseModel):
    """SHA-256 of the two files of a policy. An engine parses neither before it knows that they are the named ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Digest
    certificate: Digest


class Notice(_Payload):
    """The policy wanted in one slot."""

    digest: Digest | None
    """The policy; None: the engine's built-in rule."""
    contract: Slot = ORDERING
    """The policy type."""
    mode: Mode = "active"
    """Use of the policy; see `Mode`."""
    base: Digest | None = None
    """The policy that decides meanwhile (shadow) or afterwards (canary); None: the built-in rule.

    Unused when active.
    """
    files: Mapping[Digest, Files] = Field(default_factory=dict, max_length=2)
    """The files of `digest` and `base`."""
    seconds: float | None = Field(default=None, gt=0, le=1e9, allow_inf_nan=False)
    """Duration of a shadow or canary in each engine, from its first step on; None: not bounded by time."""
    decisions: int | None = Field(default=None, ge=1, le=MAX_SEQUENCE)
    """Number of decisions of a shadow or canary in each engine; None: not bounded by number."""
    rollback: bool = False
    """A return to an earlier policy, which a frozen channel allows."""
    expires: int = Field(ge=0, le=MAX_SEQUENCE)
    """Unix time in seconds after which no engine accepts the notice.

    An engine that already runs it keeps running it.
    """
    note: Text = ""
    """Text for people: the publisher, and the reason."""

    @property
    def decides(self) -> str | None:
        """The digest that decides if nobody promotes the candidate; None: the built-in rule."""
        return self.digest if self.mode == "active" else self.base

    @property
    def ends(self) -> float:
        """Unix time after which a trial is over in every engine. An active notice has 0."""
        if self.mode == "active":
            return 0.0
        return min(float(self.expires), float("inf") if self.seconds is None else self.issued + self.seconds)

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.mode == "canary" and self.seconds is None and self.decisions is None:
            raise ValueError("a canary needs a bound: seconds or decisions")
        if self.mode != "active" and self.digest is None:
            raise ValueError("the built-in rule cannot be on trial")
        missing = {digest for digest in (self.digest, self.base) if digest is not None} - set(self.files)
        if missing:
            raise ValueError(f"the files of {min(missing)[:12]} are not named")
        return self


class StandingOrders(_Payload):
    """Freeze and quarantine of one channel, for its publishers and its engines."""

    frozen: bool = False
    """True while nothing new is published and engines accept nothing new."""
    frozen_after: Mapping[Slot, int] = Field(default_factory=dict, max_length=256)
    """Sequence number of the last notice before the freeze, by slot."""
    reason: Text = ""
    """Text for people: the reason of the freeze."""
    quarantined: Mapping[Digest, Text] = Field(default_factory=dict, max_length=4_096)
    """Map from a digest to the reason why it must not run."""


class LogHeadNotice(_Payload):
    """The newest entry of the audit log, as the control plane signed it."""

    store: Annotated[str, Field(max_length=64)]
    """The store that holds the log."""
    entries: int = Field(ge=0, le=MAX_SEQUENCE)
    """Number of entries of this channel in that store."""
    chain: Digest
    """Hash over all these entries."""


def content_of(kind: type[_Payload], payload: bytes) -> Any:
    """Return the message in a payload.

    Raises:
        NoticeError: it is no message of this kind and version.
    """
    try:
        return kind.model_validate_json(payload)
    except ValidationError as error:
        raise NoticeError(first_problem(error)) from None
