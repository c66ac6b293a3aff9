"""Errors of a refused text: the line, the problem, and what to write instead."""

from typing import Literal

from ..errors import PolicyError

__all__ = ["LanguageError", "invalid", "unsupported"]


class LanguageError(PolicyError):
    """A text that is not a policy: `verdict` says whether it is none at all or uses Python that the language omits.

    `line` is 0 when the error is about the whole text.
    """

    def __init__(self, verdict: Literal["INVALID", "UNSUPPORTED"], line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}" if line else message)
        self.verdict: Literal["INVALID", "UNSUPPORTED"] = verdict
        self.line = line
        self.message = message


def invalid(line: int, message: str) -> LanguageError:
    """Return an error for a text that is not a policy: syntax, a missing function, wrong arity or types."""
    return LanguageError("INVALID", line, message)


def unsupported(line: int, what: str, instead: str) -> LanguageError:
    """Return an error for a text that uses Python that the language omits."""
    return LanguageError("UNSUPPORTED", line, f"{what} is not allowed in a policy; {instead}")
