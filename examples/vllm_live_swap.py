"""A policy swap in a live vLLM engine while requests are in flight: the order changes, the answers do not.

The example runs vLLM's real engine on the CPU with a tiny random Llama: no download, no GPU. It makes three runs of the
same 24 requests: an unmodified engine, our scheduler with first-come-first-served, and our scheduler swapped to
shortest-prompt-first after twelve steps. Greedy answers must be the same in all three.

    OMP_NUM_THREADS=1 python examples/vllm_live_swap.py [--json]
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Set before vLLM is imported: one thread, so that runs repeat, and one process, so that the example can step it.
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive", VLLM_ENABLE_V1_MULTIPROCESSING="0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

TINY_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 32_000,
    "max_position_embeddings": 4_096,
    "torch_dtype": "float32",
}
Run = tuple[list[str], dict[str, list[int]]]
"""(request names in order of completion, answers by name)."""


def start(model: str, **more: Any) -> Any:
    """Return an engine that serves two requests at a time."""
    from vllm import LLM

    return LLM(
        model=model,
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


def serve(llm: Any, swap_after: int = -1, swap: Callable[[], object] = lambda: None) -> Run:
    """Serve long and short prompts in turn, all waiting from the start; call `swap` after so many steps."""
    from vllm import SamplingParams

    engine = llm.llm_engine
    for i in range(24):
        prompt = [(7 * i + 3 * k) % 31_000 + 3 for k in range(200 - i if i % 2 == 0 else 8 + i)]
        params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
        engine.add_request(f"r{i}", {"prompt_token_ids": prompt}, params)
    order: list[str] = []
    answers: dict[str, list[int]] = {}
    steps = 0
    while engine.has_unfinished_requests():
        if steps == swap_after:
            swap()
        steps += 1
        for one in engine.step():
            if one.finished:
                name = one.request_id.split("-")[0]
                order.append(name)
                answers[name] = list(one.outputs[0].token_ids)
    return order, answers


def certified(name: str, keys: Path) -> tuple[str, str]:
    """Return a baseline policy's text and its certificate by all gates, signed with the key `fleet` in `keys`."""
    from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

    from autopoiesis_lib import Policy
    from autopoiesis_lib.certificate import sign, verify
    from autopoiesis_lib.protocol.keys import load_key

    policy = Policy.from_source(BASELINES[name], RequestOrdering())
    return policy.source, sign(verify(policy), load_key(keys, "fleet")).to_bytes().decode()


def main() -> None:
    """Run the example and print its results."""
    parser = argparse.ArgumentParser(description="Swap a policy in a live vLLM engine.")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(TINY_LLAMA))
        plain = serve(start(folder))
        keys = Path(folder) / "keys"
        settings = {"keys": str(keys), "allow_single_solver": True}
        llm = start(
            folder,
            scheduler_cls="autopoiesis_adapters.vllm.make_scheduler",
            additional_config={"autopoiesis": settings},
        )
        from autopoiesis_adapters.vllm.engine_calls import call

        from autopoiesis_lib.protocol.keys import new_key

        new_key(keys, "fleet")  # another engine would have a folder with only the public key
        call(llm, "autopoiesis_swap", *certified("fcfs", keys))
        fcfs = serve(llm)
        shortest = certified("shortest-prompt-aging", keys)
        swapped = serve(llm, swap_after=12, swap=lambda: call(llm, "autopoiesis_swap", *shortest))
        status = call(llm, "autopoiesis_status")
        telemetry = call(llm, "autopoiesis_telemetry")
    result = {
        "plain": plain[0],
        "fcfs": fcfs[0],
        "swapped": swapped[0],
        "same_answers": plain[1] == fcfs[1] == swapped[1],
        "status": status,
        "requests_recorded": len(telemetry["requests"]["stamp_us"]),
    }
    if args.json:
        print(json.dumps(result))
        return
    for name, (order, _) in (("unmodified", plain), ("fcfs", fcfs), ("swapped", swapped)):
        print(f"{name:>11}: {' '.join(order)}")
    print("answers are", "the same in all runs" if result["same_answers"] else "DIFFERENT")
    print(
        f"request to active {status['request_to_active_us']} us; the swap added {status['swap_step_ns']} ns to its step"
    )


if __name__ == "__main__":
    main()
