"""A decision as a machine-code loop over int64 columns, with the policy inlined: one call scores a whole queue.

LLVM hoists the terms that depend only on the context out of the loop, and vectorises the rest where it can. Only the
scores are written. `argmax` keeps them in a block on its own stack, so threads may share a scorer.

Only that loop is compiled for each policy. The code that all policies share, with the entry from Python, is compiled
once per process and calls the loop by its address: LLVM needs longer for it than for the policy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from operator import index, is_
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .builtin import builtin, entry
from .ir import Module, Signature
from .llvm import DECLARATIONS, arguments_of, emit_functions
from .native import MachineCode, NativeError

__all__ = ["ARGMAX", "BLOCK", "REDUCE", "Bound", "Int64s", "Scorer", "compile_scorer"]

Int64s = NDArray[np.int64]

BLOCK = 128
"""Number of rows that `argmax` scores at a time: 1 KiB of stack.

A larger stack, which was not used just before, would have to come from memory too.
"""

# The template into which the policy is inlined. The loop runs at least one iteration (callers ensure n > 0), so that
# LLVM may hoist even divisions by engine terms out of it. `stride` is the row length of `columns` in elements;
# `context` has the addresses of the context rows.
_ROWS = """\
define void @rows(ptr noalias %columns, i64 %stride, i64 %n, ptr noalias %out, ptr %context) nounwind {{
entry:
{context_loads}
  br label %row
row:
  %i = phi i64 [0, %entry], [%next, %row]
{field_loads}
  %score = call i64 @f.{name}({arguments})
  %slot = getelementptr i64, ptr %out, i64 %i
  store i64 %score, ptr %slot
  %next = add nuw nsw i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %row, label %done
done:
  ret void
}}
"""

# Fold a block of scores into (best, its tiebreak, its index); the index starts at -1. First comes the maximum, in a
# loop that vectorises. Then comes the smallest tiebreak among the maxima. It reads only those tiebreaks, because they
# are few, and to fetch all of them would cost as much as the scored field.
_REDUCE = """\
define internal void @reduce(ptr noalias %scores, ptr noalias %ties, i64 %n, i64 %base, ptr noalias %state) nounwind {{
entry:
  %state.tie = getelementptr i64, ptr %state, i64 1
  %state.index = getelementptr i64, ptr %state, i64 2
  %best = load i64, ptr %state
  %best.tie = load i64, ptr %state.tie
  %best.index = load i64, ptr %state.index
  %none = icmp slt i64 %best.index, 0
  br label %high
high:
  %i = phi i64 [0, %entry], [%i.next, %high]
  %top = phi i64 [{lowest}, %entry], [%top.next, %high]
  %i.slot = getelementptr i64, ptr %scores, i64 %i
  %i.score = load i64, ptr %i.slot
  %top.next = call i64 @llvm.smax.i64(i64 %top, i64 %i.score)
  %i.next = add nuw nsw i64 %i, 1
  %i.more = icmp slt i64 %i.next, %n
  br i1 %i.more, label %high, label %scored
scored:
  %reaches = icmp sge i64 %top.next, %best
  %candidate = or i1 %none, %reaches
  br i1 %candidate, label %tie, label %done
tie:
  %j = phi i64 [0, %scored], [%j.next, %tie.next]
  %low = phi i64 [{highest}, %scored], [%low.next, %tie.next]
  %at = phi i64 [-1, %scored], [%at.next, %tie.next]
  %j.slot = getelementptr i64, ptr %scores, i64 %j
  %j.score = load i64, ptr %j.slot
  %j.equal = icmp eq i64 %j.score, %top.next
  br i1 %j.equal, label %equal, label %tie.next
equal:
  %j.tie.slot = getelementptr i64, ptr %ties, i64 %j
  %j.tie = load i64, ptr %j.tie.slot
  %j.lower = icmp slt i64 %j.tie, %low
  %j.first = icmp slt i64 %at, 0
  %j.take = or i1 %j.lower, %j.first
  %j.low = select i1 %j.take, i64 %j.tie, i64 %low
  %j.at = select i1 %j.take, i64 %j, i64 %at
  br label %tie.next
tie.next:
  %low.next = phi i64 [%low, %tie], [%j.low, %equal]
  %at.next = phi i64 [%at, %tie], [%j.at, %equal]
  %j.next = add nuw nsw i64 %j, 1
  %j.more = icmp slt i64 %j.next, %n
  br i1 %j.more, label %tie, label %compare
compare:
  %higher = icmp sgt i64 %top.next, %best
  %earlier = icmp slt i64 %low.next, %best.tie
  %better = or i1 %higher, %earlier
  %take = or i1 %none, %better
  br i1 %take, label %take.it, label %done
take.it:
  %index = add i64 %base, %at.next
  store i64 %top.next, ptr %state
  store i64 %low.next, ptr %state.tie
  store i64 %index, ptr %state.index
  br label %done
done:
  ret void
}}
"""

# The entries take a block of eight-byte words: the policy's `rows`, columns, stride, `out` or `tiebreak`, then the
# context rows. One pointer and `n` are the cheapest call from Python, and a block is built once for the arrays of a
# queue.
_WORDS = "".join(
    f"  %{name}.word = getelementptr i64, ptr %words, i64 {position}\n"
    + (f"  %{name} = load {kind}, ptr %{name}.word\n" if kind else "")
    for position, (name, kind) in enumerate(
        [("rows", "ptr"), ("columns", "ptr"), ("stride", "i64"), ("third", "ptr"), ("context", "")]
    )
)

_SCORE = """\
define void @score(ptr %words, i64 %n) nounwind {{
entry:
{words}  %some = icmp sgt i64 %n, 0
  br i1 %some, label %start, label %done
start:
  call void %rows(ptr %columns, i64 %stride, i64 %n, ptr %third, ptr %context.word)
  br label %done
done:
  ret void
}}
"""

_ARGMAX = """\
define i64 @argmax(ptr %words, i64 %n) nounwind {{
entry:
  %scores = alloca [{block} x i64], align 64
  %state = alloca [3 x i64]
{words}  %state.index = getelementptr i64, ptr %state, i64 2
  store i64 -1, ptr %state.index
  %some = icmp sgt i64 %n, 0
  br i1 %some, label %block, label %done
block:
  %base = phi i64 [0, %entry], [%base.next, %block]
  %left = sub i64 %n, %base
  %count = call i64 @llvm.smin.i64(i64 %left, i64 {block})
  %from = getelementptr i64, ptr %columns, i64 %base
  call void %rows(ptr %from, i64 %stride, i64 %count, ptr %scores, ptr %context.word)
  %ties = getelementptr i64, ptr %third, i64 %base
  call void @reduce(ptr %scores, ptr %ties, i64 %count, i64 %base, ptr %state)
  %base.next = add nuw nsw i64 %base, {block}
  %again = icmp slt i64 %base.next, %n
  br i1 %again, label %block, label %done
done:
  %index = load i64, ptr %state.index
  ret i64 %index
}}
"""

REDUCE = _REDUCE.format(lowest=-(2**63), highest=2**63 - 1)
"""Assembly of `void @reduce(ptr %scores, ptr %ties, i64 %n, i64 %base, ptr %state)`, for other machine code that picks.

