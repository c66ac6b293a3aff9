"""Whole proofs: what may be assumed and used where, how they end, and what hostile ones cost."""

import base64
import zlib

import pytest

from autopoiesis_lib.proofs import ProofError, ProofProblem, check
from autopoiesis_lib.proofs.alethe import MAX_DIGITS, MAX_PROOF_CHARACTERS
from autopoiesis_lib.proofs.stored import check_isolated, exported, outcome, packed, unpacked

TEXT = """
(declare-fun x () Int)
(declare-fun p () Bool)
(declare-fun q () Bool)
(assert (or p (> x 0)))
(assert (not p))
(assert (<= x 0))
(check-sat)
"""
PROOF = """
(assume h1 (or p (> x 0)))
(assume h2 (not p))
(assume h3 (! (<= x 0) :named @low))
(step t1 (cl p (! (> x 0) :named @high)) :rule or :premises (h1))
(step t2 (cl @high) :rule resolution :premises (t1 h2) :args (p true))
(step t3 (cl (not @high) (not @low)) :rule la_generic :args (1 1))
(step t4 (cl) :rule resolution :premises (t3 t2 h3) :args (@high false @low false))
"""
SUBPROOF = """
(anchor :step s)
(assume s.h p)
(step s.t (cl (or p q)) :rule weakening :premises (s.h))
(step s (cl (not p) (or p q)) :rule subproof :discharge (s.h))
"""


def problem(proof: str, text: str = TEXT) -> ProofProblem:
    with pytest.raises(ProofError) as caught:
        check(text, proof)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return caught.value.problem


def nested(inner: str, conclusion: str, discharge: str = "s.h") -> str:
    return f"(anchor :step s)\n(assume s.h p)\n{inner}\n(step s {conclusion} :rule subproof :discharge ({discharge}))"


class TestWholeProofs:
    def test_one_that_refutes_the_text_is_checked(self) -> None:
        checked = check(TEXT, PROOF)
        assert checked.steps == 4
        assert checked.rules == {"or": 1, "resolution": 2, "la_generic": 1}

    def test_parentheses_around_all_of_it_are_fine(self) -> None:
        assert check(TEXT, f"({PROOF})").steps == 4
        assert problem(f"({PROOF}") is ProofProblem.MALFORMED
        assert problem(f"({PROOF}) (step t9 (cl p) :rule hole)") is ProofProblem.MALFORMED
        assert problem(f"{PROOF})") is ProofProblem.MALFORMED

    def test_every_step_is_needed(self) -> None:
        lines = PROOF.strip().splitlines()
        for index in range(len(lines)):
            assert problem("\n".join(lines[:index] + lines[index + 1 :]))

    @pytest.mark.parametrize(
        "ending",
        ["(step t5 (cl false) :rule weakening :premises (t4))", "(step t5 (cl q) :rule weakening :premises (t4))"],
    )
    def test_the_last_step_is_the_empty_clause(self, ending: str) -> None:
        assert problem(PROOF + ending) is ProofProblem.INCOMPLETE
        assert problem("") is ProofProblem.INCOMPLETE
        assert problem("()") is ProofProblem.MALFORMED

    def test_it_assumes_what_the_text_asserts_only(self) -> None:
        for other in ("(assume h4 q)", "(assume h4 (<= x 1))", "(assume h4 false)", "(assume h4 (>= 0 x))"):
            assert problem(other + PROOF) is ProofProblem.ASSUMPTION
        assert problem(PROOF, TEXT.replace("(not p)", "(not q)")) is ProofProblem.ASSUMPTION
        assert problem(PROOF, TEXT.replace("Bool", "Int")) is ProofProblem.MALFORMED

    def test_a_symbol_is_one_that_the_text_declares(self) -> None:
        assert problem("(step t (cl (= y y)) :rule refl)") is ProofProblem.MALFORMED

    @pytest.mark.parametrize(
        "line",
        [
            "(step t1 (cl p) :rule refl :premises (h9))",
            "(step t1 (cl (= p p)) :rule refl :premises (t1))",
            "(step t1 (cl (= p p)) :rule refl :discharge (h1))",
        ],
    )
    def test_a_premise_comes_before_its_use(self, line: str) -> None:
        assert problem("(assume h1 (not p))" + line) is ProofProblem.WRONG

    def test_a_name_means_one_thing(self) -> None:
        for line in (
            "(assume h1 (not p))(assume h1 (not p))",
            "(step t (cl (= (! x :named @a) (! (+ x 1) :named @a))) :rule refl)",
            "(step t (cl (= (! (+ x 1) :named x) x)) :rule refl)",
            "(step t (cl (= (! (+ x 1) :named true) x)) :rule refl)",
            "(step t (cl (= (! (+ x 1) :named 7) x)) :rule refl)",
            "(define-fun x () Int (+ x 1))",
            "(define-fun a () Bool (+ x 1))",
            "(define-fun a ((b Int)) Int (+ x 1))",
            "(define-fun true () Bool false)",
        ):
            assert problem(line) is ProofProblem.MALFORMED

    def test_a_definition_stands_for_its_term(self) -> None:
        definition = "(define-fun @low () Bool (<= x 0))"
        assert check(TEXT, definition + PROOF.replace("(! (<= x 0) :named @low)", "@low")).steps == 4
        assert problem("(define-fun @low () Bool (<= x 1))" + PROOF) is ProofProblem.MALFORMED


