"""Machine code for the columns of waiting requests: it updates waits, places a row and moves a row.

A step touches so much memory between two calls that a few numpy calls cost tens of microseconds here. Placing and
moving take a block of words with the addresses of the columns; the block is filled again when the columns grow.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from autopoiesis_lib.language.builtin import builtin, entry
from autopoiesis_lib.language.llvm import DECLARATIONS
from autopoiesis_lib.language.native import MachineCode

__all__ = ["WORDS", "Moves", "moves_for", "words_of"]

WORDS = ("columns", "stride", "stamps", "seqs", "check")
"""Names of the words: all are addresses, except `stride`, the length of a row of `columns` in elements. `check` is the
address of a function (columns, stride, n, columns) -> 1 when the n requests from `columns` on may be shown to a
policy."""

_WORD = """\
  %{name}.word = getelementptr i64, ptr %words, i64 {position}
  %{name} = load {kind}, ptr %{name}.word
"""

_WAITS = """\
define i64 @waits(ptr noalias %stamps, ptr noalias %waits, i64 %n, i64 %now) nounwind {
entry:
  br label %row
row:
  %i = phi i64 [0, %entry], [%next, %row]
  %least = phi i64 [9223372036854775807, %entry], [%least.next, %row]
  %stamp.at = getelementptr i64, ptr %stamps, i64 %i
  %stamp = load i64, ptr %stamp.at
  %wait = sub i64 %now, %stamp
  %wait.at = getelementptr i64, ptr %waits, i64 %i
  store i64 %wait, ptr %wait.at
  %least.next = call i64 @llvm.smin.i64(i64 %least, i64 %stamp)
  %next = add nuw nsw i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %row, label %done
done:
  ret i64 %least.next
}
"""
"""Assembly of waits[i] = now - stamps[i] for 0 <= i < n, n at least 1; it returns the smallest stamp and needs
`DECLARATIONS`."""


class Moves:
    """Compiled operations on the columns of waiting requests.

    - `waits(stamps, waits, n, now_us)` updates the waits and returns the smallest stamp.
    - `place(words, slot, *values, stamp, seq)` writes a request's values to a slot's column. It returns 1 when the
      request may be shown to a policy.
    - `move(words, slot, last)` copies column `last` to `slot`.

    Args:
        given: the number of values staged per request.
        order: for each field of the view, the index of its staged value.
    """

    def __init__(self, given: int, order: tuple[int, ...]) -> None:
        words = {
            name: _WORD.format(name=name, position=position, kind="i64" if name == "stride" else "ptr")
            for position, name in enumerate(WORDS)
        }
        place, move = [], []
        for row, value in enumerate(order):
            start = [f"  %start.{row} = mul i64 %stride, {row}"]
            here = [f"  %index.{row} = add i64 %start.{row}, %slot"]
            here += [f"  %to.{row} = getelementptr i64, ptr %columns, i64 %index.{row}"]
            place += [*start, *here, f"  store i64 %given.{value}, ptr %to.{row}"]
            move += [*start, f"  %there.{row} = add i64 %start.{row}, %last"]
            move += [f"  %from.{row} = getelementptr i64, ptr %columns, i64 %there.{row}"]
            move += [f"  %value.{row} = load i64, ptr %from.{row}", *here, f"  store i64 %value.{row}, ptr %to.{row}"]
        for name in ("stamps", "seqs"):
            to = [f"  %{name}.to = getelementptr i64, ptr %{name}, i64 %slot"]
            put = f"  store i64 %{name}.value, ptr %{name}.to"
            place += [*to, put]
            move += [f"  %{name}.from = getelementptr i64, ptr %{name}, i64 %last"]
            move += [f"  %{name}.value = load i64, ptr %{name}.from", *to, put]
        arrays = words["columns"] + words["stride"] + words["stamps"] + words["seqs"]
        call = "  %at = getelementptr i64, ptr %columns, i64 %slot\n"
        call += "  %good = call i64 %check(ptr %at, i64 %stride, i64 1, ptr %at)\n  ret i64 %good\n}\n"
        assembly = DECLARATIONS + _WAITS
        values = "".join(f", i64 %given.{value}" for value in range(given)) + ", i64 %stamps.value, i64 %seqs.value"
        assembly += f"define i64 @place(ptr %words, i64 %slot{values}) nounwind {{\n{arrays}"
        assembly += words["check"] + "\n".join(place) + "\n" + call
        assembly += "define void @move(ptr %words, i64 %slot, i64 %last) nounwind {\n" + arrays
        assembly += "\n".join(move) + "\n  ret void\n}\n"
        assembly += (
            entry("waits", "ppii") + entry("place", "pi" + "i" * (given + 2)) + entry("move", "pii", returns=False)
        )
        code = MachineCode(assembly)
        self.waits, self.place, self.move = builtin(code, "waits"), builtin(code, "place"), builtin(code, "move")


@cache
def moves_for(given: int, order: tuple[int, ...]) -> Moves:
    """Compile the machine code for one layout, once for all queues that have it."""
    return Moves(given, order)


def words_of(**addresses: int) -> NDArray[np.int64]:
    """Return a block of words from addresses given by the names in `WORDS`."""
    return np.array([addresses[name] for name in WORDS], np.int64)
