"""What the store hands out: one frozen record a row."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import AutopoiesisError

__all__ = ["CandidateRow", "DeploymentRow", "ProposalRow", "RunRow", "RunStatus", "StoreError"]

RunStatus = Literal["running", "interrupted", "done", "failed"]


class StoreError(AutopoiesisError):
    """The store cannot be opened, is of another version, or lacks what was asked for."""


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


@dataclass(frozen=True, kw_only=True)
class CandidateRow:
    """What became of a candidate. `gate` is what rejected it ("duplicate" too); None when it was evaluated."""

    id: int
    verdict: str
    gate: str | None = None
    detail: str = ""
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


@dataclass(frozen=True, kw_only=True)
class DeploymentRow:
    """One state change of a channel: shadow, canary, promote, rollback, quarantine, approve, freeze ..."""

    id: int
    at: str
    channel: str
    action: str
    policy_digest: str | None
    certificate_digest: str | None
    actor: str
    detail: Mapping[str, Any]
