"""What an engine refuses to run: each refusal is one clear line, and no policy comes of it."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from autopoiesis_adapters.loading import PolicyRefusedError, load_ordering
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from autopoiesis_lib import Policy
from autopoiesis_lib.certificate import Certificate, Signature, verify
from autopoiesis_lib.signing import key_id

SOURCE = BASELINES["shortest-prompt-aging"]


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    return verify(Policy.from_source(SOURCE, RequestOrdering()))


@pytest.fixture
def key(tmp_path: Path) -> Ed25519PrivateKey:
    """A deployment key whose public half is trusted in `tmp_path / "trusted"`."""
    key = Ed25519PrivateKey.generate()
    (tmp_path / "trusted").mkdir()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "trusted" / "deployment.pub").write_bytes(public)
    return key


def signed(certificate: Certificate, key: Ed25519PrivateKey) -> Certificate:
    value = base64.b64encode(key.sign(certificate.signed_bytes())).decode()
    return certificate.model_copy(update={"signature": Signature(key_id=key_id(key.public_key()), value=value)})


def changed(certificate: Certificate, **fields: Any) -> str:
    return json.dumps({**json.loads(certificate.model_dump_json()), **fields})


def refusal(source: str, certificate: str, **rules: Any) -> str:
    with pytest.raises(PolicyRefusedError) as caught:
        load_ordering(source, certificate, **rules)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 250
    return line


def test_a_certified_policy_loads_with_its_bound_and_the_fields_it_reads(certificate: Certificate) -> None:
    policy = load_ordering(SOURCE, certificate.model_dump_json(), allow_unsigned=True, allow_single_solver=True)
    assert policy.digest == certificate.policy_digest
    assert policy.aging_us == certificate.bounds["ages"] == 81_910_000  # 8,191 tokens at 10 ms each
    assert policy.reads == {"waited_us", "num_prompt_tokens"}


def test_an_unsigned_certificate_needs_permission(certificate: Certificate) -> None:
    assert "is not signed" in refusal(SOURCE, certificate.model_dump_json(), allow_single_solver=True)


def test_a_certificate_signed_by_the_deployments_key_loads(
    certificate: Certificate, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    text = signed(certificate, key).model_dump_json()
    assert (
        load_ordering(SOURCE, text, keys=tmp_path / "trusted", allow_single_solver=True).digest
        == certificate.policy_digest
    )


def test_a_strangers_signature_is_refused_even_when_unsigned_ones_are_allowed(
    certificate: Certificate, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    text = signed(certificate, Ed25519PrivateKey.generate()).model_dump_json()
    assert "not trusted here" in refusal(SOURCE, text, keys=tmp_path / "trusted", allow_unsigned=True)


@pytest.mark.parametrize("value", ["AAAA", "not base64!", base64.b64encode(bytes(64)).decode()])
def test_a_wrong_signature_is_refused(
    certificate: Certificate, key: Ed25519PrivateKey, tmp_path: Path, value: str
) -> None:
    wrong = certificate.model_copy(update={"signature": Signature(key_id=key_id(key.public_key()), value=value)})
    assert "changed after it was signed" in refusal(
        SOURCE, wrong.model_dump_json(), keys=tmp_path / "trusted", allow_unsigned=True
    )


def test_anything_changed_after_signing_is_refused(
    certificate: Certificate, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    text = changed(signed(certificate, key), bounds={"ages": 5})
    assert "changed after it was signed" in refusal(SOURCE, text, keys=tmp_path / "trusted")


def test_a_tampered_policy_text_is_refused(certificate: Certificate) -> None:
    line = refusal(SOURCE.replace("10_000", "-10_000"), certificate.model_dump_json(), allow_unsigned=True)
    assert "not the certified one" in line


def test_another_layout_of_the_same_policy_is_the_same_policy(certificate: Certificate) -> None:
    policy = load_ordering(
        "# a comment\n" + SOURCE, certificate.model_dump_json(), allow_unsigned=True, allow_single_solver=True
    )
    assert policy.digest == certificate.policy_digest


def test_a_certificate_of_a_stale_contract_is_refused(certificate: Certificate) -> None:
    line = refusal(SOURCE, changed(certificate, contract_digest="0" * 64), allow_unsigned=True)
    assert "another version of request-ordering" in line


def test_a_certificate_of_another_contract_is_refused(certificate: Certificate) -> None:
    line = refusal(SOURCE, changed(certificate, contract="admission"), allow_unsigned=True)
    assert "is for the contract admission; this engine runs request-ordering" in line


def test_a_certificate_that_is_not_all_green_is_refused(certificate: Certificate) -> None:
    body = json.loads(certificate.model_dump_json())
    body["gates"][-1]["verdict"] = "UNKNOWN"
    assert "every gate green" in refusal(SOURCE, json.dumps(body), allow_unsigned=True)
    body = json.loads(certificate.model_dump_json())
    body["obligations"] = [item for item in body["obligations"] if item["name"] != "ages"]
    assert "does not prove `ages`" in refusal(SOURCE, json.dumps(body), allow_unsigned=True)
    assert "verdict" in refusal(SOURCE, changed(certificate, verdict="REFUTED"), allow_unsigned=True)


def test_a_certificate_by_other_gate_versions_is_refused(certificate: Certificate) -> None:
    line = refusal(SOURCE, changed(certificate, versions={"autopoiesis-lib": "9.9"}), allow_unsigned=True)
    assert "certified by autopoiesis-lib 9.9" in line


def test_a_proof_by_one_solver_only_needs_permission(certificate: Certificate) -> None:
    text = changed(certificate, single_solver=["ages"])
    assert "only one solver proved `ages`" in refusal(SOURCE, text, allow_unsigned=True)


def test_a_bound_above_the_operators_limit_is_refused(certificate: Certificate) -> None:
    text = certificate.model_dump_json()
    assert "accepts up to 1000" in refusal(
        SOURCE, text, allow_unsigned=True, allow_single_solver=True, max_aging_us=1_000
    )


@pytest.mark.parametrize("keep", [0, 1, 100, 5_000])
def test_a_truncated_certificate_is_refused(certificate: Certificate, keep: int) -> None:
    assert "not a certificate" in refusal(SOURCE, certificate.model_dump_json()[:keep], allow_unsigned=True)
