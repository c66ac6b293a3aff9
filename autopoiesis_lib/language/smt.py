"""IR to Z3: the symbolic semantics of a function, with the obligations that make it equal to the machine's.

Integers are SMT Int (unbounded, as Python's). Each operation adds the obligation that it stays in int64 and does not
divide by zero, guarded by the path that reaches it. Branches merge with `ite` instead of multiplying paths. Loops
unroll, because their bounds are constants. SMT's `div` and `mod` are Euclidean, so flooring is encoded explicitly
unless the divisor is known to be positive.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import z3

from ..errors import AutopoiesisError
from ..view import INT64_MAX, INT64_MIN, Domain, View
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
    Stmt,
    ToBool,
    ToInt,
    ViewRef,
)
from .ranges import Ranges

__all__ = [
    "Cutter",
    "Encoder",
    "Obligation",
    "SymbolicView",
    "Term",
    "TooComplex",
    "as_bool",
    "as_int",
    "symbolic_scalar",
]

Term = Any
"""A Python int or bool (a constant), or a Z3 Int or Bool term."""

Oracle = Callable[[str, Sequence["SymbolicView | Term"]], Term]

Cutter = Callable[[Binary, Term, Term, Term], Term | None]
"""Function that replaces an operation on two terms under a guard; None encodes it exactly. See `language.products`."""


@dataclass(frozen=True, eq=False)
class SymbolicView:
    """A view as one Z3 constant per field."""

    name: str
    view: type[View]
    terms: Mapping[str, Term]

    @classmethod
    def fresh(cls, name: str, view: type[View], context: z3.Context | None = None) -> "SymbolicView":
        """Return a view of fresh constants named `name.field`."""
        return cls(
            name,
            view,
            {spec.name: symbolic_scalar(f"{name}.{spec.name}", spec.domain, context) for spec in view.fields()},
        )

    def domain(self) -> list[z3.BoolRef]:
        """Return the constraints of the declared domains on the fields."""
        return [
            bound for spec in self.view.fields() for bound in domain_constraints(self.terms[spec.name], spec.domain)
        ]


def symbolic_scalar(name: str, domain: Domain, context: z3.Context | None = None) -> Term:
    """Return a constant of a domain's sort."""
    return z3.Bool(name, context) if domain.kind == "bool" else z3.Int(name, context)


def domain_constraints(term: Term, domain: Domain) -> list[z3.BoolRef]:
    """Return the formulas that a term lies in a domain."""
    if domain.kind == "bool":
        return []
    bounds = [term >= domain.lo, term <= domain.hi]
    if domain.values is not None and len(domain.values) != domain.hi - domain.lo + 1:
        bounds.append(z3.Or([term == value for value in domain.values]))
    return bounds


@dataclass(frozen=True, eq=False)
class Obligation:
    """A condition that must hold whenever `guard` does."""

    kind: Literal["int64 overflow", "division by zero"]
    node: Node
    guard: Term
    condition: Term

    def negation(self) -> Term:
        """Return the violation as one formula."""
        return conjunction(self.guard, negation(self.condition))


def as_int(term: Term) -> Term:
    """Return a term as an integer: a boolean counts 1 or 0."""
    if isinstance(term, bool):
        return int(term)
    if isinstance(term, z3.BoolRef):
        return z3.If(term, 1, 0)
    return term


def as_bool(term: Term) -> Term:
    """Return a term as a truth value: an integer is true unless it is 0."""
    if isinstance(term, (bool, int)):
        return bool(term)
    if isinstance(term, z3.BoolRef):
        return term
    return term != 0


def conjunction(first: Term, second: Term) -> Term:
    """Return `and` of truth values, with constants folded."""
    if first is True:
        return second
    if second is True:
        return first
    return False if first is False or second is False else z3.And(first, second)


def disjunction(first: Term, second: Term) -> Term:
    """Return `or` of truth values, with constants folded."""
    return (
        negation(conjunction(negation(first), negation(second)))
        if isinstance(first, bool) or isinstance(second, bool)
        else z3.Or(first, second)
    )


def negation(term: Term) -> Term:
    """Return `not` of a truth value, with constants folded."""
    return (not term) if isinstance(term, bool) else z3.Not(term)


