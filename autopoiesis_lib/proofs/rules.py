"""The rules of Alethe that occur in proofs of our obligations, each checked from its definition.

A rule is a function from a step to the question whether its clause follows from its premises. A rule that is not in `RULES` is
not checked, and no proof that uses one counts: `hole` and `trust` are two of those.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import gcd, lcm
from typing import Final, TypeAlias

from . import schemes
from .schemes import REWRITES, Rule, fits, instance, matches
from .terms import Polynomial, Terms

__all__ = ["RULES", "Clause", "Step"]

Clause: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """A step as it is written: its clause, the clauses of its premises, and its arguments."""

    terms: Terms
    clause: Clause
    premises: tuple[Clause, ...] = ()
    arguments: tuple[int, ...] = ()
    name: str | None = None
    """The first argument, where that is a string."""

    @property
    def only(self) -> int | None:
        """The literal of a unit clause."""
        return self.clause[0] if len(self.clause) == 1 else None

    def units(self) -> list[int] | None:
        """Return the literals of the premises if all are unit clauses."""
        return [premise[0] for premise in self.premises] if all(len(item) == 1 for item in self.premises) else None

    def parts(self, term: int | None, head: str, count: int | None = None) -> tuple[int, ...] | None:
        """Return the arguments of a term that applies an operator, to so many arguments."""
        if term is None or not self.terms.is_a(term, head, count):
            return None
        found = self.terms.arguments[term]
        self.terms.spend(len(found) // 16)  # what a comparison with all of them takes
        return found

    def sides(self, term: int | None) -> tuple[int, ...] | None:
        """Return both sides of an equality."""
        return self.parts(term, "=", 2)

    def position(self) -> int | None:
        """Return the only argument as an index."""
        value = self.terms.values[self.arguments[0]] if len(self.arguments) == 1 else None
        if not isinstance(value, Fraction) or value.denominator != 1:
            return None
        return int(value) if value >= 0 else None


def _resolution(step: Step) -> bool:
    """Resolve the premises from left to right, each time on the pivot and polarity that two arguments name.

    Two leading negations count as none, in every literal.
    """
    terms = step.terms
    if not step.premises or len(step.arguments) != 2 * (len(step.premises) - 1):
        return False
    found = _literals(terms, step.premises[0])
    for index, premise in enumerate(step.premises[1:]):
        pivot, polarity = step.arguments[2 * index : 2 * index + 2]
        if terms.sorts[pivot] != "Bool" or polarity not in (terms.true, terms.false):
            return False
        first, second = _plain(terms, pivot), _plain(terms, terms.negation(pivot))
        if polarity == terms.false:
            first, second = second, first
        following = _literals(terms, premise)
        if first not in found or second not in following:
            return False
        found = (found - {first}) | (following - {second})
        terms.spend(len(found))
    return found == _literals(terms, step.clause)


def _literals(terms: Terms, clause: Sequence[int]) -> set[int]:
    """Return the literals of a clause without pairs of leading negations."""
    return {_plain(terms, literal) for literal in clause}


def _plain(terms: Terms, literal: int) -> int:
    """Return a literal without pairs of leading negations."""
    while terms.is_a(literal, "not") and terms.is_a(inner := terms.arguments[literal][0], "not"):
        literal = terms.arguments[inner][0]
        terms.spend(1)
    return literal


def _same_literals(step: Step) -> bool:
    return len(step.premises) == 1 and set(step.premises[0]) == set(step.clause)


def _reordering(step: Step) -> bool:
    return len(step.premises) == 1 and Counter(step.premises[0]) == Counter(step.clause)


def _weakening(step: Step) -> bool:
    return len(step.premises) == 1 and set(step.premises[0]) <= set(step.clause)


def _trans(step: Step) -> bool:
    chain = [step.sides(item) for item in step.units() or ()]
    conclusion = step.sides(step.only)
    if not chain or conclusion is None:
        return False
    at = conclusion[0]
    for link in chain:
        if link is None or link[0] != at:
            return False
        at = link[1]
    return at == conclusion[1]


def _cong(step: Step) -> bool:
    """Accept one operator on both sides; arguments are the same, or a premise each says that they are equal."""
    terms, conclusion, units = step.terms, step.sides(step.only), step.units()
    if conclusion is None or units is None:
        return False
    left, right = (terms.arguments[item] for item in conclusion)
    if terms.heads[conclusion[0]] != terms.heads[conclusion[1]] or not left or len(left) != len(right):
        return False
    terms.spend(len(left))
    following = 0
    for one, other in zip(left, right, strict=True):
        sides = step.sides(units[following]) if following < len(units) else None
        if sides in ((one, other), (other, one)):
            following += 1
        elif one != other:
            return False
    return following == len(units)


def _shape(rules: Sequence[Rule], step: Step) -> bool:
    """Accept an instance of a rule with a fixed shape."""
    units = step.units()
    return units is not None and not step.arguments and any(_is_instance(step, rule, units) for rule in rules)


def _is_instance(step: Step, rule: Rule, units: Sequence[int]) -> bool:
    patterns, found = (*rule.premises, *rule.clause), (*units, *step.clause)
    if len(rule.premises) != len(units) or len(rule.clause) != len(step.clause):
        return False
    bound: dict[str, int] = {}
    return all(matches(step.terms, pattern, term, bound) for pattern, term in zip(patterns, found, strict=True))


def _rewrite(step: Step) -> bool:
    """Accept an instance of a rewrite that cvc5 names."""
    rewrite, units = REWRITES.get(step.name or ""), step.units()
    if rewrite is None or units is None or not fits(step.terms, list(rewrite.parameters.values()), step.arguments):
        return False
    bound = dict(zip(rewrite.parameters, step.arguments, strict=True))
    expected = [instance(step.terms, pattern, bound) for pattern in (*rewrite.premises, rewrite.conclusion)]
    return [*units, step.only] == expected


def _part(head: str, negated: bool, step: Step) -> bool:
    """`and`: one part follows from a conjunction; `not_or`: the negation of one follows from a negated disjunction."""
    units, index = step.units(), step.position()
    if units is None or len(units) != 1 or index is None:
        return False
    whole = units[0]
    if negated:
        inner = step.parts(whole, "not", 1)
        whole = inner[0] if inner else whole
        if inner is None:
            return False
    parts = step.parts(whole, head)
    if parts is None or index >= len(parts):
        return False
    return step.only == (step.terms.negation(parts[index]) if negated else parts[index])


def _selected(head: str, step: Step) -> bool:
    """`and_pos`: a conjunction is false or its part is true; `or_neg`: a disjunction is true or its part is false."""
    index = step.position()
    if step.premises or index is None or len(step.clause) != 2:
        return False
    whole, literal = step.clause
    if head == "and":
        inner = step.parts(whole, "not", 1)
        parts = step.parts(inner[0], "and") if inner else None
        return parts is not None and index < len(parts) and literal == parts[index]
    parts = step.parts(whole, "or")
    return parts is not None and index < len(parts) and literal == step.terms.negation(parts[index])


def _all_parts(head: str, step: Step) -> bool:
    """`and_neg`: a conjunction is true or a part is false; `or_pos`: a disjunction is false or a part is true."""
    if step.premises or step.arguments or not step.clause:
        return False
    whole, *literals = step.clause
    if head == "and":
        parts = step.parts(whole, "and")
        return parts is not None and literals == [step.terms.negation(item) for item in parts]
    inner = step.parts(whole, "not", 1)
    return inner is not None and step.parts(inner[0], "or") == tuple(literals)


def _split(head: str, step: Step) -> bool:
    """`or`: a disjunction as a clause; `not_and`: a negated conjunction as one."""
    units = step.units()
    if units is None or len(units) != 1 or step.arguments:
        return False
    if head == "or":
        return step.parts(units[0], "or") == step.clause
    inner = step.parts(units[0], "not", 1)
    parts = step.parts(inner[0], "and") if inner else None
    return parts is not None and step.clause == tuple(step.terms.negation(item) for item in parts)


def _and_intro(step: Step) -> bool:
    units = step.units()
    return units is not None and step.parts(step.only, "and") == tuple(units)


def _flat(terms: Terms, head: str, term: int) -> set[int]:
    """Return the parts of nested conjunctions or disjunctions, without the part that changes nothing."""
    found: set[int] = set()
    seen: set[int] = set()
    stack = [term]
    while stack:
        item = stack.pop()
        if item in seen:
            continue
        seen.add(item)
        terms.spend(1)
        if terms.is_a(item, head):
            stack += terms.arguments[item]
        else:
            found.add(item)
    return found - {terms.true if head == "and" else terms.false}


def _flattened(step: Step) -> bool:
    """Accept equal sets of parts on both sides: nesting, order and repetition do not matter."""
    sides = step.sides(step.only)
    if step.premises or sides is None:
        return False
    return any(_flat(step.terms, head, sides[0]) == _flat(step.terms, head, sides[1]) for head in ("and", "or"))


def _simplified(head: str, step: Step) -> bool:
    """Accept what a conjunction or disjunction amounts to once flat, be it because a part or two parts decide it."""
    terms, sides = step.terms, step.sides(step.only)
    if step.premises or sides is None or not terms.is_a(sides[0], head):
        return False
    decided = terms.false if head == "and" else terms.true
    parts = _flat(terms, head, sides[0])
    if decided in parts or any(terms.negation(item) in parts for item in parts):
        return sides[1] == decided
    return parts == _flat(terms, head, sides[1])


def _evaluate(step: Step) -> bool:
    """Accept an equality of a term without symbols and its value."""
    terms, sides = step.terms, step.sides(step.only)
    if step.premises or sides is None or not _is_constant(terms, sides[1]):
        return False
    value = terms.values[sides[0]]
    return value is not None and value == terms.values[sides[1]]


def _is_constant(terms: Terms, term: int) -> bool:
    return not terms.arguments[term] and terms.values[term] is not None


def _poly_simp(step: Step) -> bool:
    terms, sides = step.terms, step.sides(step.only)
    if step.premises or sides is None or terms.sorts[sides[0]] == "Bool":
        return False
    return terms.polynomial(sides[0]) == terms.polynomial(sides[1])


_TURNED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "="}


def _poly_simp_rel(step: Step) -> bool:
    """Accept that `a ~ b` and `e ~ f` are the same comparison if `c (a - b) = d (e - f)`.

    `c` and `d` are numbers other than zero, of one sign unless the comparison is `=`.
    """
    terms, units, conclusion = step.terms, step.units(), step.sides(step.only)
    scaled = step.sides(units[0]) if units is not None and len(units) == 1 else None
    if scaled is None or conclusion is None or terms.heads[conclusion[0]] != terms.heads[conclusion[1]]:
        return False
    factors: list[Fraction] = []
    for product, comparison in zip(scaled, conclusion, strict=True):
        parts = step.parts(product, "*", 2)
        if parts is None or terms.heads[comparison] not in _TURNED or len(terms.arguments[comparison]) != 2:
            return False
        factor, difference = terms.values[parts[0]], parts[1]
        real = step.parts(difference, "to_real", 1)
        if step.parts(real[0] if real else difference, "-", 2) != terms.arguments[comparison] or not factor:
            return False
        factors.append(Fraction(factor))
    return terms.heads[conclusion[0]] == "=" or (factors[0] > 0) == (factors[1] > 0)


def _la_generic(step: Step) -> bool:
    """Accept a clause if its negated literals, each times a coefficient, add up to a contradiction.

    Every negated literal is read as `p >= 0`, `p > 0` or `p = 0`. An inequality counts with the size of its coefficient, and over
    integers it is first tightened to the least value that it leaves.
    """
    terms = step.terms
    if step.premises or len(step.arguments) != len(step.clause):
        return False
    total: Polynomial = {}
    strict = False
    for literal, argument in zip(step.clause, step.arguments, strict=True):
        factor, negated = terms.values[argument], _negated(terms, literal)
        if negated is None or factor is None or isinstance(factor, bool):
            return False
        head, left, right = negated
        difference: Polynomial = terms.added(terms.polynomial(left), terms.polynomial(right), Fraction(-1))
        if head != "=":
            if head in ("<", "<="):
                difference = terms.added({}, difference, Fraction(-1))
            factor = abs(factor)
            open_end = head in ("<", ">")
            if set(difference) - {()} and terms.is_integral(difference):
                difference, open_end = _tightened(difference, open_end), False
            strict = strict or (open_end and factor > 0)
        total = terms.added(total, difference, factor)
    rest = total.get((), Fraction(0))
    if set(total) - {()}:
        return False
    # What remains reads `rest >= 0`, `rest > 0` if a strict inequality is among them, or `rest = 0` if all are equalities.
    only_equalities = all((_negated(terms, literal) or "?")[0] == "=" for literal in step.clause)
    return rest != 0 if only_equalities else rest < 0 or (strict and rest == 0)


def _negated(terms: Terms, literal: int) -> tuple[str, int, int] | None:
    """Return the comparison that a literal's negation states; None for a literal that is no such one."""
    positive = not terms.is_a(literal, "not", 1)
    atom = literal if positive else terms.arguments[literal][0]
    head, arguments = terms.heads[atom], terms.arguments[atom]
    if head not in _TURNED or len(arguments) != 2 or terms.sorts[arguments[0]] == "Bool":
        return None
    if positive:
        if head == "=":
            return None  # its negation, two strict inequalities, adds up to nothing
        head = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}[head]
    return head, arguments[0], arguments[1]


