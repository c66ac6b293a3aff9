"""Proof results by content: the same question to the same solvers under the same limits is answered once.

The key covers the policy's text, the contract, our own encoder and gates (their source), the solvers' versions and the limits, so
nothing that could change an answer is left out. UNKNOWN is never kept: it is asked again.
A certificate never comes from here: certification always proves.
"""

import hashlib
import os
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from ..policy import Policy
from . import proof
from .solving import DEFAULT_RLIMIT
from .verdict import GateResult, Verdict

__all__ = ["ProofCache"]


class ProofCache:
    """A folder of proof results. Several processes may share it: files are written whole, and a damaged one is asked again."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    @classmethod
    def default(cls) -> "ProofCache":
        """The user's own: `$AUTOPOIESIS_CACHE`, else `$XDG_CACHE_HOME/autopoiesis`, else `~/.cache/autopoiesis`."""
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return cls(Path(os.environ.get("AUTOPOIESIS_CACHE") or Path(home) / "autopoiesis") / "proofs")

    def check(self, policy: Policy, *, rlimit: int = DEFAULT_RLIMIT, least: bool = True) -> GateResult:
        """As `proof.check`, from the folder when the same question has been answered before."""
        path = self._path(policy, rlimit, least)
        try:
            return GateResult.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            result = proof.check(policy, rlimit=rlimit, least=least)
        if result.verdict is not Verdict.UNKNOWN:
            self._keep(path, result)
        return result

    @staticmethod
    def _keep(path: Path, result: GateResult) -> None:
        """Write a result whole. A folder that cannot be written costs only the time to prove again."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(result.model_dump_json())
            Path(name).replace(path)
        except OSError:
            return

    def _path(self, policy: Policy, rlimit: int, least: bool) -> Path:
        parts = (policy.source, policy.contract.digest, encoder_digest(), solver_version(), str(rlimit), str(least))
        key = hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
        return self._folder / key[:2] / f"{key}.json"


@cache
def solver_version() -> str:
    """The installed Z3's; looking it up takes longer than reading a kept result."""
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
            *(package / name for name in ("contract.py", "policy.py", "view.py")),
        ]
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()
