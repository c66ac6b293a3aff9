"""Rules and rewrites with a fixed shape, as tables.

Each line is a claim of its own: whatever the variables stand for, the conclusion follows from the premises. The tests evaluate
every line on all values of a small domain.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, TypeAlias

from .terms import Terms

__all__ = ["REWRITES", "RULES", "Pattern", "Rewrite", "Rule", "fits", "instance", "matches"]

Pattern: TypeAlias = "str | tuple[Pattern, ...]"
"""A variable or constant, or an operator and its arguments."""


@dataclass(frozen=True)
class Rule:
    """A clause that follows from unit premises."""

    premises: tuple[Pattern, ...]
    clause: tuple[Pattern, ...]


@dataclass(frozen=True)
class Rewrite:
    """An equality that follows from unit premises, for arguments of a step in the order of the parameters."""

    parameters: Mapping[str, str]
    """Kinds of terms that the parameters stand for (`fits`)."""
    premises: tuple[Pattern, ...]
    conclusion: Pattern


_TOKEN: Final = re.compile(r"[()]|[^\s()]+")


def _patterns(text: str) -> tuple[Pattern, ...]:
    stack: list[list[Pattern]] = [[]]
    for token in _TOKEN.findall(text):
        if token == "(":
            stack.append([])
        elif token == ")":
            done = tuple(stack.pop())
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    return tuple(stack[0])


def _lines(table: str) -> list[str]:
    """Return the lines of a table; one that is indented goes on with the line before."""
    return table.strip().replace("\n    ", " ").splitlines()


def _rules(table: str) -> dict[str, tuple[Rule, ...]]:
    """Read lines `name: premises |- clause`; a name may have several."""
    found: dict[str, tuple[Rule, ...]] = {}
    for line in _lines(table):
        name, _, rest = line.partition(":")
        premises, _, clause = rest.partition("|-")
        found[name.strip()] = (*found.get(name.strip(), ()), Rule(_patterns(premises), _patterns(clause)))
    return found


def _rewrites(table: str) -> dict[str, Rewrite]:
    """Read lines `name (parameters): premises |- conclusion`; a parameter is `x`, or `x/Int` and so on (`fits`)."""
    found: dict[str, Rewrite] = {}
    for line in _lines(table):
        head, _, rest = line.partition(":")
        name, *parameters = head.split()
        premises, _, conclusion = rest.partition("|-")
        sorts = {item.partition("/")[0]: item.partition("/")[2] or "Any" for item in parameters}
        found[name] = Rewrite(sorts, _patterns(premises), _patterns(conclusion)[0])
    return found


RULES: Final = _rules("""
true: |- true
false: |- (not false)
not_not: |- (not (not (not p))) p
implies_pos: |- (not (=> p q)) (not p) q
implies_neg1: |- (=> p q) p
implies_neg2: |- (=> p q) (not q)
equiv_pos1: |- (not (= p q)) p (not q)
equiv_pos2: |- (not (= p q)) (not p) q
equiv_neg1: |- (= p q) (not p) (not q)
equiv_neg2: |- (= p q) p q
ite_pos1: |- (not (ite c p q)) c q
ite_pos2: |- (not (ite c p q)) (not c) p
ite_neg1: |- (ite c p q) c (not q)
ite_neg2: |- (ite c p q) (not c) (not p)
xor_pos1: |- (not (xor p q)) p q
xor_pos2: |- (not (xor p q)) (not p) (not q)
xor_neg1: |- (xor p q) p (not q)
xor_neg2: |- (xor p q) (not p) q
implies: (=> p q) |- (not p) q
not_implies1: (not (=> p q)) |- p
not_implies2: (not (=> p q)) |- (not q)
equiv1: (= p q) |- (not p) q
equiv2: (= p q) |- p (not q)
not_equiv1: (not (= p q)) |- p q
not_equiv2: (not (= p q)) |- (not p) (not q)
ite1: (ite c p q) |- c q
ite2: (ite c p q) |- (not c) p
not_ite1: (not (ite c p q)) |- c (not q)
not_ite2: (not (ite c p q)) |- (not c) (not p)
xor1: (xor p q) |- p q
xor2: (xor p q) |- (not p) (not q)
not_xor1: (not (xor p q)) |- p (not q)
not_xor2: (not (xor p q)) |- (not p) q
refl: |- (= a a)
symm: (= a b) |- (= b a)
not_symm: (not (= a b)) |- (not (= b a))
eq_symmetric: |- (= (= a b) (= b a))
la_disequality: |- (or (= a b) (not (<= a b)) (not (<= b a)))
la_totality: |- (or (<= a b) (<= b a))
la_rw_eq: |- (= (= a b) (and (<= a b) (<= b a)))
comp_simplify: |- (= (< a a) false)
comp_simplify: |- (= (<= a a) true)
comp_simplify: |- (= (>= a b) (<= b a))
comp_simplify: |- (= (< a b) (not (<= b a)))
comp_simplify: |- (= (> a b) (not (<= a b)))
not_simplify: |- (= (not (not p)) p)
not_simplify: |- (= (not false) true)
not_simplify: |- (= (not true) false)
implies_simplify: |- (= (=> (not p) (not q)) (=> q p))
implies_simplify: |- (= (=> false p) true)
implies_simplify: |- (= (=> p true) true)
implies_simplify: |- (= (=> true p) p)
implies_simplify: |- (= (=> p false) (not p))
implies_simplify: |- (= (=> p p) true)
implies_simplify: |- (= (=> (not p) p) p)
implies_simplify: |- (= (=> p (not p)) (not p))
implies_simplify: |- (= (=> (=> p q) q) (or p q))
equiv_simplify: |- (= (= (not p) (not q)) (= p q))
equiv_simplify: |- (= (= p p) true)
equiv_simplify: |- (= (= p (not p)) false)
equiv_simplify: |- (= (= (not p) p) false)
equiv_simplify: |- (= (= true p) p)
equiv_simplify: |- (= (= p true) p)
equiv_simplify: |- (= (= false p) (not p))
equiv_simplify: |- (= (= p false) (not p))
""")
"""Rules of the Alethe specification."""

REWRITES: Final = _rewrites("""
eq-refl t: |- (= (= t t) true)
eq-symm t s: |- (= (= t s) (= s t))
eq-ite-lift c t s r: |- (= (= (ite c t s) r) (ite c (= t r) (= s r)))
eq-cond-deq t s r: (= (= s r) false) |- (= (= (= t s) (= t r)) (and (not (= t s)) (not (= t r))))
distinct-binary-elim t s: |- (= (distinct t s) (not (= t s)))
ite-true-cond x y: |- (= (ite true x y) x)
ite-false-cond x y: |- (= (ite false x y) y)
ite-not-cond c x y: |- (= (ite (not c) x y) (ite c y x))
ite-eq-branch c x: |- (= (ite c x x) x)
ite-then-lookahead c x y z: |- (= (ite c (ite c x y) z) (ite c x z))
ite-else-lookahead c x y z: |- (= (ite c x (ite c y z)) (ite c x z))
ite-then-neg-lookahead c x y z: |- (= (ite c (ite (not c) x y) z) (ite c y z))
ite-else-neg-lookahead c x y z: |- (= (ite c x (ite (not c) y z)) (ite c x y))
ite-eq c x y: |- (= (ite c (= (ite c x y) x) (= (ite c x y) y)) true)
ite-neg-branch c x/Bool y/Bool: (= (not y) x) |- (= (ite c x y) (= c x))
ite-then-true c x: |- (= (ite c true x) (or c x))
ite-else-false c x: |- (= (ite c x false) (and c x))
ite-then-false c x: |- (= (ite c false x) (and (not c) x))
ite-else-true c x: |- (= (ite c x true) (or (not c) x))
ite-then-lookahead-self c x: |- (= (ite c c x) (ite c true x))
ite-else-lookahead-self c x: |- (= (ite c x c) (ite c x false))
ite-then-lookahead-not-self c x: |- (= (ite c (not c) x) (ite c false x))
ite-else-lookahead-not-self c x: |- (= (ite c x (not c)) (ite c x true))
ite-expand c x y: |- (= (ite c x y) (and (or (not c) x) (or c y)))
bool-not-ite-elim c x y: |- (= (not (ite c x y)) (ite c (not x) (not y)))
bool-double-not-elim t: |- (= (not (not t)) t)
bool-not-true t: (= t false) |- (= (not t) true)
bool-not-false t: (= t true) |- (= (not t) false)
bool-eq-true t: |- (= (= t true) t)
bool-eq-false t: |- (= (= t false) (not t))
bool-eq-nrefl x: |- (= (= x (not x)) false)
bool-impl-false1 t: |- (= (=> t false) (not t))
bool-impl-false2 t: |- (= (=> false t) true)
bool-impl-true1 t: |- (= (=> t true) true)
bool-impl-true2 t: |- (= (=> true t) t)
bool-impl-elim t s: |- (= (=> t s) (or (not t) s))
bool-dual-impl-eq t s: |- (= (and (=> t s) (=> s t)) (= t s))
bool-and-conf xs/List w ys/List zs/List: |- (= (and xs w ys (not w) zs) false)
bool-and-conf2 xs/List w ys/List zs/List: |- (= (and xs (not w) ys w zs) false)
bool-or-taut xs/List w ys/List zs/List: |- (= (or xs w ys (not w) zs) true)
bool-or-taut2 xs/List w ys/List zs/List: |- (= (or xs (not w) ys w zs) true)
bool-implies-de-morgan x y: |- (= (not (=> x y)) (and x (not y)))
bool-xor-refl x: |- (= (xor x x) false)
bool-xor-nrefl x: |- (= (xor x (not x)) true)
bool-xor-false x: |- (= (xor x false) x)
bool-xor-true x: |- (= (xor x true) (not x))
bool-xor-comm x y: |- (= (xor x y) (xor y x))
bool-xor-elim x y: |- (= (xor x y) (= (not x) y))
bool-not-xor-elim x y: |- (= (not (xor x y)) (= x y))
bool-not-eq-elim1 x/Bool y/Bool: |- (= (not (= x y)) (= (not x) y))
bool-not-eq-elim2 x/Bool y/Bool: |- (= (not (= x y)) (= x (not y)))
arith-elim-gt t s: |- (= (> t s) (not (>= s t)))
arith-elim-lt t s: |- (= (< t s) (not (>= t s)))
arith-elim-leq t s: |- (= (<= t s) (>= s t))
arith-elim-int-gt t/Int s/Int: |- (= (> t s) (>= t (+ s 1)))
arith-elim-int-lt t/Int s/Int: |- (= (< t s) (>= s (+ t 1)))
arith-leq-norm t/Int s/Int: |- (= (<= t s) (not (>= t (+ s 1))))
arith-geq-tighten t/Int s/Int: |- (= (not (>= t s)) (>= s (+ t 1)))
arith-geq-norm1-int t/Int s/Int: |- (= (>= t s) (>= (- t s) 0))
arith-geq-norm1-real t s: |- (= (>= t s) (>= (- t s) 0.0))
arith-eq-elim-int t/Int s/Int: |- (= (= t s) (and (>= t s) (<= t s)))
arith-eq-elim-real t/Num s/Num: |- (= (= t s) (and (>= t s) (<= t s)))
arith-to-int-elim-to-real x/Int: |- (= (to_int (to_real x)) x)
arith-int-div-total t/Int s/Int: (= (= s 0) false) |- (= (div t s) (div t s))
arith-int-mod-total t/Int s/Int: (= (= s 0) false) |- (= (mod t s) (mod t s))
arith-int-div-total-one t/Int: |- (= (div t 1) t)
arith-int-mod-total-one t/Int: |- (= (mod t 1) 0)
arith-int-div-total-neg t/Int s/Int: (= (< s 0) true) |- (= (div t s) (- (div t (- s))))
arith-int-mod-total-neg t/Int s/Int: (= (< s 0) true) |- (= (mod t s) (mod t (- s)))
arith-mod-over-mod-1 c/Int r/Int: (= (= c 0) false) |- (= (mod (mod r c) c) (mod r c))
arith-int-eq-conflict t/Int c/Real: (= (= (to_real (to_int c)) c) false) |- (= (= (to_real t) c) false)
arith-int-geq-tighten t/Int c/Real d/Int: (= (= (to_real (to_int c)) c) false) (= d (+ (to_int c) 1))
    |- (= (>= (to_real t) c) (>= t d))