def _tightened(polynomial: Polynomial, strict: bool) -> Polynomial:
    """Return `q` such that `q >= 0` is what `p >= 0`, or `p > 0`, says of integers.

    The parts of `p` other than its constant add up to a multiple of their coefficients' greatest common divisor.
    """
    coefficients = [number for monomial, number in polynomial.items() if monomial]
    common = Fraction(
        gcd(*(number.numerator for number in coefficients)), lcm(*(number.denominator for number in coefficients))
    )
    least = -polynomial.get((), Fraction(0)) / common
    whole = least.numerator // least.denominator
    if strict or whole != least:
        whole += 1
    return {**polynomial, (): -whole * common}


def _implication(step: Step) -> tuple[tuple[int, ...], tuple[str, int, int]] | None:
    """Return the premises of a conjunction that implies a comparison, and that comparison."""
    terms, sides = step.terms, step.parts(step.only, "=>", 2)
    if step.premises or step.arguments or sides is None:
        return None
    head, arguments = terms.heads[sides[1]], terms.arguments[sides[1]]
    if head not in _TURNED or len(arguments) != 2:
        return None
    return step.parts(sides[0], "and") or (sides[0],), (head, *arguments)


def _la_mult(positive: bool, step: Step) -> bool:
    """Accept that both sides of a comparison may be multiplied by a positive term; a negative one turns the comparison."""
    terms, found = step.terms, _implication(step)
    if found is None or len(found[0]) != 2:
        return False
    (sign, original), (head, left, right) = found
    compared = step.parts(sign, ">" if positive else "<", 2)
    inner = step.parts(original, head if positive else _TURNED[head], 2)
    if compared is None or inner is None or terms.values[compared[1]] != 0 or terms.sorts[inner[0]] == "Bool":
        return False
    factor = compared[0]
    return (left, right) == (terms.apply("*", (factor, inner[0])), terms.apply("*", (factor, inner[1])))


