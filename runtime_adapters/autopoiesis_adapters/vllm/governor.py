"""The policy slot of request ordering: it picks the next waiting request, checks every pick, and falls back on a fault.

The design follows Linux sched_ext: the fallback comes first. On any fault, the engine's built-in order answers the same
pick. A bad policy therefore costs performance for one step and never a request.
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
    """The policy slot that answers each pick of the waiting queue.

    Args:
        columns: the waiting requests.
        assumptions: the checks of the waiting requests and the engine.
        read_engine: longest wait (us) -> the engine row in declared order; called once per pass.
        begin: called at the first pick of a pass; returns the engine's clock (us). Must not raise.
        builtin_slot: returns the slot that the built-in order would serve, with which a shadow's pick is compared.
        deadline_ns: a decision that takes longer is late.
        late_limit: late decisions in a row after which the policy is quarantined.
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
        """True once a request has been picked in this pass or the pass was given up: the work due at its start is done.
        """
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
        """Return the slot to serve next, or `BUILT_IN`. Never raises.

        The first pick after `end_pass` begins the next pass.
        """
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
        # One call does the whole pick. When it fails, `_choose_by_steps` names the fault.
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
        """Pick as `choose` does, one check after the other, so that a fault has a name.

        `started` is when the pick began (ns).
        """
        policy, shadow = self.active, self.shadow
        if (policy is None and shadow is None) or self.disabled:
            return BUILT_IN
        if self.dropped:
            return self._fall_back()
        try:
            if self._picking is None or self._picking.located is not self.columns.located:
                self._picking = self._picking_for(policy)  # the queue has grown: the next pick is one call again
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

        While a policy stays in place, its proved T holds in such a step as well. The oldest request is served first
        where the built-in order would serve a request younger by more than T, as an order by priority may.
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
        """End the step; the next pick reads the engine again."""
        self.begun = self.dropped = self.snapshot = False
        self.step_ns = 0

    def give_up_pass(self, kind: str, detail: str) -> None:
        """Leave the pass that is about to begin to the built-in order."""
        self.begun = True
        self.drop(kind, detail)

    def _take_turn(self) -> None:
        """Begin a pass in which a swap is due or a shadow or canary may end."""
        try:
            self.begin_pass(self.now_us)
        except Exception as error:
            self.drop("adapter", f"{type(error).__name__}: {error}")

    def give_up(self, kind: str, detail: str) -> int:
        """Leave the rest of this pass to the built-in order, and report the queue's state. Return `BUILT_IN`."""
        self.drop(kind, detail, **self._state())
        return BUILT_IN

    def offer(self, policy: VerifiedPolicy | None, *args: Any, **kwargs: Any) -> None:
        """Offer a policy as `Seat.offer` does, after preparing the policy's picks in the calling thread."""
        self._prepared = self._picking_for(policy)
        super().offer(policy, *args, **kwargs)

    def _picking_for(self, policy: VerifiedPolicy | None) -> Picking | None:
        """Build the one-call pick of a policy whose scorer is machine code.

        The result is None for other policies, which are picked step by step.
        """
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
            # The view cannot hold such a wait and clamping it would break AGE: overdue requests go first, oldest first.
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
        """Return the fault in a pick, or None.

        A fault is a slot that does not exist, or a pick that breaks the policy's proved T.
        """
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
        """Ask the shadow about the same queue; the answer is counted and changes nothing. Never raises."""
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
