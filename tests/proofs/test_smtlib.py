"""The reader of SMT-LIB texts: all that our encoder writes, and nothing else."""

import pytest
import z3

from autopoiesis_lib import Policy, contract_named, contract_names, verify
from autopoiesis_lib.gates.second_solver import second_opinion
from autopoiesis_lib.proofs.smtlib import MAX_CHARACTERS, MAX_DIGITS, MAX_HEIGHT, SmtLibError, read
from autopoiesis_lib.protocol.text import hidden_character

BASELINES = [(name, baseline) for name in contract_names() for baseline in contract_named(name).baselines()]
DECLARED = "(declare-fun x () Int)\n(declare-fun b () Bool)\n"


def asserting(term: str) -> str:
    return f"{DECLARED}(assert {term})\n(check-sat)\n"


class TestOurOwnTexts:
    @pytest.mark.parametrize(("name", "baseline"), BASELINES, ids=lambda value: value)
    def test_every_text_of_a_certificate_is_read(self, name: str, baseline: str) -> None:
        contract = contract_named(name)
        certificate = verify(Policy.from_source(contract.baselines()[baseline], contract))
        lemmas = [lemma for theorem in certificate.theorems for lemma in theorem.lemmas]
        assert len(lemmas) >= 4
        for item in (*certificate.obligations, *lemmas):
            assert item.smtlib is not None
            query = read(item.smtlib)
            assert query.symbols and query.assertions
            assert read(query.text).text == query.text
            assert second_opinion(query.solver_text()) == "unsat"

    def test_whatever_z3_prints_of_integers_is_read_back(self) -> None:
        x, y, b = z3.Int("product!0"), z3.Int("a field"), z3.Bool("b")
        solver = z3.Solver()
        solver.add(
            z3.If(b, x, -x) >= -5,
            z3.Xor(b, x > y),
            z3.Implies(b, x / 3 == y % 7),
            z3.Distinct(x, y, x + 1),
            x * x * y < 2**64,
            z3.Or(b, z3.Not(x == y)),
        )
        query = read(solver.to_smt2())
        again = z3.Solver()
        again.add(z3.parse_smt2_string(query.text))
        equivalent = z3.Solver()
        equivalent.add(z3.And(solver.assertions()) != z3.And(again.assertions()))
        assert equivalent.check() == z3.unsat

    def test_no_name_of_the_text_reaches_a_solver(self) -> None:
        assert read("(declare-fun |a secret| () Bool)(assert |a secret|)(check-sat)").solver_text() == (
            "(declare-fun x1 () Bool)\n(assert x1)\n(check-sat)\n"
        )


class TestCanonicalText:
    def test_lets_and_quotes_and_comments_make_no_difference(self) -> None:
        plain = asserting("(and (> (+ x 1) 0) (< (+ x 1) 9))")
        bound = f"; a comment\n{DECLARED}(assert (let ((?y (+ |x| 1)))\n (and (> ?y 0) (< ?y 9))))(check-sat)"
        assert read(plain).text == read(bound).text

    def test_another_term_order_or_number_makes_one(self) -> None:
        texts = {
            read(asserting(term)).text
            for term in ("(> x 1)", "(> x 2)", "(< 1 x)", "(not (> x 1))", "(and b (> x 1))", "(and (> x 1) b)")
        }
        assert len(texts) == 6

    def test_a_let_in_a_let_means_the_inner_terms(self) -> None:
        text = read(asserting("(let ((p (> x 1)) (q (let ((p (< x 5))) (not p)))) (and p q))")).text
        assert text == read(asserting("(and (> x 1) (not (< x 5)))")).text

    def test_exponential_sharing_stays_linear(self) -> None:
        bomb = "".join(f"(let ((a{i} (+ a{i - 1} a{i - 1}))) " for i in range(1, 5_000))
        text = asserting(f"(let ((a0 x)) {bomb} (> a4999 0){')' * 5_000}")
        query = read(text)
        assert len(query.text) < 4 * len(text)
        assert read(query.text).text == query.text


