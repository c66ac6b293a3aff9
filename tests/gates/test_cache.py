"""Proof results by content: kept, found again, never trusted beyond the same question."""

import os
import stat
from collections.abc import Callable
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


FORGED = '{"name": "proof", "verdict": "PROVED", "seconds": 0.0, "detail": "forged"}'


class TestFoldersOfOthers:
    """Whoever can write to the folder can write PROVED into it."""

    @pytest.fixture
    def forged(self, contract: RequestOrdering, ordering: Callable[[str], str], tmp_path: Path) -> tuple[Policy, Path]:
        """A policy that is refuted, and a folder that says that it is proved."""
        policy = Policy.from_source(ordering("-request.num_prompt_tokens"), contract)
        folder = tmp_path / "proofs"
        assert ProofCache(folder).check(policy).verdict is Verdict.REFUTED
        [kept] = folder.glob("*.json")
        kept.write_text(FORGED, encoding="utf-8")
        return policy, folder

    def test_a_result_in_a_folder_of_our_own_is_read(self, forged: tuple[Policy, Path]) -> None:
        assert ProofCache(forged[1]).check(forged[0]).detail == "forged"
        assert stat.S_IMODE(forged[1].stat().st_mode) == 0o700

    @pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
    def test_a_folder_that_others_may_write_to_is_not(self, forged: tuple[Policy, Path], mode: int) -> None:
        forged[1].chmod(mode)
        assert ProofCache(forged[1]).check(forged[0]).verdict is Verdict.REFUTED

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
    def test_a_folder_of_another_user_is_not(self, forged: tuple[Policy, Path]) -> None:
        os.chown(forged[1], 12_345, -1)
        assert ProofCache(forged[1]).check(forged[0]).verdict is Verdict.REFUTED

    def test_a_link_to_a_folder_or_a_result_is_not(self, forged: tuple[Policy, Path], tmp_path: Path) -> None:
        policy, folder = forged
        (tmp_path / "link").symlink_to(folder)
        assert ProofCache(tmp_path / "link").check(policy).verdict is Verdict.REFUTED
        [kept] = folder.glob("*.json")
        kept.rename(tmp_path / "elsewhere")
        kept.symlink_to(tmp_path / "elsewhere")
        assert ProofCache(folder).check(policy).verdict is Verdict.REFUTED

    @pytest.mark.parametrize("content", [b"", b"[" * 1_000_000, b"\xff", b" " * 5_000_000])
    def test_a_damaged_or_large_result_is_proved_again(self, forged: tuple[Policy, Path], content: bytes) -> None:
        [kept] = forged[1].glob("*.json")
        kept.write_bytes(content)
        assert ProofCache(forged[1]).check(forged[0]).verdict is Verdict.REFUTED


def test_a_folder_that_cannot_be_written_costs_only_time(contract: RequestOrdering, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    policy = Policy.from_source(contract.baselines()["fcfs"], contract)
    assert ProofCache(tmp_path / "file").check(policy).verdict is Verdict.PROVED


def test_a_report_without_its_proofs_makes_no_certificate(contract: RequestOrdering) -> None:
    policy = Policy.from_source(contract.baselines()["fcfs"], contract)
    with pytest.raises(CertificateError, match="keeps no SMT-LIB texts"):
        certify(policy, check(policy, contract))
