"""The one pass over the waiting requests that every scheduling pass needs: their waits, and who came first.

As machine code because a step has touched so much memory since the last one that two numpy calls cost tens of microseconds here.
"""

import ctypes

from autopoiesis_lib.language.llvm import DECLARATIONS
from autopoiesis_lib.language.native import MachineCode

__all__ = ["Waits"]

# waits[i] = now - stamps[i] for 0 <= i < n; returns the least stamp. n is at least 1.
_ASSEMBLY = """\
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


class Waits:
    """`waits(stamps address, waits address, n, now) -> least stamp`; the addresses hold at least n >= 1 int64 values."""

    def __init__(self) -> None:
        self._code = MachineCode(DECLARATIONS + _ASSEMBLY)
        # PYFUNCTYPE keeps the GIL: a microsecond's work is not worth giving it up for.
        prototype = ctypes.PYFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 4)
        self.__call = prototype(self._code.address("waits"))

    def __call__(self, stamps: int, waits: int, n: int, now_us: int) -> int:
        least: int = self.__call(stamps, waits, n, now_us)
        return least
