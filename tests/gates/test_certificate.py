"""Certificates: what they hold, that they re-prove themselves, and that any doubt refuses them."""

from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import pytest
from autopoiesis_contracts.request_ordering import RequestOrdering
from pydantic import Field

from autopoiesis_lib import Certificate, CertificateError, Contract, Policy, Rejected, View, decision, invariant, verify
from autopoiesis_lib.differences import differences
from autopoiesis_lib.gates import GATES, ObligationResult, Verdict
from tests.proofs.test_smtlib import HOSTILE

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
    assert all(lemma.solvers == ("z3", "cvc5") for theorem in certificate.theorems for lemma in theorem.lemmas)
    assert certificate.not_covered and certificate.versions["z3-solver"]


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


class TestRecheckOfForeignTexts:
    """Whatever a text is, it is data: no file is written, no process ends, and nothing but our grammar is PROVED."""

    def answer(self, certificate: Certificate, text: str, seconds: float = 240) -> tuple[Verdict, str]:
        foreign = certificate.obligations[0].model_copy(update={"smtlib": text})
        [result] = certificate.model_copy(update={"obligations": (foreign,), "theorems": ()}).recheck(seconds=seconds)
        return result.verdict, result.detail

    @pytest.mark.parametrize("kind", HOSTILE)
    def test_every_hostile_kind_is_unknown(self, certificate: Certificate, kind: str, tmp_path: Path) -> None:
        target = tmp_path / "file"
        verdict, detail = self.answer(certificate, HOSTILE[kind].replace("FILE", str(target)))
        assert (verdict, detail[:9]) == (Verdict.UNKNOWN, "refused: ")
        assert not target.exists()

    def test_a_text_that_states_nothing_is_proved_as_a_text_only(self, certificate: Certificate) -> None:
        assert self.answer(certificate, "(assert false)(check-sat)")[0] is Verdict.PROVED

    def test_a_hard_text_is_stopped_and_never_proved(self, certificate: Certificate) -> None:
        names = [f"x{index}" for index in range(60)]
        declared = "".join(f"(declare-fun {name} () Int)" for name in names)
        powers = " ".join(f"(* {name} {name} {name})" for name in names)
        hard = f"{declared}(assert (= (+ {powers}) 114))(assert (distinct {' '.join(names)}))(check-sat)"
        verdict, _ = self.answer(certificate, hard, seconds=10)
        assert verdict in (Verdict.UNKNOWN, Verdict.REFUTED)

    def test_one_text_that_ends_its_solver_spoils_no_other(self, certificate: Certificate) -> None:
        deep = "".join(f"(let ((a{i} (+ 1 (* a{i - 1} a{i - 1})))) " for i in range(1, 9_000))
        text = f"(declare-fun a () Int)(assert (let ((a0 a)) {deep} (> a8999 0){')' * 9_000})(check-sat)"
        bad = certificate.obligations[0].model_copy(update={"smtlib": text})
        mixed = certificate.model_copy(update={"obligations": (bad, *certificate.obligations), "theorems": ()})
        first, *others = mixed.recheck(seconds=240)
        assert first.verdict is not Verdict.PROVED
        assert [item.verdict for item in others] == [Verdict.PROVED] * len(others)


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
    refuted = certificate.obligations[-1].model_copy(update={"verdict": Verdict.REFUTED})
    for obligations in ((*certificate.obligations, refuted), (refuted, *certificate.obligations)):
        with pytest.raises(CertificateError, match="does not prove `ages`"):
            certificate.model_copy(update={"obligations": obligations}).check_binding(contract)
    with pytest.raises(CertificateError, match="every gate green"):
        certificate.model_copy(update={"gates": certificate.gates[:-1]}).check_binding(contract)
    with pytest.raises(CertificateError, match="cannot be read"):
        certificate.check_binding(contract, "import os")


FORMAT_1 = b'{"format": 1, "contract": "request-ordering", "contract_digest": "0", "verdict": "PROVED"}'


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"\x00\xff", b'{"format": 2}', b'{"verdict": "REFUTED"}', b"[" * 100_000, b"1" * 10_000, FORMAT_1],
)
def test_a_file_that_is_no_certificate_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    path.write_bytes(content)
    with pytest.raises(CertificateError, match="is not a certificate") as raised:
        Certificate.read(path)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 1_000


def test_a_file_that_is_missing_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="is not there"):
        Certificate.read(tmp_path / "missing.json")
    (tmp_path / "large.json").write_bytes(b" " * 5_000_000)
    with pytest.raises(CertificateError, match="at most 4194304 are accepted"):
        Certificate.read(tmp_path / "large.json")


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


