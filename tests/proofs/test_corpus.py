"""The proofs that cvc5 makes of our obligations, put to our checker."""

import pytest

from autopoiesis_lib import Policy, contract_named, contract_names, verify
from autopoiesis_lib.certificate import Certificate
from autopoiesis_lib.gates.alethe import TOO_LARGE, without_proofs_that_do_not_fit
from autopoiesis_lib.gates.verdict import ObligationResult, Verdict
from autopoiesis_lib.proofs import check
from autopoiesis_lib.protocol.files import MAX_CERTIFICATE_BYTES

from .conftest import certified, corpus, proofs_of

BASELINES = [(name, baseline) for name in contract_names() for baseline in contract_named(name).baselines()]
SAMPLE = (
    "priority-aging",
    "shortest-prompt-aging",
    "longest-cached-prefix-aging",
    "tiers",
    "modulo-jitter",
    "lanes",
    "loop-buckets",
    "loop-early-return",
    "deadline",
    "accumulate",
    "cliff-within",
    "lazy-and",
    "unreachable",
    "chained-comparison",
    "search-001",
    "search-003",
    "search-005",
    "search-007",
    "search-009",
    "search-010",
    "search-012",
    "search-016",
    "search-017",
)
NO_ALETHE = "Proof unsupported by Alethe: contains Skolem (kind int_div_by_zero"
"""cvc5 cannot write a proof in which a divisor may be zero."""


def all_checked(certificate: Certificate) -> None:
    """Check that every obligation and lemma has a proof that checks, or cannot be written as Alethe."""
    for item in certificate.items:
        assert (item.proof_gap == "" and item.proof) or NO_ALETHE in item.proof_gap, (item.name, item.proof_gap)
    pairs = proofs_of(certificate)
    assert len(pairs) >= 4
    for text, proof in pairs:
        assert check(text, proof).steps > 0


class TestProofsOfObligations:
    def test_those_of_a_nonlinear_policy_check(self) -> None:
        all_checked(certified("tiers"))

    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "baseline"), BASELINES, ids=lambda value: value)
    def test_those_of_every_baseline_check(self, name: str, baseline: str) -> None:
        contract = contract_named(name)
        all_checked(verify(Policy.from_source(contract.baselines()[baseline], contract), proofs=True))

    @pytest.mark.slow
    @pytest.mark.parametrize("name", SAMPLE)
    def test_those_of_the_corpus_check(self, name: str) -> None:
        assert name in corpus()
        all_checked(certified(name))


class TestCertificatesWithProofs:
    def test_its_file_is_within_the_bound(self) -> None:
        assert len(certified("tiers").payload()) * 4 // 3 < MAX_CERTIFICATE_BYTES

    def test_the_largest_that_do_not_fit_are_left_out_and_named(self) -> None:
        results = [
            ObligationResult(name=f"{size}", verdict=Verdict.PROVED, seconds=0.0, proof="p" * size)
            for size in (10, 90, 40)
        ]
        kept = without_proofs_that_do_not_fit(results, 60)
        assert [(item.proof, item.proof_gap) for item in kept] == [("p" * 10, ""), (None, TOO_LARGE), ("p" * 40, "")]
        assert without_proofs_that_do_not_fit(results, 140) == tuple(results)
        assert {item.proof for item in without_proofs_that_do_not_fit(results, 0)} == {None}
