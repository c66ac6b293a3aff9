"""Claims about the encoding: each form of the language means to Z3 what it means to the interpreter, with the help of intervals
and without; connectives fold; domains have no hole and no extra value; and no term is one that Z3 would multiply out."""

from itertools import product
from typing import Any

import pytest
import z3

from autopoiesis_lib import Policy
from autopoiesis_lib.language.interpreter import Fault, evaluate
from autopoiesis_lib.language.ranges import analyse
from autopoiesis_lib.language.smt import (
    MAX_DEGREE,
    Encoder,
    SymbolicView,
    Term,
    TooComplex,
    as_int,
    choose,
    conjunction,
    disjunction,
    domain_constraints,
    negation,
)
from autopoiesis_lib.view import Domain
from tests.language.programs import Small, Wide
from tests.language.test_ranges import inputs

NARROW, WIDE = Small(), Wide()
LOWEST, HIGHEST = -(2**63), 2**63 - 1

ATOMS = ("p.near", "p.far", "(p.near - 5)", "p.fragile", "-3", "4", "0")
FORMS = (
    *(f"{{}} {operator} {{}}" for operator in ("+", "-", "*", "//", "%", "<", "<=", ">", ">=", "==", "!=", "and", "or")),
    "min({}, {})", "max({}, {})", "min({}, 1, {})", "abs({}) - {}", "-({}) * {}", "{} if {} > 0 else 9", "{} if {} else 9",
    "({} < 2 and {}) or 7", "not {} or {}", "{} < p.far <= {}", "0 < {} != 2 > {}", "{} ** 3 - {}", "int({}) + bool({})",
)  # fmt: skip

BODIES = {
    "a return inside a loop inside a branch": [
        "if p.near > 0:", "    for i in range(4):", "        if i == p.far:", "            return 10 + i", "return p.near",
    ],
    "a return inside a loop inside the other branch": [
        "x = 1", "if p.near > 0:", "    x = 2", "else:", "    for i in range(4):", "        if i == p.far:",
        "            return 10 + i", "return p.near + x",
    ],
    "a return inside a branch inside a branch": [
        "if p.near > 0:", "    if p.far > 2:", "        return 8", "return p.near",
    ],
    "a return inside an else inside an else": [
        "x = 0", "if p.near > 0:", "    x = 1", "else:", "    if p.far > 2:", "        x = 2", "    else:", "        return 8",
        "return 10 // (x + p.near)",
    ],
    "a name that only the branch that goes on assigns": [
        "if p.near > 0:", "    return 8", "else:", "    x = p.far", "return x",
    ],
    "a name that only the first branch assigns": ["if p.near > 0:", "    x = p.far", "else:", "    return 8", "return x"],
    "a name assigned before both branches leave": [
        "x = p.far", "if p.near > 0:", "    return x", "else:", "    x = 3", "    return x", "return 9",
    ],
    "a fault that an earlier return hides": [
        "if p.far == 0:", "    for i in range(2):", "        if i == p.near:", "            return 8", "return 7 // p.far",
    ],
    "a fault in a loop's later turn": ["x = 0", "for i in range(-2, 2):", "    x += 6 // (p.near - i)", "return x"],
    "a division by a constant zero": ["if p.near > 2:", "    return 1 // 0", "return 1 % (p.near - 3)"],
    "a remainder of what was divided": ["return (p.far // (p.near - 4)) % -3 + (p.far % (p.near - 4)) % 2"],
}  # fmt: skip


