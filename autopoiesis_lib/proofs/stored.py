"""Proofs as certificates keep them: compressed and in base64, and bounded when they are read."""

import base64
import binascii
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

from ..sandbox import Limits, SandboxError, run_isolated
from .alethe import MAX_PROOF_CHARACTERS, check
from .errors import ProofError, ProofProblem
from .smtlib import SmtLibError, read

__all__ = ["Outcome", "check_isolated", "exported", "outcome", "packed", "unpacked"]

CHECKING: Final = Limits(seconds=120, memory=2 << 30)
"""For one proof; its bounds on size and work end it sooner."""


@dataclass(frozen=True)
class Outcome:
    """The checker's word on one proof."""

    steps: int = 0
    problem: str = ""
    """A `ProofProblem`, or the sandbox's; empty for a proof that was checked."""
    detail: str = ""


def packed(proof: str) -> str:
    """Return a proof as a certificate keeps it."""
    return base64.b64encode(zlib.compress(proof.encode(), 9)).decode()


def unpacked(stored: str) -> str:
    """Return the proof that `packed` made; no more than a checker reads is ever decompressed.

    Raises:
        ProofError: it is not such a text, or too large.
    """
    try:
        inflater = zlib.decompressobj()
        content = inflater.decompress(base64.b64decode(stored, validate=True), MAX_PROOF_CHARACTERS + 1)
        if len(content) > MAX_PROOF_CHARACTERS:
            raise ProofError(ProofProblem.TOO_LARGE, f"the proof has more than {MAX_PROOF_CHARACTERS:,} bytes")
        if not inflater.eof or inflater.unused_data:
            raise ProofError(ProofProblem.MALFORMED, "the stored proof is not one complete zlib stream")
        return content.decode("ascii")
    except (binascii.Error, zlib.error, ValueError) as error:
        raise ProofError(
            ProofProblem.MALFORMED, f"the stored proof is not ASCII text, zlib and base64: {error}"
        ) from None


def exported(smtlib: str | None, stored: str | None) -> tuple[dict[str, str], str]:
    """Return the contents of files by suffix, for tools of others, and why one is left out.

    The text is printed anew: one that SMT-LIB tools would take for commands is never passed on. The proof is as it is stored.
    """
    files: dict[str, str] = {}
    try:
        if smtlib is None:
            return files, "the certificate has no text of it"
        files[".smt2"] = f"(set-logic QF_NIA)\n{read(smtlib).text}"
        if stored is None:
            return files, "the certificate has no proof of it"
        files[".alethe"] = unpacked(stored)
    except (SmtLibError, ProofError) as error:
        return files, f"refused: {error}"
    return files, ""


def check_isolated(proofs: Sequence[tuple[str, str]], seconds: float = CHECKING.seconds) -> tuple[Outcome, ...]:
    """Return what the checker says of pairs of an obligation's text and its stored proof.

    Each pair is checked in a child process of its own, so that no proof keeps another from being checked.
    """
    return tuple(_isolated(text, stored, replace(CHECKING, seconds=seconds)) for text, stored in proofs)


def _isolated(text: str, stored: str, limits: Limits) -> Outcome:
    try:
        answer = run_isolated(f"{__name__}:check_here", json.dumps([text, stored]).encode(), limits)
    except SandboxError as error:
        return Outcome(problem=error.problem, detail=str(error))
    return Outcome(**json.loads(answer))


def check_here(asked: bytes) -> bytes:
    """Check one proof as a child process of `check_isolated`."""
    text, stored = json.loads(asked)
    return json.dumps(asdict(outcome(text, stored))).encode()


def outcome(text: str, stored: str) -> Outcome:
    """Return what the checker says of an obligation's text and its stored proof."""
    try:
        return Outcome(steps=check(text, unpacked(stored)).steps)
    except ProofError as error:
        return Outcome(problem=error.problem, detail=str(error))
