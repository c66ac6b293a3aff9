"""Signing keys: the right to put a policy into an engine.

A deployment has a folder of keys. `NAME.key` is a private Ed25519 key (PKCS#8 PEM, readable by its owner alone) and
stays with the controller. `NAME.pub` is its public half (PEM) and is all an engine needs. A key is known by its id, the
SHA-256 of the 32 raw public bytes, so a renamed file is still the same key.

    new_key("keys", "fleet")
    envelope = seal(payload, NOTICE, load_key("keys", "fleet"))
    envelope.signed_by(trusted_keys("keys"))
"""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from ..errors import AutopoiesisError
from .files import MAX_KEY_BYTES, FileRefusedError, read_bounded

__all__ = [
    "KeyInfo",
    "SignatureRefused",
    "SigningError",
    "SigningKey",
    "Tampered",
    "UnknownKey",
    "Unsigned",
    "key_id",
    "list_keys",
    "load_key",
    "new_key",
    "raw_public",
    "trusted_keys",
]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class SigningError(AutopoiesisError):
    """A key that cannot be made, read or used."""


class SignatureRefused(SigningError):
    """A file that no trusted key signed; nothing may run because of it."""


class Unsigned(SignatureRefused):
    """A file without a signature."""


class UnknownKey(SignatureRefused):
    """A file that is signed with a key that is not among the trusted ones."""


class Tampered(SignatureRefused):
    """A file that was changed after it was signed, or whose signature is invalid."""


@dataclass(frozen=True, kw_only=True)
class KeyInfo:
    """A key in a listing, without its secret."""

    name: str
    key_id: str
    """SHA-256 of the raw public key, in hex."""
    can_sign: bool
    """True when the private half is in the folder too."""


@dataclass(frozen=True, kw_only=True)
class SigningKey:
    """A private key in memory; no repr shows the secret."""

    name: str
    key_id: str
    private: Ed25519PrivateKey = field(repr=False)


def new_key(folder: str | Path, name: str) -> KeyInfo:
    """Create a key pair: `NAME.key` with mode 0600 and `NAME.pub`. Existing files are never overwritten.

    Raises:
        SigningError: the name is unusable or taken, or the folder cannot be written.
    """
    if not NAME.fullmatch(name):
        raise SigningError(f"{name!r} is not a key name; use letters, digits, '-', '_' and '.', at most 64 of them")
    root = Path(folder)
    private = Ed25519PrivateKey.generate()
    secret, public = root / f"{name}.key", root / f"{name}.pub"
    try:
        root.mkdir(parents=True, exist_ok=True)
        if public.exists():
            raise FileExistsError
        _create(secret, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
        try:
            _create(public, private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644)
        except BaseException:
            secret.unlink()
            raise
    except FileExistsError:
        raise SigningError(f"there is a key {name!r} in {root} already; choose another name, or move it away") from None
    except OSError as error:
        raise SigningError(f"no key can be written to {root}: {error.strerror or error}") from None
    return KeyInfo(name=name, key_id=key_id(private.public_key()), can_sign=True)


def list_keys(folder: str | Path) -> tuple[KeyInfo, ...]:
    """Return the public keys of a folder by name, and whether each can sign here; empty when there is no such folder.

    Raises:
        SigningError: a `.pub` file is not an Ed25519 public key.
    """
    root = Path(folder)
    return tuple(
        KeyInfo(name=path.stem, key_id=key_id(_read_public(path)), can_sign=path.with_suffix(".key").is_file())
        for path in sorted(root.glob("*.pub"))
    )


def load_key(folder: str | Path, name: str) -> SigningKey:
    """Return the private key `NAME.key` of a folder.

    Raises:
        SigningError: it is missing, readable by others than its owner, or no Ed25519 private key.
    """
    path = Path(folder) / f"{name}.key"
    try:
        mode = path.stat().st_mode
        if mode & 0o077:
            raise SigningError(f"{path} is readable by others than its owner; run `chmod 600` on it")
        private = load_pem_private_key(read_bounded(path, MAX_KEY_BYTES, follow_links=True), password=None)
    except FileRefusedError as error:
        raise SigningError(f"the key {error}; make one with `autopoiesis keys new {name}`") from None
    except OSError as error:
        raise SigningError(
            f"the key {path} cannot be read: {error.strerror or error}; make one with `autopoiesis keys new {name}`"
        ) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise SigningError(f"{path} is not a private key in PEM without a password") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise SigningError(f"{path} is not an Ed25519 key; make one with `autopoiesis keys new`")
    return SigningKey(name=name, key_id=key_id(private.public_key()), private=private)


def trusted_keys(folder: str | Path) -> Mapping[str, Ed25519PublicKey]:
    """Return a map from a key id to the public key for every `*.pub` in a folder.

    Raises:
        SigningError: there is no such folder, or a file in it is not an Ed25519 public key.
    """
    root = Path(folder)
    if not root.is_dir():
        raise SigningError(f"there is no folder of trusted keys at {root}; make a key with `autopoiesis keys new`")
    keys = [_read_public(path) for path in sorted(root.glob("*.pub"))]
    return {key_id(key): key for key in keys}


def key_id(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 of the 32 raw bytes of a public key, in hex: its name in certificates."""
    return hashlib.sha256(raw_public(key)).hexdigest()


def raw_public(key: Ed25519PublicKey) -> bytes:
    """Return the 32 raw bytes of a public key."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def _read_public(path: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(read_bounded(path, MAX_KEY_BYTES, follow_links=True))
    except FileRefusedError as error:
        raise SigningError(f"the public key {error}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise SigningError(f"{path} is not a public key in PEM; take it out of the folder of trusted keys") from None
    if not isinstance(key, Ed25519PublicKey):
        raise SigningError(f"{path} is not an Ed25519 public key; take it out of the folder of trusted keys")
    return key


def _create(path: Path, content: bytes, mode: int) -> None:
    """Write a file that must not exist, with its final mode from the first byte on."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink()
        raise