`state` is (best score, its tiebreak, its index); the index starts at -1. The assembly needs `DECLARATIONS`. See
`Scorer.argmax_over`.
"""
ARGMAX = REDUCE + _ARGMAX.format(block=BLOCK, words=_WORDS)


@dataclass(frozen=True)
class Bound:
    """Checked arrays, and the words with their addresses and that of a policy's loop. It keeps the arrays alive."""

    columns: Int64s
    third: Int64s
    context: tuple[Int64s, ...]
    words: Int64s
    address: int
    """The address of the words."""
    capacity: int
    """Greatest number of columns that all arrays hold."""


class Scorer:
    """A scorer of every column of a queue in one call. The first view's fields are rows; other views are one row each.

    `columns` is a C-contiguous int64 array of shape (fields, capacity). Only its first `n` columns are read, all of
    them when `n` is None. Each of `context` is a C-contiguous int64 array with the fields of one further view in
    declared order. The values are not checked: they must lie in the view domains. A call with the arrays of the
    previous call (with any values) skips the checks of the arrays, so an array must not be resized or reshaped in
    place.
    """

    def __init__(self, code: MachineCode, signature: Signature, fields: tuple[int, ...]) -> None:
        self.code = code
        self.signature = signature
        self.fields = fields
        """Number of fields of each view, the scored one first."""
        self._score, self._argmax = _entries()
        self._scored: Bound | None = None
        self._picked: Bound | None = None

    def __call__(self, columns: Int64s, *context: Int64s, n: int | None = None, out: Int64s | None = None) -> Int64s:
        """Return the scores of the first `n` columns, in `out[:n]` when `out` is given.

        Raises:
            TypeError: an argument is not a C-contiguous int64 array, or `n` is not an int.
            ValueError: an argument's shape is wrong, `n` lies outside the columns, or `out` is too short or read-only.
        """
        fresh = out is None
        if out is None:
            self._check_columns(columns)
            out = np.empty(columns.shape[1] if n is None else max(0, min(n, columns.shape[1])), np.int64)
        bound = self._scored
        if bound is None or not _same(bound, columns, out, context):
            bound = self._bind(columns, out, "out", context)
            if not out.flags.writeable:
                raise ValueError("out is read-only; pass a writable array")
            if not fresh:
                self._scored = bound
        n = _count(bound, n, "out")
        self._score(bound.address, n)
        return out[:n]

    def argmax(self, columns: Int64s, tiebreak: Int64s, *context: Int64s, n: int | None = None) -> int:
        """Return the index of the highest score among the first `n` columns; -1 when there are none.

        Equal scores go to the smallest `tiebreak`, and equal tiebreaks to the smallest index.

        Raises:
            TypeError: as for a call.
            ValueError: as for a call, or `tiebreak` is shorter than `n`.
        """
        bound = self._picked
        if bound is None or not _same(bound, columns, tiebreak, context):
            self._picked = bound = self._bind(columns, tiebreak, "tiebreak", context)
        if type(n) is not int or not 0 <= n <= bound.capacity:
            n = _count(bound, n, "tiebreak")
        return self._argmax(bound.address, n)

    def argmax_over(self, columns: Int64s, tiebreak: Int64s, *context: Int64s) -> Bound:
        """Return the words for other machine code that scores and picks.

        They are valid while this scorer and the result live.

        The words are the address of `rows`, then columns, stride, tiebreak and the context rows. Machine code does not
        check `n`, which must be at most `capacity`.

        Raises:
            TypeError, ValueError: as for `argmax`.
        """
        return self._bind(columns, tiebreak, "tiebreak", context)

    def _bind(self, columns: Int64s, third: Int64s, name: str, context: tuple[Int64s, ...]) -> Bound:
        self._check_columns(columns)
        _check(third, name)
        if third.ndim != 1:
            raise ValueError(f"{name} has shape {third.shape}; expected one dimension")
        params = self.signature.params[1:]
        if len(context) != len(params):
            names = ", ".join(param.name for param in params)
            raise ValueError(f"got {len(context)} context rows; pass {len(params)}: {names or 'none'}")
        for row, param, length in zip(context, params, self.fields[1:], strict=True):
            _check(row, param.name)
            if row.shape != (length,):
                raise ValueError(
                    f"{param.name} has shape {row.shape}; expected ({length},), its fields in declared order"
                )
        rows, at = self.code.address("rows"), [array.ctypes.data for array in (columns, third, *context)]
        words = np.array([rows, at[0], columns.shape[1], *at[1:]], np.int64)
        capacity = min(columns.shape[1], third.shape[0])
        return Bound(columns, third, context, words, words.ctypes.data, capacity)

    def _check_columns(self, columns: Int64s) -> None:
        _check(columns, "columns")
        if columns.ndim != 2 or columns.shape[0] != self.fields[0]:
            raise ValueError(
                f"columns has shape {columns.shape}; expected ({self.fields[0]}, n): one row for each field"
            )


