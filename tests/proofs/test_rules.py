"""Each rule: what it accepts, and what it refuses for each of its side conditions."""

import pytest

from autopoiesis_lib.proofs import ProofError, ProofProblem, check

DECLARED = "".join(f"(declare-fun {name} () Int)" for name in "xyz") + "".join(
    f"(declare-fun {name} () Bool)" for name in "pqrs"
)
TEXT = f"{DECLARED}(assert p)(check-sat)"


def problem(rule: str, clause: str, *premises: str, args: str = "") -> ProofProblem:
    """Return why a step is refused, or INCOMPLETE when only the rest of the proof is missing.

    The premises are what a subproof assumes; one in square brackets is a clause, which follows from a disjunction.
    """
    lines, names = ["(anchor :step end)"], []
    for index, premise in enumerate(premises):
        if premise.startswith("["):
            lines.append(f"(assume a{index} (or {premise[1:-1]}))")
            lines.append(f"(step h{index} (cl {premise[1:-1]}) :rule or :premises (a{index}))")
        else:
            lines.append(f"(assume h{index} {premise})")
        names.append(f"h{index}")
    given = (f" :premises ({' '.join(names)})" if names else "") + (f" :args ({args})" if args else "")
    lines.append(f"(step t (cl {clause}) :rule {rule}{given})")
    with pytest.raises(ProofError) as caught:
        check(TEXT, "\n".join(lines))
    return caught.value.problem


