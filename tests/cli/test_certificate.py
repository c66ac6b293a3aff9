"""`autopoiesis certificate check`: a certificate is worth something without our encoder, and nothing when it was changed."""

import json
from pathlib import Path

import pytest

from .conftest import Command


@pytest.fixture
def certificate(command: Command, policies: Path, tmp_path: Path) -> Path:
    path = tmp_path / "certificate.json"
    assert (
        command("verify", policies / "sjf_aging.py", "--contract", "request-ordering", "--certificate", path).code == 0
    )
    return path


def test_every_obligation_is_proved_again_by_both_solvers(command: Command, certificate: Path, policies: Path) -> None:
    ran = command("certificate", "check", certificate, "--policy", policies / "sjf_aging.py", "--json")
    assert ran.code == 0, ran.err
    document = ran.document
    assert document["verdict"] == "PROVED"
    assert document["bound"]
    assert {"ages", "score is safe", "BoundedBypass.picks_within_aging"} <= {
        item["name"] for item in document["obligations"]
    }
    assert all(item["solvers"] == ["z3", "cvc5"] for item in document["obligations"])


def test_a_certificate_of_another_policy_is_refused(command: Command, certificate: Path, policies: Path) -> None:
    ran = command("certificate", "check", certificate, "--policy", policies / "fcfs.py")
    assert ran.code == 2
    assert "not the certified one" in ran.err
    assert ran.err.count("\n") == 1


def test_an_obligation_whose_text_has_a_model_is_refuted(command: Command, certificate: Path) -> None:
    content = json.loads(certificate.read_text())
    content["obligations"][-1]["smtlib"] = "(declare-const x Int)\n(assert (> x 0))\n(check-sat)\n"
    certificate.write_text(json.dumps(content))
    ran = command("certificate", "check", certificate, "--json")
    assert ran.code == 1
    assert ran.document["verdict"] == "REFUTED"


def test_a_certificate_of_a_stale_contract_is_refused(command: Command, certificate: Path) -> None:
    content = json.loads(certificate.read_text())
    content["contract_parameters"]["max_aging_us"] = 1
    certificate.write_text(json.dumps(content))
    ran = command("certificate", "check", certificate)
    assert ran.code == 2
    assert "another version of request-ordering" in ran.err


@pytest.mark.parametrize("content", [None, "", "{}", "\x00\x01"], ids=["missing", "empty", "no-fields", "binary"])
def test_what_is_no_certificate_is_refused_in_one_line(command: Command, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "certificate.json"
    if content is not None:
        path.write_text(content)
    ran = command("certificate", "check", path, "--json")
    assert ran.code == 2
    assert list(ran.document) == ["error"]
    assert ran.err.count("\n") == 1
