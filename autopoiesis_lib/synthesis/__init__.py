"""Proposers of candidates: a typed program search, which needs no model, and any language model."""

from typing import TYPE_CHECKING, Any

from .proposer import Context, Draft, Parent, Proposer, ProposerError, Slot
from .search import SearchProposer

if TYPE_CHECKING:
    from .llm import LLMProposer

__all__ = ["Context", "Draft", "LLMProposer", "Parent", "Proposer", "ProposerError", "SearchProposer", "Slot"]


def __getattr__(name: str) -> Any:
    if name == "LLMProposer":  # imported on first use, because it imports the client libraries
        from .llm import LLMProposer

        return LLMProposer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
