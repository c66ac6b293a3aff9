"""Whose signature an engine believes: Ed25519 public keys in a directory the operator controls."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from autopoiesis_lib.certificate import Certificate
from autopoiesis_lib.errors import AutopoiesisError

__all__ = ["SignatureRefusedError", "TrustError", "check_signature", "key_id", "trusted_keys"]


class TrustError(AutopoiesisError):
    """The directory of trusted keys cannot be used."""


class SignatureRefusedError(AutopoiesisError):
    """A certificate is not signed, or not by a key trusted here, or was changed after it was signed."""


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 of the 32 raw bytes of a public key, in hex: how certificates name it."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()


def trusted_keys(directory: Path) -> dict[str, Ed25519PublicKey]:
    """The Ed25519 public keys in `directory/*.pub` (PEM), by key id.

    Raises:
        TrustError: the directory or a key in it cannot be read, or a key is of another kind.
    """
    if not directory.is_dir():
        raise TrustError(
            f"the directory of trusted keys {directory} does not exist; make a key with `autopoiesis keys new`"
        )
    keys: dict[str, Ed25519PublicKey] = {}
    for path in sorted(directory.glob("*.pub")):
        try:
            key = load_pem_public_key(path.read_bytes())
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise TrustError(f"{path} is not a public key in PEM: {error}") from None
        if not isinstance(key, Ed25519PublicKey):
            raise TrustError(f"{path} is not an Ed25519 key")
        keys[key_id(key)] = key
    return keys


def check_signature(certificate: Certificate, keys: Mapping[str, Ed25519PublicKey], *, allow_unsigned: bool) -> None:
    """Make sure a trusted key signed exactly this certificate.

    With `allow_unsigned` a certificate without a signature passes; one with a wrong signature never does.

    Raises:
        SignatureRefusedError: says what is wrong and what to do.
    """
    signature = certificate.signature
    name = certificate.policy_digest[:12]
    if signature is None:
        if allow_unsigned:
            return
        raise SignatureRefusedError(
            f"policy {name}: its certificate is not signed; sign it or start with allow_unsigned"
        )
    key = keys.get(signature.key_id)
    if key is None:
        raise SignatureRefusedError(f"policy {name}: signed by key {signature.key_id[:12]}, which is not trusted here")
    try:
        key.verify(base64.b64decode(signature.value, validate=True), certificate.signed_bytes())
    except (InvalidSignature, binascii.Error):
        raise SignatureRefusedError(
            f"policy {name}: its certificate was changed after it was signed; sign it again"
        ) from None
