"""Preemption: baselines are proved at known gaps, near misses are refuted, and the theorems need the kernel they model."""

from pathlib import Path
from typing import Annotated

import pytest
from autopoiesis_contracts.preemption import AnyCount, BoundedDisplacement, Engine, Preemption, Progress, Running
from pydantic import Field

from autopoiesis_lib import Theorem, Verdict, contract_named, invariant, lemma
from autopoiesis_lib.gates import check
from autopoiesis_lib.gates.theorems import prove_theorem
from autopoiesis_lib.units import Count
from tests.contracts.cases import PROVING, assert_refuted_and_replays, least_of, policy_text

SCORE = "def victim_score(running: Running, engine: Engine) -> int:\n"

VIOLATORS = {
    "preempted before, so preempt again": (SCORE + "    return running.num_preemptions", "spares_the_preempted"),
    "cheapest, however often": (SCORE + "    return -running.num_computed_tokens", "spares_the_preempted"),
    "lowest priority, however often": (SCORE + "    return -running.priority", "spares_the_preempted"),
    "penalty that saturates": (
        SCORE + "    return -min(running.num_computed_tokens, 8_192) - 1_024 * min(running.num_preemptions, 7)",
        "spares_the_preempted",
    ),
    "one token of cost beyond the gap": (
        SCORE + "    cost = min(running.num_computed_tokens, 16 * 1_024 + 1) if running.num_blocks > 0 else 16 * 1_024 + 1\n"
        "    return -cost - 1_024 * running.num_preemptions",
        "spares_the_preempted",
    ),
    "empty requests first": (
        SCORE + "    return -min(running.num_blocks, 4) - 4 * running.num_preemptions",
        "takes_from_holders",
    ),
    "empty requests cheapest to compute again": (
        SCORE + "    return -min(running.num_computed_tokens, 8_192) - 1_024 * running.num_preemptions",
        "takes_from_holders",
    ),
    "cost per block, with no block": (
        SCORE + "    return -running.num_computed_tokens // running.num_blocks",
        "victim_score is safe",
    ),
    "a product beyond its range": (
        SCORE + "    return -running.num_computed_tokens * running.waited_us * running.num_blocks",
        "victim_score is in range",
    ),
    "a score beyond its range": (
        SCORE + "    return -running.waited_us * 100_000_000",
        "victim_score is in range",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "gap"), [("last-come", 1), ("most-recompute-cheap", 8)])
def test_every_baseline_is_proved_at_its_least_gap(name: str, gap: int) -> None:
    assert least_of(check(Preemption.baselines()[name], Preemption())) == {"spares_the_preempted": gap}


def test_the_gap_of_the_cheapest_is_tight() -> None:
    report = check(Preemption.baselines()["most-recompute-cheap"], Preemption(max_preemption_gap=7), gates=PROVING)
    assert report.verdict is Verdict.REFUTED
    report = check(Preemption.baselines()["most-recompute-cheap"], Preemption(max_preemption_gap=8), gates=PROVING)
    assert report.verdict.green


@pytest.mark.parametrize("why", VIOLATORS)
def test_near_misses_are_refuted_with_replaying_counterexamples(why: str, tmp_path: Path) -> None:
    body, obligation = VIOLATORS[why]
    text = policy_text("autopoiesis_contracts.preemption", "Engine, Running", body)
    assert_refuted_and_replays(text, Preemption(), obligation, tmp_path)


def test_the_contract_is_registered_with_its_gap() -> None:
    contract = contract_named("preemption", max_preemption_gap=3)
    assert isinstance(contract, Preemption) and contract.max_preemption_gap == 3


@pytest.mark.parametrize(("theorem", "lemmas"), [(Progress, 4), (BoundedDisplacement, 5)])
def test_every_lemma_is_discharged(theorem: type[Theorem], lemmas: int) -> None:
    results = prove_theorem(Preemption(), theorem)
    assert {item.name: item.verdict for item in results} == {item.name: Verdict.PROVED for item in results}
    assert len(results) == lemmas


class OldestOffered(Progress):
    """A kernel that offers every running request, the oldest too."""

    def step(self, s: Progress.State, t: Progress.State, victim: AnyCount, computed: AnyCount) -> bool:
        """A preemption of any request."""
        return (
            0 <= victim < s.num_running
            and t.times_preempted == s.times_preempted + (1 if victim == 0 else 0)
            and t.tokens_left == s.tokens_left
            and t.num_running == s.num_running - 1
        )


class IdleSteps(Progress):
    """A kernel whose steps may compute nothing for the oldest."""

    def step(self, s: Progress.State, t: Progress.State, victim: AnyCount, computed: AnyCount) -> bool:
        """An engine step of no token or more."""
        return (
            0 <= computed <= s.tokens_left
            and t.tokens_left == s.tokens_left - computed
            and t.times_preempted == s.times_preempted
            and t.num_running == s.num_running
        )

    def progress(self, s: Progress.State, t: Progress.State) -> bool:
        """Any engine step."""
        return t.num_running == s.num_running


def test_progress_fails_when_the_oldest_is_offered_or_gets_no_token() -> None:
    offered = {item.name: item.verdict for item in prove_theorem(Preemption(), OldestOffered)}
    assert offered["OldestOffered: consecution"] is Verdict.REFUTED
    idle = {item.name: item.verdict for item in prove_theorem(Preemption(), IdleSteps)}
    assert idle["IdleSteps: ranking"] is Verdict.REFUTED


class TiesToTheEarliest(BoundedDisplacement):
    """A kernel that breaks ties by the earliest admission."""

    @lemma
    def victim_came_last_or_was_spared(
        self,
        victim: Running,
        kept: Running,
        engine: Engine,
        gap: Annotated[Count, Field(ge=1)],
        victim_admission: Count,
        kept_admission: Count,
    ) -> bool:
        """The same claim, the tie turned round."""
        victim_score = self.policy.victim_score(victim, engine)
        kept_score = self.policy.victim_score(kept, engine)
        taken = victim_score > kept_score or (victim_score == kept_score and victim_admission < kept_admission)
        gapped = victim.num_preemptions >= kept.num_preemptions + gap
        return not (taken and gapped) or victim_admission > kept_admission


class NoHysteresis(Preemption, name="no-hysteresis"):
    """A contract that asks for no hysteresis."""

    @invariant
    def spares_the_preempted(
        self, more: Running, fewer: Running, engine: Engine, gap: Annotated[Count, Field(ge=1)]
    ) -> bool:
        """Never false."""
        return self.victim_score(more, engine) <= self.victim_score(fewer, engine) or gap >= 0


def test_displacement_is_unbounded_without_hysteresis_or_with_ties_turned_round() -> None:
    turned = {item.name: item.verdict for item in prove_theorem(Preemption(), TiesToTheEarliest)}
    assert turned["TiesToTheEarliest.victim_came_last_or_was_spared"] is Verdict.REFUTED
    free = {item.name: item.verdict for item in prove_theorem(NoHysteresis(), BoundedDisplacement)}
    assert free["BoundedDisplacement: consecution"] is Verdict.REFUTED