def compile_scorer(module: Module, signature: Signature) -> Scorer:
    """Compile a decision to a loop over columns.

    Raises:
        NativeError: a parameter of the decision is not a view, or it has none.
    """
    params = signature.params
    if not params or not all(param.is_view for param in params):
        raise NativeError(f"`{signature.name}` cannot score columns: all its parameters must be views")
    loads: list[str] = []
    context_loads: list[str] = []
    arguments: list[str] = []
    row_in_view = dict.fromkeys((param.name for param in params), 0)
    for position, param in enumerate(params[1:]):
        context_loads.append(f"  %c.{param.name}.at = getelementptr ptr, ptr %context, i64 {position}")
        context_loads.append(f"  %c.{param.name} = load ptr, ptr %c.{param.name}.at")
    for param, field in arguments_of(module, params):
        row, value = row_in_view[param.name], f"%x.{param.name}.{field}"
        row_in_view[param.name] += 1
        if param is params[0]:
            context_loads.append(f"  {value}.row = mul i64 %stride, {row}")
            loads.append(f"  {value}.at = add i64 {value}.row, %i")
            loads.append(f"  {value}.ptr = getelementptr i64, ptr %columns, i64 {value}.at")
            loads.append(f"  {value} = load i64, ptr {value}.ptr")
        else:
            context_loads.append(f"  {value}.ptr = getelementptr i64, ptr %c.{param.name}, i64 {row}")
            context_loads.append(f"  {value} = load i64, ptr {value}.ptr")
        arguments.append(f"i64 {value}")
    loop = _ROWS.format(
        name=signature.name,
        context_loads="\n".join(context_loads),
        field_loads="\n".join(loads),
        arguments=", ".join(arguments),
    )
    code = MachineCode("\n".join([DECLARATIONS, emit_functions(module, signature.name), loop]))
    return Scorer(code, signature, tuple(len(module.views[param.type].fields()) for param in params))


