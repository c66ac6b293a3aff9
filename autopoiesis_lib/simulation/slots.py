"""The control points of a serving engine, and the policy slot of each.

A policy is the address of a C function that takes int64 arguments and returns an int64. The layout of its slot is the
order of the arguments. Layouts are public constants because the policy compiler and the engine must agree on them. A
slot without a policy uses the behaviour compiled into the engine.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.simulation import _columns as c

__all__ = [
    "ADMIT_LAYOUT",
    "AUTOSCALING_LAYOUT",
    "CHUNK_LAYOUT",
    "EVICTION_LAYOUT",
    "LAYOUTS",
    "ORDERING_LAYOUT",
    "RESERVE_LAYOUT",
    "ROUTING_LAYOUT",
    "TOKEN_BUDGET_LAYOUT",
    "VICTIM_LAYOUT",
    "CallableSlot",
    "NativeFunctionLike",
    "SlotError",
    "python_policy",
]


class SlotError(AutopoiesisError):
    """A policy does not fit the slot that it was given to, or a Python policy raised."""


_WAITING: Final = (
    "request.waited_us",
    "request.num_prompt_tokens",
    "request.num_cached_tokens",
    "request.num_output_tokens",
    "request.max_tokens",
    "request.priority",
    "request.num_preemptions",
)
_ENGINE: Final = (
    "engine.num_waiting",
    "engine.num_running",
    "engine.free_blocks",
    "engine.total_blocks",
    "engine.block_size",
    "engine.max_num_seqs",
    "engine.oldest_waited_us",
)

ORDERING_LAYOUT: Final = _WAITING + _ENGINE
"""`score(request, engine)`: the highest score is admitted next; ties go to the earlier enqueued."""

ADMIT_LAYOUT: Final = (
    *_WAITING,
    "memory.free_blocks",
    "memory.total_blocks",
    "memory.watermark_blocks",
    "memory.num_running",
    "memory.reserved_blocks",
)
"""`admit(request, memory)`: 0 refuses the head of the line, which ends admission for the step."""

RESERVE_LAYOUT: Final = _WAITING
"""`reserve_blocks(request)`: blocks reserved at admission beyond those of the prompt, clamped to what fits."""

VICTIM_LAYOUT: Final = (
    "running.waited_us",
    "running.num_prompt_tokens",
    "running.num_computed_tokens",
    "running.num_output_tokens",
    "running.max_tokens",
    "running.priority",
    "running.num_preemptions",
    "running.num_blocks",
    *_ENGINE,
)
"""`victim_score(running, engine)`: the request with the highest score is preempted; ties go to the latest admitted.

The oldest admitted request is never offered. `waited_us` counts from arrival; `num_blocks` is the number of private
blocks that a preemption frees.
"""

TOKEN_BUDGET_LAYOUT: Final = _ENGINE
"""`token_budget(engine)`: tokens in one step, clamped to [1, max_num_batched_tokens]; decodes always take part."""

CHUNK_LAYOUT: Final = _WAITING + _ENGINE
"""`prefill_chunk(request, engine)`: prompt tokens of one request in one step, clamped to at least 1."""

EVICTION_LAYOUT: Final = (
    "block.idle_us",
    "block.num_hits",
    "block.depth",
    "block.num_blocks",
    "block.preempted",
    *_ENGINE,
)
"""`keep_score(block, engine)`: the lowest score is evicted; ties go to the least recently used.

`depth` is the index of the hash block in its prompt. `preempted` is 1 for blocks that a preempted request left behind.
"""

ROUTING_LAYOUT: Final = (
    "request.num_prompt_tokens",
    "request.max_tokens",
    "request.priority",
    "replica.index",
    "replica.num_waiting",
    "replica.num_running",
    "replica.free_blocks",
    "replica.total_blocks",
    "replica.max_num_seqs",
    "replica.queued_tokens",
    "replica.num_cached_tokens",
)
"""`score(request, replica)` over healthy replicas: the highest score gets the request; ties go to the lowest index."""

AUTOSCALING_LAYOUT: Final = (
    "fleet.num_active",
    "fleet.num_starting",
    "fleet.num_waiting",
    "fleet.num_running",
    "fleet.free_blocks",
    "fleet.total_blocks",
    "fleet.max_num_seqs",
    "fleet.num_arrivals",
)
"""`target(fleet)`: number of wanted replicas (active plus starting), clamped to the bounds and the step limit.

