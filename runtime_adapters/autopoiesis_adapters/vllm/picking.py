"""One pick as one call of machine code: waits brought up to date, what the proof takes for granted checked, the queue scored,
the pick held against the proved bound.

The governor can do each of these by itself, and does when the answer here is no, to say what is wrong and whose fault it is.
One call because between two steps vLLM has emptied the caches: there the way from call to call costs more than the calls. For
the same reason all of it but the policy's own loop lies in one piece of machine code, and all that it is told in one block.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from autopoiesis_lib.language.builtin import builtin, entry
from autopoiesis_lib.language.llvm import DECLARATIONS
from autopoiesis_lib.language.native import MachineCode
from autopoiesis_lib.language.scorer import ARGMAX, Int64s, Scorer

from ..loading import VerifiedPolicy
from .assumptions import Assumptions
from .moves import WAITS
from .waiting_columns import Located

__all__ = ["NO_PICK", "Picking", "warm_up_picking"]

NO_PICK = -1
"""Something is not as it should be."""
NO_BOUND = 2**63 - 1

WORDS = ("rows", "columns", "stride", "tiebreak", "engine", "stamps", "waits", "longest", "aging")
"""What `argmax` is given (see `Bound`), then addresses, the longest wait that a view can hold (us), and the proved T (us)."""

_FIRST = """\
define i64 @first(ptr %words, i64 %n, i64 %now{values}) nounwind {{
entry:
{loads}  %least = call i64 @waits(ptr %stamps, ptr %waits, i64 %n, i64 %now)
  %oldest = sub i64 %now, %least
  %overdue = icmp sgt i64 %oldest, %longest
  br i1 %overdue, label %no, label %look
look:
{stores}
  %holds = call i64 @all_hold(ptr %columns, i64 %stride, i64 %n, ptr %engine)
  %good = icmp ne i64 %holds, 0
  br i1 %good, label %pick, label %no
{pick}"""

_AGAIN = """\
define i64 @again(ptr %words, i64 %n, i64 %now) nounwind {{
entry:
{loads}  %least = call i64 @waits(ptr %stamps, ptr %waits, i64 %n, i64 %now)
  %oldest = sub i64 %now, %least
  %overdue = icmp sgt i64 %oldest, %longest
  br i1 %overdue, label %no, label %pick
{pick}"""

_PICK = """\
pick:
  %slot = call i64 @argmax(ptr %words, i64 %n)
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
}
"""

_INTEGERS = ("stride", "longest", "aging")


class Picking:
    """`first(words, n, now_us, *engine)` -> slot or `NO_PICK`, and `again(words, n, now_us)` for the later picks of a pass,
    which see the engine as the first one did. `words` is the address of a policy's words.

    Args:
        policy: the policy.
        scorer: its scorer.
        located: where the waiting requests lie.
        longest_us: the longest wait their view can hold.
        assumptions: what must hold of them and of the engine.
        engine: the row that policies are shown.
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
        self.first, self.again = _compiled(assumptions.engine_names, assumptions.pass_check)
        self.located = located
        """The arrays it was made for: when the queue has grown, a new one is due."""
        bound = scorer.argmax_over(located.fields, located.seqs, engine)
        aging = NO_BOUND if policy.aging_us is None else policy.aging_us
        at = [array.ctypes.data for array in (located.stamps, located.waits)]
        words = np.array([*bound.words, *at, longest_us, aging], np.int64)
        self._alive = (scorer, located, engine, words)
        self.words: int = words.ctypes.data


def warm_up_picking(assumptions: Assumptions) -> None:
    """Compile what every policy shares, some ten milliseconds, before the engine serves."""
    _compiled(assumptions.engine_names, assumptions.pass_check)


@cache
def _compiled(engine_names: tuple[str, ...], pass_check: str) -> tuple[Callable[..., int], Callable[..., int]]:
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
    first = _FIRST.format(values=values, loads=loads, stores=stores, pick=_PICK)
    again = _AGAIN.format(loads=loads, pick=_PICK)
    entries = entry("first", "pii" + "i" * len(engine_names)) + entry("again", "pii")
    code = MachineCode(DECLARATIONS + WAITS + ARGMAX + pass_check + first + again + entries)
    return builtin(code, "first"), builtin(code, "again")
