"""What an endpoint takes and says: limits it refuses for, providers by name, keys that are missing."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib.gates import check
from autopoiesis_lib.synthesis import Context, LLMProposer, Parent, ProposerError, Slot
from autopoiesis_lib.synthesis.drafts import linear_pattern
from autopoiesis_lib.synthesis.fitting import Request, context_limit
from autopoiesis_lib.synthesis.llm import Price
from autopoiesis_lib.synthesis.prompts import versions
from tests.synthesis.endpoint import Reply, Server, fails, hangs, send, serving, writes

CONTRACT = RequestOrdering()
GOOD = BASELINES["shortest-prompt-aging"]
PARENTS = (
    Parent(id=3, source=GOOD, fitness=0.44, scores={"ttft_mean_us": 1e6}),
    Parent(id=4, source=GOOD, fitness=0.5),
)
KEY = "sk-secret-0123456789"
VLLM_PROMPT = (
    "This model's maximum context length is {limit} tokens. However, your prompt contains at least {tokens} input tokens, "
    "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt."
)
OPENAI = (
    "This model's maximum context length is 4,097 tokens. However, you requested 4927 tokens (927 in the messages, 4000 in "
    "the completion)."
)
LLAMA_CPP = "the request exceeds the available context size (4096 tokens), try increasing it"


def context(**changes: Any) -> Context:
    return Context(contract=CONTRACT, seed=1, generation=2, workload={"rate_rps": 9.0}, **changes)


def slots(count: int, parents: tuple[Parent, ...] = PARENTS) -> list[Slot]:
    return [Slot(id=10 + i, island=0, parents=parents) for i in range(count)]


def proposer(url: str, **changes: Any) -> LLMProposer:
    settings: dict[str, Any] = {"base_url": url, "api_key": KEY, "timeout_s": 2.0, "attempts": 2, "parallel": 1}
    return LLMProposer("local/tiny", **settings | changes)


def chars(messages: list[dict[str, str]]) -> int:
    return sum(len(message["content"]) for message in messages)


def error(message: str) -> str:
    return json.dumps({"error": {"message": message, "type": "BadRequestError", "code": 400}})


def small(limit: int) -> Reply:
    """A server that counts four characters for a token and refuses what does not fit, in vLLM's words."""

    def reply(server: Server, request: dict[str, Any], handler: Any) -> None:
        tokens = chars(request["messages"]) // 4
        if tokens + request["max_tokens"] > limit:
            send(handler, 400, error(VLLM_PROMPT.format(limit=limit, tokens=tokens)).encode())
        else:
            writes(GOOD)(server, request, handler)

    return reply