arith-geq-ite-lift c t s r: |- (= (>= (ite c t s) r) (ite c (>= t r) (>= s r)))
arith-leq-ite-lift c t s r: |- (= (<= (ite c t s) r) (ite c (<= t r) (<= s r)))
arith-min-lt1 t s: |- (= (<= (ite (< t s) t s) t) true)
arith-min-lt2 t s: |- (= (<= (ite (< t s) t s) s) true)
arith-max-geq1 t s: |- (= (>= (ite (>= t s) t s) t) true)
arith-max-geq2 t s: |- (= (>= (ite (>= t s) t s) s) true)
mult-tangent-lower x y a b: |- (= (<= (* x y) (- (+ (* b x) (* a y)) (* a b)))
    (or (and (<= x a) (>= y b)) (and (>= x a) (<= y b))))
mult-tangent-upper x y a b: |- (= (>= (* x y) (- (+ (* b x) (* a y)) (* a b)))
    (or (and (<= x a) (<= y b)) (and (>= x a) (>= y b))))
mod-elim a/Int b/Divisor: |- (= (mod a b) (- a (* b (div a b))))
""")
"""Rewrites that cvc5 names in `rare_rewrite`. Some of its names are of division by a total function and printed with SMT-LIB's
`div` and `mod`; what is stated here holds of these, so that `mod-elim` takes a number other than zero only."""


def matches(terms: Terms, pattern: Pattern, term: int, bound: dict[str, int]) -> bool:
    """Return whether a term is an instance of a pattern, and bind the variables."""
    if isinstance(pattern, tuple):
        head, *inner = pattern
        arguments = terms.arguments[term]
        if terms.heads[term] != head or len(arguments) != len(inner):
            return False
        return all(matches(terms, one, other, bound) for one, other in zip(inner, arguments, strict=True))
    if pattern in ("true", "false"):
        return term == (terms.true if pattern == "true" else terms.false)
    return bound.setdefault(pattern, term) == term


def instance(terms: Terms, pattern: Pattern, bound: Mapping[str, int]) -> int:
    """Return a pattern with terms for its variables; the terms of a list become arguments."""
    if isinstance(pattern, tuple):
        head, *inner = pattern
        assert isinstance(head, str)
        arguments: list[int] = []
        for item in inner:
            found = instance(terms, item, bound)
            arguments += terms.arguments[found] if terms.sorts[found] == "List" else [found]
        return terms.apply(head, arguments)
    if pattern in bound:
        return bound[pattern]
    if pattern in ("true", "false"):
        return terms.true if pattern == "true" else terms.false
    return terms.number(Fraction(pattern), "Real" if "." in pattern else "Int")


def fits(terms: Terms, sorts: Sequence[str], arguments: Sequence[int]) -> bool:
    """Return whether arguments are what parameters stand for.

    `Any` is anything but a list, `Num` an Int or Real, `Divisor` an Int whose value is known and not zero; the others are sorts.
    """
    return len(sorts) == len(arguments) and all(
        terms.sorts[item] in _ALLOWED.get(sort, (sort,)) and (sort != "Divisor" or bool(terms.values[item]))
        for sort, item in zip(sorts, arguments, strict=True)
    )


_ALLOWED: Final[dict[str, tuple[str, ...]]] = {
    "Any": ("Bool", "Int", "Real"),
    "Num": ("Int", "Real"),
    "Divisor": ("Int",),
}
