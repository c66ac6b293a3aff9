"""What an engine refuses to run: each refusal is one clear line, and no policy comes of it."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from autopoiesis_adapters.loading import PolicyRefusedError, load_admission, load_ordering, load_victims
from autopoiesis_adapters.reading import Proof
from autopoiesis_contracts import admission, preemption
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Policy, binding
from autopoiesis_lib.certificate import Certificate, sign, verify
from autopoiesis_lib.gates import GATES
from autopoiesis_lib.protocol.envelope import CERTIFICATE, NOTICE, Envelope, seal
from autopoiesis_lib.protocol.keys import SigningKey, load_key, new_key
from autopoiesis_lib.protocol.statement import statement

from ..support.fleet import Fleet
from .forging import claiming, signed_claim

SOURCE = BASELINES["shortest-prompt-aging"]
BEYOND_PROOF = '''"""The longest prompts first, whoever waits."""

from autopoiesis_contracts.request_ordering import Engine, Waiting


def score(request: Waiting, engine: Engine) -> int:
    """Prompt length, and nothing of the wait."""
    return request.num_prompt_tokens
'''


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    return verify(Policy.from_source(SOURCE, RequestOrdering()))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    """A key that nobody trusts."""
    folder = tmp_path_factory.mktemp("stranger")
    new_key(folder, "stranger")
    return load_key(folder, "stranger")


def refusal(fleet: Fleet, source: str, certificate: str | bytes, **rules: Any) -> str:
    with pytest.raises(PolicyRefusedError) as caught:
        load_ordering(source, certificate, **{"keys": fleet.keys, **rules})
    line = str(caught.value)
    assert "\n" not in line and len(line) < 400
    return line


class TestSignedCertificate:
    def test_loads_with_its_bound_and_the_fields_it_reads(self, fleet: Fleet, certificate: Certificate) -> None:
        text = fleet.certificate(certificate)
        policy = load_ordering(SOURCE, text, keys=fleet.keys, allow_single_solver=True)
        assert policy.digest == certificate.policy_digest
        assert policy.aging_us == certificate.bounds["ages"] == 81_910_000  # 8,191 tokens at 10 ms each
        assert policy.reads == {"waited_us", "num_prompt_tokens"}

    def test_is_read_by_engine_and_control_plane_alike(self, fleet: Fleet, certificate: Certificate) -> None:
        payload = sign(certificate, fleet.key).payload
        proof, whole = Proof.of(payload), Certificate.of(Envelope(payload, CERTIFICATE, {}))
        assert whole == certificate
        assert proof.bounds == certificate.bounds and proof.policy_source == certificate.policy_source
        assert GATES == binding.GATES
        assert set(Proof.model_fields) <= set(Certificate.model_fields)

    @pytest.mark.parametrize("allow_unsigned", [False, True])
    def test_by_a_stranger_is_refused(
        self, fleet: Fleet, certificate: Certificate, stranger: SigningKey, allow_unsigned: bool
    ) -> None:
        text = sign(certificate, stranger).to_bytes().decode()
        assert "not trusted here" in refusal(fleet, SOURCE, text, allow_unsigned=allow_unsigned)

    @pytest.mark.parametrize("value", [b"", b"AAAA", bytes(64)])
    def test_with_a_wrong_signature_is_refused(self, fleet: Fleet, certificate: Certificate, value: bytes) -> None:
        wrong = Envelope(certificate.payload(), CERTIFICATE, {fleet.key.key_id: value}).to_bytes().decode()
        assert "changed after it was signed" in refusal(fleet, SOURCE, wrong, allow_unsigned=True)

    def test_changed_after_signing_is_refused(self, fleet: Fleet, certificate: Certificate) -> None:
        good = sign(certificate, fleet.key)
        changed = claiming(certificate, bounds={"ages": 5})
        text = Envelope(changed, CERTIFICATE, good.signatures).to_bytes().decode()
        assert "changed after it was signed" in refusal(fleet, SOURCE, text)

    def test_with_a_field_added_after_signing_is_refused(self, fleet: Fleet, certificate: Certificate) -> None:
        good = sign(certificate, fleet.key)
        changed = claiming(certificate, remark="added later")
        text = Envelope(changed, CERTIFICATE, good.signatures).to_bytes().decode()
        assert "changed after it was signed" in refusal(fleet, SOURCE, text)

    def test_a_signed_notice_is_no_certificate(self, fleet: Fleet, certificate: Certificate) -> None:
        text = seal(certificate.payload(), NOTICE, fleet.key).to_bytes().decode()
        assert "is not signed" in refusal(fleet, SOURCE, text)


class TestPolicyText:
    def test_that_was_tampered_with_is_refused(self, fleet: Fleet, certificate: Certificate) -> None:
        line = refusal(fleet, SOURCE.replace("10_000", "-10_000"), fleet.certificate(certificate))
        assert "not the certified one" in line

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: "# a comment\n" + text,
            lambda text: text + "\n",
            lambda text: text.replace("\n", "\r\n"),
            lambda text: text.replace('"""', '"""\u202e', 1),
        ],
        ids=["comment", "blank-line", "line-ends", "hidden-character"],
    )
    def test_differs_in_what_only_people_read_and_is_refused(
        self, fleet: Fleet, certificate: Certificate, change: Any
    ) -> None:
        line = refusal(fleet, change(SOURCE), fleet.certificate(certificate))
        assert "the text is not the certified one, comments included" in line


class TestUnsignedPolicy:
    def test_needs_permission(self, fleet: Fleet, certificate: Certificate) -> None:
        assert "is not signed" in refusal(fleet, SOURCE, claiming(certificate), allow_single_solver=True)

    def test_is_proved_here_and_loads(self, fleet: Fleet, certificate: Certificate) -> None:
        policy = load_ordering(SOURCE, claiming(certificate), allow_unsigned=True, allow_single_solver=True)
        assert (policy.digest, policy.aging_us) == (certificate.policy_digest, 81_910_000)

    def test_runs_with_the_bound_that_was_proved_here(self, fleet: Fleet, certificate: Certificate) -> None:
        text = claiming(certificate, bounds={"ages": 5})
        assert load_ordering(SOURCE, text, allow_unsigned=True, allow_single_solver=True).aging_us == 81_910_000

    def test_that_does_not_hold_is_refused_whatever_is_claimed(self, fleet: Fleet, certificate: Certificate) -> None:
        digest = Policy.from_source(BEYOND_PROOF, RequestOrdering()).digest
        text = claiming(certificate, policy_source=BEYOND_PROOF, policy_digest=digest)
        line = refusal(fleet, BEYOND_PROOF, text, allow_unsigned=True, allow_single_solver=True)
        assert "not signed, and it is not proved here" in line

    @pytest.mark.parametrize(
        "text", ["", "[]", "null", "{" * 100_000, '{"format": 1}', "[" * 100_000, "{" + '"":{},' * 500_000 + '"":{}}']
    )
    def test_needs_no_certificate_at_all(self, fleet: Fleet, certificate: Certificate, text: str) -> None:
        policy = load_ordering(SOURCE, text, allow_unsigned=True, allow_single_solver=True)
        assert policy.digest == certificate.policy_digest

    def test_is_proved_for_the_contracts_own_parameters(self, fleet: Fleet, certificate: Certificate) -> None:
        for told in ({f"p{number}": number for number in range(10_000)}, {"max_aging_us": 10**12}):
            text = claiming(certificate, contract_parameters=told)
            policy = load_ordering(SOURCE, text, allow_unsigned=True, allow_single_solver=True)
            assert policy.aging_us == certificate.bounds["ages"]


class TestCertificateOfSomethingElse:
    def test_of_a_stale_contract_is_refused(self, fleet: Fleet, certificate: Certificate) -> None:
        line = refusal(fleet, SOURCE, signed_claim(certificate, fleet.key, contract_digest="0" * 64))
        assert "another version of request-ordering" in line

    def test_of_another_contract_is_refused(self, fleet: Fleet, certificate: Certificate) -> None:
        line = refusal(fleet, SOURCE, signed_claim(certificate, fleet.key, contract="admission"))
        assert "is for the contract admission; this engine runs request-ordering" in line

    def test_that_is_not_all_green_is_refused(self, fleet: Fleet, certificate: Certificate) -> None:
        body = certificate.model_dump(mode="json")
        body["gates"][-1]["verdict"] = "UNKNOWN"
        assert "every gate green" in refusal(fleet, SOURCE, signed_claim(certificate, fleet.key, gates=body["gates"]))
        obligations = [item for item in body["obligations"] if item["name"] != "ages"]
        assert "does not prove `ages`" in refusal(
            fleet, SOURCE, signed_claim(certificate, fleet.key, obligations=obligations)
        )
        assert "verdict" in refusal(fleet, SOURCE, signed_claim(certificate, fleet.key, verdict="REFUTED"))

    def test_by_other_gate_versions_is_refused(self, fleet: Fleet, certificate: Certificate) -> None:
        line = refusal(fleet, SOURCE, signed_claim(certificate, fleet.key, versions={"autopoiesis-lib": "9.9"}))
        assert "certified by autopoiesis-lib 9.9" in line

    def test_by_one_solver_needs_permission(self, fleet: Fleet, certificate: Certificate) -> None:
        text = signed_claim(certificate, fleet.key, single_solver=["ages"])
        assert "only one solver proved `ages`" in refusal(fleet, SOURCE, text)

    def test_with_a_bound_above_the_operators_is_refused(self, fleet: Fleet, certificate: Certificate) -> None:
        text = fleet.certificate(certificate)
        assert "accepts up to 1000" in refusal(fleet, SOURCE, text, allow_single_solver=True, max_aging_us=1_000)


class TestWhatIsNoCertificate:
    @pytest.mark.parametrize("keep", [0, 1, 100, 5_000])
    def test_cut_off_is_refused(self, fleet: Fleet, certificate: Certificate, keep: int) -> None:
        assert "is not signed" in refusal(fleet, SOURCE, fleet.certificate(certificate)[:keep])

    @pytest.mark.parametrize("text", ["[]", "null", "1", "{" * 100_000, '{"format": 1}', "[" * 100_000, "\ud800"])
    def test_signed_by_the_fleet_is_refused_in_one_line(self, fleet: Fleet, text: str) -> None:
        payload = text.encode(errors="surrogatepass")
        sealed = seal(payload, CERTIFICATE, fleet.key).to_bytes().decode()
        assert "not a certificate" in refusal(fleet, SOURCE, sealed)

    def test_beyond_the_bound_is_refused_unread(self, fleet: Fleet) -> None:
        assert "at most 4194304 are read" in refusal(fleet, SOURCE, "[1," * 2_000_000)

    def test_about_another_text_than_it_holds_is_refused(self, fleet: Fleet, certificate: Certificate) -> None:
        text = statement("another text", "policy", certificate.model_dump(mode="json"))
        sealed = seal(text, CERTIFICATE, fleet.key).to_bytes().decode()
        assert "it is about another text than it holds" in refusal(fleet, SOURCE, sealed)

    def test_of_format_1_says_how_to_make_a_new_one(self, fleet: Fleet, certificate: Certificate) -> None:
        old = json.dumps({**certificate.model_dump(mode="json"), "format": 1}).encode()
        line = refusal(fleet, SOURCE, seal(old, CERTIFICATE, fleet.key).to_bytes().decode())
        assert "it is of format 1" in line and "autopoiesis verify" in line

    def test_with_a_payload_that_is_not_base64_is_refused(self, fleet: Fleet, certificate: Certificate) -> None:
        body = json.loads(fleet.certificate(certificate))
        body["payload"] = base64.b64encode(b"{").decode() + "%"
        assert "is not signed" in refusal(fleet, SOURCE, json.dumps(body))


def test_loading_a_policy_needs_no_solver(fleet: Fleet, certificate: Certificate, tmp_path: Path) -> None:
    (tmp_path / "policy.py").write_text(SOURCE)
    (tmp_path / "certificate.json").write_text(fleet.certificate(certificate))
    program = f"""
