"""Certificates: what they hold, that they re-prove themselves, and that any doubt refuses them."""

from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import pytest
from autopoiesis_contracts.request_ordering import RequestOrdering
from pydantic import Field

from autopoiesis_lib import Certificate, CertificateError, Contract, Policy, Rejected, View, decision, invariant, verify
from autopoiesis_lib.gates import GATES, Verdict

Text = Callable[[str], str]


@pytest.fixture(scope="module")
def certificate(contract: RequestOrdering) -> Certificate:
    return verify(Policy.from_source(contract.baselines()["shortest-prompt-aging"], contract))


def test_a_certificate_says_what_was_proved_how_and_what_not(certificate: Certificate) -> None:
    assert certificate.bounds == {"ages": 81_910_000}
    assert any("T = 81.91 s, and less is refuted" in claim for claim in certificate.claims)
    assert [theorem.name for theorem in certificate.theorems] == ["BoundedBypass"]
    assert all(lemma.verdict is Verdict.PROVED for theorem in certificate.theorems for lemma in theorem.lemmas)
    assert {gate.name for gate in certificate.gates} == set(GATES)
    assert all(item.solvers == ("z3", "cvc5") for item in certificate.obligations)
    assert certificate.not_covered and certificate.versions["z3-solver"] and certificate.signature is None


def test_it_survives_the_disk_and_binds_to_its_policy(
    certificate: Certificate, contract: RequestOrdering, tmp_path: Path
) -> None:
    certificate.write(tmp_path / "certificate.json")
    again = Certificate.read(tmp_path / "certificate.json")
    assert again == certificate and again.digest == certificate.digest
    assert again.check_binding(contract).digest == certificate.policy_digest
    assert [path.name for path in tmp_path.iterdir()] == ["certificate.json"]


def test_recheck_proves_every_obligation_from_its_text_with_both_solvers(certificate: Certificate) -> None:
    results = certificate.recheck()
    assert len(results) == len(certificate.obligations) + len(certificate.theorems[0].lemmas)
    assert all(item.verdict is Verdict.PROVED and item.solvers == ("z3", "cvc5") for item in results)


def test_recheck_refutes_a_text_that_was_weakened(certificate: Certificate) -> None:
    [*others, ages] = certificate.obligations
    assert ages.smtlib is not None
    weaker = ages.model_copy(update={"smtlib": ages.smtlib.replace("10000", "10001")})
    forged = certificate.model_copy(update={"obligations": (*others, weaker)})
    assert forged.recheck()[len(others)].verdict is Verdict.REFUTED


def test_an_obligation_without_its_text_is_unknown(certificate: Certificate) -> None:
    bare = tuple(item.model_copy(update={"smtlib": None}) for item in certificate.obligations)
    results = certificate.model_copy(update={"obligations": bare}).recheck()
    assert {item.verdict for item in results[: len(bare)]} == {Verdict.UNKNOWN}


def test_another_policy_contract_or_a_missing_proof_is_refused(
    certificate: Certificate, contract: RequestOrdering
) -> None:
    with pytest.raises(CertificateError, match="not the certified one"):
        certificate.check_binding(contract, contract.baselines()["fcfs"])
    with pytest.raises(CertificateError, match="another version of request-ordering"):
        certificate.check_binding(RequestOrdering(max_aging_us=1_000_000))
    with pytest.raises(CertificateError, match="does not prove `ages`"):
        certificate.model_copy(update={"obligations": certificate.obligations[:-1]}).check_binding(contract)
    with pytest.raises(CertificateError, match="every gate green"):
        certificate.model_copy(update={"gates": certificate.gates[:-1]}).check_binding(contract)
    with pytest.raises(CertificateError, match="cannot be read"):
        certificate.check_binding(contract, "import os")


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00\xff", b'{"format": 2}', b'{"verdict": "REFUTED"}'])
def test_a_file_that_is_no_certificate_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    path.write_bytes(content)
    with pytest.raises(CertificateError, match="is not a certificate") as raised:
        Certificate.read(path)
    assert "\n" not in str(raised.value)
    with pytest.raises(CertificateError, match="cannot be read"):
        Certificate.read(tmp_path / "missing.json")


def test_a_refuted_policy_gets_no_certificate(contract: RequestOrdering, ordering: Text) -> None:
    with pytest.raises(Rejected, match="REFUTED: proof") as raised:
        verify(Policy.from_source(ordering("-request.num_prompt_tokens"), contract))
    assert raised.value.report.counterexample is not None


def test_assumptions_a_proof_did_not_use_are_named_by_their_absence(contract: RequestOrdering) -> None:
    certificate = verify(Policy.from_source(contract.baselines()["longest-cached-prefix-aging"], contract))
    used = {item.name: item.assumptions_used for item in certificate.obligations}
    assert used["ages"] == ("cached_within_prompt",)
    assert used["score is safe"] == ()


def tolerant_of(low: int, high: int, most: int) -> Contract:
    """A contract whose text is the same whatever its enum's members and its parameter's domain stand for."""
    Kind = IntEnum("Kind", {"LOW": low, "HIGH": high})  # noqa: N806
    Part: Any = Annotated[int, Field(ge=0, le=most)]  # noqa: N806

    class Job(View):
        kind: Kind  # type: ignore[valid-type]

    class Tolerant(Contract, name="tolerant"):
        @decision
        def score(self, job: Job) -> Annotated[int, Field(ge=-10, le=10)]:
            """Any small integer."""
            raise NotImplementedError

        @invariant
        def high_is_more(self, job: Job, part: Part) -> bool:
            """What is high scores more than any part."""
            return job.kind != Kind.HIGH or self.score(job) > part

    return Tolerant()


def test_a_contract_whose_names_stand_for_other_values_is_another_contract() -> None:
    """A certificate once held for both: the texts of a contract are the same, and so were the digests of a policy."""
    text = f"from {__name__} import Job\n\n\ndef score(job: Job) -> int:\n    return 3 if job.kind == 2 else 0\n"
    given = tolerant_of(1, 2, most=2)
    certificate = verify(Policy.from_source(text, given))
    assert certificate.check_binding(tolerant_of(1, 2, most=2))
    for other in (tolerant_of(2, 1, most=2), tolerant_of(1, 2, most=3)):
        with pytest.raises(Rejected):
            verify(Policy.from_source(text, other))
        with pytest.raises(CertificateError, match="another version"):
            certificate.check_binding(other)