def _la_mult_sign(step: Step) -> bool:
    """Accept the sign of a product that follows from the signs of its factors; of one to an even power, that it is not zero."""
    terms, found = step.terms, _implication(step)
    if found is None:
        return False
    premises, (head, product, zero) = found
    signs: dict[int, str] = {}
    for premise in premises:
        inner = step.parts(premise, "not", 1)
        atom = inner[0] if inner else premise
        relation, sides = terms.heads[atom], terms.arguments[atom]
        if relation not in (("=",) if inner else ("<", ">")) or len(sides) != 2 or terms.values[sides[1]] != 0:
            return False
        signs[sides[0]] = relation
    negative = False
    for factor, count in Counter(step.parts(product, "*") or (product,)).items():
        sign = signs.get(factor)
        if sign is None or (sign == "=" and count % 2):
            return False
        negative ^= sign == "<" and count % 2 == 1
    return terms.values[zero] == 0 and head == ("<" if negative else ">")


def _div_intro(step: Step) -> bool:
    """Accept `b * q <= a < b * (q + c)` for `q = (div a b)`, where `b` is a number other than zero and `c` its sign."""
    terms, both = step.terms, step.parts(step.only, "and", 2)
    low = step.parts(both[0], "<=", 2) if both else None
    high = step.parts(both[1], "<", 2) if both else None
    product = step.parts(low[0], "*", 2) if low else None
    quotient = step.parts(product[1], "div", 2) if product else None
    if step.premises or low is None or high is None or product is None or quotient is None:
        return False
    number, divisor = quotient
    value = terms.values[divisor]
    if not value or product[0] != divisor or low[1] != number or high[0] != number:
        return False
    sign = terms.number(Fraction(1 if value > 0 else -1), "Int")
    return high[1] == terms.apply("*", (divisor, terms.apply("+", (product[1], sign))))


