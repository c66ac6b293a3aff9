"""A real vLLM scheduler with no model behind it: the scheduler decides, a stand-in for the GPU hands back tokens."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from autopoiesis_adapters.vllm.engine_side import attach
from autopoiesis_adapters.vllm.scheduler import base_scheduler, policy_scheduler_class
from autopoiesis_adapters.vllm.settings import Settings
from vllm.config import CacheConfig, KVTransferConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

BLOCK_SIZE = 16


def vllm_config(
    model: Path,
    *,
    max_num_seqs: int = 4,
    num_blocks: int = 1_000,
    max_tokens_a_step: int = 512,
    asynchronous: bool = False,
    prefix_caching: bool = False,
    chunked_prefill: bool = True,
    watermark: float = 0.0,
    policy: str = "fcfs",
    additional: dict[str, Any] | None = None,
    kv_transfer: KVTransferConfig | None = None,
) -> VllmConfig:
    """The configuration of an engine, without an engine."""
    model_config = ModelConfig(model=str(model), skip_tokenizer_init=True, dtype="float32", seed=0, max_model_len=4_096)
    scheduler_config = SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_tokens_a_step,
        max_model_len=4_096,
        enable_chunked_prefill=chunked_prefill,
        watermark=watermark,
        is_encoder_decoder=False,
        async_scheduling=asynchronous,
        policy=policy,
    )
    cache_config = CacheConfig(
        block_size=BLOCK_SIZE, gpu_memory_utilization=0.9, cache_dtype="auto", enable_prefix_caching=prefix_caching
    )
    cache_config.num_gpu_blocks = num_blocks
    config = VllmConfig(
        model_config=model_config,
        scheduler_config=scheduler_config,
        cache_config=cache_config,
        additional_config=additional or {},
        kv_transfer_config=kv_transfer,
    )
    # vLLM turns async scheduling off for the CPU; nothing here runs on a device, so the async scheduler can be tested
    # anyway.
    config.scheduler_config.async_scheduling = asynchronous
    return config


def full(block_size: int = BLOCK_SIZE) -> KVCacheSpec:
    """A group of layers with full attention."""
    return FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)


def sliding(window: int, block_size: int = BLOCK_SIZE) -> KVCacheSpec:
    """A group of layers that see so many tokens."""
    return SlidingWindowSpec(
        block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32, sliding_window=window
    )


def new_scheduler(config: VllmConfig, cls: Callable[..., Any], groups: Sequence[KVCacheSpec] = ()) -> Any:
    """A scheduler of the given class (or factory), called the way vLLM's engine core calls it."""
    specs = groups or (full(),)
    block_size = math.lcm(*[spec.block_size for spec in specs])
    kv_cache = KVCacheConfig(
        num_blocks=config.cache_config.num_gpu_blocks,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec([f"layer{i}"], spec) for i, spec in enumerate(specs)],
    )
    return cls(
        vllm_config=config,
        kv_cache_config=kv_cache,
        structured_output_manager=StructuredOutputManager(config),
        include_finished_set=False,
        log_stats=True,
        block_size=block_size,
        hash_block_size=block_size,
    )


def request(name: str, prompt: int = 8, output: int = 4, **more: Any) -> Request:
    """A request with a prompt of so many tokens that stops after so many outputs."""
    params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
    params.update_from_generation_config({}, 2)
    return Request(
        request_id=name,
        prompt_token_ids=[hash(name) % 997 + 3] * prompt,
        sampling_params=params,
        pooling_params=None,
        **more,
    )


@dataclass
class Bench:
    """Runs a scheduler step by step; `in_flight` steps are scheduled before the first output comes back (2 when
    async)."""

    scheduler: Any
    in_flight: int = 1
    finished: list[str] = field(default_factory=list)
    admitted: list[str] = field(default_factory=list)
    """Every admission in order, re-admissions after preemption included."""
    outputs: dict[str, list[int]] = field(default_factory=dict)
    preemptions: int = 0
    loaded: set[str] = field(default_factory=set)
    """Requests whose KV has arrived from elsewhere; the next output says so."""
    _flying: "deque[tuple[Any, ModelRunnerOutput]]" = field(default_factory=deque)

    def add(self, requests: Iterable[Request]) -> None:
        """Requests arrive, in this order."""
        for one in requests:
            self.scheduler.add_request(one)

    def step(self) -> None:
        """Schedule once, and take in the oldest output when enough steps are in flight."""
        running_before = {one.request_id for one in self.scheduler.running}
        output = self.scheduler.schedule()
        still_running = {one.request_id for one in self.scheduler.running}
        self.preemptions += len([name for name in running_before - still_running if name in self.scheduler.requests])
        self.admitted += [one.request_id for one in self.scheduler.running if one.request_id not in running_before]
        if output.total_num_scheduled_tokens:
            self._flying.append((output, self._model(output)))
        if len(self._flying) >= self.in_flight or (self._flying and not output.total_num_scheduled_tokens):
            self._land()

    def run(self, max_steps: int = 10_000) -> "Bench":
        """Step until nobody waits or runs; fails when that takes more than `max_steps`."""
        for _ in range(max_steps):
            if not self.scheduler.has_unfinished_requests() and not self._flying:
                return self
            self.step()
        raise AssertionError(f"requests left after {max_steps} steps: {self.scheduler.get_request_counts()}")

    def _model(self, output: Any) -> ModelRunnerOutput:
        ids = list(output.num_scheduled_tokens)
        requests = self.scheduler.requests
        tokens = [[] if requests[name].is_prefill_chunk else [7] for name in ids]
        loaded, self.loaded = self.loaded, set()
        return ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={name: i for i, name in enumerate(ids)},
            sampled_token_ids=tokens,
            kv_connector_output=KVConnectorOutput(finished_recving=loaded) if loaded else None,
        )

    def _land(self) -> None:
        output, answer = self._flying.popleft()
        for batch in self.scheduler.update_from_output(output, answer).values():
            for one in batch.outputs:
                self.outputs.setdefault(one.request_id, []).extend(one.new_token_ids)
                if one.finish_reason is not None:
                    self.finished.append(one.request_id)


def policy_bench(
    config: VllmConfig,
    load: Any = None,
    settings: Settings | None = None,
    base: type[Scheduler] | None = None,
    groups: Sequence[KVCacheSpec] = (),
) -> Bench:
    """A bench whose scheduler has the adapter, set up by hand so that a test can hold its settings and its loader."""
    scheduler = new_scheduler(config, policy_scheduler_class(base or base_scheduler(config)), groups)
    assert scheduler.autopoiesis is not None
    if load is not None or settings is not None:
        scheduler.autopoiesis.close()
        scheduler.autopoiesis = attach(scheduler, settings or Settings(), load)
    return Bench(scheduler, 2 if config.scheduler_config.async_scheduling else 1)


def plain_bench(config: VllmConfig, groups: Sequence[KVCacheSpec] = ()) -> Bench:
    """The same engine without the adapter."""
    return Bench(
        new_scheduler(config, base_scheduler(config), groups), 2 if config.scheduler_config.async_scheduling else 1
    )
