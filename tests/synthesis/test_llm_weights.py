"""Several models, one that is worth asking and one that is not: where the calls go, over real HTTP servers."""

import json
from http.server import BaseHTTPRequestHandler
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Policy
from autopoiesis_lib.synthesis import Context, LLMProposer, Parent, ProposerError, Slot
from autopoiesis_lib.synthesis.llm import Price
from autopoiesis_lib.synthesis.weights import Outcome, Tally
from tests.synthesis.endpoint import Reply, Server, fails, serving, writes

CONTRACT = RequestOrdering()
GOOD = BASELINES["shortest-prompt-aging"]
MODELS = {"one/good": 1.0, "two/rubbish": 1.0}
PARENT = Parent(id=3, source=GOOD, fitness=0.44)


def always_new() -> Reply:
    """A policy that nobody wrote before, every time."""
    numbers = count(10_001)

    def reply(server: Server, request: dict[str, Any], handler: BaseHTTPRequestHandler) -> None:
        writes(GOOD.replace("10_000", f"{next(numbers):_}"))(server, request, handler)

    return reply


def generations(ours: LLMProposer, numbers: range, size: int = 16) -> list[str]:
    """Runs generations; the models that were asked (or whose recorded answer was taken), in order of slots."""
    asked = []
    for generation in numbers:
        context = Context(contract=CONTRACT, seed=1, generation=generation)
        slots = [Slot(id=1_000 * generation + i, island=0, parents=(PARENT,)) for i in range(size)]
        for draft in ours.propose(context, slots):
            asked.append(str(draft.details.get("model") or draft.details.get("llm_tried")))
    return asked


def proposer(good: str, rubbish: str, **changes: Any) -> LLMProposer:
    settings: dict[str, Any] = {"base_url": {"one/good": good, "two/rubbish": rubbish}, "api_key": "none"}
    settings |= {"repairs": 0, "attempts": 1, "timeout_s": 5.0, "adapt": True}
    return LLMProposer(MODELS, **settings | changes)


def test_calls_move_to_the_model_whose_drafts_pass_and_never_leave_the_other_alone() -> None:
    with serving(always_new()) as good, serving(writes("import os")) as rubbish:
        asked = generations(proposer(good.url, rubbish.url), range(1, 13))
    assert (len(good.requests), len(rubbish.requests)) == (asked.count("one/good"), asked.count("two/rubbish"))
    assert 4 <= asked[:16].count("two/rubbish") <= 12, "the first generation goes by the weights given"
    late = asked[-96:]
    assert late.count("one/good") >= 0.8 * len(late)
    assert late.count("two/rubbish") >= 1


def test_without_adapt_the_weights_given_stand() -> None:
    with serving(always_new()) as good, serving(writes("import os")) as rubbish:
        asked = generations(proposer(good.url, rubbish.url, adapt=False), range(1, 13))
    assert 0.4 <= asked.count("one/good") / len(asked) <= 0.6


def test_a_model_that_repeats_itself_earns_nothing() -> None:
    with serving(always_new()) as good, serving(writes(GOOD)) as parrot:
        ours = proposer(good.url, parrot.url)
        generations(ours, range(1, 9))
        weights = ours.weights(Context(contract=CONTRACT, seed=1, generation=9))
    assert weights["one/good"] > 0.8


def test_of_two_equally_good_models_the_cheaper_one_is_asked_more() -> None:
    prices = {"one/good": Price(0.1, 0.4), "two/rubbish": Price(10.0, 40.0)}
    with serving(always_new()) as cheap, serving(always_new()) as dear:
        dear.replies = [lambda server, request, handler: cheap.replies[0](server, request, handler)]
        ours = proposer(cheap.url, dear.url, adapt="dollars", prices=prices)
        generations(ours, range(1, 9))
        weights = ours.weights(Context(contract=CONTRACT, seed=1, generation=9))
    assert weights["one/good"] > 0.9
    with pytest.raises(ProposerError, match="needs the price of two/rubbish"):
        LLMProposer(MODELS, base_url="http://127.0.0.1:9/v1", adapt="dollars", prices={"one/good": Price(1, 1)})


def test_adapted_runs_replay_and_resume_from_their_record(tmp_path: Path) -> None:
    record = tmp_path / "exchanges.jsonl"
    with serving(always_new()) as good, serving(writes("import os")) as rubbish:
        first = proposer(good.url, rubbish.url, record=record)
        asked = generations(first, range(1, 7))
        resumed = proposer(good.url, rubbish.url, record=record)
        later = Context(contract=CONTRACT, seed=1, generation=7)
        assert resumed.weights(later) == first.weights(later) != {"one/good": 0.5, "two/rubbish": 0.5}
    assert generations(LLMProposer(MODELS, replay=record, adapt=True), range(1, 7)) == asked


def test_an_endpoint_that_is_down_costs_nothing_and_tells_nothing(tmp_path: Path) -> None:
    record = tmp_path / "exchanges.jsonl"
    with serving(fails(500)) as server:
        ours = LLMProposer("a/one", base_url=server.url, api_key="none", adapt=True, attempts=1, record=record)
        generations(ours, range(1, 3), 4)
        assert ours.weights(Context(contract=CONTRACT, seed=1, generation=3)) == {"a/one": 1.0}
    assert all(json.loads(line)["tokens"] == 0 for line in record.read_text().splitlines())


def test_what_is_counted_is_each_new_policy_and_each_one_that_came_back_better() -> None:
    def outcome(slot: int, model: str, digest: str | None, **more: Any) -> Outcome:
        return Outcome(
            generation=1, slot=slot, model=model, digest=digest, tokens=100, dollars=0.0, seconds=1.0, **more
        )

    baseline = Policy.from_source(GOOD, CONTRACT).digest
    tally = Tally("tokens", known={baseline})
    tally.add([outcome(1, "a", "x"), outcome(2, "b", "x"), outcome(3, "b", baseline), outcome(4, "a", None)])
    even = tally.weights({"a": 1.0, "b": 1.0})
    assert even["a"] > even["b"], "the second to write a policy earns nothing by it"
    assert sum(even.values()) == pytest.approx(1.0)
    tally.add([outcome(5, "a", None, better=((7, "b"),)), outcome(6, "a", None, better=((7, "b"),))])
    after = tally.weights({"a": 1.0, "b": 1.0})
    assert after["b"] > even["b"]
    assert Tally("tokens").weights({"a": 3.0, "b": 1.0}) == {"a": 0.75, "b": 0.25}