import sys
from pathlib import Path
from autopoiesis_adapters.loading import load_ordering
texts = [Path(name).read_text() for name in ("policy.py", "certificate.json")]
load_ordering(*texts, keys=Path({str(fleet.keys)!r}), allow_single_solver=True)
print(sorted({{"z3", "cvc5", "mypy", "hypothesis"}} & set(sys.modules)))
"""
    answer = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


class TestOtherPolicyTypes:
    def test_admission_runs_only_on_blocks_of_its_size(self, fleet: Fleet) -> None:
        source = admission.BASELINES["conservative"]
        text = fleet.certificate(verify(Policy.from_source(source, admission.Admission())))
        rules: dict[str, Any] = {"keys": fleet.keys, "allow_single_solver": True}
        policy = load_admission(source, text, block_size=16, **rules)
        request, memory = (0, 100, 0, 4, 60, 8, 0), (50, 100, 2, 1, 0)
        assert policy.reserve_blocks(*request) == 10 - 7 and policy.admit(*request, *memory) == 1
        assert policy.admit(*request, 11, 100, 2, 1, 0) == 0, "10 blocks and a watermark of 2 do not fit into 11"
        with pytest.raises(PolicyRefusedError, match="certified for blocks of 16 tokens; this engine's hold 128"):
            load_admission(source, text, block_size=128, **rules)
        with pytest.raises(PolicyRefusedError, match="is for the contract admission; this engine runs preemption"):
            load_victims(source, text, **rules)

    def test_preemption_brings_its_proved_gap(self, fleet: Fleet) -> None:
        source = preemption.BASELINES["most-recompute-cheap"]
        text = fleet.certificate(verify(Policy.from_source(source, preemption.Preemption())))
        assert load_victims(source, text, keys=fleet.keys, allow_single_solver=True).gap == 8
