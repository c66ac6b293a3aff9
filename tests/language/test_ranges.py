"""Intervals hold every value an expression takes, and the edges of division, remainder and lazy operators are not lost."""

import pytest

from autopoiesis_lib import Policy
from autopoiesis_lib.language.interpreter import Fault, evaluate
from autopoiesis_lib.language.ranges import Interval, analyse
from tests.language.programs import Small, every_input

CONTRACT = Small()
HEAD = "from tests.language.programs import Kind, Pallet, Stock\ndef score(p: Pallet, s: Stock) -> int:\n    return "
ATOMS = ("p.near", "p.far", "(p.near - 5)", "(p.far + 1)", "s.room", "p.kind", "p.fragile", "-4", "3")
FORMS = (
    *(f"{{}} {operator} {{}}" for operator in ("+", "-", "*", "//", "%", "<", "==", "and", "or")),
    "min({}, {})", "max({}, {})", "abs({}) - {}", "{} if {} > 0 else 9", "({} < 2 and {}) or 7",
)  # fmt: skip

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


def values_and_interval(expression: str) -> tuple[set[int], Interval]:
    policy = Policy.from_source(HEAD + expression + "\n", CONTRACT)
    values: set[int] = set()
    for rows in every_input(CONTRACT):
        try:
            values.add(evaluate(policy.module, "score", rows))
        except Fault:
            continue
    return values, analyse(policy.module, CONTRACT.decisions["score"]).result


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_value_lies_in_its_interval(form: str) -> None:
    for one in ATOMS:
        for other in ATOMS:
            values, interval = values_and_interval(form.format(one, other))
            assert all(interval.lo <= value <= interval.hi for value in values), (
                f"{form.format(one, other)}: {interval}"
            )


@pytest.mark.parametrize(("expression", "lo", "hi"), EXACT)
def test_an_interval_is_no_wider_than_it_need_be(expression: str, lo: int, hi: int) -> None:
    values, interval = values_and_interval(expression)
    assert interval == Interval(lo, hi)
    assert lo <= min(values) and max(values) <= hi