HOSTILE = {
    "output to a file": '(set-option :regular-output-channel "FILE")(echo "x")(check-sat)',
    "diagnostics to a file": '(set-option :diagnostic-output-channel "FILE")(check-sat)',
    "no limit": "(set-option :rlimit 0)(check-sat)",
    "echo": '(echo "x")(check-sat)',
    "include": '(include "FILE")(check-sat)',
    "a logic": "(set-logic ALL)(check-sat)",
    "an info with a text": '(set-info :source "x")(check-sat)',
    "a status that is a claim": "(set-info :status unsat)(check-sat)",
    "push": "(push 1)(check-sat)",
    "pop": "(pop 1)(check-sat)",
    "reset": "(reset)(check-sat)",
    "reset-assertions": "(assert false)(reset-assertions)(check-sat)",
    "exit": "(exit)(check-sat)",
    "exit after": "(check-sat)(exit)",
    "get-model": "(check-sat)(get-model)",
    "get-value": "(declare-fun x () Int)(check-sat)(get-value (x))",
    "two checks": "(check-sat)(check-sat)",
    "check-sat-assuming": "(declare-fun b () Bool)(check-sat-assuming (b))",
    "no check": "(declare-fun b () Bool)(assert b)",
    "a check inside": "(assert (check-sat))(check-sat)",
    "a check with an argument": "(check-sat true)",
    "declare-sort": "(declare-sort S 0)(check-sat)",
    "declare-datatype": "(declare-datatype T ((t)))(check-sat)",
    "define-fun": "(define-fun f () Int 1)(check-sat)",
    "define-fun-rec": "(define-fun-rec f ((x Int)) Int (f x))(check-sat)",
    "define-sort": "(define-sort S () Int)(check-sat)",
    "simplify": "(simplify true)(check-sat)",
    "eval": "(eval true)(check-sat)",
    "a tactic": "(check-sat-using smt)",
    "minimize": "(declare-fun x () Int)(minimize x)(check-sat)",
    "a function with an argument": "(declare-fun f (Int) Int)(check-sat)",
    "a real": "(declare-fun x () Real)(check-sat)",
    "an array": "(declare-fun x () (Array Int Int))(check-sat)",
    "a bit vector": "(declare-fun x () (_ BitVec 8))(check-sat)",
    "a string sort": "(declare-fun x () String)(check-sat)",
    "and redefined": "(declare-fun and () Bool)(assert and)(check-sat)",
    "and redefined in bars": "(declare-fun |and| () Bool)(assert |and|)(check-sat)",
    "true redefined": "(declare-fun true () Bool)(check-sat)",
    "true redefined in bars": "(declare-fun |true| () Bool)(check-sat)",
    "ite redefined": "(declare-fun ite () Bool)(check-sat)",
    "let redefined": "(declare-fun let () Bool)(check-sat)",
    "a name of ours": "(declare-fun $let1 () Int)(check-sat)",
    "an empty name": "(declare-fun || () Int)(check-sat)",
    "a number as a name": "(declare-fun 1 () Int)(check-sat)",
    "a keyword as a name": "(declare-fun :x () Int)(check-sat)",
    "declared twice": "(declare-fun x () Int)(declare-fun |x| () Bool)(check-sat)",
    "a long name": f"(declare-fun {'x' * 600} () Int)(check-sat)",
    "many names": "".join(f"(declare-fun x{i} () Bool)" for i in range(10_001)) + "(check-sat)",
    "a let that shadows a symbol": asserting("(let ((x 1)) (> x 0))"),
    "a let that shadows an operator": asserting("(let ((and true)) and)"),
    "a let that shadows a let": asserting("(let ((a 1)) (let ((a 2)) (> a 1)))"),
    "a let that binds twice": asserting("(let ((a 1) (a 2)) (> a 1))"),
    "a let that sees its neighbour": asserting("(let ((a 1) (c a)) (> c 1))"),
    "a let used after its end": asserting("(and (let ((a true)) a) a)"),
    "a let without bindings": asserting("(let () b)"),
    "a let with two bodies": asserting("(let ((a 1)) b b)"),
    "an application of a symbol": asserting("(x 1)"),
    "an application of a term": asserting("((_ divisible 3) x)"),
    "an operator as a value": asserting("(= and and)"),
    "an operator in bars": asserting("(|and| b b)"),
    "an operator without arguments": asserting("(and)"),
    "an unknown token": asserting("#x1f"),
    "a string": asserting('(= "a" "b")'),
    "a decimal": asserting("(> x 1.5)"),
    "a leading zero": asserting("(> x 007)"),
    "a huge number": asserting(f"(> x {'9' * (MAX_DIGITS + 1)})"),
    "a signed number": asserting("(> x -1)"),
    "a number with letters": asserting("(> x 1e9)"),
    "an annotation": asserting("(! b :named c)"),
    "a quantifier": asserting("(forall ((y Int)) (> y x))"),
    "an exists": asserting("(exists ((y Int)) (> y x))"),
    "a cast": asserting("(as b Bool)"),
    "a power": asserting("(> (^ x 2) 0)"),
    "an absolute value": asserting("(> (abs x) 0)"),
    "a real conversion": asserting("(> (to_real x) 0)"),
    "a select": asserting("(select x 1)"),
    "logic of numbers": asserting("(and x b)"),
    "sum of truths": asserting("(> (+ b b) 0)"),
    "mixed equality": asserting("(= x b)"),
    "mixed branches": asserting("(ite b x b)"),
    "ite on a number": asserting("(ite x b b)"),
    "not of two": asserting("(not b b)"),
    "div of three": asserting("(> (div x x x) 0)"),
    "an assertion of a number": asserting("x"),
    "two terms asserted": f"{DECLARED}(assert b b)(check-sat)",
    "undeclared": "(assert z)(check-sat)",
    "used before declared": "(assert z)(declare-fun z () Bool)(check-sat)",
    "a bar not closed": "(declare-fun |x () Int)(check-sat)",
    "a backslash in bars": "(declare-fun |x\\y| () Int)(check-sat)",
    "a string not closed": '(echo "x)(check-sat)',
    "a parenthesis missing": "(assert true(check-sat)",
    "a parenthesis too many": "(assert true))(check-sat)",
    "only parentheses": "()",
    "nothing": "",
    "only a comment": "; (check-sat)",
    "a check in a comment": "(assert true) ; (check-sat)",
    "a carriage return in a comment": "; x\r(assert false)\n(check-sat)",
    "a line separator in a comment": "; x\u2028(assert false)\n(check-sat)",
    "a tab": "(assert\ttrue)(check-sat)",
    "a form feed": "(assert\x0ctrue)(check-sat)",
    "a NUL": "(assert true)\x00(check-sat)",
    "an escape": "(declare-fun |\x1b[31m| () Int)(check-sat)",
    "a bidi override": "(declare-fun |a\u202eb| () Int)(check-sat)",
    "a zero-width space": "(assert\u200b true)(check-sat)",
    "a byte-order mark": "\ufeff(check-sat)",
    "a surrogate": "(declare-fun |\ud800| () Int)(check-sat)",
    "a no-break space": "(assert\xa0true)(check-sat)",
    "wide parentheses": "（assert true）(check-sat)",
    "letters of another script": "(declare-fun х () Int)(check-sat)",  # a Cyrillic letter
    "digits of another script": asserting("(> x ٣)"),
    "400,000 nots": "(assert " + "(not " * 400_000 + "true" + ")" * 400_001 + "(check-sat)",
    "400,000 lets": "(assert " + "(let ((a true)) " * 100_000 + "true" + ")" * 100_001 + "(check-sat)",
    "parentheses alone": "(" * 400_000,
    "a deep chain of lets": asserting(
        "(let ((a0 b)) "
        + "".join(f"(let ((a{i} (not (not a{i - 1})))) " for i in range(1, MAX_HEIGHT))
        + f"a{MAX_HEIGHT - 1}"
        + ")" * MAX_HEIGHT
    ),
    "10 MB": "(assert true)\n" * 700_000 + "(check-sat)",
    "many terms": asserting("(> (+ " + " ".join(map(str, range(260_000))) + ") 0)"),
}


