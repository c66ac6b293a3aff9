"""From a policy text and its certificate to a policy an engine may run.

Everything short of a complete proof of exactly this policy, for exactly this contract, by these gates, is refused in
one line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from autopoiesis_lib.certificate import Certificate, CertificateError
from autopoiesis_lib.contract import Contract
from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.language.llvm import fields_read
from autopoiesis_lib.policy import Policy
from autopoiesis_lib.registry import contract_named
from autopoiesis_lib.signing import check_signature, trusted_keys

__all__ = ["Picker", "PolicyRefusedError", "VerifiedPolicy", "compile_ordering", "load_ordering", "loader"]

Int64s = NDArray[np.int64]


class PolicyRefusedError(AutopoiesisError):
    """A policy may not run here. The message says why and what to do; what ran before goes on running."""


class Picker(Protocol):
    """What an adapter needs of `autopoiesis_lib`'s `Scorer`."""

    def argmax(self, columns: Int64s, tiebreak: Int64s, *context: Int64s, n: int | None = None) -> int:
        """The column with the highest score, ties to the smallest `tiebreak`; -1 when there is none."""


@dataclass(frozen=True)
class VerifiedPolicy:
    """A policy that passed every check and is compiled and warm."""

    digest: str
    scorer: Picker
    aging_us: int | None
    """The proved T: a pick is never enqueued later than T after a request still waiting. None: no such bound was
    proved."""
    reads: frozenset[str]
    """Names of the request fields it reads."""


def loader(
    *,
    allow_unsigned: bool = False,
    allow_single_solver: bool = False,
    keys: Path | None = None,
    max_aging_us: int = 600_000_000,
    contract: str = "request-ordering",
) -> Callable[[str, str], VerifiedPolicy]:
    """A function (policy text, certificate text) -> policy, with an operator's rules; it raises as `load_ordering`
    does."""

    def load(source: str, certificate: str) -> VerifiedPolicy:
        return load_ordering(
            source,
            certificate,
            allow_unsigned=allow_unsigned,
            allow_single_solver=allow_single_solver,
            keys=keys,
            max_aging_us=max_aging_us,
            contract=contract,
        )

    return load


def load_ordering(
    source: str,
    certificate: str,
    *,
    allow_unsigned: bool = False,
    allow_single_solver: bool = False,
    keys: Path | None = None,
    max_aging_us: int = 600_000_000,
    contract: str = "request-ordering",
) -> VerifiedPolicy:
    """Check a policy of the ordering contract against its certificate, compile it and run it once.

    Args:
        source: the policy's text.
        certificate: the certificate's JSON.
        allow_unsigned: accept a certificate that nobody signed.
        allow_single_solver: accept obligations on which the second solver gave up.
        keys: directory of trusted public keys.
        max_aging_us: the largest T this engine accepts, in microseconds.
        contract: the policy type this engine runs.

    Raises:
        PolicyRefusedError: anything at all is wrong with it; one line, what and what to do.
    """
    try:
        proof = Certificate.model_validate_json(certificate)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the text"
        raise PolicyRefusedError(
            f"not a certificate: {where}: {first['msg']}; make one with `autopoiesis verify`"
        ) from None
    name = proof.policy_digest[:12]
    if proof.contract != contract:
        raise PolicyRefusedError(f"policy {name} is for the contract {proof.contract}; this engine runs {contract}")
    try:
        trusted = trusted_keys(keys) if keys is not None else {}
        check_signature(proof, trusted, allow_unsigned=allow_unsigned)
        policy = proof.check_binding(_contract(contract, tuple(sorted(proof.contract_parameters.items()))), source)
    except AutopoiesisError as error:
        raise PolicyRefusedError(
            f"policy {name}: {error}" if isinstance(error, CertificateError) else str(error)
        ) from None
    made_by, here = proof.versions.get("autopoiesis-lib", "unknown"), _installed_version()
    if made_by != here:
        raise PolicyRefusedError(
            f"policy {name} was certified by autopoiesis-lib {made_by}; here is {here}: verify it again"
        )
    if proof.single_solver and not allow_single_solver:
        raise PolicyRefusedError(
            f"policy {name}: only one solver proved `{proof.single_solver[0]}`; allow_single_solver accepts that"
        )
    aging_us = proof.bounds.get("ages")
    if aging_us is None or aging_us > max_aging_us:
        raise PolicyRefusedError(
            f"policy {name}: its aging bound is {aging_us} us; this engine accepts up to {max_aging_us}"
        )
    return compile_ordering(policy, aging_us)


@lru_cache(maxsize=8)
def _contract(name: str, parameters: tuple[tuple[str, int | bool], ...]) -> Contract:
    # Reading a contract takes longer than all the checks made with it; contracts are values, so they may be kept.
    return contract_named(name, **dict(parameters))


def compile_ordering(policy: Policy, aging_us: int | None) -> VerifiedPolicy:
    """Compile an ordering policy and run it once, so that its first decision in an engine is as fast as the next."""
    (decision,) = policy.contract.decisions
    scorer = policy.scorer(decision)
    request, *context = (
        _lowest_row(policy.contract, param.type) for param in policy.contract.decisions[decision].params
    )
    scorer.argmax(np.ascontiguousarray(request[:, None]), np.zeros(1, np.int64), *context, n=1)
    reads = frozenset(field for position, field in fields_read(policy.module, decision) if position == 0)
    return VerifiedPolicy(policy.digest, scorer, aging_us, reads)


def _lowest_row(contract: Contract, view: str) -> Int64s:
    return np.array([spec.domain.lo for spec in contract.views[view].fields()], np.int64)


def _installed_version() -> str:
    try:
        return version("autopoiesis-lib")
    except PackageNotFoundError:
        return "unknown"
