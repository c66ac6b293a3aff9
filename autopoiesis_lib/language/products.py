"""Products in the encoding: each is replaced by a constant with bounds, so that the rest is linear.

Solvers decide linear arithmetic and give up on products of fields. An invariant mostly needs only the size of such a
product. The abstraction replaces `x * y`, `x ** n`, `x // y` or `x % y` (`x` and `y` not constant) by a new constant.
It uses the same constant for the same operands, and keeps the bounds from interval analysis. Two uses of the
abstraction are sound:

- Over-approximation (`bounds`). If each constant has the value of its operation, the abstraction equals the exact
  encoding, term by term. Its bounds are guarded by the path that reaches the operation. There the analysis is correct
  once nothing overflows or divides by zero, which is proved before any invariant. The analysis uses the domains of the
  views and no assumptions, so it is correct under any assumptions. So every input of the exact encoding is a model of
  the abstraction: if the abstraction is unsatisfiable, the property holds.
- Under-approximation (`pins`). Wherever the path reaches an operation, one of its operands is at an end of its
  interval. The constant is then the result of the operation, which is linear. A violation in such a model is a real
  violation.

A certificate does not trust the analysis. With `first_outside` and `results_outside` the solvers prove each bound as
well, from the domains, the assumptions and the bounds of earlier cuts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import z3

from .ir import Binary
from .ranges import Interval, Ranges
from .smt import Cutter, Term, as_int, conjunction, disjunction, floor_divide, modulo, negation

__all__ = ["PRODUCT", "Cut", "Products"]

Operation = Literal["*", "**", "//", "%"]

PRODUCT = "product!"
"""Prefix of the names of the constants."""

CASES = 8
"""Greatest number of constants for which an operand that is one of them is multiplied out case by case."""


@dataclass(frozen=True, eq=False)
class Cut:
    """One operation that was replaced by a constant, on one path."""

    constant: z3.ArithRef
    operation: Operation
    left: Term
    right: Term
    guard: Term
    """The path on which the operation is reached."""
    result: Interval
    left_range: Interval
    right_range: Interval

    @property
    def bound(self) -> Term:
        """The formula that the constant is in its interval where the operation is reached."""
        return disjunction(negation(self.guard), within(self.constant, self.result))

    @property
    def operands_outside(self) -> Term:
        """The formula that the operation is reached and an operand is not in its interval."""
        inside = conjunction(within(self.left, self.left_range), within(self.right, self.right_range))
        return conjunction(self.guard, negation(inside))

    @property
    def pin(self) -> Term:
        """The formula that the constant equals the operation's result, by a linear case, where it is reached."""
        ways: Term = False
        for at_end, value in self._ends():
            ways = disjunction(ways, conjunction(at_end, self.constant == value))
        return disjunction(negation(self.guard), ways)

    @property
    def definition(self) -> Term:
        """The formula that the constant equals the operation's result where it is reached."""
        return disjunction(negation(self.guard), self.constant == apply(self.operation, self.left, self.right))

    def _ends(self) -> Iterator[tuple[Term, Term]]:
        right_ends = {self.right_range.lo, self.right_range.hi} if self.operation != "**" else set()
        for end in sorted(right_ends):
            yield self.right == end, apply(self.operation, self.left, end)
        if self.operation in ("*", "**"):
            for end in sorted({self.left_range.lo, self.left_range.hi}):
                yield self.left == end, apply(self.operation, end, self.right)


