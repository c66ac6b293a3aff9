"""The language-model proposer over real HTTP, against a server that behaves and one that does not."""

import json
import logging
from pathlib import Path

import pytest
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Policy
from autopoiesis_lib.synthesis import Context, LLMProposer, Parent, ProposerError, SearchProposer, Slot
from autopoiesis_lib.synthesis.llm import Price
from tests.synthesis.endpoint import Reply, breaks_off, fails, hangs, says, serving, writes

CONTRACT = RequestOrdering()
GOOD = BASELINES["shortest-prompt-aging"]
KEY = "sk-secret-0123456789"
MODEL = "local/tiny"
PARENT = Parent(id=3, source=GOOD, fitness=0.44, scores={"ttft_mean_us": 1_000_000.0})


def context(**changes: object) -> Context:
    return Context(contract=CONTRACT, seed=1, generation=2, workload={"rate_rps": 9.0}, **changes)  # type: ignore[arg-type]


def slots(count: int) -> list[Slot]:
    return [Slot(id=10 + i, island=0, parents=(PARENT,)) for i in range(count)]


def proposer(url: str, **changes: object) -> LLMProposer:
    settings: dict[str, object] = {"base_url": url, "api_key": KEY, "timeout_s": 2.0, "attempts": 2, "parallel": 1}
    return LLMProposer(MODEL, **{**settings, **changes})  # type: ignore[arg-type]


def test_a_model_writes_the_candidate_and_is_told_the_whole_contract() -> None:
    with serving(writes(GOOD)) as server:
        drafts = proposer(server.url).propose(context(best=PARENT), slots(2))
    assert [draft.move for draft in drafts] == ["llm", "llm"]
    assert Policy.from_source(drafts[0].source, CONTRACT).digest == Policy.from_source(GOOD, CONTRACT).digest
    assert drafts[0].details["tokens"] == 120
    assert drafts[0].parents == (3,)
    told = json.dumps(server.requests[0]["messages"])
    for expected in ("num_cached_tokens", "max_aging_us", "older.waited_us", "600,000,000", "0.4400", "ttft_mean_us"):
        assert expected in told
    assert server.requests[0]["model"] == "tiny"
    assert server.keys[0] == f"Bearer {KEY}"


@pytest.mark.parametrize("wrong", ["import os\n" + GOOD, GOOD.replace("8_192", "8.5"), "def score(request: Waiting"])
def test_a_draft_the_cheap_gates_refuse_is_repaired_by_the_model(wrong: str) -> None:
    with serving(writes(wrong), writes(GOOD)) as server:
        draft = proposer(server.url).propose(context(), slots(1))[0]
    assert draft.move == "llm"
    assert draft.details["tokens"] == 240
    assert len(server.requests) == 2
    said = json.dumps(server.requests[1]["messages"])
    assert "UNSUPPORTED" in said or "INVALID" in said


@pytest.mark.parametrize(
    "reply",
    [
        fails(500),
        fails(503, "overloaded"),
        fails(429, headers={"Retry-After": "0"}),
        fails(401, '{"error": {"message": "bad key"}}'),
        fails(404, '{"error": {"message": "no such model"}}'),
        hangs(3.0),
        breaks_off,
        says("I would rather not."),
        says('{"rationale": 1'),
        says(""),
        writes("import os"),
        fails(200, "<html>gateway</html>"),
    ],
    ids=["500", "503", "429", "401", "404", "hang", "break-off", "prose", "half-json", "empty", "never-valid", "html"],
)
def test_whatever_the_endpoint_does_the_search_carries_on(reply: Reply) -> None:
    with serving(reply) as server:
        ours = proposer(server.url, timeout_s=0.5, repairs=1)
        drafts = ours.propose(context(), slots(2))
    searched = SearchProposer().propose(context(), slots(2))
    assert [draft.source for draft in drafts] == [draft.source for draft in searched]
    assert "search carries on" in ours.note


def test_nothing_listening_is_no_reason_to_stop() -> None:
    ours = proposer("http://127.0.0.1:9/v1", timeout_s=0.5)
    assert len(ours.propose(context(), slots(3))) == 3
    assert "cannot be reached" in ours.note