class TestDifferences:
    """A certificate from elsewhere is compared with the one that is made here, in every field."""

    def test_two_makings_of_one_certificate_agree(self, certificate: Certificate, contract: RequestOrdering) -> None:
        again = verify(Policy.from_source(certificate.policy_source, contract))
        assert again.model_dump() != certificate.model_dump()
        assert differences(again, certificate) == differences(certificate, again) == ()

    @pytest.mark.parametrize(
        ("field", "value", "said"),
        [
            ("claims", ("This policy makes coffee",), "claims[0]: "),
            ("bounds", {"ages": 1}, "bounds.ages: `81910000` here, `1` in the file"),
            ("bounds", {}, "bounds.ages: `81910000` here, nothing in the file"),
            ("bounds", {"ages": 81_910_000, "tea": 1}, "bounds.tea: nothing here, `1` in the file"),
            ("not_covered", (), "not_covered[0]: "),
            ("single_solver", ("ages",), "single_solver[0]: nothing here, `ages` in the file"),
            ("contract_parameters", {}, "contract_parameters.max_aging_us: "),
            ("policy_digest", "0" * 64, "policy_digest: "),
            ("theorems", (), "theorems: `BoundedBypass` here, not in the file"),
            ("gates", (), "gates: `grammar` here, not in the file"),
            ("budgets", {}, "budgets.z3_rlimit: "),
        ],
    )
    def test_a_forged_field_is_named(self, certificate: Certificate, field: str, value: object, said: str) -> None:
        found = differences(certificate.model_copy(update={field: value}), certificate)
        assert any(line.startswith(said) for line in found), found

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"verdict": Verdict.UNKNOWN}, "obligations.ages.verdict: `PROVED` here, `UNKNOWN` in the file"),
            ({"name": "tea"}, "obligations: `tea` in the file, not here"),
            ({"name": "score is safe"}, "obligations: `score is safe` 2 times in the file"),
            ({"smtlib": "(assert false)(check-sat)"}, "obligations.ages.smtlib: the file's text is not the one"),
            ({"smtlib": "(echo)"}, "obligations.ages.smtlib: the file's text is refused: "),
            ({"smtlib": None}, "obligations.ages.smtlib: no text in the file"),
            ({"assumptions_used": None}, "obligations.ages.assumptions_used: "),
            ({"solvers": ("z3", "cvc5", "oracle")}, "obligations.ages.solvers[2]: nothing here, `oracle` in the file"),
            ({"least": None}, "obligations.ages.least: "),
            ({"detail": "\x1b[2J"}, "obligations.ages.detail: "),
        ],
    )
    def test_a_forged_obligation_is_named(self, certificate: Certificate, change: dict[str, Any], said: str) -> None:
        forged = (*certificate.obligations[:-1], certificate.obligations[-1].model_copy(update=change))
        found = differences(certificate.model_copy(update={"obligations": forged}), certificate)
        assert any(line.startswith(said) for line in found), found
        assert all(line.isprintable() and len(line) < 600 for line in found)

    def test_a_forged_lemma_is_named(self, certificate: Certificate) -> None:
        [theorem] = certificate.theorems
        lemma = theorem.lemmas[0].model_copy(update={"smtlib": "(assert false)(check-sat)"})
        forged = theorem.model_copy(update={"lemmas": (lemma, *theorem.lemmas[1:])})
        [said] = differences(certificate.model_copy(update={"theorems": (forged,)}), certificate)
        assert said.startswith("theorems.BoundedBypass.lemmas.BoundedBypass: initiation.smtlib: ")

    def test_another_printing_of_the_same_terms_is_no_difference(self, certificate: Certificate) -> None:
        same = tuple(
            item.model_copy(update={"smtlib": f"; by hand\n{item.smtlib}".replace("?x", "?other").replace("$x", "$y")})
            for item in certificate.obligations
        )
        assert differences(certificate.model_copy(update={"obligations": same}), certificate) == ()

    def test_other_versions_are_said_when_something_differs(self, certificate: Certificate) -> None:
        older = certificate.model_copy(update={"versions": {**certificate.versions, "z3-solver": "4.8\x1b"}})
        assert differences(older, certificate) == ()
        skew, other = differences(older.model_copy(update={"bounds": {}}), certificate)
        assert skew.startswith("versions: it was made with z3-solver `4.8\\x1b`, here is ")
        assert other.startswith("bounds.ages")

    def test_their_number_is_bounded(self, certificate: Certificate) -> None:
        many = tuple(ObligationResult(name=f"x{i}", verdict=Verdict.PROVED, seconds=0.0) for i in range(10_000))
        found = differences(certificate.model_copy(update={"obligations": many}), certificate)
        assert len(found) == 51 and found[-1] == "and more"
