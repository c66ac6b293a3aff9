"""Every line of the tables, on all values of a small domain."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from itertools import product

import pytest

from autopoiesis_lib.proofs.errors import ProofError
from autopoiesis_lib.proofs.rules import RULES as CHECKS
from autopoiesis_lib.proofs.rules import Step
from autopoiesis_lib.proofs.schemes import REWRITES, RULES, Pattern, instance
from autopoiesis_lib.proofs.terms import Sort, Terms

from .semantics import Env, refuted

INTEGERS = [Fraction(number) for number in range(-3, 4)]
FEWER = INTEGERS[1:6]
CONSTANTS = {"Divisor": ["3", "-3", "1", "-1", "2"], "Real": ["-1.5", "0.5", "2.0", "-2.0", "2.5"]}
OPERATORS = {"true", "false"}
SORTS: dict[str, tuple[Sort, ...]] = {"Any": ("Bool", "Int"), "Num": ("Int",), "Int": ("Int",), "Bool": ("Bool",)}


def variables(pattern: Pattern) -> Iterator[str]:
    """Yield the variables of a pattern."""
    if isinstance(pattern, tuple):
        for item in pattern[1:]:
            yield from variables(item)
    elif pattern not in OPERATORS and not pattern.lstrip("-").replace(".", "").isdigit():
        yield pattern


def choices(terms: Terms, name: str, kind: str) -> list[Callable[[], int]]:
    """Return makers of what a parameter may stand for: a symbol of each sort, constants, lists."""
    if kind in CONSTANTS:
        sort: Sort = "Real" if kind == "Real" else "Int"
        return [partial(terms.number, Fraction(text), sort) for text in CONSTANTS[kind]]
    if kind == "List":
        names = [[f"{name}{index}" for index in range(count)] for count in (0, 1, 2)]
        return [
            lambda found=found: terms.apply("rare-list", [terms.symbol(item, "Bool") for item in found])
            for found in names
        ]
    return [partial(terms.symbol, name, sort) for sort in SORTS[kind]]


def everywhere(terms: Terms) -> Iterator[Env]:
    """Yield all small values for all symbols."""
    symbols = [index for index, head in enumerate(terms.heads) if head == "symbol"]
    numeric = sum(terms.sorts[item] != "Bool" for item in symbols)
    domain = INTEGERS if numeric < 4 else FEWER
    for values in product(*([False, True] if terms.sorts[item] == "Bool" else domain for item in symbols)):
        yield dict(zip(symbols, values, strict=True))


def instances(kinds: dict[str, str], premises: tuple[Pattern, ...], clause: tuple[Pattern, ...]) -> Iterator[Step]:
    """Yield every well-sorted instance of a line."""
    shapes = [len(list(choices(Terms(), name, kind))) for name, kind in kinds.items()]
    for selected in product(*map(range, shapes)):
        terms = Terms()
        bound = {
            name: choices(terms, name, kind)[index]()
            for (name, kind), index in zip(kinds.items(), selected, strict=True)
        }
        try:
            literals = [instance(terms, pattern, bound) for pattern in clause]
            units = [(instance(terms, pattern, bound),) for pattern in premises]
        except ProofError:
            continue  # not well-sorted
        if all(terms.sorts[item] == "Bool" for item in [*literals, *(unit[0] for unit in units)]):
            yield Step(terms, tuple(literals), tuple(units), tuple(bound.values()))


class TestTables:
    @pytest.mark.parametrize("name", sorted(RULES))
    def test_a_rule_holds_for_all_small_values(self, name: str) -> None:
        for rule in RULES[name]:
            kinds = dict.fromkeys((name for item in (*rule.premises, *rule.clause) for name in variables(item)), "Any")
            found = list(instances(kinds, rule.premises, rule.clause))
            assert found
            for step in found:
                assert refuted(step, everywhere(step.terms)) is None, rule
                plain = Step(step.terms, step.clause, step.premises)
                assert CHECKS[name](plain)

    @pytest.mark.parametrize("name", sorted(REWRITES))
    def test_a_rewrite_holds_for_all_small_values(self, name: str) -> None:
        rewrite = REWRITES[name]
        found = list(instances(dict(rewrite.parameters), rewrite.premises, (rewrite.conclusion,)))
        assert found
        for step in found:
            assert refuted(step, everywhere(step.terms)) is None
            named = Step(step.terms, step.clause, step.premises, step.arguments, name)
            assert CHECKS["rare_rewrite"](named)
            assert not CHECKS["rare_rewrite"](Step(step.terms, step.clause, step.premises, step.arguments, "eq"))