class Encoded:
    """One policy as a value and a violation over constants of Z3."""

    def __init__(self, body: str, contract: Small | Wide, with_ranges: bool) -> None:
        views = "Kind, Pallet, Stock" if contract is NARROW else "Crate, Kind, Yard"
        item, place = (param.type for param in contract.decisions["score"].params)
        text = f"from tests.language.programs import {views}\ndef score(p: {item}, s: {place}) -> int:\n{body}\n"
        self.policy = Policy.from_source(text, contract)
        signature = contract.decisions["score"]
        symbols = [SymbolicView.fresh(param.name, contract.views[param.type]) for param in signature.params]
        self.encoder = Encoder(self.policy.module, analyse(self.policy.module, signature) if with_ranges else None)
        value = as_int(self.encoder.call("score", symbols))
        violations = [obligation.negation() for obligation in self.encoder.obligations]
        self.value = z3.IntVal(value) if isinstance(value, int) else value
        self.violated = z3.Or([z3.BoolVal(item) if isinstance(item, bool) else item for item in violations])
        self.symbols = [
            (symbol.terms[spec.name], spec.domain.kind) for symbol in symbols for spec in symbol.view.fields()
        ]

    def check(self, rows: list[dict[str, int]]) -> None:
        """Assert that Z3 and the interpreter agree on one input."""
        values = [value for row in rows for value in row.values()]
        pairs = [
            (symbol, z3.BoolVal(bool(value)) if kind == "bool" else z3.IntVal(value))
            for (symbol, kind), value in zip(self.symbols, values, strict=True)
        ]
        violated = z3.simplify(z3.substitute(self.violated, pairs))
        try:
            expected = evaluate(self.policy.module, "score", rows)
        except Fault as fault:
            assert z3.is_true(violated), f"{fault}, to Z3 violated is {violated}\n{self.policy.source}\n{rows}"
            return
        assert z3.is_false(violated), f"{expected}, to Z3 violated is {violated}\n{self.policy.source}\n{rows}"
        value = z3.simplify(z3.substitute(self.value, pairs))
        assert z3.is_int_value(value) and value.as_long() == expected, f"{value}\n{self.policy.source}\n{rows}"


