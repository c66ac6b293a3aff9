"""The mutants' room of contracts, theorems, gates and certificates: which modules, the tests of each, and what survives."""

from collections.abc import Iterator
from pathlib import Path

from tests.support.mutants import Check, pytests
from tests.support.mutants import argued as arguments_of

__all__ = ["DOCUMENTED", "MODULES", "SOUNDNESS", "argued", "checks"]

SOUNDNESS = True
DOCUMENTED: dict[str, int] = {}

DISHONEST = "tests/contracts/test_dishonest_contracts.py"
SOUNDNESS_TESTS = "tests/gates/test_soundness.py"
CERTIFICATES = "tests/gates/test_certificate.py"
MEANING = (
    f"{SOUNDNESS_TESTS}::TestDigest",
    *(f"{DISHONEST}::Test{part}" for part in ("Digest", "Meaning", "Definition")),
)
THEOREMS = (
    f"{DISHONEST}::TestTheorems::test_one_that_does_not_hold_gets_its_verdict",
    f"{SOUNDNESS_TESTS}::TestTheorems",
    f"{DISHONEST}::TestTheorems::test_one_that_holds_is_claimed",
    f"{DISHONEST}::TestBoundedBypass",
    f"{DISHONEST}::test_every_lemma_of_bounded_displacement_speaks_of_the_policy",
)
VERDICTS = (
    *(f"{SOUNDNESS_TESTS}::Test{part}" for part in ("Proofs", "Answers", "Evaluator", "Contracts")),
    f"{DISHONEST}::TestVerdicts::test_the_proof_gate_alone_agrees",
    "tests/gates/test_least.py",
)
PROOFS = (*VERDICTS, "tests/language/test_traps.py", SOUNDNESS_TESTS, "tests/gates/test_products.py")
REPORTS = (
    SOUNDNESS_TESTS,
    f"{CERTIFICATES}::test_another_policy_contract_or_a_missing_proof_is_refused",
    f"{CERTIFICATES}::test_a_certificate_says_what_was_proved_how_and_what_not",
    f"{CERTIFICATES}::test_a_refuted_policy_gets_no_certificate",
    f"{CERTIFICATES}::test_assumptions_a_proof_did_not_use_are_named_by_their_absence",
    f"{CERTIFICATES}::TestDifferences",
)

TESTS: dict[str, tuple[str, ...]] = {
    "theorem": (*MEANING, *THEOREMS),
    "gates.theorems": THEOREMS,
    "gates.contracts": (*VERDICTS, f"{DISHONEST}::TestVerdicts::test_an_honest_policy_gets_what_its_contract_deserves"),
    "contract": (*MEANING, SOUNDNESS_TESTS),
    "formula": (*MEANING, SOUNDNESS_TESTS, *VERDICTS),
    "gates.proof": PROOFS,
    "gates.search": PROOFS,
    "gates.least": (*PROOFS, "tests/contracts/test_request_ordering.py"),
    "gates.solving": PROOFS,
    "gates.second_solver": (f"{SOUNDNESS_TESTS}::TestSecondSolver", *REPORTS),
    "gates.claims": (f"{SOUNDNESS_TESTS}::TestClaimsOf", *REPORTS),
    "gates.chain": (SOUNDNESS_TESTS, "tests/gates/test_chain.py"),
    "gates.counterexample": (f"{SOUNDNESS_TESTS}::TestEvaluator", *VERDICTS, "tests/gates/test_counterexamples.py"),
    "gates.verdict": REPORTS,
    "binding": (f"{SOUNDNESS_TESTS}::TestBinding", *REPORTS[1:]),
    "certificate": (f"{SOUNDNESS_TESTS}::TestCertify", f"{SOUNDNESS_TESTS}::TestBinding", *REPORTS[1:]),
    "view": ("tests/contracts/test_domains.py", *MEANING),
}
"""The tests that a mutant of each module has to survive, the cheapest first."""

MODULES = tuple(TESTS)


def argued() -> dict[str, str]:
    """Return why each known survivor is harmless."""
    return arguments_of(Path(__file__).with_name("mutants_argued.json"))


def checks(module: str) -> Iterator[Check]:
    """Yield the tests of a module, without the types gate: mypy costs seconds a process and is no part of these modules."""
    from autopoiesis_lib.gates import types
    from autopoiesis_lib.gates.verdict import GateResult, Verdict

    types.check = lambda *_: GateResult(name="types", verdict=Verdict.PASSED, seconds=0.0)  # type: ignore[assignment]
    yield pytests(*TESTS[module])
