"""Which policy decides, and what happens when it must not: swap at a step boundary, checks at every pick, drop,
quarantine.

Modelled on Linux sched_ext: the fallback comes first. Whatever goes wrong, the same pick is answered by the engine's
built-in order, so a bad policy costs performance for one step and never a request.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..loading import VerifiedPolicy
from .assumptions import Assumptions
from .waiting_columns import WaitingColumns
from .waiting_queue import BUILT_IN

__all__ = ["Fault", "Governor", "Swap"]

Int64s = NDArray[np.int64]

BLAMELESS = frozenset({"view-domain", "assumption", "late", "adapter"})
"""Faults of the world (or of this adapter), not of the policy: the step is dropped, the policy stays. One late
decision may be the machine's fault; several in a row are a `deadline` fault."""


@dataclass(frozen=True)
class Fault:
    """One drop to the built-in order: what happened, under which policy, and the state it happened in."""

    kind: str
    """`view-domain`, `assumption`, `exception`, `out-of-range`, `pick-rule`, `late`, `deadline` or `adapter`."""
    detail: str
    digest: str
    at_us: int
    quarantined: bool
    engine: tuple[int, ...] = ()
    columns: Int64s | None = None
    stamps: Int64s | None = None
    seqs: Int64s | None = None


@dataclass(frozen=True)
class Swap:
    """A change of the deciding policy, seen from the engine."""

    digest: str | None
    """None: the built-in order."""
    at_us: int
    requested_us: int
    """When the request to swap was seen, in the same clock; `at_us - requested_us` is request-to-active."""
    step_ns: int
    """Time the swap itself added to its step."""