@pytest.mark.parametrize("form", FORMS)
def test_each_form_means_to_z3_what_it_means_to_the_interpreter(form: str) -> None:
    for number, (one, other) in enumerate(product(ATOMS, ATOMS)):
        body = "    return " + form.format(one, other)
        encoded = Encoded(body, NARROW, with_ranges=number % 2 == 0)
        every = inputs(body)
        for rows in every[:: max(1, len(every) // 5)]:
            encoded.check(rows)


@pytest.mark.parametrize("with_ranges", [False, True])
@pytest.mark.parametrize("name", BODIES)
def test_each_path_means_to_z3_what_it_means_to_the_interpreter(name: str, with_ranges: bool) -> None:
    body = "\n".join(f"    {line}" for line in BODIES[name])
    encoded = Encoded(body, NARROW, with_ranges)
    for rows in inputs(body):
        encoded.check(rows)


EDGES = (
    "9_223_372_036_854_775_806 + 1", "9_223_372_036_854_775_806 + 2", "-9_223_372_036_854_775_807 - 1",
    "-9_223_372_036_854_775_807 - 2", "p.far + 1", "p.far - 1", "-p.far", "abs(p.far)", "p.far // -1", "p.far % -1",
    "p.far * s.room", "p.far ** 2 * 0", "s.room ** 3 % 7",
    # Cut into opaque factors: values at the edge stay themselves, and what has overflowed stays so.
    "(s.room ** 7 * 0 + p.far) * (p.near * p.near)", "(s.room ** 7 * 0 + p.far + 1) * (p.near * p.near)",
    "(p.near + 100) ** 17 * 0", "(p.near - 100) ** 17 * 0", "p.near ** 19", "p.near ** 20", "(s.room ** 2) ** 2 * 0",
    "(p.near ** 9) * (p.near ** 9)",
)  # fmt: skip


@pytest.mark.parametrize("with_ranges", [False, True])
@pytest.mark.parametrize("expression", EDGES)
def test_the_edges_of_int64_are_the_same_to_z3(expression: str, with_ranges: bool) -> None:
    encoded = Encoded("    return " + expression, WIDE, with_ranges)
    for far, near, room in product(
        (LOWEST, LOWEST + 1, -1, 0, 1, HIGHEST - 1, HIGHEST), (-9, -1, 0, 1, 9), (-512, 0, 2**21)
    ):
        encoded.check([{"near": near, "far": far, "fragile": 0, "kind": 2}, {"room": room, "open": 0}])


# The parts.

TRUTHS: list[tuple[Term, bool | None]] = [(True, True), (False, False), (z3.Bool("a"), None), (z3.Bool("b"), None)]


def same(first: Any, second: Any) -> bool:
    solver = z3.Solver()
    solver.add(z3.BoolVal(first) != second if isinstance(first, bool) else first != second)
    return bool(solver.check() == z3.unsat)


@pytest.mark.parametrize(("one", "known"), TRUTHS)
@pytest.mark.parametrize(("other", "other_known"), TRUTHS)
def test_connectives_mean_what_they_say_and_fold_constants(
    one: Term, known: bool | None, other: Term, other_known: bool | None
) -> None:
    both, either = conjunction(one, other), disjunction(one, other)
    assert same(both, z3.And(one, other)) and same(either, z3.Or(one, other)) and same(negation(one), z3.Not(one))
    assert isinstance(both, bool) is (known is False or other_known is False or None not in (known, other_known))
    assert isinstance(either, bool) is (known is True or other_known is True or None not in (known, other_known))
    assert isinstance(negation(one), bool) is (known is not None)
    assert same(choose(one, other, negation(other)), z3.If(one, z3.And(other), z3.Not(other)))


@pytest.mark.parametrize("values", [(-1, 2), (-1, 2, 5), (1, 3), (0, 1, 2), (4,), (-3, -2), (-2, 0, 1)])
def test_a_domain_of_values_admits_those_and_no_other(values: tuple[int, ...]) -> None:
    term = z3.Int("x")
    bounds = domain_constraints(term, Domain(min(values), max(values), "enum", values=values))
    for value in range(-9, 9):
        admitted = all(z3.is_true(z3.simplify(z3.substitute(bound, (term, z3.IntVal(value))))) for bound in bounds)
        assert admitted is (value in values), (value, bounds)


def degree(term: Any, known: dict[int, int]) -> int:
    """How high the powers are that multiplying a term out would reach; an `ite` is not multiplied out."""
    if term.get_id() in known:
        return known[term.get_id()]
    below = [degree(child, known) for child in term.children()]
    if z3.is_int_value(term):
        found = 0
    elif z3.is_mul(term):
        found = sum(below)
    elif (
        z3.is_add(term) or z3.is_sub(term) or z3.is_app_of(term, z3.Z3_OP_UMINUS) or z3.is_mod(term) or z3.is_idiv(term)
    ):
        found = max(below)
    else:
        found = 1
    known[term.get_id()] = found
    return found


HIGH = {
    "repeated squaring": ["x = p.far", "for i in range(40):", "    x = x * x", "return x"],
    "squaring of a sum": ["x = p.far", "for i in range(40):", "    x = x * (x + s.room) - x", "return x"],
    "one factor a turn": ["x = 1", "for i in range(40):", "    x = x * (p.far - i)", "return x"],
    "powers of powers": ["return ((p.far ** 64) ** 64) ** 64"],
    "a power just too high": ["return p.far ** 9 + s.room ** 8"],
    "a product with a negative": ["x = -(p.far ** 5)", "return x * -x * x"],
    "alternating": ["x = p.far", "y = s.room", "for i in range(20):", "    x = x * y", "    y = y * x", "return x - y"],
}  # fmt: skip


@pytest.mark.parametrize("name", HIGH)
def test_no_term_is_of_a_higher_degree_than_z3_can_multiply_out(name: str) -> None:
    encoded = Encoded("\n".join(f"    {line}" for line in HIGH[name]), WIDE, with_ranges=False)
    known: dict[int, int] = {}
    degree(encoded.value, known)
    degree(encoded.violated, known)
    assert max(known.values()) <= MAX_DEGREE
    # Counted as what it is, so that nothing is cut before it must be.
    for term, said in encoded.encoder.degrees.values():
        assert said == degree(term, known), term


def test_a_low_degree_is_left_whole() -> None:
    encoded = Encoded("    return p.far ** 8 + s.room ** 4 * p.near ** 4", WIDE, with_ranges=False)
    assert degree(encoded.value, {}) == MAX_DEGREE == 8


@pytest.mark.parametrize("operator", ["%", "//"])
def test_remainders_multiplied_over_and_over_are_refused_as_too_complex(operator: str) -> None:
    lines = [
        "x = p.far",
        "for i in range(12):",
        f"    x = (x {operator} 1_000_003) * (x {operator} 1_000_033)",
        "return x",
    ]
    with pytest.raises(TooComplex, match="remainders"):
        Encoded("\n".join(f"    {line}" for line in lines), WIDE, with_ranges=False)
