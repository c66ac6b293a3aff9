"""One pick as one call of machine code.

The call computes the waits, checks the assumptions, scores the queue and checks the pick against the proved bound.

The ordering slot (`Governor`) can do each of these steps separately. It does so when this call fails, to name the fault
and its cause. One call is used because vLLM empties the caches between two steps: calling several functions then costs
more than their work. Memory that a pick reads evicts vLLM's data from the caches in turn, so a pick reads little. It
processes the queue in blocks and copies only the fields that are read, to a few kilobytes of stack. Waits are computed
there and not kept.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from autopoiesis_lib.language.builtin import builtin, entry
from autopoiesis_lib.language.llvm import DECLARATIONS
from autopoiesis_lib.language.native import MachineCode
from autopoiesis_lib.language.scorer import BLOCK, REDUCE, Int64s, Scorer

from ..loading import VerifiedPolicy
from .assumptions import Assumptions
from .waiting_columns import Located

__all__ = ["NO_PICK", "Picking", "warm_up_picking"]

NO_PICK = -1
"""The result of a pick that failed a check."""
NO_BOUND = 2**63 - 1
WAITED = "waited_us"

WORDS = ("rows", "columns", "stride", "tiebreak", "engine", "stamps", "longest", "aging", "copied", "last")
"""Names of the words of a policy.

