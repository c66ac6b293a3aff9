"""Obligations as texts, and a checker of their proofs that shares nothing with our encoder or with a solver."""

from .alethe import Checked, check
from .errors import ProofError, ProofProblem

__all__ = ["Checked", "ProofError", "ProofProblem", "check"]
