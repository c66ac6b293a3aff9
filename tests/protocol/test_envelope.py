"""Envelopes and keys: who may vouch for a payload, and what a reader refuses."""

import base64
import json
from pathlib import Path

import pytest
from securesystemslib.dsse import Envelope as Dsse
from securesystemslib.signer import SSlibKey

from autopoiesis_lib.protocol.envelope import CERTIFICATE, NOTICE, Envelope, EnvelopeError, seal
from autopoiesis_lib.protocol.keys import (
    SigningError,
    SigningKey,
    Tampered,
    UnknownKey,
    Unsigned,
    list_keys,
    load_key,
    new_key,
    raw_public,
    trusted_keys,
)

PAYLOAD = b'{"hello": "engine"}'


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    new_key(tmp_path / "keys", "fleet")
    return load_key(tmp_path / "keys", "fleet")


@pytest.fixture
def stranger(tmp_path: Path) -> SigningKey:
    new_key(tmp_path / "theirs", "fleet")
    return load_key(tmp_path / "theirs", "fleet")


class TestSignatures:
    def test_a_sealed_payload_comes_back_byte_for_byte(self, key: SigningKey, tmp_path: Path) -> None:
        read = Envelope.parse(seal(PAYLOAD, NOTICE, key).to_bytes(), NOTICE)
        assert read.payload == PAYLOAD
        assert read.signed_by(trusted_keys(tmp_path / "keys")) == key.key_id

    def test_other_tools_for_dsse_read_it(self, key: SigningKey) -> None:
        found = Dsse.from_dict(json.loads(seal(PAYLOAD, CERTIFICATE, key).to_bytes()))
        public = SSlibKey(key.key_id, "ed25519", "ed25519", {"public": raw_public(key.private.public_key()).hex()})
        assert found.payload == PAYLOAD and list(found.verify([public], 1)) == [key.key_id]

    def test_without_a_signature_it_is_unsigned(self, key: SigningKey, tmp_path: Path) -> None:
        with pytest.raises(Unsigned, match="not signed"):
            seal(PAYLOAD, NOTICE).signed_by(trusted_keys(tmp_path / "keys"))

    @pytest.mark.parametrize("part", [b"1,", b'"":{},', b'{"a":[1,2]},', b"[],"])
    def test_json_of_many_parts_is_refused_before_it_is_parsed(self, part: bytes) -> None:
        with pytest.raises(EnvelopeError, match="too many parts"):
            Envelope.parse(b"[" + part * 100_000 + b"1]", NOTICE)

    def test_as_many_signatures_as_are_allowed_are_read(self, key: SigningKey) -> None:
        value = next(iter(seal(PAYLOAD, NOTICE, key).signatures.values()))
        many = Envelope(PAYLOAD, NOTICE, {f"{number:064x}": value for number in range(8)})
        assert Envelope.parse(json.dumps(json.loads(many.to_bytes()), indent=2).encode(), NOTICE) == many

    def test_a_key_nobody_trusts_is_refused(self, key: SigningKey, stranger: SigningKey, tmp_path: Path) -> None:
        with pytest.raises(UnknownKey, match="unknown key"):
            seal(PAYLOAD, NOTICE, stranger).signed_by(trusted_keys(tmp_path / "keys"))

    def test_a_borrowed_key_id_does_not_help(self, key: SigningKey, stranger: SigningKey, tmp_path: Path) -> None:
        (value,) = seal(PAYLOAD, NOTICE, stranger).signatures.values()
        with pytest.raises(Tampered):
            Envelope(PAYLOAD, NOTICE, {key.key_id: value}).signed_by(trusted_keys(tmp_path / "keys"))

    @pytest.mark.parametrize("position", [0, 5, len(PAYLOAD) - 1])
    def test_any_change_of_the_payload_is_noticed(self, key: SigningKey, tmp_path: Path, position: int) -> None:
        changed = bytearray(PAYLOAD)
        changed[position] ^= 1
        envelope = Envelope(bytes(changed), NOTICE, seal(PAYLOAD, NOTICE, key).signatures)
        with pytest.raises(Tampered, match="changed after it was signed"):
            envelope.signed_by(trusted_keys(tmp_path / "keys"))

    def test_a_payload_cannot_pass_for_another_type(self, key: SigningKey, tmp_path: Path) -> None:
        moved = Envelope(PAYLOAD, CERTIFICATE, seal(PAYLOAD, NOTICE, key).signatures)
        with pytest.raises(Tampered):
            moved.signed_by(trusted_keys(tmp_path / "keys"))
        with pytest.raises(EnvelopeError, match="is expected"):
            Envelope.parse(seal(PAYLOAD, NOTICE, key).to_bytes(), CERTIFICATE)

    def test_one_trusted_signature_among_others_is_enough(
        self, key: SigningKey, stranger: SigningKey, tmp_path: Path
    ) -> None:
        both = {**seal(PAYLOAD, NOTICE, stranger).signatures, **seal(PAYLOAD, NOTICE, key).signatures}
        assert Envelope(PAYLOAD, NOTICE, both).signed_by(trusted_keys(tmp_path / "keys")) == key.key_id


