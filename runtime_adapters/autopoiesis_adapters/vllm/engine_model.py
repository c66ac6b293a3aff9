"""The parts of vLLM that the adapter depends on, by version, and the check of a real scheduler against them.

A version that is not in the table is served when it has the shape of the newest version in it, and the engine logs
that. A control point that cannot work as its contract says is switched off: vLLM decides there as it would without the
adapter.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.logs import log_event
from autopoiesis_lib.protocol.channel import ORDERING

from .kv_groups import KVGroups, read_groups

__all__ = ["MODELS", "EngineShape", "EngineShapeError", "shape_of"]

logger = logging.getLogger("autopoiesis.vllm")

ADMISSION, PREEMPTION = "admission", "preemption"

_V1: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        ORDERING: (
            "running",
            "waiting",
            "requests",
            "block_size",
            "policy",
            "scheduler_config",
            "parallel_config",
            "max_num_running_reqs",
            "max_num_scheduled_tokens",
            "kv_cache_manager.get_computed_blocks",
            "kv_cache_manager.block_pool.num_gpu_blocks",
            "kv_cache_manager.block_pool.free_block_queue.num_free_blocks",
            "reset_prefix_cache",
        ),
        ADMISSION: (
            "max_num_active_reqs",
            "num_waiting_for_streaming_input",
            "kv_holding_waiting",
            "kv_cache_manager.watermark_blocks",
            "kv_cache_manager.get_blocks",
            "kv_cache_manager.block_pool.get_num_free_blocks",
            "kv_cache_manager.coordinator.single_type_managers",
        ),
        PREEMPTION: (
            "max_model_len",
            "num_spec_tokens",
            "num_lookahead_tokens",
            "kv_cache_manager.get_blocks",
            "kv_cache_manager.block_pool.get_num_free_blocks",
            "kv_cache_manager.coordinator.single_type_managers",
        ),
    }
)

MODELS: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType({"0.31": _V1, "0.32": _V1})
"""Minor version of vLLM, oldest first -> control point -> attributes that a scheduler must have for it."""

REQUEST = (
    "request_id",
    "priority",
    "max_tokens",
    "status",
    "num_prompt_tokens",
    "num_output_tokens",
    "num_computed_tokens",
    "num_preemptions",
    "num_output_placeholders",
    "num_stale_output_tokens",
    "is_prefill_chunk",
    "is_finished",
)
"""The attributes that a request must have."""


class EngineShapeError(AutopoiesisError):
    """Error for a vLLM that lacks something without which no policy can decide in it."""


@dataclass(frozen=True)
class EngineShape:
    """One engine, as far as the adapter can serve it."""

    version: str
    """Version of vLLM."""
    scheduling: str
    """vLLM's own order of requests: `fcfs` or `priority`."""
    groups: KVGroups | None = None
    """The KV-cache groups; None where the engine has no control point that counts blocks."""
    off: Mapping[str, str] = field(default_factory=dict)
    """Control point -> the reason why it is off."""
    uncovered: tuple[str, ...] = ()
    """Parts of this engine that no certificate covers, beyond the exclusions in every certificate."""


def shape_of(scheduler: Any, version: str, off: Mapping[str, str] | None = None) -> EngineShape:
    """Check a scheduler and return the control points that can be served in it; log those that cannot.

    Args:
        scheduler: a vLLM scheduler whose `__init__` has run.
        version: the version of vLLM.
        off: control point -> reason, for those that the operator has switched off.

    Raises:
        EngineShapeError: requests cannot be ordered in it.
    """
    needs = MODELS.get(".".join(version.split(".")[:2]))
    uncovered = []
    if needs is None:
        uncovered.append(
            f"vLLM {version} is not among the versions known here ({', '.join(MODELS)}); it has their shape"
        )
    needs = needs or list(MODELS.values())[-1]
    lacking = {contract: _lacking(scheduler, names) for contract, names in needs.items()}
    absent = [*lacking[ORDERING], *_lacking_of_requests()]
    if absent:
        raise EngineShapeError(
            f"vLLM {version} has no {', '.join(absent)}; serve with a version from {', '.join(MODELS)}"
        )
    scheduling = str(getattr(scheduler.policy, "value", scheduler.policy))
    reasons = {c: f"vLLM {version} has no {', '.join(names)}" for c, names in lacking.items() if names}
    groups = None
    try:
        if ADMISSION not in reasons or PREEMPTION not in reasons:
            groups, uncounted = read_groups(scheduler)
            if uncounted:
                reasons.setdefault(
                    ADMISSION, f"what a request needs in the KV-cache groups of {uncounted} is not known"
                )
    except (AttributeError, TypeError) as error:
        reasons = {ADMISSION: str(error), PREEMPTION: str(error), **reasons}
    held_back = _keeps_oldest_back(scheduler, scheduling)
    if held_back:
        reasons[PREEMPTION] = "; ".join(held_back)
    reasons |= off or {}
    if getattr(scheduler, "max_num_encoder_input_tokens", 0) and PREEMPTION not in reasons:
        uncovered.append(
            "steps in which the oldest running request waits for the encoder cache; counted as `oldest_idle`"
        )
    if getattr(scheduler, "connector", None) is not None:
        uncovered.append(
            "the memory held by requests whose KV is loaded from elsewhere; they are resumed before others"
        )
    for contract, why in reasons.items():
        said = f"no policy decides {contract} in this engine: {why}"
        log_event(logger, "control_point.off", said, {"contract": contract, "reason": why}, level=logging.WARNING)
    for what in uncovered:
        log_event(logger, "engine.uncovered", f"not covered: {what}", {"reason": what}, level=logging.WARNING)
    return EngineShape(version, scheduling, groups, reasons, tuple(uncovered))


def _keeps_oldest_back(scheduler: Any, scheduling: str) -> list[str]:
    """Return the reasons why the oldest running request may be preempted or kept back, in any order of `running`."""
    parallel, config = scheduler.parallel_config, scheduler.scheduler_config
    found = []
    if getattr(config, "prefill_schedule_interval", 1) > 1 and parallel.data_parallel_size > 1:
        found.append("prefill_schedule_interval defers the prompt of the oldest request")
    if parallel.pipeline_parallel_size > 1:
        found.append("pipeline parallelism passes over requests in flight, the oldest one too")
    if scheduling != "fcfs":
        found.append(f"under scheduling policy `{scheduling}` vLLM chooses its victims by itself")
    return found


def _lacking(owner: Any, names: tuple[str, ...]) -> list[str]:
    found = []
    for name in names:
        try:
            attrgetter(name)(owner)
        except AttributeError:
            found.append(name)
    return found


def _lacking_of_requests() -> list[str]:
    from vllm.v1.request import Request

    assigned = Request.__init__.__code__.co_names  # attributes are given in `__init__`, not in the class
    return [f"Request.{name}" for name in REQUEST if not hasattr(Request, name) and name not in assigned]