class TestSubproofs:
    def test_its_last_clause_follows_from_its_assumptions(self) -> None:
        inner = "(step s.t (cl p q) :rule weakening :premises (s.h))"
        for conclusion in ("(cl (not p) p q)", "(cl p q (not p))"):
            assert problem(nested(inner, conclusion)) is ProofProblem.INCOMPLETE

    def test_what_it_shows_is_no_less_and_no_more(self) -> None:
        inner = "(step s.t (cl p q) :rule weakening :premises (s.h))"
        for conclusion in ("(cl p q)", "(cl (not p) p)", "(cl (not q) p q)", "(cl (not p) p q (= x x))", "(cl)"):
            assert problem(nested(inner, conclusion)) is ProofProblem.WRONG
        assert problem(nested("", "(cl (not p) p)")) is ProofProblem.WRONG

    def test_every_assumption_is_discharged(self) -> None:
        inner = "(assume s.h2 q)(step s.t (cl (and p q)) :rule and_intro :premises (s.h s.h2))"
        for discharged, conclusion in (
            ("s.h", "(cl (not p) (and p q))"),
            ("s.h", "(cl (not p) (not q) (and p q))"),
            ("s.h s.h2", "(cl (not p) (and p q))"),
            ("s.h s.h2 s.t", "(cl (not p) (not q) (and p q))"),
        ):
            assert problem(nested(inner, conclusion, discharged)) is ProofProblem.WRONG
        assert problem(nested(inner, "(cl (not p) (not q) (and p q))", "s.h s.h2")) is ProofProblem.INCOMPLETE

    def test_nothing_of_it_is_used_outside(self) -> None:
        inner = "(step s.t (cl p q) :rule weakening :premises (s.h))"
        proof = nested(inner, "(cl (not p) p q)")
        for name in ("s.h", "s.t"):
            assert problem(f"{proof}(step t (cl p q) :rule weakening :premises ({name}))") is ProofProblem.WRONG

    def test_it_ends_by_its_own_step_only(self) -> None:
        start = "(anchor :step s)(assume s.h p)"
        assert problem(f"{start}(step s (cl p) :rule weakening :premises (s.h))") is ProofProblem.UNSUPPORTED
        assert problem(f"{start}(step t (cl (not p) p) :rule subproof :discharge (s.h))") is ProofProblem.UNSUPPORTED
        assert problem(f"{start}(step t (cl p) :rule weakening :premises (s.h))") is ProofProblem.INCOMPLETE
        assert problem("(step t (cl (not p) p) :rule subproof)") is ProofProblem.UNSUPPORTED

    def test_an_empty_clause_in_it_is_no_end(self) -> None:
        inner = "(assume s.n (not p))(step s.t (cl) :rule resolution :premises (s.h s.n) :args (p true))"
        assert problem(f"(anchor :step s)(assume s.h p){inner}") is ProofProblem.INCOMPLETE
        ended = nested(inner, "(cl (not p) (not (not p)) false)", "s.h s.n")
        assert problem(ended) is ProofProblem.INCOMPLETE

    def test_a_context_of_variables_is_refused(self) -> None:
        assert problem("(anchor :step s :args ((x Int) (:= x 1)))") is ProofProblem.MALFORMED


def let_bomb(levels: int) -> str:
    """Name a sum of two of the one before, so often that the term has 2 ** levels leaves."""
    term = "(! x :named @n0)"
    for level in range(1, levels):
        term = f"(! (+ {term} @n{level - 1}) :named @n{level})"
    return f"(step t (cl (= {term} {term})) :rule poly_simp)"


def product_bomb(levels: int) -> str:
    term = "(! (+ x 1) :named @n0)"
    for level in range(1, levels):
        term = f"(! (* {term} @n{level - 1}) :named @n{level})"
    return f"(step u (cl (= {term} x)) :rule poly_simp)"


def number_bomb(levels: int) -> str:
    term = "(! 9999999999 :named @n0)"
    for level in range(1, levels):
        term = f"(! (* {term} @n{level - 1}) :named @n{level})"
    return f"(step u (cl (= {term} x)) :rule evaluate)"