class TestHostileTexts:
    @pytest.mark.parametrize("kind", HOSTILE)
    def test_it_is_refused_in_one_short_printable_line(self, kind: str) -> None:
        with pytest.raises(SmtLibError) as raised:
            read(HOSTILE[kind])
        assert hidden_character(str(raised.value), allowed="") is None
        assert len(str(raised.value)) < 300

    def test_the_place_is_named(self) -> None:
        with pytest.raises(SmtLibError, match="line 2, column 9: `y`: neither declared nor bound") as raised:
            read("(assert true)\n(assert y)")
        assert (raised.value.line, raised.value.column) == (2, 9)

    @pytest.mark.slow
    def test_the_largest_text_accepted_is_read_back(self) -> None:
        terms = " ".join(f"(and b (> x {number}))" for number in range(60_000))
        query = read(asserting(f"(or {terms})"))
        assert len(query.text) < MAX_CHARACTERS
        assert read(query.text).text == query.text

    def test_the_highest_term_accepted_is_read_back(self) -> None:
        chain = "".join(f"(let ((a{i} (and a{i - 1} a{i - 1}))) " for i in range(1, MAX_HEIGHT))
        query = read(asserting(f"(let ((a0 b)) {chain} a{MAX_HEIGHT - 1}{')' * MAX_HEIGHT}"))
        assert read(query.text).text == query.text
