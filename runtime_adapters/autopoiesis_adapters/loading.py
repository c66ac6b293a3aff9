"""Loading of a policy text and its certificate into a policy that an engine may run.

The loaders require a complete proof of exactly this policy, for exactly this contract, by these gates. Anything less is
refused with a one-line error.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from autopoiesis_lib.contract import Contract
from autopoiesis_lib.language.dependence import may_depend
from autopoiesis_lib.language.llvm import fields_read
from autopoiesis_lib.policy import Policy
from autopoiesis_lib.protocol.envelope import CERTIFICATE, seal
from autopoiesis_lib.protocol.keys import SigningKey, key_id

from .reading import PolicyRefusedError, certified, contract_of, installed_version

__all__ = [
    "Picker",
    "PolicyRefusedError",
    "VerifiedAdmission",
    "VerifiedPolicy",
    "VerifiedVictims",
    "check_loadable",
    "compile_admission",
    "compile_ordering",
    "compile_victims",
    "heeds_priority",
    "load_admission",
    "load_ordering",
    "load_victims",
    "loader",
    "warm_up",
]

Int64s = NDArray[np.int64]


class Picker(Protocol):
    """The part of `autopoiesis_lib`'s `Scorer` that an adapter needs."""

    def argmax(self, columns: Int64s, tiebreak: Int64s, *context: Int64s, n: int | None = None) -> int:
        """Return the column with the highest score, ties to the smallest `tiebreak`; -1 when there is no column."""


@dataclass(frozen=True)
class VerifiedPolicy:
    """An ordering policy that passed every check and is compiled and warm."""

    digest: str
    scorer: Picker
    aging_us: int | None
    """The proved T: a pick is never enqueued later than T after a request still waiting. It is None when no such bound
    was proved."""
    reads: frozenset[str]
    """Names of the request fields that the policy reads."""
    by_priority: bool = True
    """False when the policy's scores are shown not to depend on a request's priority."""


@dataclass(frozen=True)
class VerifiedAdmission:
    """An admission policy that passed every check and is compiled and warm."""

    digest: str
    admit: Callable[..., int]
    """Fields of the request, then of the memory, in declared order, as ints -> 1 or 0."""
    reserve_blocks: Callable[..., int]
    """Fields of the request -> blocks to reserve."""
    block_size: int
    """The block size (tokens) it was certified for."""


@dataclass(frozen=True)
class VerifiedVictims:
    """A preemption policy that passed every check and is compiled and warm."""

    digest: str
    scorer: Picker
    gap: int | None
    """The proved gap: a request preempted so many times more often than another never scores above it."""


