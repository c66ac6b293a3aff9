"""Why a text was refused: the line, what is wrong, and what to write instead."""

from typing import Literal

from ..errors import PolicyError

__all__ = ["LanguageError", "invalid", "unsupported"]


class LanguageError(PolicyError):
    """A text is not a policy: `verdict` tells whether it is no policy at all, or Python the language leaves out.

    `line` is 0 where the text as a whole is meant.
    """

    def __init__(self, verdict: Literal["INVALID", "UNSUPPORTED"], line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}" if line else message)
        self.verdict: Literal["INVALID", "UNSUPPORTED"] = verdict
        self.line = line
        self.message = message


def invalid(line: int, message: str) -> LanguageError:
    """The text is not a policy: syntax, a missing function, wrong arity or types."""
    return LanguageError("INVALID", line, message)


def unsupported(line: int, what: str, instead: str) -> LanguageError:
    """The text uses Python that the language leaves out."""
    return LanguageError("UNSUPPORTED", line, f"{what} is not allowed in a policy; {instead}")
