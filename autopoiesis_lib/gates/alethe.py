"""Proofs of obligations by cvc5, in the Alethe format, for whoever trusts neither solver."""

from collections.abc import Sequence
from typing import Final

from ..proofs import ProofError, check
from ..proofs.stored import packed
from .second_solver import DEFAULT_RESOURCES, asked
from .verdict import ObligationResult

__all__ = ["NoProof", "proof_of", "with_proof", "without_proofs_that_do_not_fit"]

_OPTIONS: Final = {
    "produce-proofs": "true",
    "proof-format-mode": "alethe",
    "proof-granularity": "dsl-rewrite",
    "proof-alethe-res-pivots": "true",
}

TOO_LARGE: Final = "the proof does not fit into the certificate"


class NoProof(Exception):
    """cvc5 gives no proof; the message says why."""


def proof_of(smtlib: str, resources: int = DEFAULT_RESOURCES) -> str:
    """Return an Alethe proof that an SMT-LIB text with one `check-sat` is unsatisfiable.

    Raises:
        NoProof: cvc5 does not find one within its resources, or cannot write it.
    """
    import cvc5

    solver, answer = asked(smtlib, resources, _OPTIONS)
    if answer != "unsat":
        raise NoProof(f"cvc5 answers {answer} within {resources:,} resource units")
    proof = solver.proofToString(solver.getProof()[0], cvc5.ProofFormat.ALETHE).decode()
    if proof.lstrip(" (\n").startswith("error"):  # where a proof was asked for
        said = proof.partition('"')[2].partition('"')[0]
        raise NoProof(f"cvc5 cannot write it: {said[:200]}")
    return str(proof)


def with_proof(result: ObligationResult) -> ObligationResult:
    """Return a proved obligation with a proof of its text, or with the reason why there is none that our checker accepts."""
    if result.smtlib is None:
        return result.model_copy(update={"proof_gap": "the obligation has no SMT-LIB text"})
    try:
        proof = proof_of(result.smtlib)
    except NoProof as error:
        return result.model_copy(update={"proof_gap": str(error)})
    try:
        check(result.smtlib, proof)
        gap = ""
    except ProofError as error:
        gap = f"not checked here: {error}"
    return result.model_copy(update={"proof": packed(proof), "proof_gap": gap})


def without_proofs_that_do_not_fit(
    results: Sequence[ObligationResult], characters: int
) -> tuple[ObligationResult, ...]:
    """Return results without the largest proofs, so that the others have so many characters at most."""
    kept = list(results)
    total = sum(len(item.proof or "") for item in kept)
    for index in sorted(range(len(kept)), key=lambda index: -len(kept[index].proof or "")):
        if total <= characters:
            break
        total -= len(kept[index].proof or "")
        kept[index] = kept[index].model_copy(update={"proof": None, "proof_gap": TOO_LARGE})
    return tuple(kept)
