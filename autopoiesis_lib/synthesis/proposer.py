"""The interface of proposers, which write candidates, and the values that they exchange with a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from ..contract import Contract
from ..errors import AutopoiesisError

__all__ = ["Context", "Draft", "Parent", "Proposer", "ProposerError", "Slot"]


class ProposerError(AutopoiesisError):
    """A proposer cannot be set up or cannot continue."""


@dataclass(frozen=True, kw_only=True)
class Parent:
    """An earlier candidate in the form that proposers receive: its text, its scores, and the reason for a rejection."""

    id: int
    source: str
    move: str = ""
    fitness: float | None = None
    """Fitness relative to the default baseline, where lower is better; None for a rejected candidate."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Metrics over the train windows, at their own rate and a higher one together."""
    gate: str | None = None
    """The gate that rejected the candidate, or None."""
    reason: str | None = None
    """The value of a `gates.verdict.Reason`.

    It is None for a candidate that was not rejected, and for one that an earlier schema version recorded.
    """
    obligation: str | None = None
    """Name of the obligation that the candidate failed."""
    detail: str = ""
    """The reason in words, for a language model."""
    counterexample: Mapping[str, Any] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    """Details that the candidate's own proposer recorded."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A candidate to be written.

    `parents[0]` is the candidate to vary or to repair. An empty tuple asks for a new policy.
    """

    id: int
    island: int
    parents: tuple[Parent, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Context:
    """The data that all slots of a generation share."""

    contract: Contract
    seed: int
    generation: int
    best: Parent | None = None
    explored: Sequence[str] = ()
    """Short notes on strategies that have been tried, best first."""
    counterexamples: Sequence[Mapping[str, Any]] = ()
    """Recent counterexamples, newest last."""
    workload: Mapping[str, Any] = field(default_factory=dict)
    """Aggregate statistics of the workload, never the contents of requests."""
    typical: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)
    """Decision -> "parameter.field" in the contract's names -> the minimum and the maximum that the workload shows."""
    objectives: Mapping[str, float] = field(default_factory=lambda: {"ttft_mean_us": 1.0})
    reference: Mapping[str, float] = field(default_factory=dict)
    """The default baseline's metrics."""
    deadline_s: float | None = None
    """Seconds left for this call if the run has a time budget."""
    tokens_left: int | None = None
    """Language-model tokens left if the run has a token budget. Drafts report their use as `details["tokens"]`."""
    dollars_left: float | None = None
    """Dollars left if the run has a dollar budget. Drafts report their use as `details["dollars"]`."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A candidate as it was written. `parents` are the candidates that it was made from."""

    source: str
    move: str
    rationale: str = ""
    parents: tuple[int, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Proposer(Protocol):
    """A writer of candidates.

    A proposer must be a function of its arguments and of what it recorded itself, so that runs can be repeated.
    """

    @property
    def name(self) -> str:
        """The proposer's name in runs and reports."""

    def describe(self) -> Mapping[str, Any]:
        """Return the settings for the run's record, without keys and other secrets."""

    def propose(self, context: Context, slots: Sequence[Slot]) -> Sequence[Draft]:
        """Return one draft per slot, in the order of the slots."""
