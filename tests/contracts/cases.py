"""Policies that are almost right, by the obligation each of them breaks; shared by the tests of every contract."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from autopoiesis_lib import Contract, Verdict
from autopoiesis_lib.gates import GateReport, check

__all__ = ["PROVING", "assert_refuted_and_replays", "least_of", "policy_text"]

PROVING = ("grammar", "ranges", "proof")
"""The gates that prove, so that every broken obligation is named and not only the first one met by a test."""


def policy_text(module: str, views: str, body: str) -> str:
    """A policy of the contract in `module`, from its functions."""
    return f'"""A policy under test."""\n\nfrom {module} import {views}\n\n\n{body.strip()}\n'


def assert_refuted_and_replays(text: str, contract: Contract, obligation: str, folder: Path) -> GateReport:
    """The proof refutes the policy on the obligation named; each test that it prints fails when it is run on the policy."""
    report = check(text, contract, gates=PROVING)
    assert report.verdict is Verdict.REFUTED, report.failed
    failed = [item for item in report.obligations if item.verdict is Verdict.REFUTED]
    assert obligation in [item.name for item in failed]
    (folder / "policy.py").write_text(text)
    for item in failed:
        assert item.counterexample is not None
        namespace: dict[str, object] = {}
        exec(compile(item.counterexample.pytest, "counterexample.py", "exec"), namespace)
        replay = next(value for name, value in namespace.items() if name.startswith("test_"))
        assert callable(replay)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            with pytest.raises(AssertionError):
                replay()
    return report


def least_of(report: GateReport) -> Mapping[str, int]:
    """The least bounds of a proved report."""
    assert report.verdict is Verdict.PROVED, report.failed
    return report.least()