@pytest.mark.parametrize("limit", [3_000, 1_800, 1_500])
def test_a_small_context_is_learned_once_and_then_kept_to(limit: int) -> None:
    with serving(small(limit)) as server:
        ours = proposer(server.url)
        drafts = ours.propose(context(explored=["an idea"] * 40), slots(4))
    assert {draft.move for draft in drafts} == {"llm"}
    assert len(server.requests) <= 4 + 3, "only the first draft had to find out"
    assert all(chars(request["messages"]) // 4 + request["max_tokens"] <= limit for request in server.requests[-3:])
    assert all("must be at most" in request["messages"][0]["content"] for request in server.requests)


def test_a_context_that_is_given_is_kept_to_from_the_start() -> None:
    with serving(small(2_000)) as server:
        ours = proposer(server.url, context_tokens=2_000)
        assert ours.propose(context(explored=["an idea"] * 200), slots(1))[0].move == "llm"
    assert len(server.requests) == 1


def test_a_context_too_small_for_any_prompt_ends_in_the_search_and_one_line() -> None:
    with serving(small(300)) as server:
        ours = proposer(server.url)
        drafts = ours.propose(context(), slots(5))
    assert "llm" not in {draft.move for draft in drafts}
    assert "maximum context length is 300" in ours.note and "\n" not in ours.note
    assert len(server.requests) <= 6, "what cannot work is not tried for every slot"


def test_shorter_versions_leave_out_the_least_worth_first_and_never_what_is_proved() -> None:
    found = versions(context(explored=["an idea"], counterexamples=()), slots(1)[0])
    assert [chars(item) for item in found] == sorted((chars(item) for item in found), reverse=True)
    assert "an idea" in found[0][1]["content"] and "an idea" not in found[1][1]["content"]
    for item in found:
        assert "What is proved of every policy" in item[0]["content"] and GOOD in item[1]["content"]
        assert "waited_us" in item[0]["content"]
    assert "A policy that passes" in found[2][0]["content"] and "A policy that passes" not in found[3][0]["content"]


@pytest.mark.parametrize(
    ("said", "limit"),
    [
        (VLLM_PROMPT.format(limit=2048, tokens=2049), 2_048),
        (OPENAI, 4_097),
        (LLAMA_CPP, 4_096),
        ("no such model", None),
    ],
)
def test_what_servers_say_of_their_context_is_understood(said: str, limit: int | None) -> None:
    assert context_limit(said) == limit
    changed = Request(2_048, 0.8).after(said, [{"content": "x" * 4_000}])
    assert (None if changed is None else changed.context_tokens) == limit


def test_a_refused_argument_is_left_out_or_renamed() -> None:
    renamed = error("Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.")
    heat = error("Unsupported value: 'temperature' does not support 0.8 with this model.")
    with serving(fails(400, renamed), fails(400, heat), writes(GOOD)) as server:
        drafts = proposer(server.url).propose(context(), slots(2))
    assert {draft.move for draft in drafts} == {"llm"}
    assert len(server.requests) == 4
    assert "max_tokens" in server.requests[0] and "temperature" in server.requests[1]
    assert server.requests[-1]["max_completion_tokens"] == 2_048 and "temperature" not in server.requests[-1]


def test_weak_answers_are_no_broken_endpoint() -> None:
    with serving(*[writes("import os")] * 8, writes(GOOD)) as server:
        drafts = proposer(server.url, repairs=0).propose(context(), slots(9))
    assert len(server.requests) == 9
    assert [draft.move for draft in drafts].index("llm") == 8


def test_what_was_refused_is_on_record_and_was_paid_for(tmp_path: Path) -> None:
    record = tmp_path / "exchanges.jsonl"
    with serving(writes("import os"), writes(GOOD), writes("import os")) as server:
        ours = proposer(server.url, record=record, repairs=1, prices={"local/tiny": Price(10.0, 20.0)})
        drafts = ours.propose(context(dollars_left=1.0), slots(2))
    repaired, refused = (json.loads(line) for line in record.read_text().splitlines())
    assert len(repaired["replies"]) == len(refused["replies"]) == 2
    assert len(repaired["refused"]) == 1 and len(refused["refused"]) == 2
    assert "grammar" in repaired["refused"][0]
    paid = 2 * (100 * 10 + 20 * 20) / 1e6
    assert [draft.details["dollars"] for draft in drafts] == [pytest.approx(paid)] * 2
    assert [reply["usage"]["prompt_tokens"] for reply in repaired["replies"]] == [100, 100]
    assert drafts[1].details["llm_tried"] == "local/tiny" and "model" not in drafts[1].details


def test_a_draft_without_imports_gets_them() -> None:
    bare = GOOD.replace("from autopoiesis_contracts.request_ordering import Engine, Waiting\n", "")
    with serving(writes(bare)) as server:
        draft = proposer(server.url).propose(context(), slots(1))[0]
    assert draft.move == "llm" and len(server.requests) == 1
    assert check(draft.source, CONTRACT, gates=("grammar", "types", "ranges")).failed is None


def test_linear_answers_are_described_to_the_server_as_a_pattern() -> None:
    line = (
        "def score(request: Waiting, engine: Engine) -> int: return request.waited_us - 3 * request.num_prompt_tokens"
    )
    with serving(writes(line)) as server:
        draft = proposer(server.url, shape="linear").propose(context(), slots(1))[0]
    assert draft.move == "llm" and draft.source.endswith(line + "\n")
    schema = server.requests[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["source"]["pattern"] == linear_pattern(CONTRACT)
    assert list(schema["properties"]) == ["rationale", "expected_effect", "source"]


@pytest.mark.parametrize(
    ("model", "variable"), [("openai/gpt-4o-mini", "OPENAI_API_KEY"), ("anthropic/claude-haiku", "ANTHROPIC_API_KEY")]
)
def test_a_missing_key_is_one_clear_line(
    model: str, variable: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ProposerError) as caught:
        LLMProposer(model)
    assert str(caught.value) == f"the model {model!r} cannot be used: there is no key; set {variable}, or give api_key"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("gpt-4o-mini", "name it as provider/model"),
        ("nosuch/model", "Unsupported provider: nosuch"),
        ("openai/", "name it as provider/model"),
    ],
)
def test_a_model_that_cannot_be_is_one_clear_line(model: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ProposerError, match=said) as caught:
        LLMProposer(model)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_an_unknown_mode_and_a_server_for_no_model_are_refused() -> None:
    with pytest.raises(ProposerError, match="no mode 'guided'"):
        proposer("http://127.0.0.1:9/v1", mode="guided")
    with pytest.raises(ProposerError, match="there is no model 'b/two'"):
        LLMProposer("a/one", base_url={"b/two": "http://127.0.0.1:9/v1"})


