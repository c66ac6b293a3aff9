"""What an engine refuses to run: each refusal is one clear line, and no policy comes of it."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from autopoiesis_adapters.loading import (
    PolicyRefusedError,
    load_admission,
    load_ordering,
    load_victims,
)
from autopoiesis_adapters.reading import Proof
from autopoiesis_contracts import admission, preemption
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from autopoiesis_lib import Policy, binding
from autopoiesis_lib.certificate import Certificate, Signature, verify
from autopoiesis_lib.gates import GATES
from autopoiesis_lib.protocol.keys import key_id

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


def test_an_engines_reader_and_the_certificate_agree_on_what_is_signed(
    certificate: Certificate, key: Ed25519PrivateKey
) -> None:
    one = signed(certificate, key)
    for text in (one.model_dump_json(), one.model_dump_json(indent=2), json.dumps(json.loads(one.model_dump_json()))):
        proof = Proof.from_text(text)
        assert proof.signed_bytes() == one.signed_bytes()
    assert GATES == binding.GATES
    assert set(Proof.model_fields) <= set(Certificate.model_fields)


def test_a_field_nobody_knows_is_not_covered_by_a_signature_and_so_is_refused(
    certificate: Certificate, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    text = changed(signed(certificate, key), remark="added later")
    assert "changed after it was signed" in refusal(SOURCE, text, keys=tmp_path / "trusted")


@pytest.mark.parametrize("text", ["[]", "null", "1", "{" * 100_000, '{"format": 1}', "[" * 100_000])
def test_what_is_no_certificate_is_refused_in_one_line(text: str) -> None:
    assert "not a certificate" in refusal(SOURCE, text, allow_unsigned=True)


def test_loading_a_policy_needs_no_solver(certificate: Certificate, tmp_path: Path) -> None:
    (tmp_path / "policy.py").write_text(SOURCE)
    (tmp_path / "certificate.json").write_text(certificate.model_dump_json())
    program = """
import sys
from pathlib import Path
from autopoiesis_adapters.loading import load_ordering
texts = [Path(name).read_text() for name in ("policy.py", "certificate.json")]
load_ordering(*texts, allow_unsigned=True, allow_single_solver=True)
print(sorted({"z3", "cvc5", "mypy", "hypothesis"} & set(sys.modules)))
"""
    answer = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def test_an_admission_policy_runs_only_where_blocks_are_as_large_as_it_was_certified_for() -> None:
    source = admission.BASELINES["conservative"]
    certificate = verify(Policy.from_source(source, admission.Admission())).model_dump_json()
    rules: dict[str, Any] = {"allow_unsigned": True, "allow_single_solver": True}
    policy = load_admission(source, certificate, block_size=16, **rules)
    request, memory = (0, 100, 0, 4, 60, 8, 0), (50, 100, 2, 1, 0)
    assert policy.reserve_blocks(*request) == 10 - 7 and policy.admit(*request, *memory) == 1
    assert policy.admit(*request, 11, 100, 2, 1, 0) == 0, "10 blocks and a watermark of 2 do not fit into 11"
    with pytest.raises(PolicyRefusedError, match="certified for blocks of 16 tokens; this engine's hold 128"):
        load_admission(source, certificate, block_size=128, **rules)
    with pytest.raises(PolicyRefusedError, match="is for the contract admission; this engine runs preemption"):
        load_victims(source, certificate, **rules)


def test_a_preemption_policy_brings_its_proved_gap() -> None:
    source = preemption.BASELINES["most-recompute-cheap"]
    certificate = verify(Policy.from_source(source, preemption.Preemption())).model_dump_json()
    policy = load_victims(source, certificate, allow_unsigned=True, allow_single_solver=True)
    assert policy.gap == 8
