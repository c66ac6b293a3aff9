"""Serving policies that evolve while the engine runs, and are proved safe before they run."""

from .contract import Contract, Least, Theorem, assumption, decision, invariant, lemma
from .errors import AutopoiesisError, ContractError, PolicyError
from .policy import Policy
from .view import Saturates, View

__all__ = [
    "AutopoiesisError",
    "Contract",
    "ContractError",
    "Least",
    "Policy",
    "PolicyError",
    "Saturates",
    "Theorem",
    "View",
    "assumption",
    "decision",
    "invariant",
    "lemma",
]
