"""The trap suite: places where verifiers have been wrong. No trap may be called PROVED, and no right claim REFUTED.

Each policy claims to be 0 everywhere. A trap is 0 under some plausible but wrong meaning of Python (truncating or Euclidean
division, eager operators, chained comparison read as two, booleans that saturate, wrapping integers, a return that does not
leave its loop, scopes that leak); under Python's own it is not 0 somewhere, or faults. Its twin is 0 under Python's alone.
"""

# ruff: noqa: E501  (tables of policy texts)

import pytest

from autopoiesis_lib import Policy, invariant
from autopoiesis_lib.gates import proof
from autopoiesis_lib.gates.verdict import Verdict
from autopoiesis_lib.language.interpreter import Fault, evaluate
from tests.language.programs import Pallet, Small, Stock, every_input


class Nothing(Small, name="nothing"):
    """A decision that is 0."""

    @invariant
    def is_zero(self, item: Pallet, place: Stock) -> bool:
        """The decision is 0 for every input."""
        return self.score(item, place) == 0


CONTRACT = Nothing()
HEAD = f"from {CONTRACT.interface.modules[0]} import Kind, Pallet, Stock\n"
DECISION = "def score(p: Pallet, s: Stock) -> int:\n"

TRAPS = {
    "division truncates": ["n = p.near - 4", "return 0 if 7 // n == -(7 // -n) else 1"],
    "division is Euclidean": ["n = p.near - 4", "return 0 if (p.far // n) * n <= p.far else 1"],
    "remainder is never negative": ["n = p.near - 4", "return 0 if p.far % n >= 0 else 1"],
    "remainder has the dividend's sign": ["return 0 if (p.near - 4) % 3 <= 0 else 1"],
    "zero divisor": ["return 0 * (10 // p.far)"],
    "zero divisor of a remainder": ["return 0 * (10 % (p.near + 3))"],
    "zero divisor before its guard": ["return 0 if 10 // p.far >= 0 and p.far != 0 else 0"],
    "guard in the other branch": ["return 10 // p.far * 0 if p.far == 0 else 0"],
    "or is a truth value": ["return 0 if (p.far or 7) <= 1 else 1"],
    "and is a truth value": ["return 0 if (p.near and p.far) in_range else 1".replace("in_range", "<= 1")],
    "and is eager": ["return 0 * (p.far and 1) + (p.far == 0 or 10 // (p.far - 1) > 99) * 0"],
    "chain is read as two comparisons": ["return 1 if 3 > p.near > 1 else 0"],
    "chain forgets its middle": ["return 1 if p.near < 3 != p.far < 1 else 0"],
    "chain divides too early": ["return 0 * (10 // p.far > p.far > 0)"],
    "booleans saturate": ["return p.fragile + s.open - 1 if p.fragile and s.open else 0"],
    "negated boolean is a boolean": ["return 0 if -s.open >= 0 else 1"],
    "square of a boolean minus it": ["return p.fragile * 2 - p.fragile"],
    "sum passes the edge": ["x = 9_223_372_036_854_775_807 - p.far", "return 0 * (x + p.far + s.open)"],
    "lowest has no negative": ["return 0 * -(p.far - 9_223_372_036_854_775_807 - 1)"],
    "lowest has no absolute value": ["return 0 * abs(p.far - 9_223_372_036_854_775_807 - 1)"],
    "lowest over minus one": ["return 0 * ((p.far - 9_223_372_036_854_775_807 - 1) // (s.room - 3))"],
    "product wraps to zero": ["return (p.far * 4_294_967_296 * 4_294_967_296) * 0"],
    "power wraps": ["return (p.far + 2) ** 63 * 0"],
    "intermediate overflows and comes back": ["return 9_223_372_036_854_775_807 + p.far - 9_223_372_036_854_775_807 - p.far"],
    "negative power of sign": ["return 0 if p.near ** 3 >= 0 else 1"],
    "zero to the zero": ["return p.near ** 0"],
    "max keeps the last": ["return max(p.near, p.far) - p.far"],
    "min of three forgets one": ["return min(p.far, 0, p.near) * (p.near < 0)"],
    "return does not leave the loop": ["for i in range(3):", "    if i == p.near:", "        return i", "return 0"],
    "last return wins": ["for i in range(3):", "    if i >= p.near:", "        return i + p.far", "return 0"],
    "inner loop's return": [
        "for i in range(2):", "    for j in range(2):", "        if i + j == p.far:", "            return j", "return 0",
    ],
    "loop's return under a branch": [
        "if p.near > 0:", "    for i in range(3):", "        if i == p.far:", "            return 1", "return 0",
    ],
    "middle of a power overflows": ["return 0 * (p.far + 100) ** 17"],
    "remainder by a negative constant": ["return 0 if p.far % -3 >= 0 else 1"],
    "loop variable is gone": ["for i in range(3):", "    pass", "return i"],
    "loop runs once too often": ["x = 0", "for i in range(1, 8, 3):", "    x += 1", "return x - 2"],
    "descending loop is empty": ["x = 0", "for i in range(2, -1, -1):", "    x += i", "return x"],
    "assigning the loop variable ends the loop": ["x = 0", "for i in range(3):", "    x += 1", "    i = 99", "return x - 1"],
    "branch never taken decides": ["if p.near > 3:", "    return 0", "return 1"],
    "else of the last elif": ["if p.near > 0:", "    return 0", "elif p.near < 0:", "    return 0", "else:", "    return p.far"],
    "enum member is its position": ["return (p.kind == Kind.HIGH) * (Kind.HIGH - 2)"],
    "not of an integer": ["return not p.near"],
    "augmented floor division": ["x = p.near", "x //= -2", "return x + p.near // 2"],
}  # fmt: skip

