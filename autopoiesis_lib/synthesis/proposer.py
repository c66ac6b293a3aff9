"""The interface of everything that writes candidates, and the values that cross it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from ..contract import Contract
from ..errors import AutopoiesisError

__all__ = ["Context", "Draft", "Parent", "Proposer", "ProposerError", "Slot"]


class ProposerError(AutopoiesisError):
    """A proposer cannot be set up or cannot go on."""


@dataclass(frozen=True, kw_only=True)
class Parent:
    """An earlier candidate as a proposer sees it: its text, how it did, and why it was rejected if it was."""

    id: int
    source: str
    move: str = ""
    fitness: float | None = None
    """Relative to the default baseline, lower is better; None when it was rejected."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Its metrics over the train windows, at their own rate and a higher one together."""
    gate: str | None = None
    """The gate that rejected it, if any."""
    reason: str | None = None
    """Value of a `gates.verdict.Reason`; None when it was not rejected, or long ago."""
    obligation: str | None = None
    """Name of the obligation that it failed."""
    detail: str = ""
    """The reason in words, for a language model."""
    counterexample: Mapping[str, Any] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    """What its own proposer noted down."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A candidate to be written. `parents[0]` is the one to vary or to repair; none at all asks for something new."""

    id: int
    island: int
    parents: tuple[Parent, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Context:
    """What all slots of a generation share."""

    contract: Contract
    seed: int
    generation: int
    best: Parent | None = None
    explored: Sequence[str] = ()
    """Short notes on strategies tried already, best first."""
    counterexamples: Sequence[Mapping[str, Any]] = ()
    """Recent counterexamples, newest last."""
    workload: Mapping[str, Any] = field(default_factory=dict)
    """Aggregate statistics of the workload; never request contents."""
    typical: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)
    """Decision -> "parameter.field" in the contract's names -> the least and the greatest value that the workload shows."""
    objectives: Mapping[str, float] = field(default_factory=lambda: {"ttft_mean_us": 1.0})
    reference: Mapping[str, float] = field(default_factory=dict)
    """The default baseline's metrics."""
    deadline_s: float | None = None
    """Seconds left for this call, if the run has a time budget."""
    tokens_left: int | None = None
    """Language-model tokens left, if the run has a token budget; drafts report theirs as `details["tokens"]`."""
    dollars_left: float | None = None
    """Dollars left, if the run has a dollar budget; drafts report theirs as `details["dollars"]`."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A candidate as written. `parents` are those it was really made from."""

    source: str
    move: str
    rationale: str = ""
    parents: tuple[int, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Proposer(Protocol):
    """Writes candidates. Must be a function of its arguments and of what it recorded itself, so that runs repeat."""

    @property
    def name(self) -> str:
        """What it is called in runs and reports."""

    def describe(self) -> Mapping[str, Any]:
        """Its settings, for the run's record; never a key or other secret."""

    def propose(self, context: Context, slots: Sequence[Slot]) -> Sequence[Draft]:
        """One draft a slot, in the order of the slots."""