@dataclass
class Governor:
    """Answers each pick of the waiting queue. Only the engine thread calls it, except `offer` (one pointer
    assignment)."""

    columns: WaitingColumns
    assumptions: Assumptions
    read_engine: Callable[[int], tuple[int, ...]]
    """Longest wait (us) -> the engine row in declared order; called once a pass."""
    deadline_ns: int = 10_000_000
    """A decision that takes longer is late."""
    late_limit: int = 3
    """Late decisions in a row after which the policy is taken out."""
    report: Callable[[Fault], None] = lambda _fault: None
    """Told of every fault that quarantines, and of the first of each kind otherwise; must not block."""
    active: VerifiedPolicy | None = None
    counters: Counter[str] = field(default_factory=Counter)
    swaps: "deque[Swap]" = field(default_factory=lambda: deque(maxlen=64))
    quarantined: dict[str, str] = field(default_factory=dict)
    """Digest -> why. A digest in here is never active again in this process."""
    disabled: bool = False
    """The kill switch: every pick is the built-in order's, whatever is loaded."""

    def __post_init__(self) -> None:
        self._pending: tuple[VerifiedPolicy | None, int] | None = None
        self._dropped = False
        self._snapshot = False
        self._now_us = 0
        self._late = 0
        self._reported: set[tuple[str, str]] = set()
        engine_fields = len(self.read_engine(0))
        self._engine: Int64s = np.zeros(engine_fields, np.int64)
        self._engine_at: int = self._engine.ctypes.data

    def offer(self, policy: VerifiedPolicy | None, requested_us: int) -> None:
        """Hand over the policy for the next step (None: the built-in order). Safe from any thread; the last offer
        wins."""
        self._pending = (policy, requested_us)

    def begin_pass(self, now_us: int) -> None:
        """A scheduling step begins: the one place where the active policy changes."""
        self._now_us = now_us
        self._dropped = False
        self._snapshot = False
        if self._pending is not None:
            self._swap(now_us)

    def choose(self) -> int:
        """The slot to serve next, or `BUILT_IN`. Never raises."""
        policy = self.active
        if policy is None or self._dropped or self.disabled:
            return BUILT_IN
        try:
            return self._pick(policy)
        except Exception as error:
            return self.drop("exception", f"{type(error).__name__}: {error}")

    def drop(self, kind: str, detail: str) -> int:
        """Leave the rest of this pass to the built-in order; unless the world is to blame, take the policy out for
        good."""
        self._dropped = True
        self.counters["fallbacks"] += 1
        self.counters[f"fault:{kind}"] += 1
        policy = self.active
        digest = policy.digest if policy is not None else ""
        quarantine = policy is not None and kind not in BLAMELESS
        if quarantine:
            self.quarantined[digest] = f"{kind}: {detail}"
            self.active = None
            self.swaps.append(Swap(None, self._now_us, self._now_us, 0))
        if quarantine or (kind, digest) not in self._reported:
            self._reported.add((kind, digest))
            n = self.columns.n
            copies: tuple[Any, ...] = (
                self.columns.fields[:, :n].copy(),
                self.columns.stamps[:n].copy(),
                self.columns.seqs[:n].copy(),
            )
            engine = tuple(int(value) for value in self._engine)
            self.report(Fault(kind, detail, digest, self._now_us, quarantine, engine, *copies))
        return BUILT_IN

    def _pick(self, policy: VerifiedPolicy) -> int:
        columns = self.columns
        n = columns.n
        if columns.out_of_domain:
            return self.drop("view-domain", f"{columns.out_of_domain} waiting requests hold a value no proof covers")
        oldest_stamp = columns.set_waits(self._now_us)
        oldest_waited_us = self._now_us - oldest_stamp
        if oldest_waited_us > columns.max_wait_us:
            # The view cannot hold such a wait and clamping it would break AGE: the overdue lane, first in, first out.
            self.counters["overdue"] += 1
            return columns.oldest_slot()
        if not self._snapshot:
            problem = self._take_snapshot(oldest_waited_us, n)
            if problem is not None:
                return self.drop("assumption" if problem.startswith("assumption") else "view-domain", problem)
        started = time.perf_counter_ns()
        slot = policy.scorer.argmax(columns.fields, columns.seqs, self._engine, n=n)
        took = time.perf_counter_ns() - started
        self.counters["decisions"] += 1
        self.counters["decision_ns"] += took
        if not 0 <= slot < n:
            return self.drop("out-of-range", f"picked slot {slot} of {n}")
        younger_us = int(columns.stamps[slot]) - oldest_stamp
        if policy.aging_us is not None and younger_us > policy.aging_us:
            return self.drop(
                "pick-rule", f"picked a request {younger_us} us younger than the oldest; T = {policy.aging_us}"
            )
        if took > self.deadline_ns:
            return self._decided_late(took)
        self._late = 0
        return slot

    def _take_snapshot(self, oldest_waited_us: int, n: int) -> str | None:
        columns = self.columns
        if columns.reads_cached_tokens:
            columns.reread_next()
        try:
            self._engine[:] = self.read_engine(oldest_waited_us)
        except OverflowError:
            return "an engine value does not fit 64 bits"
        if self.assumptions.hold(columns.fields_at, columns.capacity, n, self._engine_at):
            self._snapshot = True
            return None
        return self.assumptions.problem(columns.fields, self._engine, n)

    def _decided_late(self, took_ns: int) -> int:
        self._late += 1
        self.counters["late"] += 1
        kind = "late" if self._late < self.late_limit else "deadline"
        return self.drop(kind, f"a decision took {took_ns} ns of {self.deadline_ns}; {self._late} late in a row")

    def _swap(self, now_us: int) -> None:
        started = time.perf_counter_ns()
        assert self._pending is not None
        policy, requested_us = self._pending
        self._pending = None
        if policy is not None and policy.digest in self.quarantined:
            self.counters["refused"] += 1
            return
        self.active = policy
        self._late = 0
        reads_cache = policy is not None and "num_cached_tokens" in policy.reads
        self.columns.reads_cached_tokens = reads_cache
        self.counters["swaps"] += 1
        digest = policy.digest if policy is not None else None
        self.swaps.append(Swap(digest, now_us, requested_us, time.perf_counter_ns() - started))