TRUE = {
    "division floors": ["n = p.near - 4", "q = p.far // n", "return 0 if q * n >= p.far > (q + 1) * n else 1"],
    "remainder has the divisor's sign": ["n = p.near - 4", "return 0 if n < p.far % n <= 0 else 1"],
    "division and remainder belong together": ["n = p.near - 4", "return (p.far // n) * n + p.far % n - p.far"],
    "guarded divisor": ["return 0 if p.far != 0 and 10 // p.far >= 0 else 0"],
    "guarded by or": ["return 0 if p.far == 0 or 10 // p.far >= 0 else 1"],
    "guarded by an early return": ["if p.far == 0:", "    return 0", "return 0 * (10 // p.far)"],
    "guarded by a chain": ["return 0 * (0 < p.far < 10 // p.far)"],
    "guarded by a conditional": ["return 0 * (10 // p.far if p.far else 1)"],
    "or gives its operand": ["return 0 if 1 <= (p.far or 7) <= 7 and (p.far or 7) != 6 else 1"],
    "and gives its operand": ["return (p.near and p.far) - (p.far if p.near else 0)"],
    "chain is lazy and binds its middle": ["return (-1 < p.near < 1) - (p.near == 0)"],
    "booleans are integers": ["return True + True - 2 + p.fragile * s.open - (p.fragile and s.open)"],
    "the edge is inside": ["return 0 * (9_223_372_036_854_775_802 + p.far)"],
    "remainder at the edge": ["return (p.far - 9_223_372_036_854_775_807 - 1) % -1"],
    "power of nothing": ["return p.near ** 0 - 1"],
    "odd power keeps the sign": ["return 0 if (p.near ** 3 < 0) == (p.near < 0) else 1"],
    "min and max": ["return min(p.near, p.far) + max(p.near, p.far) - p.near - p.far"],
    "return leaves the loop": [
        "for i in range(-3, 4):", "    if i == p.near:", "        return 0", "return 10 // 0",
    ],
    "loop variable stays": ["for i in range(3):", "    pass", "return i - 2"],
    "loop variable assigned": ["for i in range(3):", "    i = 0", "return i"],
    "code after a return": ["return 0", "return 1 // 0"],
    "code that cannot be reached": ["if p.far > 5:", "    return 1 // 0", "return 0"],
    "contradicting tests": ["if p.near > 1:", "    if p.near < 2:", "        return 1 // 0", "return 0"],
    "enum values": ["return 0 if p.kind in_values else 1".replace("in_values", "== -1 or p.kind == 2 or p.kind == 5")],
    "floors when negative": ["return (-p.far) // 2 + (p.far + 1) // 2"],
}  # fmt: skip

SCOPES = {
    "a helper's parameter is its own": ("def f(x: int) -> int:\n    x = x + 1\n    return x\n", ["x = 0", "y = f(x)", "return x * y"]),
    "a helper's loop variable is its own": (
        "def f() -> int:\n    for i in range(5):\n        pass\n    return i\n", ["i = 0", "y = f()", "return i * y"],
    ),
    "a view under another name": ("def f(s: Pallet) -> int:\n    return s.far\n", ["return f(p) - p.far"]),
}  # fmt: skip

LEAKS = {
    "a helper's result is its own": ("def f(x: int) -> int:\n    x = x + 1\n    return x\n", ["x = 0", "return f(x)"]),
    "a helper overflows only for some": ("def f(x: int) -> int:\n    return x * x\n", ["return f(p.far * 1_000_000_000) * 0"]),
    "a helper divides for some": ("def f(x: int) -> int:\n    return 1 // x\n", ["return f(p.far + 1) * 0 + f(p.near + 4) * 0 + f(s.room) * 0"]),
}  # fmt: skip


def verdicts(helper: str, lines: list[str]) -> tuple[bool, Verdict]:
    """Whether the policy is 0 without a fault on every input, by trying all; and what the proof gate says."""
    policy = Policy.from_source(HEAD + helper + DECISION + "".join(f"    {line}\n" for line in lines), CONTRACT)

    def is_zero(rows: list[dict[str, int]]) -> bool:
        try:
            return evaluate(policy.module, "score", rows) == 0
        except Fault:
            return False

    return all(is_zero(rows) for rows in every_input(CONTRACT)), proof.check(policy).verdict


@pytest.mark.parametrize("name", [*TRAPS, *LEAKS])
def test_a_trap_is_refuted(name: str) -> None:
    helper, lines = LEAKS.get(name) or ("", TRAPS[name])
    assert verdicts(helper, lines) == (False, Verdict.REFUTED)


@pytest.mark.parametrize("name", [*TRUE, *SCOPES])
def test_its_twin_is_proved(name: str) -> None:
    helper, lines = SCOPES.get(name) or ("", TRUE[name])
    assert verdicts(helper, lines) == (True, Verdict.PROVED)