Sums are over active replicas. `total_blocks` and `max_num_seqs` are one replica's. `num_arrivals` counts the arrivals
since the last call.
"""

LAYOUTS: Final[Mapping[str, tuple[str, ...]]] = {
    "ordering": ORDERING_LAYOUT,
    "admit": ADMIT_LAYOUT,
    "reserve_blocks": RESERVE_LAYOUT,
    "victim": VICTIM_LAYOUT,
    "token_budget": TOKEN_BUDGET_LAYOUT,
    "prefill_chunk": CHUNK_LAYOUT,
    "eviction": EVICTION_LAYOUT,
    "routing": ROUTING_LAYOUT,
    "autoscaling": AUTOSCALING_LAYOUT,
}
"""Slot name -> layout."""

_INDEX: Final = {
    "ordering": c.ORDERING,
    "admit": c.ADMIT,
    "reserve_blocks": c.RESERVE,
    "victim": c.VICTIM,
    "token_budget": c.BUDGET,
    "prefill_chunk": c.CHUNK,
    "eviction": c.KEEP,
    "routing": c.ROUTE,
    "autoscaling": c.SCALE,
}


@runtime_checkable
class NativeFunctionLike(Protocol):
    """An object with the address of a C function of int64s: `Policy.native(...)`, a numba `cfunc`, `python_policy`.

    If it also has a `layout`, that must equal the slot's.
    """

    @property
    def address(self) -> int: ...


@dataclass(frozen=True)
class CallableSlot:
    """A Python callable behind a C function pointer, for policy types without a native form and for tests."""

    layout: tuple[str, ...]
    address: int
    failures: list[BaseException] = field(default_factory=list, repr=False)
    """The exceptions that the callable raised.

    `simulate` raises the first one after the run, because C cannot carry an exception.
    """
    _keepalive: object = field(default=None, repr=False, compare=False)


def python_policy(slot: str, function: Callable[..., int]) -> CallableSlot:
    """Return a native slot for a plain Python callable.

    The callable gets the slot's layout as positional ints and returns an int. A call takes about a microsecond instead
    of 3 ns, and holds the GIL only for its duration.

    Raises:
        SlotError: there is no such slot.
    """
    layout = _layout_of(slot)
    failures: list[BaseException] = []

    def guarded(*arguments: int) -> int:
        try:
            return int(function(*arguments))
        except BaseException as raised:  # must not cross the C frame
            failures.append(raised)
            return 0

    pointer = ctypes.CFUNCTYPE(ctypes.c_int64, *([ctypes.c_int64] * len(layout)))(guarded)
    address = ctypes.cast(pointer, ctypes.c_void_p).value
    if address is None:
        raise SlotError(f"slot {slot!r}: ctypes gave no address for the callable; pass a compiled policy instead")
    return CallableSlot(layout=layout, address=address, failures=failures, _keepalive=pointer)


def address_table(policies: Mapping[str, NativeFunctionLike]) -> NDArray[np.int64]:
    """Return the addresses in kernel order, with 0 for slots that keep the built-in behaviour.

    Raises:
        SlotError: a slot's name or a policy's layout is wrong.
    """
    table = np.zeros(c.NUM_SLOTS, dtype=np.int64)
    for slot, policy in policies.items():
        expected = _layout_of(slot)
        layout: Sequence[str] = getattr(policy, "layout", expected)
        if tuple(layout) != expected:
            raise SlotError(
                f"slot {slot!r} takes the layout {', '.join(expected)}; this policy was compiled for "
                f"{', '.join(layout)}: compile it with layout=simulation.LAYOUTS[{slot!r}]"
            )
        table[_INDEX[slot]] = policy.address
    return table


def _layout_of(slot: str) -> tuple[str, ...]:
    if slot not in LAYOUTS:
        raise SlotError(f"there is no slot {slot!r} in the simulator; slots are {', '.join(LAYOUTS)}")
    return LAYOUTS[slot]
