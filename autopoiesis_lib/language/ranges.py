"""Interval analysis: it discharges most overflow and division obligations in microseconds.

Each function is walked once per call, and each loop once per iteration (their number is bounded), over intervals of
integers. Branches refine the interval of a field or local by their test. The result over-approximates: a discharged
obligation holds. One that is not discharged is left to the solver.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..view import INT64_MAX, INT64_MIN, View
from .ir import (
    Abs,
    Assign,
    Binary,
    Call,
    Compare,
    Cond,
    Const,
    Expr,
    Field,
    For,
    Function,
    If,
    Local,
    Logic,
    MinMax,
    Module,
    Negate,
    Node,
    Not,
    Return,
    Signature,
    Stmt,
    ToBool,
    ToInt,
    ViewRef,
)

__all__ = ["Interval", "Orders", "Ranges", "analyse", "analyse_formula", "view_rows"]


@dataclass(frozen=True, slots=True)
class Interval:
    """The integers from `lo` to `hi`."""

    lo: int
    hi: int

    def join(self, other: "Interval") -> "Interval":
        """Return the smallest interval that holds both."""
        return Interval(min(self.lo, other.lo), max(self.hi, other.hi))

    @property
    def truth(self) -> bool | None:
        """True when every value is true, False when every value is false, None otherwise."""
        if self.lo == self.hi == 0:
            return False
        return True if self.lo > 0 or self.hi < 0 else None


@dataclass
class Ranges:
    """The result of the analysis of one decision."""

    result: Interval
    checked: set[int] = field(default_factory=set)
    """`id` of every operation that carries an obligation and is reachable."""
    open: set[int] = field(default_factory=set)
    """`id` of every such operation that was not discharged."""
    intervals: dict[int, Interval] = field(default_factory=dict)
    """Map from the `id` of an expression to the interval of its values, over all calls and iterations."""

    def discharged(self, node: Node) -> bool:
        """Return true when the obligation of an operation holds."""
        return id(node) not in self.open


Rows = Mapping[str, Interval]
Environment = dict[str, "Interval | Rows"]

BOOL = Interval(0, 1)
TRUE, FALSE = Interval(1, 1), Interval(0, 0)
ANYTHING = Interval(-(2**8192), 2**8192)


def view_rows(view: type[View]) -> dict[str, Interval]:
    """Return the domain of each field of a view."""
    return {spec.name: Interval(spec.domain.lo, spec.domain.hi) for spec in view.fields()}


Orders = frozenset[tuple[tuple[str, str], tuple[str, str]]]
"""Pairs of fields, each (parameter, name); the first of a pair is known never to exceed the second."""


def analyse(module: Module, signature: Signature, orders: Orders = frozenset()) -> Ranges:
    """Return the ranges of a decision over the full domains of its views.

    `orders` are fields that never exceed others.
    """
    analysis = _Analysis(module, orders=orders)
    arguments = [view_rows(module.views[param.type]) for param in signature.params]
    analysis.ranges.result = analysis.call(module.functions[signature.name], arguments)
    return analysis.ranges


def analyse_formula(
    function: Function, arguments: Sequence["Interval | Rows"], answers: Mapping[str, Interval]
) -> Ranges:
    """Return the ranges of a formula that calls decisions, for which only the intervals of their results are known."""
    analysis = _Analysis(Module({}, {}), answers)
    analysis.ranges.result = analysis.call(function, arguments)
    return analysis.ranges


class _Analysis:
    def __init__(
        self, module: Module, answers: Mapping[str, Interval] | None = None, orders: Orders = frozenset()
    ) -> None:
        self.module, self.answers, self.orders = module, answers or {}, orders
        self.ranges = Ranges(FALSE)

    def call(self, function: Function, arguments: Sequence["Interval | Rows"]) -> Interval:
        environment: Environment = {
            param.name: argument for param, argument in zip(function.params, arguments, strict=True)
        }
        returned: list[Interval] = []
        self.block(function.body, environment, returned)
        result = returned[0] if returned else FALSE
        for interval in returned[1:]:
            result = result.join(interval)
        return result

    def block(self, body: tuple[Stmt, ...], environment: Environment, returned: list[Interval]) -> Environment | None:
        """Return the environment after the statements; None when control cannot reach it."""
        current: Environment | None = environment
        for statement in body:
            if current is None:
                return None
            current = self.statement(statement, current, returned)
        return current

    def statement(self, statement: Stmt, environment: Environment, returned: list[Interval]) -> Environment | None:
        match statement:
            case Assign(name, value):
                return {**environment, name: self.expression(value, environment)}
            case Return(value):
                returned.append(self.expression(value, environment))
                return None
            case If(test, then, orelse):
                truth = self.expression(test, environment).truth
                after_then = after_else = None
                if truth is not False:
                    refined = self.refine(environment, test, True)
                    after_then = None if refined is None else self.block(then, refined, returned)
                if truth is not True:
                    refined = self.refine(environment, test, False)
                    after_else = None if refined is None else self.block(orelse, refined, returned)
                return _join(after_then, after_else)
            case For():
                current: Environment | None = environment
                for turn in statement.iterations:
                    if current is None:
                        return None
                    current = self.block(statement.body, {**current, statement.name: Interval(turn, turn)}, returned)
                return current

    def refine(self, environment: Environment, test: Expr, truth: bool) -> Environment | None:
        """Return the environment in which the test had the value `truth`; None when it cannot."""
        match test:
            case Not(operand):
                return self.refine(environment, operand, not truth)
            case Logic(op, operands) if (op == "and") == truth:
                current: Environment | None = environment
                for operand in operands:
                    if current is None:
                        return None
                    current = self.refine(current, operand, truth)
                return current
            case Compare((op,), (left, right)):
                holds = op if truth else _OPPOSITE[op]
                left_range, right_range = self.peek(left, environment), self.peek(right, environment)
                narrowed_left, narrowed_right = _narrow(holds, left_range, right_range)
                if narrowed_left is None or narrowed_right is None:
                    return None
                return _store(_store(environment, left, narrowed_left), right, narrowed_right)
            case Local() | Field() if not truth:
                return _store(environment, test, FALSE)
            case Local() | Field():
                seen = self.peek(test, environment)
                lo, hi = seen.lo + (seen.lo == 0), seen.hi - (seen.hi == 0)
                return None if lo > hi else _store(environment, test, Interval(lo, hi))
        return environment

    def peek(self, expression: Expr, environment: Environment) -> Interval:
        """Return the known interval of an expression without evaluating it again; a compound one may have any value."""
        match expression:
            case Local() | Field() | Const():
                return self.expression(expression, environment)
        return ANYTHING

    def expression(self, expression: Expr, environment: Environment) -> Interval:
        result = self._expression(expression, environment)
        known = self.ranges.intervals.get(id(expression))
        self.ranges.intervals[id(expression)] = result if known is None else known.join(result)
        return result

    def _expression(self, expression: Expr, environment: Environment) -> Interval:
        match expression:
            case Const(value):
                return Interval(value, value)
            case Local(name):
                found = environment[name]
                assert isinstance(found, Interval)
                return found
            case Field(view, name):
                rows = environment[view]
                assert not isinstance(rows, Interval)
                return rows[name]
            case Negate(operand):
                inner = self.expression(operand, environment)
                return self.fits(expression, Interval(-inner.hi, -inner.lo))
            case Abs(operand):
                inner = self.expression(operand, environment)
                lo = 0 if inner.lo <= 0 <= inner.hi else min(abs(inner.lo), abs(inner.hi))
                return self.fits(expression, Interval(lo, max(abs(inner.lo), abs(inner.hi))))
            case Not(operand):
                truth = self.expression(operand, environment).truth
                return BOOL if truth is None else FALSE if truth else TRUE
            case ToBool(operand):
                truth = self.expression(operand, environment).truth
                return BOOL if truth is None else TRUE if truth else FALSE
            case ToInt(operand):
                return self.expression(operand, environment)
            case Binary():
                return self.binary(expression, environment)
            case Compare(ops, operands):
                return self.compare(ops, [self.expression(operand, environment) for operand in operands])
            case Logic(op, operands):
                return self.logic(op, operands, environment)
            case Cond(test, then, orelse):
                truth = self.expression(test, environment).truth
                values = []
                for branch, wanted in ((then, True), (orelse, False)):
                    refined = None if truth is (not wanted) else self.refine(environment, test, wanted)
                    if refined is not None:
                        values.append(self.expression(branch, refined))
                return values[0] if len(values) == 1 else values[0].join(values[1]) if values else BOOL
            case MinMax(op, operands):
                ranges = [self.expression(operand, environment) for operand in operands]
                pick = min if op == "min" else max
                return Interval(pick(item.lo for item in ranges), pick(item.hi for item in ranges))
            case Call(name, arguments):
                values_or_rows = [
                    environment[item.name] if isinstance(item, ViewRef) else self.expression(item, environment)
                    for item in arguments
                ]
                if name in self.answers:
                    return self.answers[name]
                return self.call(self.module.functions[name], values_or_rows)

    def binary(self, node: Binary, environment: Environment) -> Interval:
        left, right = self.expression(node.left, environment), self.expression(node.right, environment)
        match node.op:
            case "+":
                return self.fits(node, Interval(left.lo + right.lo, left.hi + right.hi))
            case "-":
                lo = left.lo - right.hi
                if self.ordered(node.right, node.left):
                    lo = max(lo, 0)
                return self.fits(node, Interval(lo, left.hi - right.lo))
            case "*":
                corners = [a * b for a in (left.lo, left.hi) for b in (right.lo, right.hi)]
                return self.fits(node, Interval(min(corners), max(corners)))
            case "**":
                return self.fits(node, _power(left, right.lo))
            case "//":
                self.nonzero(node, right)
                divisors = [d for d in (right.lo, right.hi, -1, 1) if right.lo <= d <= right.hi and d != 0]
                if not divisors:
                    return FALSE
                quotients = [a // d for a in (left.lo, left.hi) for d in divisors]
                if left.lo <= 0 <= left.hi:
                    quotients.append(0)
                return self.fits(node, Interval(min(quotients), max(quotients)))
            case "%":
                self.nonzero(node, right)
                if right.lo > 0 and left.lo >= 0 and left.hi < right.lo:
                    return left
                return Interval(min(0, right.lo + 1), max(0, right.hi - 1))

    def ordered(self, smaller: Expr, larger: Expr) -> bool:
        """Return true when one field is known never to exceed another."""
        match smaller, larger:
            case Field(a, x), Field(b, y):
                return ((a, x), (b, y)) in self.orders
        return False

    def compare(self, ops: Sequence[str], ranges: Sequence[Interval]) -> Interval:
        certain = True
        for op, left, right in zip(ops, ranges, ranges[1:], strict=False):
            if None in _narrow(op, left, right):
                return FALSE
            certain = certain and None in _narrow(_OPPOSITE[op], left, right)
        return TRUE if certain else BOOL

    def logic(self, op: str, operands: tuple[Expr, ...], environment: Environment) -> Interval:
        result: Interval | None = None
        current: Environment | None = environment
        for index, operand in enumerate(operands):
            if current is None:
                break
            value = self.expression(operand, current)
            last = index == len(operands) - 1
            stops = value.truth is (op == "or")
            if last or stops:
                return value if result is None else result.join(value)
            if value.truth is not (op == "and"):
                deciding = FALSE if op == "and" else value
                result = deciding if result is None else result.join(deciding)
            current = self.refine(current, operand, op == "and")
        return result if result is not None else BOOL

    def fits(self, node: Node, interval: Interval) -> Interval:
        self.ranges.checked.add(id(node))
        if interval.lo >= INT64_MIN and interval.hi <= INT64_MAX:
            return interval
        self.ranges.open.add(id(node))
        # Later results need to hold only where nothing has overflowed yet. Without the clamp, repeated squaring would
        # use all memory.
        return Interval(*(min(max(bound, INT64_MIN), INT64_MAX) for bound in (interval.lo, interval.hi)))

    def nonzero(self, node: Node, divisor: Interval) -> None:
        self.ranges.checked.add(id(node))
        if divisor.lo <= 0 <= divisor.hi:
            self.ranges.open.add(id(node))


_OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


def _narrow(op: str, left: Interval, right: Interval) -> tuple[Interval | None, Interval | None]:
    """Return both sides, given that the comparison holds; (None, None) when it cannot."""
    match op:
        case "<":
            pair = (left.lo, min(left.hi, right.hi - 1)), (max(right.lo, left.lo + 1), right.hi)
        case "<=":
            pair = (left.lo, min(left.hi, right.hi)), (max(right.lo, left.lo), right.hi)
        case ">":
            pair = (max(left.lo, right.lo + 1), left.hi), (right.lo, min(right.hi, left.hi - 1))
        case ">=":
            pair = (max(left.lo, right.lo), left.hi), (right.lo, min(right.hi, left.hi))
        case "==":
            both = (max(left.lo, right.lo), min(left.hi, right.hi))
            pair = both, both
        case _:
            pair = _without(left, right), _without(right, left)
    if any(lo > hi for lo, hi in pair):
        return None, None
    return Interval(*pair[0]), Interval(*pair[1])


def _without(interval: Interval, other: Interval) -> tuple[int, int]:
    if other.lo != other.hi:
        return interval.lo, interval.hi
    return interval.lo + (interval.lo == other.lo), interval.hi - (interval.hi == other.lo)


def _power(base: Interval, exponent: int) -> Interval:
    corners = [base.lo**exponent, base.hi**exponent]
    if base.lo <= 0 <= base.hi:
        corners.append(0**exponent)
    return Interval(min(corners), max(corners))


def _store(environment: Environment, target: Expr, interval: Interval) -> Environment:
    match target:
        case Local(name):
            return {**environment, name: interval}
        case Field(view, name):
            rows = environment[view]
            assert not isinstance(rows, Interval)
            return {**environment, view: {**rows, name: interval}}
    return environment


def _join(first: Environment | None, second: Environment | None) -> Environment | None:
    if first is None or second is None:
        return second if first is None else first
    joined: Environment = {}
    for name, one in first.items():
        other = second.get(name)
        if isinstance(one, Interval) and isinstance(other, Interval):
            joined[name] = one.join(other)
        elif not isinstance(one, Interval) and other is not None and not isinstance(other, Interval):
            joined[name] = one if one is other else {key: one[key].join(other[key]) for key in one}
    return joined
