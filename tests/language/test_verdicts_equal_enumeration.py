"""The proof gate against brute force: on domains small enough to try every input, each verdict must be the true one."""

from typing import Annotated

import numpy as np
import pytest
from pydantic import Field

from autopoiesis_lib import Least, Policy, invariant
from autopoiesis_lib.gates import proof
from autopoiesis_lib.gates.verdict import ObligationResult, Verdict
from autopoiesis_lib.language import LanguageError
from autopoiesis_lib.language.interpreter import Fault, evaluate
from tests.language.programs import Pallet, Small, Stock, every_input, program


class Claimed(Small, name="claimed"):
    """`Small` with one claim of each shape: pointwise, with a least bound, and over pairs."""

    max_excess: Annotated[int, Field(ge=0, le=2_000)] = 1_500

    @invariant
    def fragile_is_not_negative(self, item: Pallet, place: Stock) -> bool:
        """Pointwise."""
        return not item.fragile or self.score(item, place) >= 0

    @invariant
    def bounded_by_far(
        self, item: Pallet, place: Stock, excess: Annotated[int, Field(ge=0, le=2_000), Least(limit="max_excess")]
    ) -> bool:
        """With a bound whose least value the gate finds."""
        return self.score(item, place) <= 10 * item.far + excess

    @invariant
    def nearer_is_not_worse(self, one: Pallet, other: Pallet, place: Stock) -> bool:
        """Over pairs."""
        return one.near < other.near or one.far != other.far or self.score(one, place) >= self.score(other, place)


CONTRACT = Claimed()
INPUTS = every_input(CONTRACT)
ITEMS = np.array([list(rows[0].values()) for rows in INPUTS]).reshape(-1, 8, 4)[:, 0]


def truth(policy: Policy) -> dict[str, bool | int | None]:
    """What holds of a policy, by trying everything; None where it means nothing because the policy faults."""
    scores: list[int] = []
    for rows in INPUTS:
        try:
            scores.append(evaluate(policy.module, "score", rows))
        except Fault:
            return {"score is safe": False}
    table = np.array(scores, dtype=object).reshape(len(ITEMS), 8)
    in_range = all(score in CONTRACT.decisions["score"].result for score in scores)
    if not in_range:
        return {"score is safe": True, "score is in range": False}
    table = table.astype(np.int64)
    near, far, fragile = ITEMS[:, 0], ITEMS[:, 1], ITEMS[:, 2]
    excess = max(0, int((table - 10 * far[:, None]).max()))
    claimed = (near[:, None] >= near[None, :]) & (far[:, None] == far[None, :])
    worse = (table[:, None, :] < table[None, :, :]).any(axis=2)
    return {
        "score is safe": True,
        "score is in range": True,
        "fragile_is_not_negative": bool((table[fragile == 1] >= 0).all()),
        "bounded_by_far": excess <= CONTRACT.max_excess,
        "least": excess,
        "nearer_is_not_worse": not bool((claimed & worse).any()),
    }


def compare(seeds: range) -> tuple[int, int, int, int]:
    """How many verdicts were proved, refuted and unknown, and over how many policies."""
    proved = refuted = unknown = policies = 0
    for seed in seeds:
        text = program(seed, CONTRACT, tame=True)
        try:
            policy = Policy.from_source(text, CONTRACT)
        except LanguageError as error:
            assert "operations" in str(error), f"{error}\n{text}"
            continue
        expected = truth(policy)
        policies += 1
        results: tuple[ObligationResult, ...] = proof.check(policy).obligations
        assert results
        for result in results:
            if result.name not in expected:
                continue
            proved += result.verdict is Verdict.PROVED
            refuted += result.verdict is Verdict.REFUTED
            unknown += result.verdict is Verdict.UNKNOWN
            where = f"seed {seed}: {result.name} is {expected[result.name]}, the gate says {result.verdict}\n{text}"
            assert result.verdict in (Verdict.PROVED, Verdict.REFUTED, Verdict.UNKNOWN), where
            if result.verdict is not Verdict.UNKNOWN:
                assert (result.verdict is Verdict.PROVED) is expected[result.name], where
            if result.verdict is Verdict.PROVED and result.least is not None and result.least.tight:
                assert result.least.value == expected["least"], (
                    f"{where}\nleast {result.least}, true {expected['least']}"
                )
            if result.verdict is Verdict.REFUTED:
                assert result.counterexample is not None, where
    return proved, refuted, unknown, policies


@pytest.mark.slow
def test_every_verdict_on_random_policies_is_the_true_one() -> None:
    proved, refuted, unknown, policies = compare(range(60))
    assert policies >= 55 and proved > 60 and refuted > 30 and unknown <= 3


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_two_thousand_verdicts_equal_exhaustive_enumeration(part: int, capsys: pytest.CaptureFixture[str]) -> None:
    proved, refuted, unknown, policies = compare(range(10_000 + part * 270, 10_270 + part * 270))
    with capsys.disabled():
        print(f"\npart {part}: {policies:,} policies, {proved:,} proved, {refuted:,} refuted, {unknown:,} unknown")
    assert policies >= 250 and unknown <= policies // 20
