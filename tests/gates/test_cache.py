"""Proof results by content: kept, found again, never trusted beyond the same question."""

from pathlib import Path

import pytest
from autopoiesis_contracts.request_ordering import RequestOrdering

from autopoiesis_lib import CertificateError, Policy
from autopoiesis_lib.certificate import certify
from autopoiesis_lib.gates import Verdict, check
from autopoiesis_lib.gates.cache import ProofCache


def test_the_same_question_is_answered_from_the_folder_and_another_is_not(
    contract: RequestOrdering, tmp_path: Path
) -> None:
    cache = ProofCache(tmp_path)
    policy = Policy.from_source(contract.baselines()["fcfs"], contract)
    first = cache.check(policy)
    [kept] = tmp_path.rglob("*.json")
    assert cache.check(policy) == first
    cache.check(policy, least=False)
    cache.check(Policy.from_source(policy.source, RequestOrdering(max_aging_us=1_000)))
    assert len(list(tmp_path.rglob("*.json"))) == 3
    kept.write_text("{}", encoding="utf-8")
    again = cache.check(policy)
    assert again.verdict is Verdict.PROVED and again.seconds != first.seconds


def test_unknown_is_never_kept(contract: RequestOrdering, tmp_path: Path, corpus: dict[str, Policy]) -> None:
    assert ProofCache(tmp_path).check(corpus["three-factors"], rlimit=1).verdict is Verdict.UNKNOWN
    assert list(tmp_path.rglob("*.json")) == []


def test_a_folder_that_cannot_be_written_costs_only_time(contract: RequestOrdering, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    policy = Policy.from_source(contract.baselines()["fcfs"], contract)
    assert ProofCache(tmp_path / "file").check(policy).verdict is Verdict.PROVED


def test_a_report_without_its_proofs_makes_no_certificate(contract: RequestOrdering) -> None:
    policy = Policy.from_source(contract.baselines()["fcfs"], contract)
    with pytest.raises(CertificateError, match="keeps no SMT-LIB texts"):
        certify(policy, check(policy, contract))
