"""Shared parts of the kernel's files: the state, the compiler's settings, and the call of a policy by address."""

from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = ["Ints", "State", "View", "borrowed", "call_policy", "kernel"]

Ints = NDArray[np.int64]
View = tuple[int, int, int, int, int, int, int]
P = ParamSpec("P")
R = TypeVar("R")


class State(NamedTuple):
    """All arrays of a run. Columns are named in `_columns`."""

    p: Ints
    """Run parameters."""
    slots: Ints
    """Policy addresses; 0 for the built-in behaviour."""
    q: Ints
    """Requests, of shape (requests, columns)."""
    rep: Ints
    """Replicas, of shape (replicas, columns)."""
    run: Ints
    """Running requests in order of admission, of shape (replicas, columns, position)."""
    pf: Ints
    """Running requests that still prefill, in order of admission, of shape (replicas, position)."""
    grow: Ints
    """Number of decodes whose block fills when DECODED is at a phase, of shape (replicas, 2, phase).

    Decodes in row 0 then take a free block; those in row 1 use their reservation.
    """
    line: Ints
    """First and last waiting request (-1: none), of shape (replicas + 1, 2).

    The last row is for requests that no replica can take.
    """
    links: Ints
    """Nodes of the free queues with previous node, next node and weight in blocks, of shape (nodes, 3).

    Hash blocks by replica come first, then one node per request, then one sentinel per replica.
    """
    cache: Ints
    """Pins (-1: not cached), last use in us, hits and depth, of shape (replicas * hashes, 4)."""
    prefix_ptr: Ints
    prefix_ids: Ints
    owned: NDArray[np.uint8]
    """Flags aligned with prefix_ids: 1 while the request pins that hash block."""
    log: Ints
    decisions: Ints
    """Time in ns, replica, ADMITTED or PREEMPTED, and request, of shape (rows, 4)."""
    out: Ints
    """Status, replica, time in ns, log rows, finished requests, policy calls, decisions."""


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function as part of the kernel, without exceptions and without the GIL.

    The result is not cached by itself; the outermost function is.
    """
    compiled: Callable[P, R] = njit(error_model="numpy", nogil=True, forceinline=True)(function)
    return compiled


@intrinsic  # type: ignore[untyped-decorator]
def call_policy(typingctx: Any, address: Any, arguments: Any) -> Any:
    """Call the C function of int64 arguments at `address` and return its int64: `call_policy(address, (a, b, ...))`.

    The result is a plain indirect call, without Python and without a wrapper object between the engine and the policy.
    """
    signature = types.int64(address, arguments)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer, packed = values
        width = len(signature.args[1])
        word = ir.IntType(64)
        function = ir.FunctionType(word, [word] * width)
        callee = builder.inttoptr(pointer, function.as_pointer())
        return builder.call(callee, cgutils.unpack_tuple(builder, packed, width))

    return signature, codegen


@intrinsic  # type: ignore[untyped-decorator]
def borrowed(typingctx: Any, array: Any) -> Any:
    """Return the same array without an owner, so that passing it on counts no references.

    Reference counts are atomic operations and took half of the time. The owner must outlive the array: the caller of
    the kernel holds every array until the run is over.
    """

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        copy = context.make_array(signature.args[0])(context, builder, value=values[0])
        copy.meminfo = cgutils.get_null_value(copy.meminfo.type)
        copy.parent = cgutils.get_null_value(copy.parent.type)
        return copy._getvalue()

    return array(array), codegen
