"""Intervals hold every value an expression takes, and are as narrow as they are meant to be: a bound lost on either side shows.

Expectations come from running the interpreter on every input, except where a claim is about the edge of int64."""

from itertools import product

import pytest

from autopoiesis_lib import Policy
from autopoiesis_lib.language.interpreter import Fault, evaluate
from autopoiesis_lib.language.ir import walk
from autopoiesis_lib.language.ranges import Interval, Ranges, analyse
from tests.language.programs import Small, Wide

CONTRACT = Small()
IMPORT = "from tests.language.programs import Kind, Pallet, Stock\n"
HEAD = f"{IMPORT}def score(p: Pallet, s: Stock) -> int:\n"
ATOMS = ("p.near", "p.far", "(p.near - 5)", "(p.far + 1)", "s.room", "p.kind", "p.fragile", "-4", "3")
FORMS = (
    *(f"{{}} {operator} {{}}" for operator in ("+", "-", "*", "//", "%", "<", "==", "and", "or")),
    "min({}, {})", "max({}, {})", "abs({}) - {}", "{} if {} > 0 else 9", "({} < 2 and {}) or 7",
)  # fmt: skip
COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")

EXACT = [
    ("p.far % 3", 0, 2),
    ("p.far % -3", -2, 0),
    ("p.far % (p.near - 5)", -7, 0),
    ("p.far // (p.near - 5)", -3, 0),
    ("p.near // (p.far + 1)", -3, 3),
    ("(p.near - 5) // -2", 1, 4),
    ("p.near % 10 % 4", 0, 3),
    ("p.far or 7", 0, 7),
    ("p.near and p.far", 0, 5),
    ("abs(p.near)", 0, 3),
    ("abs(p.near - 5)", 2, 8),
    ("p.near ** 2", 0, 9),
    ("p.near ** 3", -27, 27),
    ("p.near ** 0", 1, 1),
]

TIGHT = (
    # Division by what may be 1 and -1 but is neither at its ends, by what is only one of them, of what is all positive.
    "p.far // p.near", "-p.far // p.near", "(p.far - 9) // p.near", "(p.far + 1) // (p.near or 1)", "(p.far + 1) // 1",
    "(p.far + 1) // (s.room + 2)", "(p.near - 5) // (s.room - 3)", "0 // (p.far + 1)",
    # A remainder that cannot wrap is its dividend; one that can is not.
    "p.far % 10", "p.far % 6", "p.far % 5", "(p.far + 1) % 10", "(p.far * 0) % (p.far + 1)", "(p.far - 5) % 10",
    "s.room % p.near", "p.far % s.room", "(p.far + 1) % -1", "(p.far + 1) % 1",
    # Powers, absolute values and signs on one side of zero, and on both.
    "(p.far + 1) ** 2", "p.far ** 2", "(p.far - 5) ** 2", "(p.near - 5) ** 3", "abs(p.far + 1)", "abs(p.far)", "abs(p.far - 5)",
    "abs(p.far + 2) - 1", "-(p.far + 1)",
    # Truth: of what is certain, of what is not, and at its edges.
    "not p.near", "not (p.far + 1)", "not (p.near - 5)", "not p.far", "not (p.far * 0)", "bool(p.near)", "bool(p.far + 1)",
    "p.near < 9", "p.near > 9", "p.near < 0", "p.near == p.far", "-9 < p.near < 9", "p.near < p.far < 9", "p.near < p.far < 0",
    # Lazy operators: what can decide counts, what cannot does not.
    "(p.far + 1) and (p.near - 5)", "(p.far * 0) or (p.far + 1)", "(p.far + 1) or 99", "(p.far * 0) and 99",
    "(p.near or p.far > -1) or 7", "(p.near and p.far < 0) and 7", "p.near and p.near and p.near - 9", "p.far and p.far",
    "p.fragile and p.fragile + 3", "p.far if not p.fragile else p.fragile + 7", "p.far or p.far - 9",
    "p.near and 7 // (p.far + 1)",
    "p.far + 4 if p.far else p.far - 4", "(p.far - 5) * 2 if p.far - 5 else 3", "(p.far + 4 if not p.far else p.far) * 2",
)  # fmt: skip