def test_a_rate_limited_call_is_tried_again_as_the_server_asks() -> None:
    with serving(fails(429, headers={"Retry-After": "0"}), writes(GOOD)) as server:
        draft = proposer(server.url).propose(context(), slots(1))[0]
    assert draft.move == "llm"
    assert len(server.requests) == 2


def test_a_refused_key_is_not_tried_again_and_again() -> None:
    with serving(fails(401)) as server:
        proposer(server.url).propose(context(), slots(6))
        assert len(server.requests) == 1


def test_after_failures_one_try_a_generation_finds_an_endpoint_that_came_back() -> None:
    with serving(*[fails(500)] * 6, writes(GOOD)) as server:
        ours = proposer(server.url, attempts=1)
        first = ours.propose(context(), slots(5))
        assert len(server.requests) == 3
        ours.propose(context(), slots(5))
        assert len(server.requests) == 4
        for _ in range(2):
            ours.propose(context(), slots(1))
        last = ours.propose(context(), slots(3))
    assert {draft.move for draft in last} == {"llm"}
    assert "llm" not in {draft.move for draft in first}


def test_a_record_replays_exactly_without_any_server(tmp_path: Path) -> None:
    record = tmp_path / "exchanges.jsonl"
    with serving(writes(GOOD), fails(401)) as server:
        said = proposer(server.url, record=record).propose(context(), slots(4))
    replayed = LLMProposer(MODEL, replay=record).propose(context(), slots(4))
    assert list(replayed) == list(said)
    assert {draft.move for draft in said} > {"llm"}
    with pytest.raises(ProposerError, match="no answer to this prompt"):
        LLMProposer(MODEL, replay=record).propose(context(), [Slot(id=999, island=0)])


def test_a_key_reaches_neither_record_nor_log_nor_draft(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = tmp_path / "exchanges.jsonl"
    leaking = f'{{"error": {{"message": "wrong key {KEY}"}}}}'
    echoed = GOOD.replace('"""Shortest', f'"""{KEY} Shortest')
    with caplog.at_level(logging.DEBUG), serving(writes(echoed), fails(400, leaking)) as server:
        ours = proposer(server.url, record=record)
        drafts = ours.propose(context(), slots(2))
    everything = record.read_text() + caplog.text + repr(drafts) + repr(ours) + json.dumps(ours.describe()) + ours.note
    assert KEY not in everything
    assert "***" in record.read_text()


def test_a_token_budget_counts_calls_in_flight_at_their_upper_bound() -> None:
    with serving(writes(GOOD)) as server:
        ours = proposer(server.url, max_output_tokens=100, repairs=0)
        enough_for_one = 2 * (sum(len(m["content"]) for m in _prompt()) // 2 + 100) - 1
        drafts = ours.propose(context(tokens_left=enough_for_one), slots(1))
        assert drafts[0].move == "llm"
        drafts = ours.propose(context(tokens_left=50), slots(3))
        assert "llm" not in {draft.move for draft in drafts}
        assert len(server.requests) == 1


def test_a_dollar_budget_needs_a_price_and_then_holds() -> None:
    with serving(writes(GOOD)) as server:
        with pytest.raises(ProposerError, match="price"):
            proposer(server.url).propose(context(dollars_left=1.0), slots(1))
        priced = proposer(server.url, prices={MODEL: Price(10.0, 20.0)})
        draft = priced.propose(context(dollars_left=1.0), slots(1))[0]
        assert draft.details["dollars"] == pytest.approx((100 * 10 + 20 * 20) / 1e6)
        assert priced.propose(context(dollars_left=1e-4), slots(1))[0].move != "llm"


def test_several_models_share_the_slots_by_weight() -> None:
    with serving(writes(GOOD)) as server:
        ours = LLMProposer({"a/one": 3.0, "b/two": 1.0}, base_url=server.url, api_key=KEY)
        ours.propose(context(), slots(40))
    asked = [request["model"] for request in server.requests]
    assert len(asked) == 40
    assert asked.count("one") > asked.count("two") > 0


def _prompt() -> list[dict[str, str]]:
    from autopoiesis_lib.synthesis.prompts import messages

    return messages(context(), slots(1)[0])