@dataclass
class Products:
    """The replaced operations of one query, over every decision and call in it."""

    context: z3.Context
    cuts: list[Cut] = field(default_factory=list)
    """Replaced operations in the order of evaluation: operands of one hold only constants of earlier ones."""
    constants: dict[tuple[object, ...], tuple[z3.ArithRef, Term, Term]] = field(default_factory=dict)
    """Map from an operation and its operands' identities to the constant and the operands.

    The operands are kept so that ids stay unique.
    """

    def __bool__(self) -> bool:
        return bool(self.cuts)

    def cutter(self, ranges: Ranges) -> Cutter:
        """Return the function that an encoder calls for each operation of a decision with these ranges."""
        return partial(self._cut, ranges)

    def _cut(self, ranges: Ranges, node: Binary, left: Term, right: Term, guard: Term) -> Term | None:
        """Return a constant for an operation.

        The result is None when the operation is linear, has no interval, or is not safe by intervals alone.
        """
        linear = isinstance(left, int) and node.op in ("*", "**")
        linear |= isinstance(right, int) and (node.op != "**" or right < 2)
        if linear or node.op == "+" or node.op == "-":
            return None
        known = [ranges.intervals.get(id(item)) for item in (node, node.left, node.right)]
        result, left_range, right_range = known
        if result is None or left_range is None or right_range is None or not ranges.discharged(node):
            return None
        if node.op == "*":
            for cases, other in ((left, right), (right, left)):
                multiplied = _case_by_case(cases, other)
                if multiplied is not None:
                    return multiplied
            if _identity(right) < _identity(left):
                left, right, left_range, right_range = right, left, right_range, left_range
        key = (node.op, _identity(left), _identity(right))
        if key not in self.constants:
            self.constants[key] = z3.Int(f"{PRODUCT}{len(self.constants)}", self.context), left, right
        constant = self.constants[key][0]
        self.cuts.append(Cut(constant, node.op, left, right, guard, result, left_range, right_range))
        return constant

    @property
    def bounds(self) -> list[Term]:
        """The bounds of the constants."""
        return [cut.bound for cut in self.cuts]

    @property
    def pins(self) -> list[Term]:
        """Formulas that every constant equals its operation's result in one of the linear cases."""
        return [cut.pin for cut in self.cuts]

    @property
    def definitions(self) -> list[Term]:
        """Formulas that every constant equals its operation's result.

        With `bounds` they are the exact encoding, in a form that is easier to search.
        """
        return [cut.definition for cut in self.cuts]

    def first_outside(self, violation: Term) -> Term:
        """Return a violation for a certificate, which does not assume the bounds.

        The violation holds exactly when one of these does:

        - The bounds of zero or more first cuts hold, and the next one's operands are outside their intervals.
        - All bounds hold, and so does the violation.

        If neither is possible, and `results_outside` is not, every bound is true of the exact operation, one after the
        other, and the violation is impossible.
        """
        found = violation
        for cut in reversed(self.cuts):
            found = disjunction(cut.operands_outside, conjunction(cut.bound, found))
        return found

    @property
    def results_outside(self) -> Term:
        """The formula that integers in the intervals of some cut's operands give a result outside its interval."""
        left, right = z3.Int("left", self.context), z3.Int("right", self.context)
        boxes = dict.fromkeys((cut.operation, cut.left_range, cut.right_range, cut.result) for cut in self.cuts)
        found: Term = False
        for operation, left_range, right_range, result in boxes:
            factor = right_range.lo if operation == "**" else right
            inside = conjunction(within(left, left_range), within(factor, right_range))
            found = disjunction(found, conjunction(inside, negation(within(apply(operation, left, factor), result))))
        return found


def within(term: Term, interval: Interval) -> Term:
    """Return the formula that a term is in an interval."""
    return conjunction(term >= interval.lo, term <= interval.hi)


def apply(operation: Operation, left: Term, right: Term) -> Term:
    """Return the exact result of an operation."""
    match operation:
        case "*":
            return left * right
        case "**":
            result: Term = 1
            for _ in range(right):
                result = left * result
            return result
        case "//":
            return floor_divide(left, right, isinstance(right, int) and right > 0)
        case "%":
            return modulo(left, right, isinstance(right, int) and right > 0)


def _identity(term: Term) -> tuple[str, int]:
    return ("term", term.get_id()) if isinstance(term, z3.ExprRef) else ("number", term)


def _case_by_case(cases: Term, other: Term) -> Term | None:
    """Return a product with a term that is one of a few constants, multiplied out; None for any other term."""
    # These are functions of the module. A closure that calls itself would be a cycle of references. It would keep the
    # term, and with it megabytes of its Z3 context, until the garbage collector runs. Thousands of these once exceeded
    # Z3's limit.
    few = isinstance(cases, z3.ExprRef) and 0 < _constants(cases) <= CASES
    return _multiplied(cases, other) if few else None


def _constants(term: z3.ExprRef) -> int:
    """Return the number of constants in a term of choices between constants.

    The result is more than `CASES` for any other term.
    """
    if z3.is_int_value(term):
        return 1
    if not z3.is_app_of(term, z3.Z3_OP_ITE):
        return CASES + 1
    return min(_constants(term.arg(1)) + _constants(term.arg(2)), CASES + 1)


def _multiplied(term: z3.ExprRef, other: Term) -> Term:
    if z3.is_int_value(term):
        return as_int(term.as_long() * other)
    return z3.If(term.arg(0), _multiplied(term.arg(1), other), _multiplied(term.arg(2), other))
