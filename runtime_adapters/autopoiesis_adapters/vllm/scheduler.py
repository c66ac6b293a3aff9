"""The scheduler that vLLM would have chosen, with its waiting queue ordered by a verified policy.

No vLLM code is copied.
"""

import logging
from collections.abc import Callable
from typing import Any

from autopoiesis_lib.logs import log_event

from .engine_calls import attach_engine_calls
from .engine_side import EngineSide, attach
from .settings import SettingsError

__all__ = ["PolicyScheduler", "make_scheduler", "policy_scheduler_class"]

logger = logging.getLogger("autopoiesis.vllm")


class PolicyScheduler:
    """Mixin over vLLM's `Scheduler`, `AsyncScheduler` or any subclass: it wraps calls and changes none of vLLM's logic.

    `autopoiesis` holds the adapter's state. It is None when the adapter could not be set up; the scheduler is then
    vLLM's, unchanged.
    """

    autopoiesis: EngineSide | None = None
    running: list[Any]
    """vLLM's running requests."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        vllm: Any = super()  # looked up once, not each step
        self._vllm_schedule: Callable[..., Any] = vllm.schedule
        self._vllm_add_request: Callable[..., Any] = vllm.add_request
        self._vllm_free_request: Callable[..., Any] = vllm._free_request
        self._vllm_reset_prefix_cache: Callable[..., bool] = vllm.reset_prefix_cache
        try:
            self.autopoiesis = attach(self)
        except SettingsError:
            raise
        except Exception:
            said = "the adapter could not be attached; serving with vLLM's own order"
            log_event(logger, "adapter.failed", said, {}, level=logging.ERROR, exc_info=True)

    def add_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Hand the request to vLLM, stamped once with the engine's clock, by our queue or else here."""
        side = self.autopoiesis
        if side is None:
            return self._vllm_add_request(request, *args, **kwargs)
        answer = self._vllm_add_request(request, *args, **kwargs)
        if not hasattr(request, "autopoiesis_clock"):
            side.stamp(request)  # vLLM keeps it outside the queue for now, and it waits there too
        if getattr(request, "resumable", False):
            side.updated(request.request_id)
        return answer

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step: the adapter's work before it, vLLM's whole step, and the record of the step.

        vLLM's step asks the policy queue for each pick.
        """
        side = self.autopoiesis
        if side is None:
            return self._vllm_schedule(*args, **kwargs)
        if side.due:
            side.begin_step()
        ran = len(self.running)
        output = self._vllm_schedule(*args, **kwargs)
        side.end_step(output, ran)
        return output

    def reset_prefix_cache(self, reset_running_requests: bool = False, *args: Any, **kwargs: Any) -> bool:
        """Let vLLM empty the prefix cache.

        The running requests that vLLM preempts for that are in the order of admission.
        """
        if reset_running_requests and self.autopoiesis is not None:
            self.autopoiesis.reset_running()
        return self._vllm_reset_prefix_cache(reset_running_requests, *args, **kwargs)

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        if self.autopoiesis is not None:
            self.autopoiesis.finished(request)
        return self._vllm_free_request(request, *args, **kwargs)

    def shutdown(self) -> None:
        """Stop our thread, then run vLLM's own shutdown."""
        if self.autopoiesis is not None:
            self.autopoiesis.close()
        super().shutdown()  # type: ignore[misc]


def policy_scheduler_class(base: type[Any]) -> type[Any]:
    """Return a class that puts the mixin over `base`; `isinstance` checks against `base` hold."""
    return type(f"Policy{base.__name__}", (PolicyScheduler, base), {"__module__": __name__})


def make_scheduler(vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
    """Make the scheduler for `--scheduler-cls autopoiesis_adapters.vllm.make_scheduler`.

    The factory takes the arguments of a vLLM scheduler and returns a scheduler of the class that vLLM would have
    chosen. Choosing `Scheduler` where `AsyncScheduler` belongs would cost throughput.
    """
    attach_engine_calls()
    return policy_scheduler_class(base_scheduler(vllm_config))(vllm_config, *args, **kwargs)


def base_scheduler(vllm_config: Any) -> type[Any]:
    """Return the scheduler class that vLLM chooses by default."""
    asynchronous = bool(getattr(vllm_config.scheduler_config, "async_scheduling", False))
    if getattr(vllm_config, "diffusion_config", None) is not None:
        # Naming a scheduler class keeps vLLM from choosing its diffusion ones, so they are chosen here.
        from vllm.v1.core.sched import diffusion_scheduler

        name = "DiffusionAsyncScheduler" if asynchronous else "DiffusionScheduler"
        found: type[Any] = getattr(diffusion_scheduler, name)
        return found
    if asynchronous:
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler

        return AsyncScheduler  # type: ignore[no-any-return]
    from vllm.v1.core.sched.scheduler import Scheduler

    return Scheduler  # type: ignore[no-any-return]
