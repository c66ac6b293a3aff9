"""A certificate as an engine reads it: what it says, who signed it, and whether it is about this policy and contract.

An engine proves nothing, so it needs neither the solvers nor the gates that come with `autopoiesis_lib.certificate`, and
does not spend a second on importing them when the first policy arrives. What ties it to its policy is `bound_policy`, as
for `Certificate`.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from autopoiesis_lib.binding import CertificateError, bound_policy
from autopoiesis_lib.contract import Contract
from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.policy import Policy
from autopoiesis_lib.registry import contract_named
from autopoiesis_lib.protocol.keys import check_signature, trusted_keys

__all__ = ["PolicyRefusedError", "Proof", "certified"]


class PolicyRefusedError(AutopoiesisError):
    """A policy may not run here. The message says why and what to do; what ran before goes on running."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class _Judged(_Value):
    name: str
    verdict: str


class _Signature(_Value):
    algorithm: Literal["ed25519"]
    key_id: str
    value: str


class Proof(_Value):
    """The parts of a certificate that an engine goes by; its signature covers all of it, those or not."""

    format: Literal[1]
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
    signature: _Signature | None
    _body: dict[str, Any] = PrivateAttr(default_factory=dict)

    @classmethod
    def from_text(cls, text: str) -> "Proof":
        """Read a certificate's JSON.

        Raises:
            PolicyRefusedError: it is not a certificate.
        """
        try:
            body = json.loads(text)
            proof = cls.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the text"
            raise PolicyRefusedError(
                f"not a certificate: {where}: {first['msg']}; make one with `autopoiesis verify`"
            ) from None
        except (ValueError, RecursionError) as error:
            raise PolicyRefusedError(
                f"not a certificate: the text: {error or 'it is nested too deep'}; make one with `autopoiesis verify`"
            ) from None
        proof._body = body
        return proof

    def signed_bytes(self) -> bytes:
        """What a signature covers: everything in the file but the signature, as canonical JSON."""
        body = {name: value for name, value in self._body.items() if name != "signature"}
        return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def certified(
    source: str,
    certificate: str,
    contract: str,
    *,
    allow_unsigned: bool = False,
    allow_single_solver: bool = False,
    keys: Path | None = None,
) -> tuple[Policy, Proof]:
    """A policy text that its certificate is about, for a contract by name, with the certificate.

    Raises:
        PolicyRefusedError: anything at all is wrong with it; one line, what and what to do.
    """
    proof = Proof.from_text(certificate)
    name = proof.policy_digest[:12]
    if proof.contract != contract:
        raise PolicyRefusedError(f"policy {name} is for the contract {proof.contract}; this engine runs {contract}")
    try:
        check_signature(proof, trusted_keys(keys) if keys is not None else {}, allow_unsigned=allow_unsigned)
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


@cache
def contract_of(name: str, parameters: tuple[tuple[str, int | bool], ...] = ()) -> Contract:
    """A contract with its parameters. Reading one takes longer than all the checks made with it, and it is a value."""
    return contract_named(name, **dict(parameters))


@cache
def installed_version() -> str:
    """The version of this library when it was first asked for: that of the code that runs, whatever is installed later."""
    try:
        return version("autopoiesis-lib")
    except PackageNotFoundError:
        return "unknown"
