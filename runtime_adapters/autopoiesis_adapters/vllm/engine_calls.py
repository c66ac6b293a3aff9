"""Access to the adapter through vLLM's own utility calls: swap, status and telemetry, without a channel directory.

The engine core runs in its own process. vLLM hands a utility call to a method of `EngineCore` on the engine's own
thread, between steps; a method may answer with a future. A swap is therefore verified and compiled outside the engine
thread, which only makes the last pointer assignment. The methods are attached when the scheduler is made, in the
process where that happens.

From the front end, use `engine.engine_core.call_utility("autopoiesis_swap", text, certificate)` on a synchronous engine
and `await engine.engine_core.call_utility_async(...)` on an asynchronous one. `call` does the former for `LLM` and
`LLMEngine` in either process layout.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.protocol.channel import ORDERING, Mode

from .engine_side import EngineSide

__all__ = ["EngineCallError", "attach_engine_calls", "call"]


class EngineCallError(AutopoiesisError):
    """Error for an engine that has no adapter to call."""


def attach_engine_calls() -> None:
    """Give `EngineCore` its `autopoiesis_*` methods. The function may be called any number of times."""
    from vllm.v1.engine.core import EngineCore

    for method in (autopoiesis_swap, autopoiesis_builtin, autopoiesis_status, autopoiesis_telemetry):
        setattr(EngineCore, method.__name__, method)


def call(engine: Any, method: str, *args: Any) -> Any:
    """Call an `autopoiesis_*` method of the engine behind an `LLM` or `LLMEngine` and wait for its answer.

    Raises:
        EngineCallError: the engine was not started with our scheduler.
        Exception: the call itself raised; across processes vLLM passes on only the message.
    """
    client = getattr(engine, "llm_engine", engine).engine_core
    core = getattr(client, "engine_core", None)
    if core is None:
        return client.call_utility(method, *args)
    if not hasattr(core, method):
        raise EngineCallError("start the engine with --scheduler-cls autopoiesis_adapters.vllm.make_scheduler")
    answer = getattr(core, method)(*args)
    return answer.result() if isinstance(answer, Future) else answer


def autopoiesis_swap(
    core: Any,
    source: str,
    certificate: str,
    contract: str = ORDERING,
    mode: Mode = "active",
    seconds: float | None = None,
    decisions: int | None = None,
) -> "Future[dict[str, Any]]":
    """Verify and compile a policy outside the engine thread; it is active from the next step.

    The call answers with the engine's status.
    """
    side = _side(core)
    requested_us = side.now_us()

    def swap() -> dict[str, Any]:
        seat = side.seats.get(contract)
        policy = side.watcher.bring_in(
            source,
            certificate,
            requested_us,
            contract=contract,
            mode=mode,
            base=seat.standing if seat is not None else None,
            seconds=seconds,
            decisions=decisions,
        )
        return {"accepted": policy.digest, **side.watcher.status()}

    return _in_thread(swap)


def autopoiesis_builtin(core: Any, contract: str = ORDERING) -> dict[str, Any]:
    """Switch to the engine's built-in rule from the next step on."""
    side = _side(core)
    side.seats[contract].offer(None, side.now_us())
    return side.watcher.status()


def autopoiesis_status(core: Any) -> dict[str, Any]:
    """Return the engine's status: its policies, its refusals and its drops."""
    return _side(core).watcher.status()


def autopoiesis_telemetry(core: Any, first: Sequence[int] = (0, 0, 0)) -> "Future[dict[str, Any]]":
    """Return telemetry since the given rows of steps, requests and arrivals, as lists by field.

    The rows are copied outside the engine thread. `next` is the value of `first` for the next call. `lost` counts rows
    that were overwritten before they were read.
    """
    side = _side(core)

    def snapshot() -> dict[str, Any]:
        step, request, arrival = first
        taken = side.telemetry.snapshot((step, request, arrival))
        return {
            "steps": {name: column.tolist() for name, column in taken.steps.items()},
            "requests": {name: column.tolist() for name, column in taken.requests.items()},
            "arrivals": {name: column.tolist() for name, column in taken.arrivals.items()},
            "next": list(taken.next),
            "lost": list(taken.lost),
        }

    return _in_thread(snapshot)


def _side(core: Any) -> EngineSide:
    side: EngineSide | None = getattr(core.scheduler, "autopoiesis", None)
    if side is None:
        raise EngineCallError("the engine's scheduler has no adapter; see its log from start-up")
    return side


def _in_thread(work: Callable[[], dict[str, Any]]) -> "Future[dict[str, Any]]":
    future: Future[dict[str, Any]] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name="autopoiesis-call", daemon=True).start()
    return future
