"""The store's records: one frozen value per row, checked as it is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, with_config

from ..errors import AutopoiesisError

__all__ = ["CandidateRow", "DeploymentRow", "ProposalRow", "RunRow", "RunStatus", "StoreError", "checked", "typed"]

RunStatus = Literal["running", "interrupted", "done", "failed"]

Row = TypeVar("Row")

typed = with_config(ConfigDict(strict=True, revalidate_instances="always"))
"""Config of a record: SQLite keeps a value of any type in any column, so nothing is known of a row before it is checked."""


class StoreError(AutopoiesisError):
    """The store cannot be opened, read or written, is of another version, or lacks what was asked for."""


def checked(row: Row) -> Row:
    """Return a row whose values have the types of their fields.

    Raises:
        ValidationError: a value has another type.
    """
    kind: type = type(row)
    valid: Row = _adapter(kind).validate_python(row)
    return valid


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@typed
@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One evolution run."""

    id: str
    contract: str
    contract_digest: str
    seed: int
    status: RunStatus
    config: Mapping[str, Any]
    """Everything needed to resume: budget, generation size, proposer (never a key), workload."""
    started_at: str
    spent_seconds: float = 0.0
    """Wall seconds of all sittings so far, as of the last checkpoint."""
    result: Mapping[str, Any] | None = None


@typed
@dataclass(frozen=True, kw_only=True)
class ProposalRow:
    """A candidate as it was proposed, before anything about it is known."""

    id: int
    generation: int
    source: str
    move: str
    island: int = 0
    parents: tuple[int, ...] = ()
    rationale: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Model, tokens, dollars and the like; empty for search."""


@typed
@dataclass(frozen=True, kw_only=True)
class CandidateRow:
    """What became of a candidate. `gate` is what rejected it ("duplicate" too); None when it was evaluated."""

    id: int
    verdict: str
    gate: str | None = None
    reason: str | None = None
    """Value of a `gates.verdict.Reason`; None when nothing spoke against it, and in stores of schema version 2 and earlier."""
    obligation: str | None = None
    """Name of the obligation that it failed."""
    detail: str = ""
    """The reason in words, for people."""
    digest: str | None = None
    fingerprint: str | None = None
    descriptor: str | None = None
    counterexample: Mapping[str, Any] | None = None
    scores: Mapping[str, float] | None = None
    """Metrics over the train windows at their own rate and the higher one, or over the window alone that it was stopped after."""
    fitness: float | None = None
    """Lower is better; None when it was not evaluated in full."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """CPU seconds of the worker by stage."""


@typed
@dataclass(frozen=True, kw_only=True)
class DeploymentRow:
    """One state change of a channel: shadow, canary, promote, rollback, quarantine, approve, freeze ..."""

    id: int
    at: str
    channel: str
    entry: int
    """Number of the entry in the log of its channel: 1, 2, 3, ..."""
    action: str
    policy_digest: str | None
    certificate_digest: str | None
    actor: str
    detail: Mapping[str, Any]
    chain: str
    """SHA-256 over the chain value of the entry before it and every column of this one."""
