"""Policy slots: each holds the policy that decides at one control point, and a shadow or canary beside it for a while.

Every control point has one policy slot. An offered policy takes effect at a step boundary, by one pointer assignment.
Without an offer, the slot only steps down: a fault removes a policy at once, and a canary that is not promoted gives
way to the policy that decided before it.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from autopoiesis_lib.protocol.channel import ORDERING, Mode

__all__ = ["Fault", "Offer", "Runnable", "Seat", "Swap"]

Int64s = NDArray[np.int64]

BLAMELESS = frozenset({"view-domain", "assumption", "late", "adapter"})
"""Faults of the engine's state or of this adapter, not of the policy: the step is dropped, the policy stays.

One late decision may be the machine's fault; several in a row are a `deadline` fault.
"""


class Runnable(Protocol):
    """The part of a policy that a policy slot uses."""

    @property
    def digest(self) -> str:
        """Return the policy's digest."""


P = TypeVar("P", bound=Runnable)


@dataclass(frozen=True)
class Fault:
    """One drop to the built-in rule: the kind of fault, the policy, and the engine's state at that moment."""

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
    contract: str = ORDERING
    shadow: bool = False
    """True when the policy was in shadow, so that nothing was dropped."""


@dataclass(frozen=True)
class Swap:
    """A change of the deciding policy, as the engine records it."""

    digest: str | None
    """Digest of the new policy; None for the built-in rule."""
    at_us: int
    requested_us: int
    """The time of the request to swap, in the same clock; `at_us - requested_us` is the time from request to active."""
    step_ns: int
    """Time the swap itself added to its step."""
    requested: bool = True
    """True when the swap was requested; false for a quarantine or the end of a canary."""


@dataclass(frozen=True)
class Offer(Generic[P]):
    """A policy offered to a policy slot, with its mode and bounds."""

    policy: P | None
    """The policy; None for the built-in rule."""
    requested_us: int
    mode: Mode = "active"
    base: P | None = None
    """The policy that decides beside a shadow, and after a canary."""
    limit_us: int | None = None
    """The duration of a shadow or canary (us), from its first step."""
    limit_decisions: int | None = None
    """The number of decisions of a shadow or canary."""


