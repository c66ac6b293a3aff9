"""The store's records: one frozen value per row, validated as the row is read."""

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
"""Pydantic configuration of a record. SQLite accepts a value of any type in any column, so every row is validated."""


class StoreError(AutopoiesisError):
    """The store cannot be opened, read or written, has another schema version, or lacks the requested item."""


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
    """All that a resumed run needs: budget, generation size, proposer (never a key), workload."""
    started_at: str
    spent_seconds: float = 0.0
    """Wall seconds of all sessions so far, as of the last checkpoint."""
    result: Mapping[str, Any] | None = None


@typed
@dataclass(frozen=True, kw_only=True)
class ProposalRow:
    """A candidate as it was proposed, before it is checked."""

    id: int
    generation: int
    source: str
    move: str
    island: int = 0
    parents: tuple[int, ...] = ()
    rationale: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Model, tokens, dollars and other facts about the proposal; empty for the program search."""


@typed
@dataclass(frozen=True, kw_only=True)
class CandidateRow:
    """The outcome of a candidate.

    `gate` names the gate that rejected the candidate, which may be "duplicate". It is None for a candidate that was
    evaluated.
    """

    id: int
    verdict: str
    gate: str | None = None
    reason: str | None = None
    """The value of a `gates.verdict.Reason`.

    It is None if no gate objected, and in rows that schema version 2 or earlier wrote.
    """
    obligation: str | None = None
    """Name of the obligation that the candidate failed."""
    detail: str = ""
    """The reason in words, for people."""
    digest: str | None = None
    fingerprint: str | None = None
    descriptor: str | None = None
    counterexample: Mapping[str, Any] | None = None
    scores: Mapping[str, float] | None = None
    """Metrics over the train windows at their own rate and at the higher rate.

    For a candidate that was stopped after one window, the metrics are those of that window.
    """
    fitness: float | None = None
    """Fitness, where lower is better; None for a candidate that was not evaluated in full."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """CPU seconds of the worker, by stage."""


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
    """SHA-256 over the chain value of the previous entry and every column of this entry."""
