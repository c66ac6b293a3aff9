"""Reading of a certificate in an engine: its statement, its signer, and its match with the policy and the contract.

An engine proves nothing. It needs neither the solvers nor the gates of `autopoiesis_lib.certificate`, and does not
spend a second on importing them when the first policy arrives. `bound_policy` checks that the certificate is about the
policy, as it does for `Certificate`.
"""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from autopoiesis_lib.binding import CertificateError, bound_policy
from autopoiesis_lib.contract import Contract
from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.policy import Policy
from autopoiesis_lib.protocol.channel import Trust
from autopoiesis_lib.protocol.envelope import Envelope, first_problem
from autopoiesis_lib.protocol.files import MAX_CERTIFICATE_BYTES
from autopoiesis_lib.protocol.statement import StatementError, envelope_of, predicate_of
from autopoiesis_lib.registry import contract_named

__all__ = ["PolicyRefusedError", "Proof", "certified"]


class PolicyRefusedError(AutopoiesisError):
    """Error for a policy that may not run here.

    The message says why and what to do; the policy that ran before keeps running.
    """


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class _Judged(_Value):
    name: str
    verdict: str


class Proof(_Value):
    """The parts of a certificate that an engine uses.

    The signature covers the whole certificate, also the parts left out here.
    """

    format: Literal[2]
    contract: str
    contract_digest: str
    contract_parameters: Mapping[str, int | bool]
    policy_digest: str
    policy_source: str
    verdict: Literal["PROVED"]
    bounds: Mapping[str, int]
    obligations: tuple[_Judged, ...]
    gates: tuple[_Judged, ...]
    single_solver: tuple[str, ...]
    versions: Mapping[str, str]

    @classmethod
    def of(cls, payload: bytes) -> "Proof":
        """Read the statement in a certificate.

        Raises:
            PolicyRefusedError: it is not a certificate.
        """
        try:
            return cls.model_validate(predicate_of(payload))
        except ValidationError as error:
            raise PolicyRefusedError(
                f"not a certificate: {first_problem(error)}; make one with `autopoiesis verify`"
            ) from None
        except StatementError as error:
            raise PolicyRefusedError(f"not a certificate: {error}") from None


def certified(
    source: str,
    certificate: str | bytes,
    contract: str,
    *,
    allow_unsigned: bool = False,
    allow_single_solver: bool = False,
    keys: Path | None = None,
    parameters: Mapping[str, int | bool] | None = None,
) -> tuple[Policy, Proof]:
    """Return a policy that is proved for a contract, with its proof.

    The proof is a certificate that a trusted key signed. With `allow_unsigned`, an unsigned policy goes through every
    gate here, in a separate process, for the contract's own parameters and those given. The content of its own
    certificate is then ignored.

    Raises:
        PolicyRefusedError: a check fails; one line says what is wrong and what to do.
    """
    data = certificate.encode() if isinstance(certificate, str) else certificate
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise PolicyRefusedError(
            f"not a certificate: it has {len(data)} bytes; at most {MAX_CERTIFICATE_BYTES} are read"
        )
    envelope = envelope_of(data)
    if allow_unsigned and not envelope.signed:
        proof = Proof.of(_proved_here(source, contract, parameters or {}))
    else:
        proof = _vouched_for(envelope, keys)
    name = proof.policy_digest[:12]
    if proof.contract != contract:
        raise PolicyRefusedError(f"policy {name} is for the contract {proof.contract}; this engine runs {contract}")
    if source != proof.policy_source:
        raise PolicyRefusedError(
            f"policy {name}: the text is not the certified one, comments included; publish it with its own certificate"
        )
    try:
        policy = bound_policy(proof, contract_of(contract, tuple(sorted(proof.contract_parameters.items()))), source)
    except CertificateError as error:
        raise PolicyRefusedError(f"policy {name}: {error}") from None
    except AutopoiesisError as error:
        raise PolicyRefusedError(str(error)) from None
    made_by, here = proof.versions.get("autopoiesis-lib", "unknown"), installed_version()
    if made_by != here:
        raise PolicyRefusedError(
            f"policy {name} was certified by autopoiesis-lib {made_by}; here is {here}: verify it again"
        )
    if proof.single_solver and not allow_single_solver:
        raise PolicyRefusedError(
            f"policy {name}: only one solver proved `{proof.single_solver[0]}`; allow_single_solver accepts that"
        )
    return policy, proof


def _vouched_for(envelope: Envelope, keys: Path | None) -> Proof:
    """Return the proof in an envelope that a trusted key signed.

    The bytes are parsed only after the signature is verified.
    """
    try:
        Trust(keys).check(envelope, "its certificate")
    except AutopoiesisError as error:
        raise PolicyRefusedError(f"the policy is refused: {error}") from None
    return Proof.of(envelope.payload)


def _proved_here(source: str, contract: str, parameters: Mapping[str, int | bool]) -> bytes:
    """Return the statement of a certificate that all gates make here and now.

    An unsigned certificate file is ignored.
    """
    from autopoiesis_lib.sandbox import verify_isolated

    try:
        return verify_isolated(source, contract, parameters)
    except AutopoiesisError as error:
        raise PolicyRefusedError(
            f"the policy is refused: it is not signed, and it is not proved here: {error}"
        ) from None


@cache
def contract_of(name: str, parameters: tuple[tuple[str, int | bool], ...] = ()) -> Contract:
    """Return a contract with its parameters, cached.

    Reading a contract takes longer than all the checks made with it. The cache is safe because a contract is a value.
    """
    return contract_named(name, **dict(parameters))


@cache
def installed_version() -> str:
    """Return the version of this library at the first call.

    It is the version of the running code, whatever is installed later.
    """
    try:
        return version("autopoiesis-lib")
    except PackageNotFoundError:
        return "unknown"
