"""The reason why a proof does not count."""

from enum import StrEnum

from ..errors import AutopoiesisError

__all__ = ["ProofError", "ProofProblem"]


class ProofProblem(StrEnum):
    """The kind of a refusal."""

    MALFORMED = "malformed"
    """The text is not an Alethe proof over integer arithmetic."""
    TOO_LARGE = "too-large"
    """A bound on size, depth, numbers or work is exceeded."""
    UNSUPPORTED = "unsupported"
    """A rule that is not checked here, or a hole."""
    ASSUMPTION = "assumption"
    """It assumes what the obligation's text does not assert."""
    WRONG = "wrong"
    """A step does not follow from its premises by its rule."""
    INCOMPLETE = "incomplete"
    """It does not end with the empty clause."""


class ProofError(AutopoiesisError):
    """A proof is refused; `problem` says why."""

    def __init__(self, problem: ProofProblem, detail: str) -> None:
        super().__init__(detail)
        self.problem = problem