RESOLVED = ["[(not p) q]", "p"]
ACCEPTED = {
    "a chain of resolutions": ("resolution", "r", "[p q]", "[(not p) r]", "(not q)", "p true q true"),
    "a pivot that is negated first": ("resolution", "q", *RESOLVED, "p false"),
    "a doubly negated literal": ("resolution", "q", "[(not p) q]", "(not (not p))", "p false"),
    "literals that occur twice": ("contraction", "p q", "[p q p]", ""),
    "another order": ("reordering", "q p p", "[p q p]", ""),
    "one literal more": ("weakening", "p q r", "[p q]", ""),
    "a chain of equalities": ("trans", "(= x (+ z 1))", "(= x y)", "(= y (+ z 1))", ""),
    "equal arguments": ("cong", "(= (+ x 1 z) (+ y 1 z))", "(= x y)", ""),
    "a part of a conjunction": ("and", "q", "(and p q)", "1"),
    "a part of a negated disjunction": ("not_or", "(not q)", "(not (or p q))", "1"),
    "a conjunction or not": ("and_pos", "(not (and p q)) q", "1"),
    "a disjunction or not": ("or_neg", "(or p q) (not q)", "1"),
    "all parts of a conjunction": ("and_neg", "(and p q) (not p) (not q)", ""),
    "all parts of a disjunction": ("or_pos", "(not (or p q)) p q", ""),
    "a disjunction as a clause": ("or", "p q", "(or p q)", ""),
    "a negated conjunction": ("not_and", "(not p) (not q)", "(not (and p q))", ""),
    "a conjunction of premises": ("and_intro", "(and p q)", "p", "q", ""),
    "true in a conjunction": ("and_simplify", "(= (and p true p) p)", ""),
    "false in a conjunction": ("and_simplify", "(= (and p false) false)", ""),
    "a contradiction": ("and_simplify", "(= (and p q (not p)) false)", ""),
    "true in a disjunction": ("or_simplify", "(= (or p true) true)", ""),
    "false in a disjunction": ("or_simplify", "(= (or p false q) (or q p))", ""),
    "nested conjunctions": ("aci_simp", "(= (and (and p q) (and r p)) (and r q p))", ""),
    "nested disjunctions": ("ac_simp", "(= (or (or p q) true) (or p q true))", ""),
    "division by a negative number": ("evaluate", "(= (div -7 -2) 4)", ""),
    "division of a negative number": ("evaluate", "(= (div -7 2) -4)", ""),
    "a remainder is not negative": ("evaluate", "(= (mod -7 -2) 1)", ""),
    "a truth value": ("evaluate", "(= (ite (< 1 2) (= 1 1) false) true)", ""),
    "a fraction": ("evaluate", "(= (+ 1/2 0.5) 1/1)", ""),
    "products of sums": ("poly_simp", "(= (* (+ x 1) (- x 1)) (+ (* x x) -1))", ""),
    "sums with real parts": ("poly_simp", "(= (* 1/2 (to_real (* 2 x))) (to_real x))", ""),
    "scaled comparisons": ("poly_simp_rel", "(= (>= x y) (>= (* 2 x) z))", "(= (* 2 (- x y)) (* 1 (- (* 2 x) z)))", ""),
    "a turned equality": ("poly_simp_rel", "(= (= x y) (= y x))", "(= (* 1 (- x y)) (* -1 (- y x)))", ""),
    "a Farkas combination": ("la_generic", "(not (<= x y)) (not (<= y z)) (<= x z)", "1 1 1"),
    "equality with a negative coefficient": ("la_generic", "(not (= x y)) (not (< x y))", "1 1"),
    "integers between two integers": ("la_generic", "(not (> x 0)) (not (< x 1))", "1 1"),
    "a multiple between two multiples": ("la_generic", "(not (> (* 3 x) 3)) (not (< (* 3 x) 6))", "1 1"),
    "a strict and a weak bound": ("la_generic", "(not (< x y)) (not (<= y x))", "1 1"),
    "strict bounds of reals": ("la_generic", "(not (< 0/1 (/ x 1/1))) (not (<= (/ x 1/1) 0/1))", "1 1"),
    "a product with a positive factor": ("la_mult_pos", "(=> (and (> x 0) (< y z)) (< (* x y) (* x z)))", ""),
    "a product with a negative factor": ("la_mult_neg", "(=> (and (< x 0) (< y z)) (> (* x y) (* x z)))", ""),
    "the sign of a product": ("la_mult_sign", "(=> (and (< x 0) (> y 0)) (< (* x y) 0))", ""),
    "the sign of a square": ("la_mult_sign", "(=> (not (= x 0)) (> (* x x) 0))", ""),
    "the bounds of a quotient": ("div_intro", "(and (<= (* 3 (div x 3)) x) (< x (* 3 (+ (div x 3) 1))))", ""),
    "those of a negative divisor": ("div_intro", "(and (<= (* -3 (div x -3)) x) (< x (* -3 (+ (div x -3) -1))))", ""),
    "a rewrite of a remainder": ("rare_rewrite", "(= (mod x 3) (- x (* 3 (div x 3))))", '"mod-elim" x 3'),
    "a rewrite with a premise": ("rare_rewrite", "(= (not p) true)", "(= p false)", '"bool-not-true" p'),
    "a list": ("rare_rewrite", "(= (or r p (not p)) true)", '"bool-or-taut" (rare-list r) p (rare-list) (rare-list)'),
}  # fmt: skip
REFUSED = {
    "a pivot that is not there": ("resolution", "q", *RESOLVED, "r false"),
    "the wrong polarity": ("resolution", "q", *RESOLVED, "p true"),
    "a polarity that is a symbol": ("resolution", "q", *RESOLVED, "p s"),
    "a lost literal": ("resolution", "", *RESOLVED, "p false"),
    "a swapped literal": ("resolution", "(not q)", *RESOLVED, "p false"),
    "a missing premise": ("resolution", "q", "[(not p) q]", "p false"),
    "no premise": ("resolution", "p", ""),
    "no pivots": ("resolution", "q", *RESOLVED, ""),
    "a literal that contraction loses": ("contraction", "p", "[p q p]", ""),
    "a literal that contraction adds": ("contraction", "p q r", "[p q p]", ""),
    "a literal that reordering loses": ("reordering", "q p", "[p q p]", ""),
    "a literal that weakening loses": ("weakening", "p r", "[p q]", ""),
    "a broken chain": ("trans", "(= x z)", "(= x y)", "(= z y)", ""),
    "a chain without links": ("trans", "(= x x)", ""),
    "a chain to elsewhere": ("trans", "(= x z)", "(= x y)", ""),
    "two operators": ("cong", "(= (+ x 1) (* y 1))", "(= x y)", ""),
    "an argument that nothing justifies": ("cong", "(= (+ x 1) (+ y 2))", "(= x y)", ""),
    "another number of arguments": ("cong", "(= (+ x 1) (+ y 1 1))", "(= x y)", ""),
    "congruence of symbols": ("cong", "(= x y)", "(= x y)", ""),
    "a premise that is not used": ("cong", "(= (+ x 1) (+ x 1))", "(= y z)", ""),
    "a clause as an equality": ("cong", "(= (not p) (not q))", "[(= p q) r]", ""),
    "another part of a conjunction": ("and", "q", "(and p q)", "0"),
    "a part beyond the last": ("and", "q", "(and p q)", "2"),
    "a part before the first": ("and", "q", "(and p q)", "-1"),
    "half a part": ("and", "q", "(and p q)", "1/2"),
    "a part of a disjunction": ("and", "p", "(or p q)", "0"),
    "a disjunction's part that stays": ("not_or", "q", "(not (or p q))", "1"),
    "another part of and_pos": ("and_pos", "(not (and p q)) q", "0"),
    "a conjunction that is not negated": ("and_pos", "(and p q) q", "1"),
    "or_neg with a plain part": ("or_neg", "(or p q) q", "1"),
    "and_neg with a plain part": ("and_neg", "(and p q) (not p) q", ""),
    "and_neg without a part": ("and_neg", "(and p q) (not p)", ""),
    "or_pos without a part": ("or_pos", "(not (or p q)) p", ""),
    "a clause without a part": ("or", "p", "(or p q)", ""),
    "a conjunction as a clause": ("or", "p q", "(and p q)", ""),
    "a negated conjunction's parts": ("not_and", "p q", "(not (and p q))", ""),
    "a conjunction of more": ("and_intro", "(and p q)", "p", ""),
    "a conjunction of others": ("and_intro", "(and p q)", "p", "r", ""),
    "a part that gets lost": ("and_simplify", "(= (and p q) p)", ""),
    "a conjunction that is not false": ("and_simplify", "(= (and p true) false)", ""),
    "a disjunction that is not true": ("or_simplify", "(= (or p false) true)", ""),
    "mixed operators": ("aci_simp", "(= (and p (or q r)) (and p q r))", ""),
    "the bar of a C division": ("evaluate", "(= (div -7 2) -3)", ""),
    "a negative remainder": ("evaluate", "(= (mod -7 2) -1)", ""),
    "division by zero": ("evaluate", "(= (div 7 0) 0)", ""),
    "a remainder by zero": ("evaluate", "(= (mod 7 0) 7)", ""),
    "two divisions by zero": ("evaluate", "(= (div 7 0) (div 7 0))", ""),
    "a term with symbols": ("evaluate", "(= (- x x) 0)", ""),
    "a truth value and a number": ("evaluate", "(= (= 1 1) false)", ""),
    "another polynomial": ("poly_simp", "(= (* (+ x 1) (+ x 1)) (+ (* x x) 1))", ""),
    "division that is no product": ("poly_simp", "(= (* 2 (div x 2)) x)", ""),
    "a quotient by a symbol": ("poly_simp", "(= (* y (/ x y)) x)", ""),
    "formulas": ("poly_simp", "(= p p)", ""),
    "scales of two signs": ("poly_simp_rel", "(= (>= x y) (>= y x))", "(= (* 1 (- x y)) (* -1 (- y x)))", ""),
    "a scale of zero": ("poly_simp_rel", "(= (= x y) (= y z))", "(= (* 0 (- x y)) (* 0 (- y z)))", ""),
    "a scale that is a symbol": ("poly_simp_rel", "(= (= x y) (= y x))", "(= (* z (- x y)) (* z (- y x)))", ""),
    "two relations": ("poly_simp_rel", "(= (>= x y) (> x y))", "(= (* 1 (- x y)) (* 1 (- x y)))", ""),
    "other sides": ("poly_simp_rel", "(= (>= x z) (>= x y))", "(= (* 1 (- x y)) (* 1 (- x y)))", ""),
    "no premise to scale": ("poly_simp_rel", "(= (>= x y) (>= x y))", ""),
    "a wrong coefficient": ("la_generic", "(not (<= x y)) (not (<= y z)) (<= x z)", "1 2 1"),
    "a coefficient of zero": ("la_generic", "(not (<= x y)) (not (<= y z)) (<= x z)", "1 0 1"),
    "a coefficient too few": ("la_generic", "(not (<= x y)) (not (<= y z)) (<= x z)", "1 1"),
    "a coefficient that is a symbol": ("la_generic", "(not (<= x y)) (not (< y x))", "z z"),
    "a wrong sign": ("la_generic", "(not (= x y)) (< x y)", "1 1"),
    "two weak bounds": ("la_generic", "(not (<= x y)) (not (<= y x))", "1 1"),
    "a strict bound that counts zero": ("la_generic", "(not (<= x y)) (not (<= y x)) (not (< x z))", "1 1 0"),
    "reals between two integers": ("la_generic", "(not (> (/ x 2) 0)) (not (< (/ x 2) 1))", "1 1"),
    "a disequality": ("la_generic", "(= x y) (< x y)", "1 1"),
    "an equality of formulas": ("la_generic", "(not (= p q)) (not (< 0 0))", "0 1 1"),
    "an equality of truth values": ("la_generic", "(not (= p true))", "1"),
    "an equality that holds": ("la_generic", "(not (= x x))", "1"),
    "a factor without a sign": ("la_mult_pos", "(=> (and (>= x 0) (< y z)) (< (* x y) (* x z)))", ""),
    "a factor of the wrong sign": ("la_mult_pos", "(=> (and (< x 0) (< y z)) (< (* x y) (* x z)))", ""),
    "a factor compared with one": ("la_mult_neg", "(=> (and (< x 1) (< y z)) (> (* x y) (* x z)))", ""),
    "a comparison that is not turned": ("la_mult_neg", "(=> (and (< x 0) (< y z)) (< (* x y) (* x z)))", ""),
    "two factors": ("la_mult_pos", "(=> (and (> x 0) (< y z)) (< (* x y) (* y z)))", ""),
    "a product of the wrong sign": ("la_mult_sign", "(=> (and (< x 0) (> y 0)) (> (* x y) 0))", ""),
    "a factor that nothing says of": ("la_mult_sign", "(=> (> x 0) (> (* x y) 0))", ""),
    "a cube that is not zero": ("la_mult_sign", "(=> (not (= x 0)) (> (* x x x) 0))", ""),
    "a product compared with one": ("la_mult_sign", "(=> (and (> x 0) (> y 0)) (> (* x y) 1))", ""),
    "a weak sign": ("la_mult_sign", "(=> (>= x 0) (> (* x x) 0))", ""),
    "a quotient by zero": ("div_intro", "(and (<= (* 0 (div x 0)) x) (< x (* 0 (+ (div x 0) 1))))", ""),
    "a quotient by a symbol, bounded": ("div_intro", "(and (<= (* y (div x y)) x) (< x (* y (+ (div x y) 1))))", ""),
    "bounds for the other sign": ("div_intro", "(and (<= (* -3 (div x -3)) x) (< x (* -3 (+ (div x -3) 1))))", ""),
    "bounds of another quotient": ("div_intro", "(and (<= (* 3 (div y 3)) x) (< x (* 3 (+ (div y 3) 1))))", ""),
    "a weak upper bound": ("div_intro", "(and (<= (* 3 (div x 3)) x) (<= x (* 3 (+ (div x 3) 1))))", ""),
    "a remainder by zero, rewritten": ("rare_rewrite", "(= (mod x 0) (- x (* 0 (div x 0))))", '"mod-elim" x 0'),
    "a remainder by a symbol": ("rare_rewrite", "(= (mod x y) (- x (* y (div x y))))", '"mod-elim" x y'),
    "a total division by zero": ("rare_rewrite", "(= (div x 0) 0)", '"arith-int-div-total-zero" x'),
    "a rewrite with other arguments": ("rare_rewrite", "(= (= x x) true)", '"eq-refl" y'),
    "a rewrite without its premise": ("rare_rewrite", "(= (not p) true)", '"bool-not-true" p'),
    "a rewrite with another premise": ("rare_rewrite", "(= (not p) true)", "(= q false)", '"bool-not-true" p'),
    "a rewrite of reals": ("rare_rewrite", "(= (<= (/ x 2) 1) (not (>= (/ x 2) (+ 1 1))))", '"arith-leq-norm" (/ x 2) 1'),
    "a rewrite without a name": ("rare_rewrite", "(= (= x x) true)", "x"),
    "an instance of another rule": ("equiv_pos1", "(not (= p q)) (not p) q", ""),
    "arguments that are not used": ("equiv_pos2", "(not (= p q)) (not p) q", "p"),
    "a premise that a tautology has": ("refl", "(= x x)", "p", ""),
    "two sides that differ": ("refl", "(= x y)", ""),
    "one variable for two terms": ("comp_simplify", "(= (<= x y) true)", ""),
}  # fmt: skip


class TestSteps:
    @pytest.mark.parametrize("case", ACCEPTED)
    def test_one_that_follows_is_accepted(self, case: str) -> None:
        rule, clause, *premises, args = ACCEPTED[case]
        assert problem(rule, clause, *premises, args=args) is ProofProblem.INCOMPLETE

    @pytest.mark.parametrize("case", REFUSED)
    def test_one_that_does_not_is_refused(self, case: str) -> None:
        rule, clause, *premises, args = REFUSED[case]
        assert problem(rule, clause, *premises, args=args) is ProofProblem.WRONG

    @pytest.mark.parametrize(
        "rule", ["hole", "trust", "all_simplify", "lia_generic", "la_tautology", "rare-rewrite", "x"]
    )
    def test_a_rule_that_is_not_checked_is_refused(self, rule: str) -> None:
        assert problem(rule, "(= x x)") is ProofProblem.UNSUPPORTED