def loader(
    *,
    allow_unsigned: bool = False,
    allow_single_solver: bool = False,
    keys: Path | None = None,
    max_aging_us: int = 600_000_000,
    contract: str = "request-ordering",
) -> Callable[[str, str | bytes], VerifiedPolicy]:
    """Return a function (policy text, certificate text) -> policy that applies an operator's rules.

    The returned function raises as `load_ordering` does.
    """

    def load(source: str, certificate: str | bytes) -> VerifiedPolicy:
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
    certificate: str | bytes,
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
        allow_unsigned: run the gates here on an unsigned policy, instead of refusing it.
        allow_single_solver: accept obligations on which the second solver gave up.
        keys: directory of trusted public keys.
        max_aging_us: the largest T this engine accepts, in microseconds.
        contract: the policy type this engine runs.

    Raises:
        PolicyRefusedError: a check fails; one line says what is wrong and what to do.
    """
    policy, proof = certified(
        source,
        certificate,
        contract,
        allow_unsigned=allow_unsigned,
        allow_single_solver=allow_single_solver,
        keys=keys,
    )
    aging_us = proof.bounds.get("ages")
    if aging_us is None or aging_us > max_aging_us:
        raise PolicyRefusedError(
            f"policy {policy.digest[:12]}: its aging bound is {aging_us} us; this engine accepts up to {max_aging_us}"
        )
    return compile_ordering(policy, aging_us)


def load_admission(
    source: str,
    certificate: str | bytes,
    *,
    block_size: int,
    allow_unsigned: bool = False,
    allow_single_solver: bool = False,
    keys: Path | None = None,
) -> VerifiedAdmission:
    """Check an admission policy against its certificate and compile it; the checks are those of `load_ordering`.

    Args:
        source: the policy's text.
        certificate: the certificate's JSON.
        block_size: tokens a KV block of this engine holds; a policy certified for another size is refused.
        allow_unsigned: run the gates here on an unsigned policy, instead of refusing it.
        allow_single_solver: accept obligations on which the second solver gave up.
        keys: directory of trusted public keys.

    Raises:
        PolicyRefusedError: a check fails; one line says what is wrong and what to do.
    """
    policy, proof = certified(
        source,
        certificate,
        "admission",
        allow_unsigned=allow_unsigned,
        allow_single_solver=allow_single_solver,
        keys=keys,
        parameters={"block_size": block_size},
    )
    certified_for = int(proof.contract_parameters.get("block_size", 0))
    if certified_for != block_size:
        raise PolicyRefusedError(
            f"policy {policy.digest[:12]} was certified for blocks of {certified_for} tokens; this engine's hold "
            f"{block_size}: verify it for those"
        )
    return compile_admission(policy, certified_for)


def load_victims(
    source: str,
    certificate: str | bytes,
    *,
    allow_unsigned: bool = False,
    allow_single_solver: bool = False,
    keys: Path | None = None,
) -> VerifiedVictims:
    """Check a preemption policy against its certificate and compile it.

    Arguments and errors are those of `load_ordering`.
    """
    policy, proof = certified(
        source,
        certificate,
        "preemption",
        allow_unsigned=allow_unsigned,
        allow_single_solver=allow_single_solver,
        keys=keys,
    )
    return compile_victims(policy, proof.bounds.get("spares_the_preempted"))


def check_loadable(
    source: str,
    certificate: str | bytes,
    contract: str,
    parameters: Mapping[str, int | bool] | None = None,
    **rules: Any,
) -> None:
    """Do once the work that every engine would do to load a policy of any control point.

    `rules` are those that `load_ordering` takes. Only an engine knows the block size that an admission policy meets.
    This function uses the block size in `parameters`, the contract's own.

    Raises:
        PolicyRefusedError: engines would refuse it.
    """
    if contract == "admission":
        policy, proof = certified(source, certificate, contract, parameters=parameters, **rules)
        compile_admission(policy, int(proof.contract_parameters.get("block_size", 0)))
    elif contract == "preemption":
        load_victims(source, certificate, **rules)
    else:
        load_ordering(source, certificate, contract=contract, **rules)


def compile_ordering(policy: Policy, aging_us: int | None) -> VerifiedPolicy:
    """Compile an ordering policy and run it once, so that its first decision in an engine is as fast as the next."""
    scorer = _warm_scorer(policy)
    (decision,) = policy.contract.decisions
    reads = frozenset(field for position, field in fields_read(policy.module, decision) if position == 0)
    return VerifiedPolicy(policy.digest, scorer, aging_us, reads, heeds_priority(policy))


def heeds_priority(policy: Policy) -> bool:
    """Return false when the scores of an ordering policy are shown not to depend on a request's priority."""
    (decision,) = policy.contract.decisions.values()
    return may_depend(policy.module, decision, 0, "priority")


def compile_victims(policy: Policy, gap: int | None) -> VerifiedVictims:
    """Compile a preemption policy and run it once."""
    return VerifiedVictims(policy.digest, _warm_scorer(policy), gap)


def compile_admission(policy: Policy, block_size: int) -> VerifiedAdmission:
    """Compile both decisions of an admission policy and run them once."""
    functions: list[Any] = []
    for decision in ("admit", "reserve_blocks"):
        native = policy.native(decision)
        params = policy.contract.decisions[decision].params
        native(*[int(value) for param in params for value in _lowest_row(policy.contract, param.type)])
        functions.append(native)
    return VerifiedAdmission(policy.digest, functions[0], functions[1], block_size)


def warm_up(contract: str, baseline: str) -> None:
    """Do in advance the work that the first policy of a contract would pay for.

    This work is the imports, the reading of the contract, the start of the compiler and the check of a signature.
    """
    private = Ed25519PrivateKey.generate()
    key = SigningKey(name="warm-up", key_id=key_id(private.public_key()), private=private)
    seal(b"", CERTIFICATE, key).signed_by({key.key_id: private.public_key()})
    policy = Policy.from_source(baseline, contract_of(contract))
    installed_version()
    _ = policy.digest
    for decision in policy.contract.decisions:
        policy.native(decision)


def _warm_scorer(policy: Policy) -> Picker:
    (decision,) = policy.contract.decisions
    scorer = policy.scorer(decision)
    scored, *context = (
        _lowest_row(policy.contract, param.type) for param in policy.contract.decisions[decision].params
    )
    scorer.argmax(np.ascontiguousarray(scored[:, None]), np.zeros(1, np.int64), *context, n=1)
    return scorer


def _lowest_row(contract: Contract, view: str) -> Int64s:
    return np.array([spec.domain.lo for spec in contract.views[view].fields()], np.int64)