BODIES = {
    "a branch that refines and comes back": ["if p.near > 0:", "    pass", "return p.near"],
    "two branches that refine and come back": ["if p.near > 0:", "    x = 1", "else:", "    x = p.near", "return x + p.near"],
    "a branch that leaves": ["if p.near > 0:", "    return 5", "return p.near"],
    "a local refined in one branch": ["x = p.near", "if x > 0:", "    x = -x", "return x"],
    "a local that is not zero": ["x = p.far", "if x:", "    return x", "return 9"],
    "a local that is zero": ["x = p.far", "if x:", "    return 9", "return x"],
    "a local below its end that is not zero": ["x = p.far - 5", "if x:", "    return x", "return -9"],
    "both sides of a test": ["if p.near >= p.far:", "    return p.near * 100 + p.far", "return 0"],
    "both sides the other way": ["if p.far < p.near:", "    return p.near * 100 + p.far", "return 100"],
    "a conjunction refines by each operand": ["if p.near > 0 and p.far > 2:", "    return p.near * p.far", "return 7"],
    "a disjunction that fails refines by each": ["if p.near > 0 or p.far > 2:", "    return 0", "return p.near - p.far"],
    "a disjunction that holds refines by none": ["if p.near > 0 or p.far > 2:", "    return p.near - p.far", "return 0"],
    "a conjunction that fails refines by none": ["if p.near > 0 and p.far > 2:", "    return 0", "return p.near - p.far"],
    "a negated conjunction": ["if not (p.near > 0 and p.far > 2):", "    return p.near - p.far", "return 0"],
    "a negated disjunction": ["if not (p.near > 0 or p.far > 2):", "    return p.near - p.far", "return 0"],
    "twice negated": ["if not not p.near > 0:", "    return p.near", "return 9"],
    "a branch never taken": ["if p.near > 3:", "    return 99", "return p.near"],
    "a branch always taken": ["if p.near < 4:", "    return p.near", "return 99"],
    "a loop that adds": ["x = 0", "for i in range(3):", "    x += p.near", "return x"],
    "a loop that may leave": ["for i in range(1, 7, 2):", "    if i > p.far:", "        return i", "return -1"],
    "a loop that leaves at once": ["for i in range(3):", "    return i", "return 99"],
    "a loop's variable after it": ["for i in range(5, -2, -3):", "    pass", "return i"],
    "code after a return": ["return p.near", "return 99"],
}  # fmt: skip

HELPERS = {
    "each return counts": ("def f(k: int) -> int:\n    if k > 1:\n        return k\n    return -k\n", "return f(p.near)"),
    "a helper's test does not refine its caller": (
        "def f(q: Pallet) -> int:\n    if q.near > 0:\n        return 0\n    return q.near\n", "return f(p) + p.near",
    ),
    "each call has its own arguments": ("def f(k: int) -> int:\n    return k + 1\n", "return f(p.far) * 10 + f(p.near)"),
}  # fmt: skip


def inputs(text: str) -> list[list[dict[str, int]]]:
    """Every input, up to fields that the text does not read."""
    found: list[list[dict[str, int]]] = [[]]
    for param in CONTRACT.decisions["score"].params:
        fields = CONTRACT.views[param.type].fields()
        columns = [spec.domain.values or range(spec.domain.lo, spec.domain.hi + 1) for spec in fields]
        columns = [
            column if f".{spec.name}" in text else column[:1] for spec, column in zip(fields, columns, strict=True)
        ]
        names = [spec.name for spec in fields]
        found = [[*rows, dict(zip(names, row, strict=True))] for rows in found for row in product(*columns)]
    return found


def values_and_interval(body: str, helper: str = "") -> tuple[set[int], Interval]:
    """The values a decision takes without a fault, over every input; and the interval it is said to stay in."""
    policy = Policy.from_source(HEAD.replace("def ", helper + "def ", 1) + body + "\n", CONTRACT)
    values: set[int] = set()
    for rows in inputs(body + helper):
        try:
            values.add(evaluate(policy.module, "score", rows))
        except Fault:
            continue
    return values, analyse(policy.module, CONTRACT.decisions["score"]).result


def assert_tight(body: str, helper: str = "") -> None:
    values, interval = values_and_interval(body, helper)
    assert interval == Interval(min(values), max(values)), f"{interval}, values {sorted(values)}\n{helper}{body}"


@pytest.mark.parametrize("form", FORMS)
def test_every_value_lies_in_its_interval(form: str) -> None:
    for one in ATOMS:
        for other in ATOMS:
            values, interval = values_and_interval("    return " + form.format(one, other))
            assert all(interval.lo <= value <= interval.hi for value in values), (
                f"{form.format(one, other)}: {interval}"
            )


@pytest.mark.parametrize(("expression", "lo", "hi"), EXACT)
def test_an_interval_is_no_wider_than_it_need_be(expression: str, lo: int, hi: int) -> None:
    values, interval = values_and_interval("    return " + expression)
    assert interval == Interval(lo, hi)
    assert lo <= min(values) and max(values) <= hi


@pytest.mark.parametrize("expression", TIGHT)
def test_an_interval_ends_at_values_that_are_taken(expression: str) -> None:
    assert_tight("    return " + expression)