def anthropic_says(source: str) -> Reply:
    """Anthropic's Messages API: the answer as a call of the tool that was offered."""

    def reply(server: Server, request: dict[str, Any], handler: Any) -> None:
        answer = {"rationale": "because", "expected_effect": "lower TTFT", "source": source}
        tool = {"type": "tool_use", "id": "t1", "name": request["tools"][0]["name"], "input": answer}
        body = {"id": "m1", "type": "message", "role": "assistant", "model": request["model"], "content": [tool]}
        body |= {"stop_reason": "tool_use", "stop_sequence": None, "usage": {"input_tokens": 90, "output_tokens": 30}}
        send(handler, 200, json.dumps(body).encode())

    return reply


def test_anthropic_is_asked_by_its_own_api_and_its_tokens_are_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("anthropic", reason="the provider needs its client: pip install anthropic")
    record = tmp_path / "exchanges.jsonl"
    with caplog.at_level(logging.DEBUG), serving(anthropic_says("import os"), anthropic_says(GOOD)) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url.removesuffix("/v1"))
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        draft = LLMProposer("anthropic/claude-x", record=record, parallel=1).propose(context(), slots(1))[0]
    assert draft.move == "llm" and draft.details["tokens"] == 240
    assert [request["model"] for request in server.requests] == ["claude-x"] * 2
    assert KEY not in record.read_text() + caplog.text


def test_a_provider_by_name_is_tried_as_often_as_was_said_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(fails(500)) as server:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        ours = LLMProposer("openai/gpt-x", attempts=2, parallel=1)
        assert ours.propose(context(), slots(1))[0].move != "llm"
    assert len(server.requests) == 2, "the client's own retries would make it six"
    assert server.keys == [f"Bearer {KEY}"] * 2


def test_a_provider_by_name_is_given_up_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(hangs(3.0)) as server:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        ours = LLMProposer("openai/gpt-x", attempts=1, timeout_s=0.3, parallel=1)
        ours.propose(context(), slots(1))
    assert "did not answer in time" in ours.note


def test_a_password_in_a_base_url_reaches_neither_settings_nor_notes() -> None:
    with serving(fails(401, error("wrong password hunter2222"))) as server:
        ours = proposer(server.url.replace("http://", "http://me:hunter2222@"))
        ours.propose(context(), slots(1))
    assert "hunter2222" not in json.dumps(ours.describe()) + ours.note
    assert "***" in str(ours.describe()["base_url"]) and "***" in ours.note
