"""What the kernel's files share: its state, the compiler's settings, and calling a policy by address."""

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
    """Every array of a run. Columns are named in `_columns`."""

    p: Ints
    """Run parameters."""
    slots: Ints
    """Policy addresses, 0 for the built-in behaviour."""
    q: Ints
    """(requests, columns)."""
    rep: Ints
    """(replicas, columns)."""
    run: Ints
    """(replicas, columns, position): running requests in order of admission."""
    pf: Ints
    """(replicas, position): those still prefilling, in order of admission."""
    grow: Ints
    """(replicas, 2, phase): decodes whose block fills when DECODED is at that phase; row 1 those that then use their
    reservation instead of taking a free block."""
    line: Ints
    """(replicas + 1, 2): first and last waiting, -1 for none; the last row is for requests with no replica to go to."""
    links: Ints
    """(nodes, 3): the free queues, previous, next and weight in blocks of each node: hash blocks by replica, then one
    node a request, then one sentinel a replica."""
    cache: Ints
    """(replicas * hashes, 4): pins (-1: not cached), last used us, hits, depth."""
    prefix_ptr: Ints
    prefix_ids: Ints
    owned: NDArray[np.uint8]
    """Aligned with prefix_ids: 1 while the request pins that hash block."""
    log: Ints
    decisions: Ints
    """(rows, 4): time ns, replica, ADMITTED or PREEMPTED, request."""
    out: Ints
    """Status, replica, time ns, log rows, requests finished, policy calls, decisions."""


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile as part of the kernel: no exceptions, no GIL. Not cached by itself; the outermost function is."""
    compiled: Callable[P, R] = njit(error_model="numpy", nogil=True, forceinline=True)(function)
    return compiled


@intrinsic  # type: ignore[untyped-decorator]
def call_policy(typingctx: Any, address: Any, arguments: Any) -> Any:
    """`call_policy(address, (a, b, ...))` calls the C function of int64s at `address` and returns its int64.

    An indirect call and nothing else: no Python and no wrapper object between the engine and the policy.
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
    """The same array without an owner, so that passing it on counts no references (atomic operations, half the time).

    Its owner must outlive it: the caller of the kernel holds every array until the run is over.
    """

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        copy = context.make_array(signature.args[0])(context, builder, value=values[0])
        copy.meminfo = cgutils.get_null_value(copy.meminfo.type)
        copy.parent = cgutils.get_null_value(copy.parent.type)
        return copy._getvalue()

    return array(array), codegen