@pytest.mark.parametrize("name", BODIES)
def test_statements_keep_intervals_tight(name: str) -> None:
    assert_tight("\n".join(f"    {line}" for line in BODIES[name]))


@pytest.mark.parametrize("name", HELPERS)
def test_helpers_keep_intervals_tight(name: str) -> None:
    helper, body = HELPERS[name]
    assert_tight(f"    {body}", helper)


@pytest.mark.parametrize("operator", COMPARISONS)
@pytest.mark.parametrize("other", ["-4", "-3", "-2", "0", "2", "3", "4", "p.far", "(p.far - 2)"])
def test_a_test_narrows_both_its_sides_by_exactly_what_it_says(operator: str, other: str) -> None:
    for test in (f"p.near {operator} {other}", f"{other} {operator} p.near", f"not p.near {operator} {other}"):
        for elsewhere in ("-99", "99"):
            for read in ("p.near", "p.far") if "far" in other else ("p.near",):
                if other == "(p.far - 2)":  # not an atom, so nothing is said of its sides; only soundness is claimed
                    values, interval = values_and_interval(f"    return {read} if {test} else {elsewhere}")
                    assert interval.lo <= min(values) and max(values) <= interval.hi, test
                    continue
                assert_tight(f"    return {read} if {test} else {elsewhere}")
                assert_tight(f"    return {elsewhere} if {test} else {read}")


def wide(expression: str) -> tuple[Policy, Ranges, set[str]]:
    """A policy over all of int64, its ranges, and the operations left open, by operator or kind."""
    head = "from tests.language.programs import Crate, Kind, Yard\ndef score(p: Crate, s: Yard) -> int:\n    return "
    policy = Policy.from_source(f"{head}{expression}\n", Wide())
    ranges = analyse(policy.module, Wide().decisions["score"])
    nodes = {id(node): node for node in walk(policy.module.functions["score"])}
    return policy, ranges, {getattr(nodes[item], "op", type(nodes[item]).__name__) for item in ranges.open}


LOWEST, HIGHEST = -(2**63), 2**63 - 1


@pytest.mark.parametrize(
    ("expression", "open_"),
    [
        ("p.far + 0", set()),
        ("p.far * 1", set()),
        ("p.far - (-1 if p.far < 9_223_372_036_854_775_807 else 0)", {"-"}),
        ("p.far + 1", {"+"}),
        ("p.far - 1", {"-"}),
        ("p.far * -1", {"*"}),
        ("-p.far", {"Negate"}),
        ("abs(p.far)", {"Abs"}),
        ("p.far // -1", {"//"}),
        ("p.far % -1", set()),
        ("p.far // 2", set()),
        ("p.far // (p.near + 10)", set()),
        ("p.far // (p.near + 9)", {"//"}),
        ("p.far % (p.near - 9)", {"%"}),
        ("p.far % (p.near - 10)", set()),
        ("p.near ** 20", {"**"}),
        ("p.near ** 19", set()),
    ],
)
def test_exactly_the_operations_that_may_leave_int64_stay_open(expression: str, open_: set[str]) -> None:
    assert wide(expression)[2] == open_


@pytest.mark.parametrize("operator", COMPARISONS)
def test_a_test_against_what_is_not_an_atom_says_nothing(operator: str) -> None:
    for test in (f"p.far {operator} s.room * p.near", f"s.room * p.near {operator} p.far"):
        for expression in (f"p.far if {test} else 0", f"0 if {test} else p.far"):
            policy, ranges, _ = wide(expression)
            for far, near, room in product((LOWEST, -(2**34), -9, 9, 2**34, HIGHEST), (-9, 0, 9), (0, 1, 2**31)):
                rows = [{"near": near, "far": far, "fragile": 0, "kind": 2}, {"room": room, "open": 0}]
                value = evaluate(policy.module, "score", rows)
                assert ranges.result.lo <= value <= ranges.result.hi, f"{expression} at {far}: {value}, {ranges.result}"


def test_the_intervals_of_an_expression_are_joined_over_calls_and_turns() -> None:
    text = (
        f"{IMPORT}def f(k: int) -> int:\n    return k * 2\n"
        "def score(p: Pallet, s: Stock) -> int:\n    x = 0\n    for i in range(-1, 8, 4):\n        x = f(i)\n"
        "    return f(p.near) + x\n"
    )
    policy = Policy.from_source(text, CONTRACT)
    ranges = analyse(policy.module, CONTRACT.decisions["score"])
    product_ = next(node for node in walk(policy.module.functions["f"]) if getattr(node, "op", "") == "*")
    assert ranges.intervals[id(product_)] == Interval(-6, 14)
    assert ranges.result == Interval(8, 20)
