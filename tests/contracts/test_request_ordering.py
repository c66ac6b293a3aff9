"""Request ordering: least aging bounds, near misses, vacuity, and a theorem that needs the kernel it models."""

from pathlib import Path

import pytest
from autopoiesis_contracts.request_ordering import BoundedBypass, Engine, RequestOrdering, Waiting

from autopoiesis_lib import Theorem, Verdict, invariant, lemma
from autopoiesis_lib.gates import check
from autopoiesis_lib.gates.theorems import prove_theorem
from autopoiesis_lib.units import Count, Micros
from tests.contracts.cases import PROVING, assert_refuted_and_replays, policy_text

SCORE = "def score(request: Waiting, engine: Engine) -> int:\n"

VIOLATORS = {
    "shortest first without aging": (SCORE + "    return -request.num_prompt_tokens", "ages"),
    "last come first served": (SCORE + "    return -request.waited_us", "ages"),
    "priority alone": (SCORE + "    return request.priority", "ages"),
    "response ratio, which ages only by a factor": (
        SCORE + "    return request.waited_us // request.num_prompt_tokens",
        "ages",
    ),
    "one microsecond too much for a token": (
        SCORE + "    return request.waited_us - min(request.num_prompt_tokens, 8_193) * 73_243",
        "ages",
    ),
    "waits that stop counting after a minute": (
        SCORE + "    return min(request.waited_us, 60_000_000) - request.num_prompt_tokens",
        "ages",
    ),
    "a division by zero": (SCORE + "    return request.waited_us // request.num_cached_tokens", "score is safe"),
    "a square beyond its range": (SCORE + "    return request.waited_us * request.waited_us", "score is in range"),
}


@pytest.mark.parametrize(
    ("name", "least_us"),
    [
        ("fcfs", 0),
        ("priority-aging", 15 * 10_000_000),
        ("shortest-prompt-aging", (8_192 - 1) * 10_000),
        ("longest-cached-prefix-aging", 8_192 * 10_000),
    ],
)
def test_every_baseline_is_proved_at_its_least_bound(name: str, least_us: int) -> None:
    report = check(RequestOrdering.baselines()[name], RequestOrdering(), gates=PROVING)
    assert report.verdict is Verdict.PASSED, report.failed
    assert report.least() == {"ages": least_us}


@pytest.mark.parametrize("why", VIOLATORS)
def test_near_misses_are_refuted_with_replaying_counterexamples(why: str, tmp_path: Path) -> None:
    body, obligation = VIOLATORS[why]
    text = policy_text("autopoiesis_contracts.request_ordering", "Engine, Waiting", body)
    assert_refuted_and_replays(text, RequestOrdering(), obligation, tmp_path)


class ShortWaits(RequestOrdering, name="short-waits"):
    """Waits end after a minute, and the bound lies beyond."""

    @invariant
    def ages(self, older: Waiting, newer: Waiting, engine: Engine, aging: Micros) -> bool:
        """Premises that nothing meets: a wait beyond the longest there is."""
        beyond = older.waited_us > newer.waited_us + 86_400_000_000
        return not beyond or self.score(older, engine) >= self.score(newer, engine)


def test_a_bound_beyond_the_domain_of_waits_is_vacuous_and_not_proved() -> None:
    text = policy_text(ShortWaits.__module__, "Engine, Waiting", VIOLATORS["last come first served"][0])
    assert check(text, ShortWaits(), gates=PROVING).verdict is Verdict.VACUOUS


class TestPriorityOrder:
    """An invariant that is one only where the operator asks for it."""

    def test_only_a_policy_that_heeds_priority_is_proved(self) -> None:
        contract = RequestOrdering(priority_order=True)
        verdicts = {name: check(text, contract).verdict for name, text in contract.baselines().items()}
        assert {name for name, verdict in verdicts.items() if verdict is Verdict.PROVED} == {"priority-aging"}
        assert set(verdicts.values()) == {Verdict.PROVED, Verdict.REFUTED}

    def test_it_is_claimed_where_it_was_asked_for_and_nowhere_else(self) -> None:
        text = RequestOrdering.baselines()["priority-aging"]
        asked, plain = (check(text, RequestOrdering(priority_order=wanted)) for wanted in (True, False))
        assert sum("higher priority" in claim for claim in asked.claims) == 1
        assert not any("higher priority" in claim for claim in plain.claims)
        assert asked.contract_digest != plain.contract_digest


@pytest.mark.parametrize("theorem", RequestOrdering.theorems())
def test_every_lemma_is_discharged(theorem: type[Theorem]) -> None:
    results = prove_theorem(RequestOrdering(), theorem)
    assert {item.name: item.verdict for item in results} == {item.name: Verdict.PROVED for item in results}
    assert len(results) == 4


class TiesByRequestId(BoundedBypass):
    """A kernel that breaks ties by request id, which says nothing of age."""

    @lemma
    def ties(self, picked: Waiting, r: Waiting, engine: Engine, aging: Micros, picked_id: Count, r_id: Count) -> bool:
        """A tie goes to the smaller id."""
        picked_score = self.policy.score(picked, engine)
        r_score = self.policy.score(r, engine)
        prefers = picked_score > r_score or (picked_score == r_score and picked_id < r_id)
        return not prefers or r.waited_us <= picked.waited_us + aging


class WaitsReset(BoundedBypass):
    """A kernel that restarts a request's wait when it is preempted."""

    @lemma
    def resets(
        self, picked: Waiting, r: Waiting, engine: Engine, aging: Micros, picked_age: Micros, r_age: Micros
    ) -> bool:
        """The views hold waits that are at most the true ages."""
        seen = r.waited_us <= r_age and picked.waited_us == picked_age
        prefers = self.policy.score(picked, engine) > self.policy.score(r, engine)
        return not (seen and prefers) or r_age <= picked_age + aging


@pytest.mark.parametrize(("theorem", "broken"), [(TiesByRequestId, "ties"), (WaitsReset, "resets")])
def test_bounded_bypass_fails_for_a_kernel_that_forgets_age(theorem: type[Theorem], broken: str) -> None:
    verdicts = {item.name: item.verdict for item in prove_theorem(RequestOrdering(), theorem)}
    assert verdicts[f"{theorem.__name__}.{broken}"] is Verdict.REFUTED