RULES: Final[Mapping[str, Callable[[Step], bool]]] = {
    **{name: partial(_shape, rules) for name, rules in schemes.RULES.items()},
    "resolution": _resolution,
    "th_resolution": _resolution,
    "contraction": _same_literals,
    "reordering": _reordering,
    "weakening": _weakening,
    "trans": _trans,
    "cong": _cong,
    "and": partial(_part, "and", False),
    "not_or": partial(_part, "or", True),
    "and_pos": partial(_selected, "and"),
    "or_neg": partial(_selected, "or"),
    "and_neg": partial(_all_parts, "and"),
    "or_pos": partial(_all_parts, "or"),
    "or": partial(_split, "or"),
    "not_and": partial(_split, "and"),
    "and_intro": _and_intro,
    "and_simplify": partial(_simplified, "and"),
    "or_simplify": partial(_simplified, "or"),
    "ac_simp": _flattened,
    "aci_simp": _flattened,
    "evaluate": _evaluate,
    "poly_simp": _poly_simp,
    "poly_simp_rel": _poly_simp_rel,
    "la_generic": _la_generic,
    "la_mult_pos": partial(_la_mult, True),
    "la_mult_neg": partial(_la_mult, False),
    "la_mult_sign": _la_mult_sign,
    "div_intro": _div_intro,
    "rare_rewrite": _rewrite,
}
"""Checks by the name of the rule; `subproof` is checked where the steps are (`alethe`)."""
