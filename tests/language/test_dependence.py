"""`may_depend` never says no where two inputs that differ in the field alone have two values."""

import pytest

from autopoiesis_lib import Policy
from autopoiesis_lib.language.dependence import may_depend
from autopoiesis_lib.language.errors import LanguageError
from autopoiesis_lib.language.interpreter import Fault, evaluate
from tests.language.programs import Small, every_input, program

HEAD = "from tests.language.programs import Kind, Pallet, Stock\n"
SCORE = "def score(p: Pallet, s: Stock) -> int:\n"

FREE = {
    "unread": "    return p.near\n",
    "times zero": "    return p.near + 0 * p.far\n",
    "clamped to one value": "    return min(p.far, 0) + p.near\n",
    "divided away": "    return p.far // 100 + p.near\n",
    "overwritten": "    far = p.far\n    far = p.near\n    return far\n",
    "read by an unused name": "    far = p.far\n    return p.near\n",
    "in a branch that is never taken": "    if p.near > 100:\n        return p.far\n    return p.near\n",
    "behind a test with one answer": "    if p.far > 100:\n        return 1\n    return p.near\n",
    "lazily never": "    return p.near if p.near < 100 or p.far > 2 else 1\n",
}
BOUND = {
    "read": "    return p.far\n",
    "by data flow": "    far = p.far\n    other = far + 1\n    return other\n",
    "by a test": "    if p.far > 2:\n        return 1\n    return 2\n",
    "by what a test assigns": "    x = 1\n    if p.far > 2:\n        x = 2\n    return x\n",
    "by what a test leaves alone": "    x = p.far\n    if p.near > 2:\n        x = 2\n    return x\n",
    "by a conditional": "    return 3 if p.far == 3 else 5\n",
    "by logic": "    return 1 if p.near > 9 or p.far > 2 else 0\n",
    "by a turn": "    x = 0\n    y = 0\n    for i in range(3):\n        x = y\n        y = p.far\n    return x\n",
    "by a return in a turn": "    for i in range(3):\n        if p.far == i:\n            return 1\n    return 0\n",
    "by nested tests": "    x = 0\n    if p.far > 2:\n        if p.near > 1:\n            x = 1\n    return x\n",
}
HELPERS = {
    "by a helper that is given the view": ("    return p.far\n", "    return helper(p, s, 1)\n", True),
    "by a helper that is given the value": ("    return n\n", "    return helper(p, s, p.far)\n", True),
    "not by a helper that drops the value": ("    return p.near\n", "    return helper(p, s, p.far)\n", False),
    "by a helper that tests the value": (
        "    if n > 2:\n        return 1\n    return 0\n",
        "    return helper(p, s, p.far)\n",
        True,
    ),
}


def ask(text: str) -> tuple[Policy, bool]:
    policy = Policy.from_source(HEAD + text, Small())
    return policy, may_depend(policy.module, policy.contract.decisions["score"], 0, "far")


INPUTS = every_input(Small())


def differs(policy: Policy) -> bool:
    """Whether two inputs that differ in `far` alone have two values, by running all of them; one that faults has none."""
    seen: dict[tuple[int, ...], int] = {}
    for pallet, stock in INPUTS:
        try:
            value = int(evaluate(policy.module, "score", [pallet, stock]))
        except Fault:
            continue
        rest = tuple(value for name, value in pallet.items() if name != "far")
        if seen.setdefault((*rest, *stock.values()), value) != value:
            return True
    return False


class TestMayDepend:
    @pytest.mark.parametrize("body", FREE.values(), ids=FREE)
    def test_is_false_where_the_field_reaches_nothing(self, body: str) -> None:
        policy, found = ask(SCORE + body)
        assert not found and not differs(policy)

    @pytest.mark.parametrize("body", BOUND.values(), ids=BOUND)
    def test_is_true_where_values_differ(self, body: str) -> None:
        policy, found = ask(SCORE + body)
        assert found and differs(policy)

    @pytest.mark.parametrize("helper, body, depends", HELPERS.values(), ids=HELPERS)
    def test_goes_through_helpers(self, helper: str, body: str, depends: bool) -> None:
        policy, found = ask(f"def helper(p: Pallet, s: Stock, n: int) -> int:\n{helper}\n\n{SCORE}{body}")
        assert found == depends == differs(policy)

    def test_is_never_wrongly_false_of_random_programs(self) -> None:
        answers = []
        for seed in range(60):
            try:
                policy = Policy.from_source(program(seed, Small(), tame=True), Small())
            except LanguageError:  # too long
                continue
            answers.append(may_depend(policy.module, policy.contract.decisions["score"], 0, "far"))
            assert answers[-1] or not differs(policy), policy.source
        assert 5 < sum(answers) < len(answers) - 5
