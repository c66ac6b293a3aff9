"""Binding of certificates to policies and contracts: the one rule by which anything that runs a policy goes.

It proves nothing and imports no gate, so that an engine can apply it without the solvers.
"""

from collections.abc import Iterable
from typing import Protocol

from .contract import Contract
from .errors import AutopoiesisError
from .policy import Policy

__all__ = ["GATES", "GREEN", "CertificateError", "bound_policy", "range_name", "safe_name"]

GATES = ("contract", "grammar", "types", "ranges", "quick-fuzz", "proof", "fuzz", "replay")
"""Every gate by name, in the order they run; a certificate must show them all."""

GREEN = ("PROVED", "PASSED")
"""Verdicts with which a gate lets a policy go on."""


class CertificateError(AutopoiesisError):
    """A certificate cannot be read, or does not belong to the policy or contract it is used with."""


def safe_name(decision: str) -> str:
    """Return the name of the obligation that a decision never faults."""
    return f"{decision} is safe"


def range_name(decision: str) -> str:
    """Return the name of the obligation that a decision's result is in its range."""
    return f"{decision} is in range"


class Judged(Protocol):
    """An obligation or a gate, and what came of it."""

    @property
    def name(self) -> str:
        """Name of the obligation or gate."""

    @property
    def verdict(self) -> str:
        """The answer, as in `Verdict`."""


class Certified(Protocol):
    """A certificate, as far as this rule goes."""

    @property
    def contract(self) -> str:
        """The contract's name."""

    @property
    def contract_digest(self) -> str:
        """Its digest."""

    @property
    def policy_digest(self) -> str:
        """The policy it is about."""

    @property
    def obligations(self) -> Iterable[Judged]:
        """Obligations that had to be proved."""

    @property
    def gates(self) -> Iterable[Judged]:
        """Gates that the policy went through."""


def bound_policy(certificate: Certified, contract: Contract, source: str) -> Policy:
    """Return the certified policy, parsed from `source`, once it is sure that the certificate is about it and this contract.

    Raises:
        CertificateError: a digest differs, an obligation or gate is not green, or the policy does not parse.
    """
    if contract.contract_name != certificate.contract or contract.digest != certificate.contract_digest:
        raise CertificateError(
            f"the certificate is for another version of {certificate.contract} (contract digest "
            f"{certificate.contract_digest[:12]}, here {contract.digest[:12]}); verify the policy again"
        )
    try:
        policy = Policy.from_source(source, contract)
    except AutopoiesisError as error:
        raise CertificateError(f"the certified policy cannot be read: {error}") from None
    if policy.digest != certificate.policy_digest:
        raise CertificateError(
            f"the policy is not the certified one (digest {policy.digest[:12]}, certified "
            f"{certificate.policy_digest[:12]})"
        )
    if not set(GATES) <= {gate.name for gate in certificate.gates} or any(
        gate.verdict not in GREEN for gate in certificate.gates
    ):
        raise CertificateError("the certificate does not show every gate green; verify the policy again")
    proved = {item.name for item in certificate.obligations if item.verdict == "PROVED"}
    expected = {formula.name for formula in contract.invariants}
    expected |= {claim(name) for name in contract.decisions for claim in (safe_name, range_name)}
    missing = (expected - proved) | {item.name for item in certificate.obligations if item.verdict != "PROVED"}
    if missing:
        raise CertificateError(f"the certificate does not prove `{min(missing)}`; verify the policy again")
    return policy
