"""`autopoiesis certificate check`: what is proved here counts, what a file says is compared, and a key may vouch for the rest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Policy
from autopoiesis_lib.certificate import Certificate, sign, verify
from autopoiesis_lib.protocol.keys import load_key, new_key
from autopoiesis_lib.protocol.statement import statement

from .conftest import Command, Ran

Change = Callable[[dict[str, Any]], object]
Forge = Callable[[Change], Path]
COFFEE = "This policy makes coffee"


@pytest.fixture
def certificate(command: Command, policies: Path, tmp_path: Path) -> Path:
    path = tmp_path / "certificate.json"
    assert (
        command("verify", policies / "sjf_aging.py", "--contract", "request-ordering", "--certificate", path).code == 0
    )
    return path


@pytest.fixture
def forge(certificate: Path, tmp_path: Path) -> Forge:
    """A certificate whose fields were changed; its statement is about the text that it then holds."""

    def forged(change: Change) -> Path:
        predicate = json.loads(certificate.read_text())["predicate"]
        change(predicate)
        path = tmp_path / "forged.json"
        path.write_bytes(statement(predicate["policy_source"], "policy.py", predicate))
        return path

    return forged


@pytest.fixture
def vouched(tmp_path: Path) -> Callable[[Path, str], Path]:
    """Sign a certificate file, whatever it says, with a key of a folder below the working directory."""

    def signed(path: Path, folder: str) -> Path:
        if not (tmp_path / folder).exists():
            new_key(tmp_path / folder, "fleet")
        target = tmp_path / f"signed-{folder}.json"
        target.write_bytes(sign(Certificate.read(path), load_key(tmp_path / folder, "fleet")).to_bytes())
        return target

    return signed


Vouch = Callable[[Path, str], Path]


def refused(ran: Ran, *said: str, code: int = 1) -> dict[str, Any]:
    """Check that a certificate was refused, in one line and with nothing of the file printed as true."""
    assert ran.code == code
    assert ran.err.count("\n") == 1
    document = ran.document
    assert document["rests_on"] == "nothing"
    assert COFFEE not in document["claims"]
    for text in said:
        assert any(text in line for line in document["differences"]), document["differences"]
    return document


class TestHonestCertificates:
    def test_one_is_proved_here_with_both_solvers(self, command: Command, certificate: Path, policies: Path) -> None:
        ran = command("certificate", "check", certificate, "--policy", policies / "sjf_aging.py", "--json")
        assert ran.code == 0, ran.err
        document = ran.document
        assert (document["verdict"], document["rests_on"], document["differences"]) == ("PROVED", "proof", [])
        assert document["bound"] and not document["certificate"]["signed"]
        assert {"ages", "score is safe", "BoundedBypass: consecution"} <= {
            item["name"] for item in document["obligations"]
        }
        assert all(item["solvers"] == ["z3", "cvc5"] for item in document["obligations"])
        assert document["bounds"] == {"ages": 8_191_000}

    def test_people_are_told_what_it_rests_on(self, command: Command, certificate: Path, vouched: Vouch) -> None:
        assert "proved here, unsigned" in command("certificate", "check", certificate).out
        signed = vouched(certificate, "keys")
        key = Certificate.read(signed) and load_key("keys", "fleet").key_id[:12]
        assert f"proved here, signed by {key}" in command("certificate", "check", signed, "--keys", "keys").out

    def test_a_signature_by_an_unknown_key_counts_as_none(
        self, command: Command, certificate: Path, vouched: Vouch
    ) -> None:
        new_key("trusted", "other")
        ran = command("certificate", "check", vouched(certificate, "keys"), "--keys", "trusted", "--json")
        assert ran.code == 0
        assert (ran.document["rests_on"], ran.document["certificate"]["signed"]) == ("proof", False)
        assert "unknown key" in ran.document["certificate"]["signature"]


class TestOtherPolicies:
    def test_another_policy_is_not_the_certified_one(self, command: Command, certificate: Path, policies: Path) -> None:
        ran = command("certificate", "check", certificate, "--policy", policies / "fcfs.py")
        assert ran.code == 2
        assert "not the certified one" in ran.err
        assert ran.err.count("\n") == 1

    def test_another_comment_makes_another_policy(
        self, command: Command, certificate: Path, policies: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "other.py"
        other.write_text((policies / "sjf_aging.py").read_text() + "# reviewed: never starves anybody\n")
        ran = command("certificate", "check", certificate, "--policy", other, "--json")
        assert ran.code == 2
        assert not ran.document["bound"]
        assert "not the certified one" in ran.document["binding"]


class TestForgedCertificates:
    def test_a_refuted_policy_is_refuted_with_its_counterexample(
        self, command: Command, forge: Forge, policies: Path
    ) -> None:
        def coffee(predicate: dict[str, Any]) -> None:
            predicate["policy_source"] = (policies / "sjf.py").read_text()
            predicate["claims"] = [COFFEE]
            lemmas = [lemma for theorem in predicate["theorems"] for lemma in theorem["lemmas"]]
            for item in (*predicate["obligations"], *lemmas):
                item["smtlib"] = "(assert false)\n(check-sat)\n"

        path = forge(coffee)
        document = refused(command("certificate", "check", path, "--json"))
        assert document["verdict"] == "REFUTED"
        assert document["counterexample"]["arguments"]
        for_people = command("certificate", "check", path)
        assert for_people.code == 1
        assert "counterexample" in for_people.out and "as a test" in for_people.out
        assert "coffee" not in for_people.out + for_people.err

    def test_no_key_vouches_for_a_refuted_policy(
        self, command: Command, forge: Forge, policies: Path, vouched: Vouch
    ) -> None:
        path = vouched(forge(lambda said: said.update(policy_source=(policies / "sjf.py").read_text())), "keys")
        document = refused(command("certificate", "check", path, "--keys", "keys", "--json"))
        assert document["verdict"] == "REFUTED"

    def test_every_changed_field_is_named(self, command: Command, forge: Forge) -> None:
        def change(predicate: dict[str, Any]) -> None:
            predicate.update(bounds={"ages": 1}, theorems=[], not_covered=[])
            predicate["claims"].append(COFFEE)
            predicate["gates"].pop()
            predicate["obligations"][-1].update(smtlib="(assert false)(check-sat)")
            predicate["obligations"].append(predicate["obligations"][0])

        document = refused(
            command("certificate", "check", forge(change), "--json"),
            "claims[3]: nothing here",
            "bounds.ages: `8191000` here, `1` in the file",
            "obligations.ages.smtlib",
            "2 times in the file",
            "theorems: `BoundedBypass` here, not in the file",
            "not_covered[0]",
            "gates: `replay` here, not in the file",
        )
        assert document["bounds"] == {"ages": 8_191_000}

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda said: said["contract_parameters"].update(max_aging_us=1), "another version of request-ordering"),
            (lambda said: said.update(contract_digest="0" * 64), "another version of request-ordering"),
            (lambda said: said.update(contract="no-such"), "there is no contract 'no-such'"),
            (lambda said: said.update(contract_parameters={"name": 1}), "the parameters of 'request-ordering'"),
        ],
    )
    def test_a_contract_that_is_not_here_is_an_honest_no(
        self, command: Command, forge: Forge, change: Change, said: str
    ) -> None:
        refused(command("certificate", "check", forge(change), "--json"), said)

    def test_escapes_of_the_file_reach_no_terminal(self, command: Command, forge: Forge) -> None:
        def hostile(predicate: dict[str, Any]) -> None:
            predicate["claims"] = [f"\x1b[2J\u202e{COFFEE}" * 1_000]
            predicate["obligations"][0]["name"] = "\x1b]0;title\x07"

        ran = command("certificate", "check", forge(hostile))
        assert ran.code == 1
        assert not {"\x1b", "\x07", "\u202e"} & set(ran.out + ran.err)
        assert len(ran.out) < 20_000

    def test_a_text_that_is_a_command_writes_no_file(self, command: Command, forge: Forge, tmp_path: Path) -> None:
        target = tmp_path / "precious"
        target.write_text("mine")

        def commands(predicate: dict[str, Any]) -> None:
            for item in predicate["obligations"]:
                item["smtlib"] = f'(set-option :regular-output-channel "{target}")(echo "gone")(check-sat)'

        refused(command("certificate", "check", forge(commands), "--json"), "smtlib: the file's text is refused")
        assert target.read_text() == "mine"


class TestSignatures:
    def test_a_trusted_key_vouches_for_what_differs(self, command: Command, forge: Forge, vouched: Vouch) -> None:
        path = vouched(forge(lambda said: said.update(claims=[COFFEE])), "keys")
        ran = command("certificate", "check", path, "--keys", "keys", "--json")
        assert (ran.code, ran.document["rests_on"]) == (0, "signature")
        assert COFFEE not in ran.document["claims"]

    def test_a_trusted_key_vouches_for_a_contract_not_here(
        self, command: Command, forge: Forge, vouched: Vouch
    ) -> None:
        path = vouched(forge(lambda said: said.update(contract="elsewhere")), "keys")
        ran = command("certificate", "check", path, "--keys", "keys", "--json")
        assert (ran.code, ran.document["rests_on"], ran.document["verdict"]) == (0, "signature", "UNKNOWN")
        assert ran.document["contract"] is None and ran.document["claims"] == []
        assert "rests on the signature alone" in command("certificate", "check", path, "--keys", "keys").out
        refused(command("certificate", "check", path, "--json"), "there is no contract 'elsewhere'")

    def test_a_wrong_signature_of_a_known_key_is_an_error(
        self, command: Command, certificate: Path, vouched: Vouch
    ) -> None:
        path = vouched(certificate, "keys")
        envelope = json.loads(path.read_text())
        envelope["signatures"][0]["sig"] = "A" * 86 + "=="
        path.write_text(json.dumps(envelope))
        ran = command("certificate", "check", path, "--keys", "keys", "--json")
        assert ran.code == 2
        assert "changed after it was signed" in ran.err


FORMAT_1 = '{"format": 1, "contract": "request-ordering", "contract_digest": "0", "verdict": "PROVED"}'


@pytest.mark.parametrize(
    "content",
    [None, "", "{}", "\x00\x01", FORMAT_1, "[" * 1_000_000, " " * 5_000_000],
    ids=["missing", "empty", "no-fields", "binary", "format-1", "deep", "large"],
)
def test_what_is_no_certificate_is_refused_in_one_line(command: Command, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "certificate.json"
    if content is not None:
        path.write_text(content)
    ran = command("certificate", "check", path, "--json")
    assert ran.code == 2
    assert list(ran.document) == ["error"]
    assert ran.err.count("\n") == 1


@pytest.fixture(scope="module")
def with_proofs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("proofs") / "certificate.json"
    policy = Policy.from_source(BASELINES["shortest-prompt-aging"], RequestOrdering())
    verify(policy, proofs=True).write(path)
    return path


class TestProofs:
    def test_each_is_checked_without_a_solver(self, command: Command, with_proofs: Path) -> None:
        ran = command("certificate", "check", with_proofs, "--proofs", "--json")
        assert ran.code == 0, ran.err
        assert len(ran.document["obligations"]) == 7
        assert {item["proof"] for item in ran.document["obligations"]} == {"checked"}

    def test_one_that_is_missing_or_of_another_text_is_named(
        self, command: Command, with_proofs: Path, tmp_path: Path
    ) -> None:
        predicate = json.loads(with_proofs.read_text())["predicate"]
        first, second, *_ = predicate["obligations"]
        first["proof"] = None
        second["proof"] = predicate["obligations"][2]["proof"]
        path = tmp_path / "forged.json"
        path.write_bytes(statement(predicate["policy_source"], "policy.py", predicate))
        ran = command("certificate", "check", path, "--proofs", "--json")
        assert ran.code == 1
        assert ran.err.count("\n") == 1 and "the proof of `score is safe` is missing" in ran.err
        states = {item["name"]: item["proof"] for item in ran.document["obligations"]}
        assert (states.pop("score is safe"), states.pop("score is in range")) == ("missing", "refused")
        assert set(states.values()) == {"checked"}
        assert command("certificate", "check", path).code == 0

    def test_a_certificate_without_any_is_refused(self, command: Command, certificate: Path) -> None:
        ran = command("certificate", "check", certificate, "--proofs", "--json")
        assert ran.code == 1
        assert {item["proof"] for item in ran.document["obligations"]} == {"missing"}

    def test_they_are_written_out_beside_their_texts(self, command: Command, with_proofs: Path, tmp_path: Path) -> None:
        ran = command("certificate", "export", with_proofs, tmp_path / "out", "--json")
        assert ran.code == 0, ran.err
        names = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert names[:2] == ["001-score-is-safe.alethe", "001-score-is-safe.smt2"]
        assert len(names) == 14

    def test_an_obligation_without_one_is_named(self, command: Command, certificate: Path, tmp_path: Path) -> None:
        ran = command("certificate", "export", certificate, tmp_path / "out")
        assert ran.code == 1
        assert "score is safe: the certificate has no proof of it" in ran.err
        assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".smt2"}

    def test_verify_keeps_them_in_a_certificate_only(self, command: Command, policies: Path, tmp_path: Path) -> None:
        policy = policies / "fcfs.py"
        assert command("verify", policy, "--contract", "request-ordering", "--proofs").code == 2
        path = tmp_path / "fcfs.json"
        ran = command("verify", policy, "--contract", "request-ordering", "--certificate", path, "--proofs", "--json")
        assert ran.code == 0, ran.err
        assert {item["proof"] for item in ran.document["proofs"]} == {"checked"}
        assert all(item.proof for item in Certificate.read(path).items)