HOSTILE = {
    "truncated": (PROOF[:-40], ProofProblem.MALFORMED),
    "deep": ("(step t (cl " + "(not " * 1_000_000, ProofProblem.TOO_LARGE),
    "deep subproofs": ("".join(f"(anchor :step s{index})" for index in range(100_000)), ProofProblem.TOO_LARGE),
    "huge": ("(" * (MAX_PROOF_CHARACTERS + 1), ProofProblem.TOO_LARGE),
    "a number of a million digits": (f"(step t (cl (= {'9' * 1_000_000} x)) :rule refl)", ProofProblem.TOO_LARGE),
    "a name of a million letters": (f"(step {'t' * 1_000_000} (cl q) :rule refl)", ProofProblem.WRONG),
    "a divisor of zero": ("(step t (cl (= 1/0 x)) :rule evaluate)", ProofProblem.MALFORMED),
    "an exponential sum": (let_bomb(400), ProofProblem.INCOMPLETE),
    "a number that doubles": (let_bomb(20_000 // 2), ProofProblem.TOO_LARGE),
    "an exponential product": (product_bomb(50), ProofProblem.TOO_LARGE),
    "an exponential number": (number_bomb(500), ProofProblem.WRONG),
    "many coefficients": (
        "(step t (cl "
        + "(<= x 1) " * 3_000
        + ") :rule la_generic :args ("
        + f"1/{'7' * 3_900} 1/{'9' * 3_901} " * 1_500
        + "))",
        ProofProblem.TOO_LARGE,
    ),
    "a long chain": (
        "(assume h (not p))" + "".join(f"(step t{index} (cl {'p ' * 1_000}) :rule hole)" for index in range(100)),
        ProofProblem.UNSUPPORTED,
    ),
    "long clauses": (
        "(assume h (not p))"
        + f"(step u (cl (not p) {' '.join(f'(= x {index})' for index in range(20_000))}) :rule weakening :premises (h))"
        + f"(step v (cl) :rule resolution :premises (u {'h ' * 20_000}) :args ({'p false ' * 20_000}))",
        ProofProblem.WRONG,
    ),
    "a wide term in many steps": (
        f"(step t (cl (= (! (or {'p ' * 50_000}) :named @w) @w)) :rule refl)"
        + "".join(f"(step t{index} (cl (= @w @w)) :rule cong)" for index in range(20_000)),
        ProofProblem.TOO_LARGE,
    ),
    "a wide premise of many steps": (
        f"(anchor :step s)(assume h (or {'p ' * 50_000}))(step t (cl {'p ' * 50_000}) :rule or :premises (h))"
        + "".join(f"(step t{index} (cl p) :rule contraction :premises (t))" for index in range(20_000)),
        ProofProblem.TOO_LARGE,
    ),
    "null characters": ("\0" * 1_000, ProofProblem.MALFORMED),
    "another alphabet": ("(assume h（p))", ProofProblem.MALFORMED),
    "an open string": ('(step t (cl q) :rule rare_rewrite :args ("eq-refl x))', ProofProblem.MALFORMED),
    "commands of a solver": ('(set-option :regular-output-channel "x")', ProofProblem.MALFORMED),
}


class TestHostileProofs:
    @pytest.mark.parametrize("kind", HOSTILE)
    def test_one_is_refused_for_what_it_is(self, kind: str) -> None:
        proof, expected = HOSTILE[kind]
        assert problem(proof) is expected

    def test_a_refusal_shows_no_hidden_character(self) -> None:
        with pytest.raises(ProofError) as caught:
            check(TEXT, "\x1b[2J")
        assert "\x1b" not in str(caught.value)

    def test_numbers_up_to_the_bound_are_read(self) -> None:
        number = "9" * MAX_DIGITS
        assert problem(f"(step t (cl (= {number} {number})) :rule refl)") is ProofProblem.INCOMPLETE


class TestStoredProofs:
    def test_one_is_read_as_it_was_written(self) -> None:
        assert unpacked(packed(PROOF)) == PROOF
        assert outcome(TEXT, packed(PROOF)).steps == 4

    @pytest.mark.parametrize(
        "stored",
        [
            "",
            "é",
            "!!!!",
            packed(PROOF)[:-8],
            packed(PROOF)[4:],
            base64.b64encode(zlib.compress(PROOF.encode()) + b"more").decode(),
            base64.b64encode(zlib.compress(b"\xff\xfe")).decode(),
        ],
    )
    def test_a_damaged_one_is_refused(self, stored: str) -> None:
        assert outcome(TEXT, stored).problem == ProofProblem.MALFORMED

    def test_a_zip_bomb_is_not_inflated(self) -> None:
        compressor = zlib.compressobj(9)
        bomb = b"".join(compressor.compress(b" " * 1_048_576) for _ in range(100)) + compressor.flush()
        assert outcome(TEXT, base64.b64encode(bomb).decode()).problem == ProofProblem.TOO_LARGE

    def test_a_child_process_checks_each(self) -> None:
        good, bad = check_isolated([(TEXT, packed(PROOF)), (TEXT, packed(PROOF.replace("(1 1)", "(1 2)")))])
        assert (good.steps, good.problem) == (4, "")
        assert (bad.steps, bad.problem) == (0, ProofProblem.WRONG)

    def test_a_text_of_commands_is_not_exported(self) -> None:
        files, problem = exported('(set-option :regular-output-channel "gone")(check-sat)', packed(PROOF))
        assert files == {} and problem.startswith("refused")

    def test_an_exported_pair_is_one_that_checks(self) -> None:
        files, problem = exported(TEXT, packed(PROOF))
        assert problem == ""
        assert check(files[".smt2"].replace("(set-logic QF_NIA)\n", ""), files[".alethe"]).steps == 4