First come the policy's loop, the location of the queue and the engine's row, as a scorer's `Bound` has them. Then come
the location of the stamps, the longest wait that a view can hold (us), the proved T (us), the location of the numbers
of the copied fields, and the place of the last of these.
"""

_INTEGERS = ("stride", "longest", "aging", "last")

_LEAST = """\
define internal i64 @least(ptr noalias %stamps, i64 %n) nounwind {
entry:
  br label %row
row:
  %i = phi i64 [0, %entry], [%next, %row]
  %least = phi i64 [9223372036854775807, %entry], [%least.next, %row]
  %at = getelementptr i64, ptr %stamps, i64 %i
  %stamp = load i64, ptr %at
  %least.next = call i64 @llvm.smin.i64(i64 %least, i64 %stamp)
  %next = add nuw nsw i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %row, label %done
done:
  ret i64 %least.next
}
"""

# The pick, or -1 when an assumption fails (checked only where `checked`) or the pick breaks the rule. `rows` and
# `all_hold` read only the copied rows and the row of waits. Whole blocks are copied, since the capacity is a
# multiple of them, in loops that are vectorised and not unrolled: code also comes from memory, so short code is fast.
_PICK = """\
define internal i64 @pick(ptr %words, i64 %n, i64 %now, i64 %least, i1 %checked) nounwind {{
entry:
  %block = alloca [{size} x i64], align 64
  %scores = alloca [{length} x i64], align 64
  %state = alloca [3 x i64]
{loads}  %state.index = getelementptr i64, ptr %state, i64 2
  store i64 -1, ptr %state.index
  %waits = getelementptr i64, ptr %block, i64 {waits}
  br label %next
next:
  %base = phi i64 [0, %entry], [%base.next, %score]
  %left = sub i64 %n, %base
  %count = call i64 @llvm.smin.i64(i64 %left, i64 {length})
  br label %field
field:
  %k = phi i64 [0, %next], [%k.next, %taken]
  %any = icmp sle i64 %k, %last
  br i1 %any, label %find, label %since
find:
  %number.at = getelementptr i64, ptr %copied, i64 %k
  %number = load i64, ptr %number.at
  %from.row = mul i64 %number, %stride
  %from.start = add i64 %from.row, %base
  %from = getelementptr i64, ptr %columns, i64 %from.start
  %to.start = mul i64 %number, {length}
  %to = getelementptr i64, ptr %block, i64 %to.start
  br label %copy
copy:
  %c = phi i64 [0, %find], [%c.next, %copy]
  %c.from = getelementptr i64, ptr %from, i64 %c
  %c.value = load i64, ptr %c.from
  %c.to = getelementptr i64, ptr %to, i64 %c
  store i64 %c.value, ptr %c.to
  %c.next = add nuw nsw i64 %c, 1
  %c.more = icmp slt i64 %c.next, {length}
  br i1 %c.more, label %copy, label %taken, !llvm.loop !0
taken:
  %k.next = add nuw nsw i64 %k, 1
  br label %field
since:
  %since.start = getelementptr i64, ptr %stamps, i64 %base
  br label %wait
wait:
  %w = phi i64 [0, %since], [%w.next, %wait]
  %w.from = getelementptr i64, ptr %since.start, i64 %w
  %w.stamp = load i64, ptr %w.from
  %w.value = sub i64 %now, %w.stamp
  %w.to = getelementptr i64, ptr %waits, i64 %w
  store i64 %w.value, ptr %w.to
  %w.next = add nuw nsw i64 %w, 1
  %w.more = icmp slt i64 %w.next, {length}
  br i1 %w.more, label %wait, label %look, !llvm.loop !3
look:
  br i1 %checked, label %hold, label %score
hold:
  %holds = call i64 @all_hold(ptr %block, i64 {length}, i64 %count, ptr %engine)
  %good = icmp ne i64 %holds, 0
  br i1 %good, label %score, label %no
score:
  call void %rows(ptr %block, i64 {length}, i64 %count, ptr %scores, ptr %engine.word)
  %ties = getelementptr i64, ptr %tiebreak, i64 %base
  call void @reduce(ptr %scores, ptr %ties, i64 %count, i64 %base, ptr %state)
  %base.next = add nuw nsw i64 %base, {length}
  %again = icmp slt i64 %base.next, %n
  br i1 %again, label %next, label %picked
picked:
  %slot = load i64, ptr %state.index
  %inside = icmp ult i64 %slot, %n
  br i1 %inside, label %rule, label %no
rule:
  %stamp.at = getelementptr i64, ptr %stamps, i64 %slot
  %stamp = load i64, ptr %stamp.at
  %younger = sub i64 %stamp, %least
  %kept = icmp sle i64 %younger, %aging
  br i1 %kept, label %done, label %no
done:
  ret i64 %slot
no:
  ret i64 -1
}}
!0 = distinct !{{!0, !1, !2}}
!1 = !{{!"llvm.loop.unroll.disable"}}
!2 = !{{!"llvm.loop.interleave.count", i32 1}}
!3 = distinct !{{!3, !1, !2}}
"""

_ENTRY = """\
define i64 @{name}(ptr %words, i64 %n, i64 %now{values}) nounwind {{
entry:
{loads}  %least = call i64 @least(ptr %stamps, i64 %n)
  %oldest = sub i64 %now, %least
  %overdue = icmp sgt i64 %oldest, %longest
  br i1 %overdue, label %no, label %look
look:
{stores}
  %slot = call i64 @pick(ptr %words, i64 %n, i64 %now, i64 %least, i1 {first})
  ret i64 %slot
no:
  ret i64 -1
}}
"""


class Picking:
    """The compiled pick of one policy over one queue.

    `first(words, n, now_us, *engine)` returns the slot or `NO_PICK`. `again(words, n, now_us)` does the same for the
    later picks of a pass, which see the engine as the first pick did. `n` is at least 1; `words` is the address of a
    policy's words.

    Args:
        policy: the policy.
        scorer: its scorer.
        located: the arrays of the waiting requests.
        longest_us: the longest wait their view can hold.
        assumptions: the checks of the waiting requests and the engine.
        engine: the engine row that policies read.
    """

    __slots__ = ("_alive", "again", "first", "located", "policy", "words")

    def __init__(
        self,
        policy: VerifiedPolicy,
        scorer: Scorer,
        located: Located,
        longest_us: int,
        assumptions: Assumptions,
        engine: Int64s,
    ) -> None:
        self.policy = policy
        self.first, self.again = _compiled(assumptions.request_names, assumptions.engine_names, assumptions.pass_check)
        self.located = located
        """The arrays that the pick reads; a new `Picking` is needed when the queue has grown."""
        bound = scorer.argmax_over(located.fields, located.seqs, engine)
        aging = NO_BOUND if policy.aging_us is None else policy.aging_us
        read = (policy.reads | assumptions.pass_reads) - {WAITED}
        copied = np.array([i for i, name in enumerate(assumptions.request_names) if name in read], np.int64)
        more = [located.stamps.ctypes.data, longest_us, aging, copied.ctypes.data, len(copied) - 1]
        words = np.array([*bound.words, *more], np.int64)
        self._alive = (scorer, located, engine, words, copied)
        self.words: int = words.ctypes.data


def warm_up_picking(assumptions: Assumptions) -> None:
    """Compile the code that all policies share, before the engine serves; this takes about ten milliseconds."""
    _compiled(assumptions.request_names, assumptions.engine_names, assumptions.pass_check)


@cache
def _compiled(
    request_names: tuple[str, ...], engine_names: tuple[str, ...], pass_check: str
) -> tuple[Callable[..., int], Callable[..., int]]:
    loads = "".join(
        f"  %{name}.word = getelementptr i64, ptr %words, i64 {position}\n"
        f"  %{name} = load {'i64' if name in _INTEGERS else 'ptr'}, ptr %{name}.word\n"
        for position, name in enumerate(WORDS)
    )
    stores = "\n".join(
        f"  %at.{i} = getelementptr i64, ptr %engine, i64 {i}\n"
        f"  store i64 {'%oldest' if name == 'oldest_waited_us' else f'%value.{i}'}, ptr %at.{i}"
        for i, name in enumerate(engine_names)
    )
    values = "".join(f", i64 %value.{i}" for i in range(len(engine_names)))
    # In a view without waits, the waits are behind its last row, where they are not read.
    fields = len(request_names)
    row = request_names.index(WAITED) if WAITED in request_names else fields
    pick = _PICK.format(loads=loads, size=(fields + 1) * BLOCK, waits=row * BLOCK, length=BLOCK)
    first = _ENTRY.format(name="first", values=values, loads=loads, stores=stores, first="true")
    again = _ENTRY.format(name="again", values="", loads=loads, stores="", first="false")
    entries = entry("first", "pii" + "i" * len(engine_names)) + entry("again", "pii")
    code = MachineCode(DECLARATIONS + _LEAST + REDUCE + pass_check + pick + first + again + entries)
    return builtin(code, "first"), builtin(code, "again")