class Seat(Generic[P]):
    """The policies of one type in one engine. Only the engine thread calls the slot, except for `offer` and `status`.

    Args:
        contract: the policy type.
        deadline_ns: a decision that takes longer is late.
        late_limit: late decisions in a row after which the policy is quarantined.
        disabled: the kill switch.
    """

    # The attributes that a step reads are adjacent (see `EngineSide`).
    __slots__ = (
        "__dict__",
        "_counted",
        "_late",
        "active",
        "candidate",
        "deadline_ns",
        "decision_ns",
        "decisions",
        "disabled",
        "dropped",
        "ended",
        "fallbacks",
        "now_us",
        "pending",
        "shadow",
        "snapshot",
        "step_ns",
    )

    def __init__(
        self,
        contract: str = ORDERING,
        *,
        deadline_ns: int = 10_000_000,
        late_limit: int = 3,
        disabled: bool = False,
    ) -> None:
        self.contract = contract
        self.deadline_ns = deadline_ns
        self.late_limit = late_limit
        self.active: P | None = None
        """The deciding policy; None for the built-in rule."""
        self.shadow: P | None = None
        """The shadow policy, asked beside the deciding one."""
        self.mode: Mode = "active"
        self.base: P | None = None
        self.candidate = ""
        """Digest of the policy that was last in shadow or canary."""
        self.ended = ""
        """The reason why the last shadow or canary ended by itself; empty while it lasts, or when there is none."""
        self.tried = 0
        """Decisions of the shadow or canary so far."""
        self.agreed = 0
        """Decisions in which the shadow agreed with the decision that was made."""
        self.decisions = 0
        """Decisions of deciding policies, not of shadows."""
        self.decision_ns = 0
        """Nanoseconds that these decisions took."""
        self._counted = Counter(decisions=0, decision_ns=0)
        self.swaps: deque[Swap] = deque(maxlen=64)
        self.fallbacks = 0
        """Passes left to the built-in rule, as in `counters`."""
        self.idle = True
        """True when no policy decides, none is tried and none is offered: the engine skips an idle control point."""
        self.quarantined: dict[str, str] = {}
        """Digest -> reason. A quarantined digest is never active again in this process."""
        self.barred: frozenset[str] = frozenset()
        """Digests in quarantine on the channel, which do not decide here until they are released."""
        self.disabled = disabled
        """The kill switch: while it is set, the built-in rule makes every decision, whatever policy is loaded."""
        self.wake: Callable[[], None] = lambda: None
        """A callback, called when a policy is offered, from any thread, and when a pass is dropped."""
        self.report: Callable[[Fault], None] = lambda _fault: None
        """A callback for every fault that quarantines, and for the first fault of each other kind; it must not block.
        """
        self.step_ns = 0
        """Nanoseconds spent in decisions of this slot since the owner last set it to 0."""
        self.pending: Offer[P] | None = None
        """The offer that the next pass takes."""
        self._limit_us: int | None = None
        self._limit_decisions: int | None = None
        self._ends_us: int | None = None
        self.now_us = 0
        """The time at which this pass began (us)."""
        self.dropped = False
        """True when this pass is left to the built-in rule."""
        self.snapshot = False
        """True when the values that this pass shows a policy have been read and checked."""
        self._late = 0
        self._reported: set[tuple[str, str]] = set()

    @property
    def counters(self) -> Counter[str]:
        """Event counts of this slot, by name.

        Counters that change with every decision are separate attributes and are copied in here.
        """
        counted = self._counted
        counted["decisions"], counted["decision_ns"] = self.decisions, self.decision_ns
        return counted

    def offer(
        self,
        policy: P | None,
        requested_us: int,
        mode: Mode = "active",
        base: P | None = None,
        limit_us: int | None = None,
        limit_decisions: int | None = None,
    ) -> None:
        """Hand over a policy for the next step to take (see `Offer`). Safe from any thread; the last offer wins."""
        self.pending = Offer(policy, requested_us, mode, base, limit_us, limit_decisions)
        self.idle = False
        self.wake()

    def begin_pass(self, now_us: int) -> None:
        """Begin a scheduling step: the deciding policy is replaced by an offer only here.

        With no offer pending and no shadow or canary, the method only runs its first two statements.
        """
        self.now_us = now_us
        self.dropped = self.snapshot = False
        if self.pending is not None:
            self._take(now_us)
        elif self.candidate and not self.ended:
            self._check_bounds(now_us)

    def rest(self, busy: bool = False) -> None:
        """Become idle when there is nothing to do."""
        self.idle = True
        # This is checked afterwards, so that an offer made meanwhile is not missed.
        if busy or self.active is not None or self.shadow is not None or self.pending is not None:
            self.idle = False

    def drop(self, kind: str, detail: str, **state: Any) -> None:
        """Leave the rest of this pass to the built-in rule, and quarantine the policy unless the fault is blameless."""
        self.dropped = True
        self.fallbacks += 1
        self.counters["fallbacks"] += 1
        self.counters[f"fault:{kind}"] += 1
        self.wake()
        policy = self.active
        digest = policy.digest if policy is not None else ""
        quarantine = policy is not None and kind not in BLAMELESS
        if quarantine:
            self.quarantined[digest] = f"{kind}: {detail}"
            was_canary = self.mode == "canary" and digest == self.candidate and not self.ended
            self.active = self._standing(self.base) if was_canary else None
            if was_canary:
                self.ended = f"{kind}: {detail}"
            self._seated()
            self._changed(Swap(digest_of(self.active), self.now_us, self.now_us, 0, requested=False))
        self._tell(kind, detail, digest, quarantine, state)

    def drop_shadow(self, kind: str, detail: str, **state: Any) -> None:
        """Stop the shadow for a fault of its own and quarantine it; the deciding policy does not change."""
        shadow = self.shadow
        if shadow is None:
            return
        self.shadow = None
        self.ended = f"{kind}: {detail}"
        self.counters[f"shadow_fault:{kind}"] += 1
        self.quarantined[shadow.digest] = f"{kind} in shadow: {detail}"
        self._tell(kind, detail, shadow.digest, True, {"shadow": True, **state})

    def lateness(self, took_ns: int, what: str) -> tuple[str, str] | None:
        """Count a late decision and return its fault; return None when the decision came in time."""
        if took_ns <= self.deadline_ns:
            self._late = 0
            return None
        self._late += 1
        self.counters["late"] += 1
        kind = "late" if self._late < self.late_limit else "deadline"
        return kind, f"{what} took {took_ns} ns of {self.deadline_ns}; {self._late} late in a row"

    @property
    def standing(self) -> P | None:
        """The policy that decides when the shadow or canary is not promoted."""
        return self.active if self.mode == "active" or self.ended else self.base

    def status(self) -> dict[str, Any]:
        """Return the slot's status, ready for JSON: the deciding policy and the shadow or canary."""
        active = self.active
        last = next((swap for swap in reversed(list(self.swaps)) if swap.requested), None)
        trial = {
            "digest": self.candidate,
            "base": digest_of(self.base),
            "decisions": self.tried,
            "agreed": self.agreed,
            "ended": self.ended,
        }
        return {
            "digest": active.digest if active is not None and not self.disabled else None,
            "mode": self.mode,
            "trial": trial if self.candidate else None,
            "quarantined": dict(self.quarantined),
            "request_to_active_us": last.at_us - last.requested_us if last is not None else None,
            "swap_step_ns": last.step_ns if last is not None else None,
        }

    def _take(self, now_us: int) -> None:
        started = time.perf_counter_ns()
        assert self.pending is not None
        offer, self.pending = self.pending, None
        policy = offer.policy
        if policy is not None and self._out(policy):
            self.counters["refused"] += 1
            return
        before = self.active
        self.mode, self.base = offer.mode, self._standing(offer.base)
        self.shadow = policy if offer.mode == "shadow" else None
        self.active = self.base if offer.mode == "shadow" else policy
        self.candidate = "" if policy is None or offer.mode == "active" else policy.digest
        self.ended, self.tried, self.agreed, self._late = "", 0, 0, 0
        self._limit_decisions = offer.limit_decisions
        self._ends_us = now_us + offer.limit_us if offer.limit_us is not None else None
        self._seated()
        if offer.mode != "shadow" or self.active is not before:
            step_ns = time.perf_counter_ns() - started
            self._changed(Swap(digest_of(self.active), now_us, offer.requested_us, step_ns))

    def _check_bounds(self, now_us: int) -> None:
        """End a shadow or canary that has reached its bound."""
        if self._ends_us is not None and now_us >= self._ends_us:
            self.ended = "its time is over"
        elif self._limit_decisions is not None and self.tried >= self._limit_decisions:
            self.ended = f"{self.tried} decisions"
        else:
            return
        self.shadow = None
        if self.mode == "canary":
            self.active = self._standing(self.base)
            self._changed(Swap(digest_of(self.active), now_us, now_us, 0, requested=False))
        self._seated()

    def _seated(self) -> None:
        """Hook for a change of `active` or `shadow`."""

    def _changed(self, swap: Swap) -> None:
        self.counters["swaps"] += 1
        self.swaps.append(swap)

    def _standing(self, policy: P | None) -> P | None:
        return policy if policy is not None and not self._out(policy) else None

    def _out(self, policy: P) -> bool:
        return policy.digest in self.quarantined or policy.digest in self.barred

    def _tell(self, kind: str, detail: str, digest: str, quarantine: bool, state: dict[str, Any]) -> None:
        if quarantine or (kind, digest) not in self._reported:
            self._reported.add((kind, digest))
            self.report(Fault(kind, detail, digest, self.now_us, quarantine, contract=self.contract, **state))


def digest_of(policy: Runnable | None) -> str | None:
    """Return a policy's digest; None for the built-in rule."""
    return policy.digest if policy is not None else None