@cache
def _entries() -> tuple[Callable[..., int], Callable[..., int]]:
    """Return `score` and `argmax`, each called with (words, n)."""
    assembly = DECLARATIONS + ARGMAX + _SCORE.format(words=_WORDS)
    code = MachineCode(assembly + entry("score", "pi", returns=False) + entry("argmax", "pi"))
    return builtin(code, "score"), builtin(code, "argmax")


def _same(bound: Bound, columns: Int64s, third: Int64s, context: tuple[Int64s, ...]) -> bool:
    if bound.columns is not columns or bound.third is not third or len(bound.context) != len(context):
        return False
    return all(map(is_, bound.context, context))


def _count(bound: Bound, n: int | None, third: str) -> int:
    if n is None:
        n = bound.columns.shape[1]
    elif type(n) is not int:
        try:
            n = index(n)
        except TypeError:
            raise TypeError(f"n is {type(n).__name__}; pass an int") from None
    if not 0 <= n <= bound.capacity:
        limits = f"there are {bound.columns.shape[1]} columns and `{third}` holds {bound.third.shape[0]}"
        raise ValueError(f"n = {n} does not fit: {limits}")
    return n


def _check(array: Any, name: str) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.int64:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name} is {found}; pass a numpy array of int64")
    if not array.flags.c_contiguous:
        raise TypeError(f"{name} is not C-contiguous; pass a contiguous array, with n= for a part of it")