class TestParsing:
    @pytest.mark.parametrize(
        "data",
        [
            b"", b"{}", b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"payload":' * 5_000, b"1" * 100_000,
            b'{"payload": "!", "payloadType": "x", "signatures": []}',
            b'{"payload": 1, "payloadType": "x", "signatures": []}',
            b'{"payload": "", "payloadType": "x", "signatures": [], "more": 1}',
            b'{"payload": "", "payloadType": "x", "signatures": [{"keyid": "..", "sig": ""}]}',
            b'{"payload": "", "payloadType": "x", "signatures": ' + b"[" + b",".join([b"{}"] * 1_000) + b"]}",
        ],
        ids=lambda data: data[:30].decode("ascii", "replace"),
    )  # fmt: skip
    def test_other_bytes_are_no_envelope(self, data: bytes) -> None:
        with pytest.raises(EnvelopeError) as refused:
            Envelope.parse(data, NOTICE)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 500

    def test_a_hidden_character_of_a_type_is_shown_escaped(self) -> None:
        data = {"payload": base64.b64encode(PAYLOAD).decode(), "payloadType": "\x1b[2J\u202e", "signatures": []}
        with pytest.raises(EnvelopeError, match=r"\\x1b\[2J\\u202e"):
            Envelope.parse(json.dumps(data).encode(), NOTICE)


class TestKeys:
    def test_the_private_key_is_its_owners_alone_and_never_overwritten(self, tmp_path: Path) -> None:
        made = new_key(tmp_path, "fleet")
        secret = tmp_path / "fleet.key"
        before = secret.read_bytes()
        assert secret.stat().st_mode & 0o777 == 0o600
        with pytest.raises(SigningError, match="already"):
            new_key(tmp_path, "fleet")
        assert secret.read_bytes() == before
        assert [(key.name, key.key_id, key.can_sign) for key in list_keys(tmp_path)] == [("fleet", made.key_id, True)]

    def test_a_public_key_alone_is_not_overwritten_by_a_new_pair(self, tmp_path: Path) -> None:
        new_key(tmp_path, "fleet")
        (tmp_path / "fleet.key").unlink()
        public = (tmp_path / "fleet.pub").read_bytes()
        with pytest.raises(SigningError, match="already"):
            new_key(tmp_path, "fleet")
        assert (tmp_path / "fleet.pub").read_bytes() == public
        assert not (tmp_path / "fleet.key").exists()
        assert [key.can_sign for key in list_keys(tmp_path)] == [False]

    def test_one_that_others_can_read_is_not_used(self, tmp_path: Path) -> None:
        new_key(tmp_path, "fleet")
        (tmp_path / "fleet.key").chmod(0o644)
        with pytest.raises(SigningError, match="chmod 600"):
            load_key(tmp_path, "fleet")

    @pytest.mark.parametrize("name", ["", "../fleet", ".hidden", "a" * 65, "a/b"])
    def test_names_that_leave_the_folder_are_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(SigningError, match="not a key name"):
            new_key(tmp_path, name)

    @pytest.mark.parametrize("content", [b"hello", b"x" * 10_000, b""])
    def test_rubbish_among_the_trusted_keys_is_named(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "odd.pub").write_bytes(content)
        with pytest.raises(SigningError, match=r"odd\.pub"):
            trusted_keys(tmp_path)
        with pytest.raises(SigningError, match="no folder"):
            trusted_keys(tmp_path / "missing")

    def test_the_secret_does_not_show_in_the_repr(self, key: SigningKey) -> None:
        assert "private" not in repr(key)
