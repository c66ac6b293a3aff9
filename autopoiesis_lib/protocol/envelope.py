"""Signed envelopes: the shipped bytes are the signed bytes, and they are parsed after the check.

The format is DSSE (Dead Simple Signing Envelope), as in-toto and sigstore use it, with Ed25519 keys. An envelope
without a signature is well-formed; its reader decides whether to accept it.

    envelope = seal(payload, NOTICE, key)
    envelope = Envelope.parse(read_bounded(path, MAX_NOTICE_BYTES), NOTICE)
    key_id = envelope.signed_by(trusted_keys("keys"))
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import AutopoiesisError
from .keys import SigningKey, Tampered, UnknownKey, Unsigned, raw_public
from .text import printable

if TYPE_CHECKING:
    from securesystemslib.dsse import Envelope as Dsse

__all__ = ["CERTIFICATE", "LOG_HEAD", "NOTICE", "STANDING_ORDERS", "Envelope", "EnvelopeError", "first_problem", "seal"]

CERTIFICATE: Final = "application/vnd.in-toto+json"
"""Payload type of a certificate, which is an in-toto statement."""
NOTICE: Final = "application/vnd.autopoiesis.notice+json"
STANDING_ORDERS: Final = "application/vnd.autopoiesis.standing-orders+json"
LOG_HEAD: Final = "application/vnd.autopoiesis.log-head+json"

MAX_PARTS: Final = 64
"""Greatest number of commas in an envelope: it has at most eight signatures, and its base64 payload has no comma.

JSON with more parts takes the interpreter a third of a second per megabyte, in which an engine takes no step.
"""

Short = Annotated[str, Field(max_length=256)]


class EnvelopeError(AutopoiesisError):
    """Foreign bytes that are no envelope of the expected payload type, or whose payload does not match it."""


class _Signature(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    keyid: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
    sig: Short


class _Envelope(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    payload: str
    payloadType: Short  # noqa: N815 (the name is DSSE's)
    signatures: Annotated[list[_Signature], Field(max_length=8)]


@dataclass(frozen=True)
class Envelope:
    """A payload, its type, and the signatures over both."""

    payload: bytes
    payload_type: str
    signatures: Mapping[str, bytes]
    """Map from a key id to an Ed25519 signature."""

    @classmethod
    def parse(cls, data: bytes, payload_type: str) -> "Envelope":
        """Read an envelope; its payload and its signatures are not checked yet.

        Raises:
            EnvelopeError: the bytes are no envelope, or one of another payload type.
        """
        if data.count(b",") > MAX_PARTS:
            raise EnvelopeError("not a signed envelope: it has too many parts")
        try:
            found = _Envelope.model_validate_json(data)
            payload = base64.b64decode(found.payload, validate=True)
            signatures = {item.keyid: base64.b64decode(item.sig, validate=True) for item in found.signatures}
        except ValidationError as error:
            raise EnvelopeError(f"not a signed envelope: {first_problem(error)}") from None
        except (binascii.Error, ValueError):
            raise EnvelopeError("not a signed envelope: its content is not base64") from None
        if found.payloadType != payload_type:
            raise EnvelopeError(
                f"an envelope of type `{printable(found.payloadType)}` where `{payload_type}` is expected"
            )
        return cls(payload, found.payloadType, signatures)

    def to_bytes(self) -> bytes:
        """Return the envelope as JSON."""
        return (
            _Envelope(
                payload=base64.b64encode(self.payload).decode("ascii"),
                payloadType=self.payload_type,
                signatures=[
                    _Signature(keyid=key_id, sig=base64.b64encode(value).decode("ascii"))
                    for key_id, value in self.signatures.items()
                ],
            )
            .model_dump_json()
            .encode()
            + b"\n"
        )

    @property
    def signed(self) -> bool:
        """True when there is a signature, right or wrong."""
        return bool(self.signatures)

    def signed_by(self, trusted: Mapping[str, Ed25519PublicKey], what: str = "the envelope") -> str:
        """Return the id of a trusted key that signed exactly this payload.

        Args:
            trusted: map from a key id to a public key.
            what: the subject of an error message, such as "the certificate of policy 0123".

        Raises:
            Unsigned: there is no signature.
            UnknownKey: no signature is by a trusted key.
            Tampered: a signature names a trusted key but is not of this payload.
        """
        from securesystemslib.exceptions import VerificationError
        from securesystemslib.signer import SSlibKey

        if not self.signatures:
            raise Unsigned(f"{what} is not signed; sign it with a trusted key, or start with allow_unsigned")
        known = [key_id for key_id in self.signatures if key_id in trusted]
        if not known:
            mine = ", ".join(sorted(key_id[:12] for key_id in trusted)) or "none"
            raise UnknownKey(
                f"{what} is signed with the unknown key {min(self.signatures)[:12]}, which is not trusted here "
                f"(trusted: {mine}); add its .pub file to the trusted keys, or sign with a trusted key"
            )
        keys = [
            SSlibKey(key_id, "ed25519", "ed25519", {"public": raw_public(trusted[key_id]).hex()}) for key_id in known
        ]
        try:
            accepted: Mapping[str, object] = self._dsse().verify(list(keys), 1)
        except VerificationError:
            raise Tampered(
                f"{what} was changed after it was signed with key {known[0][:12]}; make it and sign it again"
            ) from None
        return next(iter(accepted))

    def _dsse(self) -> "Dsse":
        from securesystemslib.dsse import Envelope as Dsse
        from securesystemslib.signer import Signature

        return Dsse(
            self.payload,
            self.payload_type,
            {key_id: Signature(key_id, value.hex()) for key_id, value in self.signatures.items()},
        )


def seal(payload: bytes, payload_type: str, key: SigningKey | None = None) -> Envelope:
    """Return an envelope around a payload, signed with a key if one is given."""
    if key is None:
        return Envelope(payload, payload_type, {})
    from securesystemslib.dsse import Envelope as Dsse
    from securesystemslib.signer import CryptoSigner, SSlibKey

    public = SSlibKey(key.key_id, "ed25519", "ed25519", {"public": raw_public(key.private.public_key()).hex()})
    signature = Dsse(payload, payload_type, {}).sign(CryptoSigner(key.private, public))
    return Envelope(payload, payload_type, {key.key_id: bytes.fromhex(signature.signature)})


def first_problem(error: ValidationError) -> str:
    """Return the first problem of a validation on one printable line: its place, and the problem."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"][:6])
    return printable(f"{where}: {first['msg']}" if where else first["msg"])[:300]
