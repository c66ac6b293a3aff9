"""Terms over truth values, integers and rational numbers, each stored once, with constant values and normal forms of sums.

A term's value is a truth value or a rational number, and that of a term of sort Int is an integer. A real number of SMT-LIB
never occurs in an obligation, so rationals are enough; `to_real` is the identity on values. `div` and `mod` by zero may be any
function, as in SMT-LIB. A rule is sound when it holds for these values.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from math import floor
from typing import Final, Literal, TypeAlias

from .errors import ProofError, ProofProblem
from .smtlib import Query

__all__ = ["MAX_BITS", "MAX_MONOMIALS", "MAX_TERMS", "MAX_WORK", "Polynomial", "Sort", "Terms", "Value"]

MAX_TERMS: Final = 400_000
MAX_BITS: Final = 16_384
"""Bits of the numerator and of the denominator of any number."""
MAX_MONOMIALS: Final = 4_096
MAX_DEGREE: Final = 64
MAX_WORK: Final = 2_000_000
"""Units of work for one proof: arguments read, literals compared, monomials added. A unit takes some microseconds; the same proof
always takes the same number of units, and ours take a fifth of these at most."""
BITS_OF_A_UNIT: Final = 64
"""So many bits of a number count as one more unit."""

Sort = Literal["Bool", "Int", "Real", "List"]
"""A `List` holds the arguments of a rewrite rule and is part of no other term."""
Value: TypeAlias = bool | Fraction
Polynomial: TypeAlias = Mapping[tuple[int, ...], Fraction]
"""Coefficients by monomial. A monomial is the sorted terms whose product it is; the empty one is the constant."""

_BOOLEAN: Final = frozenset({"and", "or", "not", "=>", "xor"})
_COMPARING: Final = frozenset({"<", "<=", ">", ">="})
_ARITHMETIC: Final = frozenset({"+", "-", "*"})
_LEAST: Final = {
    **dict.fromkeys(("and", "or", "+", "*", "-", "not", "to_real", "to_int"), 1),
    **dict.fromkeys(("=>", "xor", "=", "distinct", "<", "<=", ">", ">=", "div", "mod", "/"), 2),
    "ite": 3,
}
_MOST: Final = {"not": 1, "to_real": 1, "to_int": 1, "xor": 2, "=": 2, "div": 2, "mod": 2, "/": 2, "ite": 3}


class Terms:
    """All terms of one proof by number. Arguments have smaller numbers than the terms they are part of."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        """Operator, `symbol`, `number`, `true` or `false`."""
        self.arguments: list[tuple[int, ...]] = []
        self.sorts: list[Sort] = []
        self.values: list[Value | None] = []
        """Values of terms without symbols, unless they are too large; None for the others."""
        self._known: dict[tuple[object, ...], int] = {}
        self._polynomials: dict[int, Polynomial] = {}
        self._work = MAX_WORK
        self.true, self.false = (
            self._add(("true",), "true", (), "Bool", True),
            self._add(("false",), "false", (), "Bool", False),
        )

    def spend(self, units: int) -> None:
        """Count work.

        Raises:
            ProofError: the proof takes more work than is allowed.
        """
        self._work -= units
        if self._work < 0:
            raise ProofError(ProofProblem.TOO_LARGE, f"checking it takes more than {MAX_WORK:,} units of work")

    def symbol(self, name: str, sort: Sort) -> int:
        """Return a declared constant."""
        return self._add(("symbol", name, sort), "symbol", (), sort, None)

    def number(self, value: Fraction, sort: Sort) -> int:
        """Return a numeral; `1` and `1.0` are different terms with one value."""
        return self._add(("number", value, sort), "number", (), sort, _bounded(value))

    def apply(self, head: str, arguments: Sequence[int]) -> int:
        """Return an operator applied to arguments.

        Raises:
            ProofError: there is no such operator, or the arguments have the wrong number or sort.
        """
        self.spend(len(arguments))
        key = (head, *arguments)
        found = self._known.get(key)
        if found is not None:
            return found
        sort = self._sort(head, arguments)
        values = [self.values[item] for item in arguments]
        value = None if sort == "List" or any(item is None for item in values) else _value(head, values)
        if isinstance(value, Fraction):
            self.spend(_bits(value) // BITS_OF_A_UNIT)
        return self._add(key, head, tuple(arguments), sort, value)

    def negation(self, term: int) -> int:
        """Return `(not term)`."""
        return self.apply("not", (term,))

    def is_a(self, term: int, head: str, count: int | None = None) -> bool:
        """Return whether a term applies an operator, to so many arguments."""
        arguments = self.arguments[term]
        return self.heads[term] == head and bool(arguments) and (count is None or len(arguments) == count)

    def assertions(self, query: Query) -> frozenset[int]:
        """Return the assertions of an obligation's text as terms, and take up its symbols."""
        found: list[int] = []
        for item in query.terms:
            arguments = [found[index] for index in item.arguments]
            if item.declared:
                found.append(self.symbol(item.head, query.symbols[item.head]))
            elif item.head in ("true", "false"):
                found.append(self.true if item.head == "true" else self.false)
            elif not arguments:
                found.append(self.number(Fraction(int(item.head)), "Int"))
            else:
                found.append(self.apply(item.head, arguments))
        return frozenset(found[root] for root in query.assertions)

    def polynomial(self, term: int) -> Polynomial:
        """Return a numeric term as a sum of products of terms that are neither sums nor products.

        Raises:
            ProofError: the sum has too many parts, or a number grows too large.
        """
        stack = [term]
        while stack:
            top = stack[-1]
            if top in self._polynomials:
                stack.pop()
                continue
            inner = self._summands(top)
            missing = [item for item in inner if item not in self._polynomials]
            if missing:
                stack += missing
                continue
            stack.pop()
            self._polynomials[top] = self._combined(top, [self._polynomials[item] for item in inner])
        return self._polynomials[term]

    def is_integral(self, polynomial: Polynomial) -> bool:
        """Return whether every monomial is a product of integers."""
        return all(self.sorts[item] == "Int" for monomial in polynomial for item in monomial)

    def added(
        self, first: Polynomial, second: Polynomial, factor: Fraction = Fraction(1)
    ) -> dict[tuple[int, ...], Fraction]:
        """Return `first + factor * second`."""
        total = dict(first)
        self.spend(4 * (len(first) + len(second)))
        for monomial, coefficient in second.items():
            total[monomial] = self._checked(total.get(monomial, Fraction(0)) + factor * coefficient)
        return self._reduced(total)

    def _summands(self, term: int) -> tuple[int, ...]:
        head, arguments = self.heads[term], self.arguments[term]
        if not arguments or self.values[term] is not None:
            return ()
        if head in _ARITHMETIC or head == "to_real":
            return arguments
        if head == "/" and self.values[arguments[1]]:
            return arguments
        return ()

    def _combined(self, term: int, parts: list[Polynomial]) -> Polynomial:
        """Return a term's polynomial from those of its arguments."""
        head, value = self.heads[term], self.values[term]
        if value is not None:
            assert not isinstance(value, bool)
            return {(): value} if value else {}
        if not parts:
            return {(term,): Fraction(1)}
        if head == "/":
            return self.added({}, parts[0], 1 / parts[1][()])
        if head == "-" and len(parts) == 1:
            return self.added({}, parts[0], Fraction(-1))
        total = parts[0]
        for part in parts[1:]:
            total = (
                self._product(total, part)
                if head == "*"
                else self.added(total, part, Fraction(-1 if head == "-" else 1))
            )
        return total

    def _product(self, first: Polynomial, second: Polynomial) -> Polynomial:
        self.spend(4 * len(first) * len(second))
        total: dict[tuple[int, ...], Fraction] = {}
        for one, left in first.items():
            for other, right in second.items():
                monomial = tuple(sorted(one + other))
                if len(monomial) > MAX_DEGREE:
                    raise ProofError(ProofProblem.TOO_LARGE, f"a product of more than {MAX_DEGREE} factors")
                total[monomial] = self._checked(total.get(monomial, Fraction(0)) + left * right)
        return self._reduced(total)

    def _checked(self, number: Fraction) -> Fraction:
        bits = _bits(number)
        self.spend(bits // BITS_OF_A_UNIT)
        if bits > MAX_BITS:
            raise ProofError(ProofProblem.TOO_LARGE, f"a number of more than {MAX_BITS:,} bits")
        return number

    @staticmethod
    def _reduced(total: dict[tuple[int, ...], Fraction]) -> dict[tuple[int, ...], Fraction]:
        if len(total) > MAX_MONOMIALS:
            raise ProofError(ProofProblem.TOO_LARGE, f"a sum of more than {MAX_MONOMIALS:,} products")
        return {monomial: coefficient for monomial, coefficient in total.items() if coefficient}

    def _sort(self, head: str, arguments: Sequence[int]) -> Sort:
        sorts = [self.sorts[item] for item in arguments]
        if head == "rare-list":
            return "List"
        fits = _LEAST.get(head, len(sorts) + 1) <= len(sorts) <= _MOST.get(head, len(sorts)) and "List" not in sorts
        of_numbers = "Bool" not in sorts
        if fits and head in _BOOLEAN and set(sorts) == {"Bool"}:
            return "Bool"
        if fits and head in ("=", "distinct") and (of_numbers or set(sorts) == {"Bool"}):
            return "Bool"
        if fits and of_numbers and head in _COMPARING:
            return "Bool"
        if fits and of_numbers and head in _ARITHMETIC:
            return "Real" if "Real" in sorts else "Int"
        if fits and of_numbers and head in ("to_real", "/"):
            return "Real"
        if fits and ((head in ("div", "mod") and set(sorts) == {"Int"}) or (of_numbers and head == "to_int")):
            return "Int"
        if fits and head == "ite" and sorts[0] == "Bool":
            if sorts[1] == sorts[2]:
                return sorts[1]
            if "Bool" not in sorts[1:]:
                return "Real"
        raise ProofError(
            ProofProblem.MALFORMED, f"`{head}` is no operator, or its arguments have the wrong number or sort"
        )

    def _add(
        self, key: tuple[object, ...], head: str, arguments: tuple[int, ...], sort: Sort, value: Value | None
    ) -> int:
        found = self._known.get(key)
        if found is not None:
            return found
        if len(self.heads) == MAX_TERMS:
            raise ProofError(ProofProblem.TOO_LARGE, f"more than {MAX_TERMS:,} different terms")
        self._known[key] = index = len(self.heads)
        self.heads.append(head)
        self.arguments.append(arguments)
        self.sorts.append(sort)
        self.values.append(value)
        return index


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction | None:
    return value if _bits(value) <= MAX_BITS else None


def _value(head: str, values: Sequence[Value | None]) -> Value | None:
    """Return what an operator gives for values; None when that is not determined (a division by zero) or too large."""
    if head == "ite":
        return values[1] if values[0] else values[2]
    if head in _BOOLEAN:
        return _truth(head, [item is True for item in values])
    if head == "=":
        return values[0] == values[1]
    if head == "distinct":
        return len(set(values)) == len(values)
    numbers = [item for item in values if item is not None and not isinstance(item, bool)]
    if head in _COMPARING:
        pairs = list(pairwise(numbers))
        if head in ("<", "<="):
            return all(one < other or (head == "<=" and one == other) for one, other in pairs)
        return all(one > other or (head == ">=" and one == other) for one, other in pairs)
    if head in ("to_real", "to_int"):
        return numbers[0] if head == "to_real" else Fraction(floor(numbers[0]))
    if head in ("div", "mod", "/"):
        return _quotient(head, *numbers)
    if head == "-" and len(numbers) == 1:
        return -numbers[0]
    total = numbers[0]
    for number in numbers[1:]:
        total = total + number if head == "+" else total - number if head == "-" else total * number
        if _bounded(total) is None:
            return None
    return total


def _truth(head: str, values: Sequence[bool]) -> bool:
    if head == "not":
        return not values[0]
    if head == "and":
        return all(values)
    if head == "or":
        return any(values)
    if head == "xor":
        return values[0] != values[1]
    return values[-1] or not all(values[:-1])


def _quotient(head: str, number: Fraction, divisor: Fraction) -> Fraction | None:
    """Return the quotient, or that of SMT-LIB for integers: the remainder is at least 0 and less than the divisor's size."""
    if not divisor:
        return None
    if head == "/":
        return _bounded(number / divisor)
    remainder = number % abs(divisor)
    return remainder if head == "mod" else (number - remainder) / divisor
