"""Which waiting request is served next, and what happens when a policy must not say: checks at every pick, drop,
quarantine.

Modelled on Linux sched_ext: the fallback comes first. Whatever goes wrong, the same pick is answered by the engine's
built-in order, so a bad policy costs performance for one step and never a request.
"""

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopoiesis_lib.language.scorer import Scorer

from ..loading import VerifiedPolicy
from .assumptions import Assumptions
from .picking import NO_PICK, Picking, warm_up_picking
from .seat import Fault, Seat, Swap
from .waiting_columns import WaitingColumns
from .waiting_queue import BUILT_IN

__all__ = ["Fault", "Governor", "Swap"]

Int64s = NDArray[np.int64]


class Governor(Seat[VerifiedPolicy]):
    """Answers each pick of the waiting queue.

    Args:
        columns: the waiting requests.
        assumptions: what must hold of them and of the engine.
        read_engine: longest wait (us) -> the engine row in declared order; called once a pass.
        begin: told of the first pick of a pass; answers the engine's clock (us). Must not raise.
        builtin_slot: the slot the built-in order would serve; what a shadow beside it is compared with.
        deadline_ns: a decision that takes longer is late.
        late_limit: late decisions in a row after which the policy is taken out.
        disabled: the kill switch.
    """

    __slots__ = ("_begin", "_picking", "begun", "columns", "read_engine")

    def __init__(
        self,
        columns: WaitingColumns,
        assumptions: Assumptions,
        read_engine: Callable[[int], tuple[int, ...]],
        begin: Callable[[], int],
        builtin_slot: Callable[[], int] = lambda: BUILT_IN,
        deadline_ns: int = 10_000_000,
        late_limit: int = 3,
        disabled: bool = False,
    ) -> None:
        super().__init__(deadline_ns=deadline_ns, late_limit=late_limit, disabled=disabled)
        self.columns = columns
        self.assumptions = assumptions
        self.read_engine = read_engine
        self._begin = begin
        self.begun = False
        """Whether somebody has been picked in this pass, or it was given up before: what may change has changed."""
        self.builtin_slot = builtin_slot
        self._oldest_stamp = 0
        self._shadow_late = 0
        engine_fields = len(read_engine(0))
        self._engine: Int64s = np.zeros(engine_fields, np.int64)
        self._engine_at: int = self._engine.ctypes.data
        self._holds = assumptions.hold_with
        self._picking: Picking | None = None
        self._prepared: Picking | None = None
        warm_up_picking(assumptions)

    def choose(self) -> int:
        """The slot to serve next, or `BUILT_IN`. Never raises. The first pick after `end_pass` begins the next pass."""
        started = perf_counter_ns()
        if not self.begun:
            self.begun = True
            self.dropped = self.snapshot = False
            self.now_us = self._begin()
            if self.pending is not None or self.candidate:
                self._take_turn()
        policy, picking = self.active, self._picking
        if picking is None or picking.policy is not policy or self.shadow is not None or self.dropped or self.disabled:
            return self._choose_by_steps(started)
        # All of a pick in one call. When anything is not as it should be, the steps say what.
        columns = self.columns
        try:
            if columns.out_of_domain or columns.located is not picking.located:
                slot = NO_PICK
            elif self.snapshot:
                slot = picking.again(picking.words, columns.n, self.now_us)
            else:
                if columns.reads_cached_tokens:
                    columns.reread_next()
                slot = picking.first(picking.words, columns.n, self.now_us, *self.read_engine(0))
        except Exception:
            slot = NO_PICK
        took = perf_counter_ns() - started
        if slot == NO_PICK or took > self.deadline_ns:
            return self._choose_by_steps(started)
        self.snapshot = True
        self._late = 0
        self.decisions += 1
        self.decision_ns += took
        if self.candidate:
            self.tried += 1
        self.step_ns += took
        return slot

    def _choose_by_steps(self, started: int) -> int:
        """As `choose`, which is said to have begun at `started`: one thing after the other, so that a fault has a name."""
        policy, shadow = self.active, self.shadow
        if (policy is None and shadow is None) or self.disabled:
            return BUILT_IN
        if self.dropped:
            return self._fall_back()
        try:
            if self._picking is None or self._picking.located is not self.columns.located:
                self._picking = self._picking_for(policy)  # the queue has grown: one call again from the next pick on
            slot = self._pick(policy, started)
        except Exception as error:  # ours: the policy's own are caught where it is called
            slot = self.give_up("adapter", f"{type(error).__name__}: {error}")
        if self.dropped:
            slot = self._fall_back()
        elif shadow is not None and self.snapshot:
            self._compare(shadow, slot)
        self.step_ns += perf_counter_ns() - started
        return slot

    def _fall_back(self) -> int:
        """Return the pick of a step that is left to the built-in order. Never raises.

        While a policy stays in place, its proved T holds in such a step as well: the oldest request is served first where the
        built-in order would serve one that is younger by more than T, as an order by priority may.
        """
        policy, columns = self.active, self.columns
        if policy is None or policy.aging_us is None or self.disabled:
            return BUILT_IN
        try:
            oldest, first = columns.oldest_slot(), self.builtin_slot()
            if first != BUILT_IN and columns.stamps[first] - columns.stamps[oldest] > policy.aging_us:
                self.counters["aged_fallbacks"] += 1
                return oldest
        except Exception:
            self.counters["adapter_errors"] += 1
        return BUILT_IN

    def end_pass(self) -> None:
        """The step is over: the next pick sees the engine anew."""
        self.begun = self.dropped = self.snapshot = False
        self.step_ns = 0

    def give_up_pass(self, kind: str, detail: str) -> None:
        """Leave the pass that is about to begin to the built-in order."""
        self.begun = True
        self.drop(kind, detail)

    def _take_turn(self) -> None:
        """A swap is due, or a trial may be over."""
        try:
            self.begin_pass(self.now_us)
        except Exception as error:
            self.drop("adapter", f"{type(error).__name__}: {error}")

    def give_up(self, kind: str, detail: str) -> int:
        """Drop to the built-in order for the rest of this pass, with the state of the queue; answers `BUILT_IN`."""
        self.drop(kind, detail, **self._state())
        return BUILT_IN

    def offer(self, policy: VerifiedPolicy | None, *args: Any, **kwargs: Any) -> None:
        """As every seat; what the policy's picks take is made ready here, in the thread of whoever offers."""
        self._prepared = self._picking_for(policy)
        super().offer(policy, *args, **kwargs)

    def _picking_for(self, policy: VerifiedPolicy | None) -> Picking | None:
        """The one call for a policy whose scorer is machine code; None for others, which are asked step by step."""
        if policy is None or not isinstance(policy.scorer, Scorer):
            return None
        columns = self.columns
        return Picking(policy, policy.scorer, columns.located, columns.max_wait_us, self.assumptions, self._engine)

    def _pick(self, policy: VerifiedPolicy | None, started: int) -> int:
        columns = self.columns
        n = columns.n
        if columns.out_of_domain:
            return self.give_up("view-domain", f"{columns.out_of_domain} waiting requests hold a value no proof covers")
        self._oldest_stamp = oldest_stamp = columns.set_waits(self.now_us)
        oldest_waited_us = self.now_us - oldest_stamp
        if oldest_waited_us > columns.max_wait_us:
            # The view cannot hold such a wait and clamping it would break AGE: the overdue lane, first in, first out.
            self.counters["overdue"] += 1
            return columns.oldest_slot()
        if not self.snapshot:
            problem = self._take_snapshot(oldest_waited_us, n)
            if problem is not None:
                return self.give_up("assumption" if problem.startswith("assumption") else "view-domain", problem)
        if policy is None:
            return BUILT_IN
        called = perf_counter_ns()
        try:
            slot = policy.scorer.argmax(columns.fields, columns.seqs, self._engine, n=n)
        except Exception as error:
            return self.give_up("exception", f"{type(error).__name__}: {error}")
        ended = perf_counter_ns()
        self.decisions += 1
        self.decision_ns += ended - called
        if self.candidate:
            self.tried += 1 - (self.shadow is not None)
        broken = self._broken(policy, slot, oldest_stamp)
        if broken is None and ended - started <= self.deadline_ns:
            self._late = 0
            return slot
        broken = broken or self.lateness(ended - started, "a decision")
        return slot if broken is None else self.give_up(*broken)

    def _broken(self, policy: VerifiedPolicy, slot: int, oldest_stamp: int) -> tuple[str, str] | None:
        """The fault in a pick: no such slot, or against the rule its proved T implies."""
        columns = self.columns
        if not 0 <= slot < columns.n:
            return "out-of-range", f"picked slot {slot} of {columns.n}"
        if policy.aging_us is not None:
            younger_us = columns.requests[slot].autopoiesis_clock.stamp_us - oldest_stamp
            if younger_us > policy.aging_us:
                return (
                    "pick-rule",
                    f"picked a request {younger_us} us younger than the oldest; T = {policy.aging_us}",
                )
        return None

    def _compare(self, shadow: VerifiedPolicy, slot: int) -> None:
        """Ask the shadow about the same queue; its answer is counted and changes nothing. Never raises."""
        columns = self.columns
        started = perf_counter_ns()
        try:
            picked = shadow.scorer.argmax(columns.fields, columns.seqs, self._engine, n=columns.n)
            took = perf_counter_ns() - started
            self.counters["shadow_ns"] += took
            problem = self._broken(shadow, picked, self._oldest_stamp)
            if problem is None and took > self.deadline_ns:
                self._shadow_late += 1
                if self._shadow_late >= self.late_limit:
                    problem = "deadline", f"{self._shadow_late} late decisions"
            if problem is not None:
                self.drop_shadow(*problem, **self._state())
                return
            self.tried += 1
            self.agreed += picked == (slot if slot != BUILT_IN else self.builtin_slot())
        except Exception as error:
            self.drop_shadow("exception", f"{type(error).__name__}: {error}", **self._state())

    def _take_snapshot(self, oldest_waited_us: int, n: int) -> str | None:
        columns = self.columns
        if columns.reads_cached_tokens:
            columns.reread_next()
        row = self.read_engine(oldest_waited_us)
        try:
            holds = self._holds(columns.fields_at, columns.capacity, n, self._engine_at, *row)
        except (OverflowError, TypeError):
            return "an engine value does not fit 64 bits"
        if holds:
            self.snapshot = True
            return None
        return self.assumptions.problem(columns.fields, self._engine, n)

    def _seated(self) -> None:
        self._shadow_late = 0
        prepared = self._prepared
        ready = prepared is not None and prepared.policy is self.active
        self._picking = prepared if ready else self._picking_for(self.active)
        seated = (self.active, self.shadow, self.base)
        self.columns.reads_cached_tokens = any(
            policy is not None and "num_cached_tokens" in policy.reads for policy in seated
        )

    def _state(self) -> dict[str, Any]:
        n = self.columns.n
        return {
            "engine": tuple(int(value) for value in self._engine),
            "columns": self.columns.fields[:, :n].copy(),
            "stamps": self.columns.stamps[:n].copy(),
            "seqs": self.columns.seqs[:n].copy(),
        }
