"""Proof results by content: the same question to the same solvers under the same limits is answered once.

The key covers the policy's text, the contract, our own encoder and gates (their source), the solvers' versions and the limits, so
nothing that could change an answer is left out. UNKNOWN is never kept: it is asked again.
A certificate never comes from here: certification always proves. Whoever can write to the folder can forge results, so one that
is not the user's own, or that others may write to, is neither read nor written.
"""

import hashlib
import os
import stat
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from ..policy import Policy
from ..protocol.files import FileRefusedError, FileUnwritableError, read_bounded, write_atomically
from . import proof
from .solving import DEFAULT_RLIMIT
from .verdict import GateResult, Verdict

__all__ = ["ProofCache"]

MAX_RESULT_BYTES: Final = 4_194_304


class ProofCache:
    """A folder of proof results. Several processes may share it: files are written whole, and a damaged one is asked again."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    @classmethod
    def default(cls) -> "ProofCache":
        """Return the user's own cache: `$AUTOPOIESIS_CACHE`, else `$XDG_CACHE_HOME/autopoiesis`, else `~/.cache/autopoiesis`."""
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return cls(Path(os.environ.get("AUTOPOIESIS_CACHE") or Path(home) / "autopoiesis") / "proofs")

    def check(self, policy: Policy, *, rlimit: int = DEFAULT_RLIMIT, least: bool = True) -> GateResult:
        """Return what `proof.check` does, from the folder when the same question has been answered before."""
        name = self._name(policy, rlimit, least)
        kept = self._kept(name)
        if kept is not None:
            return kept
        result = proof.check(policy, rlimit=rlimit, least=least)
        if result.verdict is not Verdict.UNKNOWN:
            self._keep(name, result)
        return result

    def _kept(self, name: str) -> GateResult | None:
        """Return a kept result; None when there is none, it is damaged, or somebody else may have written it."""
        try:
            if not _ours(self._folder):
                return None
            return GateResult.model_validate_json(read_bounded(self._folder / name, MAX_RESULT_BYTES))
        except (OSError, FileRefusedError, ValidationError):
            return None

    def _keep(self, name: str, result: GateResult) -> None:
        """Write a result whole. A folder that cannot be written costs only the time to prove again."""
        with suppress(OSError, FileUnwritableError):
            if not self._folder.exists():
                self._folder.parent.mkdir(parents=True, exist_ok=True)
                self._folder.mkdir(mode=0o700, exist_ok=True)
            if _ours(self._folder):
                write_atomically(self._folder / name, result.model_dump_json(), mode=0o600, durable=False)

    @staticmethod
    def _name(policy: Policy, rlimit: int, least: bool) -> str:
        parts = (policy.source, policy.contract.digest, encoder_digest(), solver_version(), str(rlimit), str(least))
        key = hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
        return f"{key}.json"


def _ours(folder: Path) -> bool:
    """Return whether a folder is this user's own, no link, and written by nobody else."""
    about = folder.lstat()
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o022


@cache
def solver_version() -> str:
    """Return the version of the installed Z3; looking it up takes longer than reading a kept result."""
    return version("z3-solver")


@cache
def encoder_digest() -> str:
    """SHA-256 over the source of the language and the gates: a changed encoder answers no old question."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(
        [
            *(package / "language").glob("*.py"),
            *(package / "gates").glob("*.py"),
            *(package / name for name in ("contract.py", "formula.py", "policy.py", "theorem.py", "view.py")),
        ]
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()
