"""Run in a process of its own by `test_vllm_victims.py`: the same jobs on an unmodified CPU engine and on one whose victims and
admissions certified policies choose, with too little KV memory for all. Prints one JSON object."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

# Before vLLM is imported: one thread, so that runs repeat, and one process, so that the engine can be stepped from here.
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive", VLLM_ENABLE_V1_MULTIPROCESSING="0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

LONG, SHORT = 96, 8


def start(model: str, **more: Any) -> Any:
    """An engine with 13 blocks of 32 tokens: eight requests run while they are short, but three long ones fill it."""
    from vllm import LLM

    return LLM(
        model=model,
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=128,
        max_num_seqs=8,
        block_size=32,
        num_gpu_blocks_override=14,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
        seed=0,
        **more,
    )


def serve(llm: Any) -> dict[str, Any]:
    """Four long jobs, then twenty short ones, all there from the start; who was preempted, and every answer."""
    from vllm import SamplingParams

    engine = llm.llm_engine
    for i in range(24):
        prompt = [(7 * i + 3 * k) % 31_000 + 3 for k in range(28)]
        length = LONG if i < 4 else SHORT
        params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
        engine.add_request(f"{'long' if i < 4 else 'short'}{i}", {"prompt_token_ids": prompt}, params)
    scheduler = engine.engine_core.engine_core.scheduler
    answers: dict[str, list[int]] = {}
    preemptions: dict[str, int] = {}
    while engine.has_unfinished_requests():
        for request in scheduler.requests.values():
            preemptions[request.request_id.split("-")[0]] = request.num_preemptions
        for one in engine.step():
            if one.finished:
                answers[one.request_id.split("-")[0]] = list(one.outputs[0].token_ids)
    return {"answers": answers, "preempted": {name: count for name, count in preemptions.items() if count}}


def main() -> None:
    """Serve three times and print what happened."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(sys.argv[1])
        result: dict[str, Any] = {"plain": serve(start(folder))}
        llm = start(
            folder,
            scheduler_cls="autopoiesis_adapters.vllm.make_scheduler",
            additional_config={
                "autopoiesis": {
                    "keys": folder,
                    "allow_single_solver": True,
                    "deadline_us": 600_000_000,
                }  # nothing is late here
            },
        )
        from autopoiesis_adapters.vllm.engine_calls import call
        from autopoiesis_contracts import admission, preemption

        from autopoiesis_lib import Policy
        from autopoiesis_lib.certificate import sign, verify
        from autopoiesis_lib.protocol.keys import load_key, new_key

        new_key(folder, "fleet")
        key = load_key(folder, "fleet")

        def swap(policy: Policy) -> None:
            certificate = sign(verify(policy), key).to_bytes().decode()
            call(llm, "autopoiesis_swap", policy.source, certificate, policy.contract.contract_name)

        swap(Policy.from_source(sys.argv[2], preemption.Preemption()))
        result["victims"] = serve(llm)
        call(llm, "autopoiesis_builtin", "preemption")
        for_32 = admission.BASELINES["conservative"].replace("+ 15) // 16", "+ 31) // 32").replace("of 16", "of 32")
        swap(Policy.from_source(for_32, admission.Admission(block_size=32)))
        result["admission"] = serve(llm)
        result["status"] = call(llm, "autopoiesis_status")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
