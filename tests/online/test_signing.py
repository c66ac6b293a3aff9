"""Claims about signing: who may vouch for a policy, and what a reader refuses."""

import json
from pathlib import Path

import pytest
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Certificate, Policy, verify
from autopoiesis_lib.protocol.keys import (
    SigningError,
    Tampered,
    UnknownKey,
    Unsigned,
    check_signature,
    list_keys,
    load_key,
    new_key,
    sign,
    trusted_keys,
)


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    return verify(Policy.from_source(BASELINES["shortest-prompt-aging"], RequestOrdering()))


def test_a_signed_certificate_survives_the_file_and_is_trusted(certificate: Certificate, tmp_path: Path) -> None:
    made = new_key(tmp_path / "keys", "fleet")
    sign(certificate, load_key(tmp_path / "keys", "fleet")).write(tmp_path / "certificate.json")
    read = Certificate.read(tmp_path / "certificate.json")
    assert check_signature(read, trusted_keys(tmp_path / "keys")) == made.key_id
    assert read.check_binding(RequestOrdering()).digest == certificate.policy_digest


def test_the_private_key_is_its_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    made = new_key(tmp_path, "fleet")
    secret = tmp_path / "fleet.key"
    before = secret.read_bytes()
    assert secret.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SigningError, match="already"):
        new_key(tmp_path, "fleet")
    assert secret.read_bytes() == before
    assert [(key.name, key.key_id, key.can_sign) for key in list_keys(tmp_path)] == [("fleet", made.key_id, True)]


def test_a_public_key_alone_is_not_overwritten_by_a_new_pair(tmp_path: Path) -> None:
    new_key(tmp_path, "fleet")
    (tmp_path / "fleet.key").unlink()
    public = (tmp_path / "fleet.pub").read_bytes()
    with pytest.raises(SigningError, match="already"):
        new_key(tmp_path, "fleet")
    assert (tmp_path / "fleet.pub").read_bytes() == public
    assert not (tmp_path / "fleet.key").exists()
    assert [key.can_sign for key in list_keys(tmp_path)] == [False]


def test_an_unsigned_certificate_is_refused(certificate: Certificate, tmp_path: Path) -> None:
    new_key(tmp_path, "fleet")
    with pytest.raises(Unsigned, match="not signed"):
        check_signature(certificate, trusted_keys(tmp_path))
    assert check_signature(certificate, {}, allow_unsigned=True) is None


def test_a_key_nobody_trusts_is_refused(certificate: Certificate, tmp_path: Path) -> None:
    new_key(tmp_path / "ours", "fleet")
    new_key(tmp_path / "theirs", "fleet")
    signed = sign(certificate, load_key(tmp_path / "theirs", "fleet"))
    with pytest.raises(UnknownKey, match="unknown key"):
        check_signature(signed, trusted_keys(tmp_path / "ours"), allow_unsigned=True)


def test_a_key_id_borrowed_from_a_trusted_key_does_not_help(certificate: Certificate, tmp_path: Path) -> None:
    ours = new_key(tmp_path / "ours", "fleet")
    new_key(tmp_path / "theirs", "fleet")
    signed = sign(certificate, load_key(tmp_path / "theirs", "fleet"))
    assert signed.signature is not None
    posing = signed.model_copy(update={"signature": signed.signature.model_copy(update={"key_id": ours.key_id})})
    with pytest.raises(Tampered):
        check_signature(posing, trusted_keys(tmp_path / "ours"))


@pytest.mark.parametrize(
    "change",
    [
        {"policy_source": BASELINES["fcfs"]},
        {"claims": ["it never waits"]},
        {"bounds": {"ages": 1}},
        {"created": "2000-01-01T00:00:00+00:00"},
    ],
)
def test_any_change_after_signing_is_noticed(
    certificate: Certificate, tmp_path: Path, change: dict[str, object]
) -> None:
    new_key(tmp_path, "fleet")
    signed = sign(certificate, load_key(tmp_path, "fleet"))
    body = json.loads(signed.model_dump_json()) | change
    changed = Certificate.model_validate_json(json.dumps(body))
    with pytest.raises(Tampered, match="changed after it was signed"):
        check_signature(changed, trusted_keys(tmp_path))


def test_a_signature_that_is_not_base64_is_refused(certificate: Certificate, tmp_path: Path) -> None:
    new_key(tmp_path, "fleet")
    signed = sign(certificate, load_key(tmp_path, "fleet"))
    assert signed.signature is not None
    broken = signed.model_copy(update={"signature": signed.signature.model_copy(update={"value": "not a signature"})})
    with pytest.raises(Tampered):
        check_signature(broken, trusted_keys(tmp_path))


def test_a_key_others_can_read_is_not_used(tmp_path: Path) -> None:
    new_key(tmp_path, "fleet")
    (tmp_path / "fleet.key").chmod(0o644)
    with pytest.raises(SigningError, match="chmod 600"):
        load_key(tmp_path, "fleet")


@pytest.mark.parametrize("name", ["", "../fleet", ".hidden", "a" * 65, "a/b"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SigningError, match="not a key name"):
        new_key(tmp_path, name)


def test_rubbish_among_the_trusted_keys_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.pub").write_text("hello")
    with pytest.raises(SigningError, match=r"odd\.pub"):
        trusted_keys(tmp_path)
    with pytest.raises(SigningError, match="no folder"):
        trusted_keys(tmp_path / "missing")


def test_the_secret_does_not_show_in_the_repr(tmp_path: Path) -> None:
    new_key(tmp_path, "fleet")
    key = load_key(tmp_path, "fleet")
    assert "private" not in repr(key)