def choose(test: Term, then: Term, orelse: Term) -> Term:
    """Return `ite` of two values of any sort, with constants folded; a boolean beside an integer becomes an integer."""
    if isinstance(test, bool):
        return then if test else orelse
    if then is orelse:
        return then
    if not _is_bool(then) or not _is_bool(orelse):
        return z3.If(test, as_int(then), as_int(orelse))
    return z3.If(test, then, orelse)


def _is_bool(term: Term) -> bool:
    return isinstance(term, (bool, z3.BoolRef))


Environment = dict[str, "SymbolicView | Term"]


class TooComplex(AutopoiesisError):
    """A function whose terms no solver could handle: its obligations are UNKNOWN."""


MAX_DEGREE = 8
"""Greatest degree of a product; factors of a higher one are replaced by opaque terms."""


@dataclass
class _State:
    """The state of symbolic execution: the locals, the path condition, and the value if it has returned."""

    environment: Environment
    alive: Term
    value: Term = None


@dataclass
class Encoder:
    """An encoder of the functions of one module.

    `obligations` collects those of `call` that `ranges` did not discharge.
    """

    module: Module
    ranges: Ranges | None = None
    oracle: Oracle | None = None
    """Encoder of calls to functions outside the module (a contract's decisions)."""
    cutter: Cutter | None = None
    """Function that may replace a product; see `Cutter`."""
    unbounded: bool = False
    """True for CPython's unbounded integers, as in a contract's formulas: then no obligation says that they fit."""
    obligations: list[Obligation] = field(default_factory=list)
    degrees: dict[int, tuple[Term, int]] = field(default_factory=dict)
    """Map from the `get_id` of a polynomial to the term and its degree.

    The term is kept so that ids stay unique. Other terms have degree 1.
    """
    opaque: bool = False
    """True after a product of a higher degree: such queries have hung in nlsat, where no limit of Z3 stops them."""

    def call(self, function: str, arguments: Sequence[SymbolicView | Term], guard: Term = True) -> Term:
        """Return the value of a function; obligations are guarded by `guard`."""
        return self._call(self.module.functions[function], arguments, guard)

    def _call(self, function: Function, arguments: Sequence[SymbolicView | Term], guard: Term) -> Term:
        environment: Environment = {
            param.name: argument for param, argument in zip(function.params, arguments, strict=True)
        }
        state = _State(environment, guard)
        self._block(function.body, state)
        return as_bool(state.value) if function.returns_bool else as_int(state.value)

    def _block(self, body: tuple[Stmt, ...], state: _State) -> None:
        for statement in body:
            if state.alive is False:
                return
            self._statement(statement, state)

    def _statement(self, statement: Stmt, state: _State) -> None:
        match statement:
            case Assign(name, value):
                state.environment[name] = self._expression(value, state)
            case Return(value):
                returned = self._expression(value, state)
                state.value = returned if state.value is None else choose(state.alive, returned, state.value)
                state.alive = False
            case If(test, then, orelse):
                self._if(as_bool(self._expression(test, state)), then, orelse, state)
            case For():
                for turn in statement.iterations:
                    if state.alive is False:
                        return
                    state.environment[statement.name] = turn
                    self._block(statement.body, state)

    def _if(self, test: Term, then: tuple[Stmt, ...], orelse: tuple[Stmt, ...], state: _State) -> None:
        if isinstance(test, bool):
            self._block(then if test else orelse, state)
            return
        one = _State(dict(state.environment), conjunction(state.alive, test), state.value)
        self._block(then, one)
        other = _State(dict(state.environment), conjunction(state.alive, negation(test)), one.value)
        self._block(orelse, other)
        state.value = other.value
        if one.alive is False or other.alive is False:
            survivor = other if one.alive is False else one
            state.environment, state.alive = survivor.environment, survivor.alive
            return
        still_whole = _falls_through(then) and _falls_through(orelse)
        state.alive = state.alive if still_whole else disjunction(one.alive, other.alive)
        state.environment = {
            name: choose(test, value, other.environment[name]) if not isinstance(value, SymbolicView) else value
            for name, value in one.environment.items()
            if name in other.environment
        }

    def _expression(self, expression: Expr, state: _State) -> Term:
        match expression:
            case Const(value, is_bool):
                return bool(value) if is_bool else value
            case Local(name):
                return state.environment[name]
            case Field(view, name):
                symbolic = state.environment[view]
                assert isinstance(symbolic, SymbolicView)
                return symbolic.terms[name]
            case Negate(operand):
                inner = as_int(self._expression(operand, state))
                return self._fits(expression, self._polynomial(-inner, self._degree(inner)), state)
            case Not(operand):
                return negation(as_bool(self._expression(operand, state)))
            case Abs(operand):
                value = as_int(self._expression(operand, state))
                return self._fits(expression, choose(_compare("<", value, 0), -value, value), state)
            case ToInt(operand):
                return as_int(self._expression(operand, state))
            case ToBool(operand):
                return as_bool(self._expression(operand, state))
            case Binary():
                return self._binary(expression, state)
            case Compare(ops, operands):
                return self._chain(ops, operands, state)
            case Logic(op, operands):
                return self._logic(op, operands, state)
            case Cond(test, then, orelse):
                return self._cond(as_bool(self._expression(test, state)), then, orelse, state)
            case MinMax(op, operands):
                best = self._expression(operands[0], state)
                for operand in operands[1:]:
                    value = self._expression(operand, state)
                    keep = _compare("<=" if op == "min" else ">=", as_int(best), as_int(value))
                    best = choose(keep, best, value)
                return best
            case Call(name, arguments):
                values = [
                    state.environment[item.name] if isinstance(item, ViewRef) else self._expression(item, state)
                    for item in arguments
                ]
                if name in self.module.functions:
                    return self._call(self.module.functions[name], values, state.alive)
                if self.oracle is None:
                    raise LookupError(f"`{name}` is not defined")
                return self.oracle(name, values)

    def _guarded(self, expression: Expr, guard: Term, state: _State) -> Term:
        """Return an operand that is evaluated only when `guard` holds."""
        return self._expression(expression, _State(state.environment, conjunction(state.alive, guard), state.value))

    def _cond(self, test: Term, then: Expr, orelse: Expr, state: _State) -> Term:
        if isinstance(test, bool):
            return self._expression(then if test else orelse, state)
        return choose(test, self._guarded(then, test, state), self._guarded(orelse, negation(test), state))

    def _chain(self, ops: Sequence[str], operands: tuple[Expr, ...], state: _State) -> Term:
        left = as_int(self._expression(operands[0], state))
        holds: Term = True
        for op, operand in zip(ops, operands[1:], strict=True):
            right = as_int(self._guarded(operand, holds, state))
            holds = conjunction(holds, _compare(op, left, right))
            if holds is False:
                return False
            left = right
        return holds

    def _logic(self, op: str, operands: tuple[Expr, ...], state: _State) -> Term:
        seen: list[Term] = []
        reach: Term = True
        for operand in operands:
            value = self._guarded(operand, reach, state)
            seen.append(value)
            truth = as_bool(value)
            reach = conjunction(reach, truth if op == "and" else negation(truth))
            if reach is False:
                break
        result = seen[-1]
        for value in reversed(seen[:-1]):
            truth = as_bool(value)
            if _is_bool(value) and _is_bool(result):
                result = conjunction(truth, result) if op == "and" else disjunction(truth, result)
            else:
                result = choose(truth, result, value) if op == "and" else choose(truth, value, result)
        return result

    def _binary(self, node: Binary, state: _State) -> Term:
        left = as_int(self._expression(node.left, state))
        right = as_int(self._expression(node.right, state))
        cut = self.cutter(node, left, right, state.alive) if self.cutter is not None else None
        match node.op:
            case "+":
                return self._fits(node, self._polynomial(left + right, self._degree(left, right)), state)
            case "-":
                return self._fits(node, self._polynomial(left - right, self._degree(left, right)), state)
            case "*":
                return self._fits(node, self._product(left, right) if cut is None else cut, state)
            case "**":
                return self._fits(node, self._power(left, right) if cut is None else cut, state)
            case "//" | "%":
                self._oblige("division by zero", node, negation(_compare("==", right, 0)), state)
                if right == 0 if isinstance(right, int) else False:
                    return 0
                positive = self._positive(node)
                if cut is None:
                    value = floor_divide(left, right, positive) if node.op == "//" else modulo(left, right, positive)
                    # Z3 drops a `mod` inside a `mod` of the same divisor, so a remainder keeps the degree of its
                    # dividend.
                    cut = self._polynomial(value, self._degree(left))
                return self._fits(node, cut, state) if node.op == "//" else cut

    def _product(self, left: Term, right: Term) -> Term:
        left_degree, right_degree = self._degree(left), self._degree(right)
        if left_degree + right_degree > MAX_DEGREE:
            if self.unbounded:
                raise TooComplex(f"a formula multiplies up to degree {left_degree + right_degree}; state it with less")
            left, left_degree = self._opaque(left, left_degree)
            right, right_degree = self._opaque(right, right_degree)
        return self._polynomial(left * right, left_degree + right_degree)

    def _power(self, base: Term, exponent: int) -> Term:
        if isinstance(base, int):
            return base**exponent
        result: Term = 1
        for _ in range(exponent):
            result = base if isinstance(result, int) else self._product(result, base)
        return result

    def _degree(self, *terms: Term) -> int:
        return max(0 if isinstance(term, int) else self.degrees.get(term.get_id(), (term, 1))[1] for term in terms)

    def _polynomial(self, term: Term, degree: int) -> Term:
        if not isinstance(term, int):
            self.degrees[term.get_id()] = term, degree
        return term

    def _opaque(self, term: Term, degree: int) -> tuple[Term, int]:
        """Return the same value, as long as nothing has overflowed, in a form whose powers Z3 does not multiply out.

        Otherwise squaring 40 times would be a polynomial of degree 2**40, and Z3 would hang. A power's own steps carry
        no obligation, so an overflow must stay an overflow: any integer outside int64 will do.
        """
        if isinstance(term, int) or degree <= 1:
            return term, degree
        if z3.is_mod(term) or z3.is_idiv(term):  # Z3 knows its range, would see through the `ite`, and multiply it out
            raise TooComplex(f"it multiplies remainders up to degree {2 * degree}; break the chain")
        self.opaque = True
        return z3.If(z3.And(term >= INT64_MIN, term <= INT64_MAX), term, 2**64), 1

    def _positive(self, node: Binary) -> bool:
        """Return true when the divisor is known to be positive."""
        if isinstance(node.right, Const):
            return node.right.value > 0
        known = self.ranges.intervals.get(id(node.right)) if self.ranges is not None else None
        return known is not None and known.lo > 0

    def _fits(self, node: Node, value: Term, state: _State) -> Term:
        if self.unbounded:
            return value
        if isinstance(value, int):
            if INT64_MIN <= value <= INT64_MAX:
                return value
            self._oblige("int64 overflow", node, False, state)
            # Only the first violation counts. Without the clamp, a chain of powers of constants would use all memory.
            return INT64_MAX if value > 0 else INT64_MIN
        if self.ranges is None or not self.ranges.discharged(node):
            self._oblige("int64 overflow", node, z3.And(value >= INT64_MIN, value <= INT64_MAX), state)
        return value

    def _oblige(
        self, kind: Literal["int64 overflow", "division by zero"], node: Node, condition: Term, state: _State
    ) -> None:
        if condition is True or state.alive is False:
            return
        if condition is not False and self.ranges is not None and self.ranges.discharged(node):
            return
        self.obligations.append(Obligation(kind, node, state.alive, condition))


def _falls_through(body: tuple[Stmt, ...]) -> bool:
    """Return true when no statement below can return."""
    for statement in body:
        match statement:
            case Return():
                return False
            case If(_, then, orelse) if not (_falls_through(then) and _falls_through(orelse)):
                return False
            case For() if not _falls_through(statement.body):
                return False
    return True


def _compare(op: str, left: Term, right: Term) -> Term:
    match op:
        case "==":
            return left == right
        case "!=":
            return left != right
        case "<":
            return left < right
        case "<=":
            return left <= right
        case ">":
            return left > right
        case _:
            return left >= right


def floor_divide(left: Term, right: Term, positive: bool) -> Term:
    """Return `//` of two terms; `positive` says that the divisor is known to be positive."""
    if isinstance(left, int) and isinstance(right, int):
        return left // right
    if positive:
        return left / right
    return z3.If(right > 0, left / right, (-left) / (-right))


def modulo(left: Term, right: Term, positive: bool) -> Term:
    """Return `%` of two terms; `positive` says that the divisor is known to be positive."""
    if isinstance(left, int) and isinstance(right, int):
        return left % right
    if positive:
        return left % right
    return z3.If(right > 0, left % right, -((-left) % (-right)))
