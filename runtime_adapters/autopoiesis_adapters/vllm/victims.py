"""The preemption control point, where a certified policy chooses the request to preempt when KV memory runs out.

Under first-come first-served vLLM preempts `running[-1]`. Before a step that might run out of blocks, this module sorts
the running requests except the oldest by their scores. The likeliest victim comes last, with ties to the latest
admitted. The oldest stays first: it is never offered to the policy, and it is served first. While memory is plentiful
nothing is read or moved. Once it is plentiful again, or no policy decides any more, the requests return to the order of
their admission.

vLLM can still do two things that the proof rules out, and both are counted. `oldest_preempted` counts preemptions of
the oldest, because the operator reset the cache or because waiting requests hold the memory it needs.
`oldest_idle` counts steps in which the oldest had tokens to compute and computed none, as when the encoder cache is
full.
"""

import time
from collections.abc import Callable
from operator import attrgetter
from struct import Struct
from struct import error as StructError  # noqa: N812
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from vllm.v1.request import RequestStatus

from ..loading import VerifiedVictims
from .assumptions import Assumptions
from .kv_groups import KVGroups
from .seat import Seat
from .waiting_columns import priority_of

__all__ = ["VictimLever"]

Int64s = NDArray[np.int64]

FIELDS = (
    "waited_us",
    "num_prompt_tokens",
    "num_computed_tokens",
    "num_output_tokens",
    "max_tokens",
    "priority",
    "num_preemptions",
    "num_blocks",
)
"""Fields of the running view, in the order in which they are read here and declared there."""
PREEMPTIONS = FIELDS.index("num_preemptions")
SCORE_LIMIT = 2**62

RUNNING, PREEMPTED = RequestStatus.RUNNING, RequestStatus.PREEMPTED

_plain = attrgetter("num_prompt_tokens", "num_output_tokens", "max_tokens", "num_preemptions")


class Scores(Protocol):
    """The part of a `Scorer` that this control point needs."""

    def __call__(self, columns: Int64s, *context: Int64s, n: int | None = None) -> Int64s:
        """Return the scores of the first `n` columns."""


class VictimLever(Seat[VerifiedVictims]):
    """The policy slot of preemption: it orders `scheduler.running` before a step in which a request may be preempted.

    Args:
        scheduler: a vLLM scheduler under first-come first-served.
        groups: its KV-cache groups.
        assumptions: the checks of the running requests and the engine.
        read_engine: longest wait (us) of the waiting requests -> the engine row.
        oldest_waited_us: a function that returns this longest wait; 0 when no request waits.
        deadline_ns: an ordering that takes longer is late.
        late_limit: late orderings in a row after which the policy is quarantined.
        disabled: the kill switch.
    """

    def __init__(
        self,
        scheduler: Any,
        groups: KVGroups,
        assumptions: Assumptions,
        read_engine: Callable[[int], tuple[int, ...]],
        oldest_waited_us: Callable[[], int],
        deadline_ns: int = 10_000_000,
        late_limit: int = 3,
        disabled: bool = False,
    ) -> None:
        super().__init__("preemption", deadline_ns=deadline_ns, late_limit=late_limit, disabled=disabled)
        self._scheduler = scheduler
        self._groups = groups
        self._assumptions = assumptions
        self._read_engine = read_engine
        self._oldest_waited_us = oldest_waited_us
        self._free_blocks: Callable[[], int] = scheduler.kv_cache_manager.block_pool.get_num_free_blocks
        self._moved = False
        self._oldest: Any = None
        """The oldest running request at the beginning of this step."""
        step_tokens = 1 + int(scheduler.num_spec_tokens) + int(scheduler.num_lookahead_tokens)
        self._growth = groups.growth(step_tokens)
        """The most blocks that a running request may take in a step in which it generates."""
        self._columns: Int64s = np.zeros((len(FIELDS), 16), np.int64)
        self._engine: Int64s = np.zeros(7, np.int64)
        self._pack_engine = Struct("=7q").pack_into

    def begin_pass(self, now_us: int) -> None:
        """Begin a pass as `Seat.begin_pass` does, then sort the running requests if necessary. Never raises.

        Sorting is necessary when this step may run out of blocks.
        """
        super().begin_pass(now_us)
        if self.active is None and self.shadow is None and not self._moved:
            return
        started = time.perf_counter_ns()
        try:
            running = self._scheduler.running
            wanted = not self.disabled and (self.active is not None or self.shadow is not None)
            asked = wanted and self._tight() and len(running) > (1 if self._moved else 2)
            if self.active is None or not asked:
                self._restore()  # the oldest may have finished, and the next oldest may be at any place
            if asked:
                self._order()
            self._oldest = running[0] if running and self.active is not None and not self.disabled else None
        except Exception as error:
            self._give_up("exception", f"{type(error).__name__}: {error}")
        self.step_ns += time.perf_counter_ns() - started

    def end_pass(self, output: Any, preempted: int) -> None:
        """End the step: count its preemptions, and record an oldest request that was preempted or idle."""
        self.step_ns = 0
        if preempted and self._moved:
            self.counters["preempted"] += preempted
        oldest, self._oldest = self._oldest, None
        if oldest is not None and oldest.request_id not in output.num_scheduled_tokens:
            if oldest.status is PREEMPTED:
                self.counters["oldest_preempted"] += 1
            elif output.total_num_scheduled_tokens and self._has_more(oldest):
                self.counters["oldest_idle"] += 1
        self.rest(self._moved)

    def reset(self) -> None:
        """Restore the order of admission before an operator's reset preempts every running request."""
        self._restore()
        if self.active is not None and not self.disabled and self._scheduler.running:
            self.counters["oldest_preempted"] += 1

    def _has_more(self, request: Any) -> bool:
        """Return true unless the steps in flight already compute the last token that a running request may have."""
        ahead = request.num_output_placeholders
        computed = request.num_computed_tokens
        limit = min(request.num_prompt_tokens + request.max_tokens, self._scheduler.max_model_len)
        return request.status is RUNNING and (not ahead or bool(computed + 2 - ahead < limit))

    def _tight(self) -> bool:
        """Return true when the running requests might need more blocks in this step than are free.

        A request that generates takes the blocks that its next tokens and its draft tokens may fill in every group.
        Prompts computed in chunks may use the whole token budget.
        """
        running, free = self._scheduler.running, self._free_blocks()
        needed = len(running) * self._growth
        if free <= needed:
            return True
        in_chunks = any(request.is_prefill_chunk for request in running)
        return in_chunks and free <= needed + self._groups.filled_by(int(self._scheduler.max_num_scheduled_tokens))

    def _order(self) -> None:
        running = sorted(self._scheduler.running, key=_admitted)
        if not _admitted(running[0]):
            self._give_up("adapter", f"running request {running[0].request_id} was never seen to be admitted")
            return
        offered = running[1:]
        n = len(offered)
        problem = self._view(offered)
        if problem is not None:
            self._give_up("assumption" if problem.startswith("assumption") else "view-domain", problem)
            return
        order: list[int] | None = None
        policy = self.active
        if policy is not None:
            started = time.perf_counter_ns()
            order, broken = self._ranked(policy, n)
            took = time.perf_counter_ns() - started
            self.decisions += 1
            self.decision_ns += took
            if self.candidate and self.shadow is None:
                self.tried += 1
            broken = broken or self.lateness(took, "an ordering")
            if broken is not None:
                self._give_up(*broken)
                return
            self._scheduler.running[:] = [running[0], *[offered[place] for place in order]]
            self._moved = True
        shadow = self.shadow
        if shadow is not None:
            try:
                other, broken = self._ranked(shadow, n)
                if broken is not None:
                    self.drop_shadow(*broken)
                    return
                self.tried += 1
                self.agreed += other[-1] == (order[-1] if order is not None else n - 1)
            except Exception as error:
                self.drop_shadow("exception", f"{type(error).__name__}: {error}")

    def _ranked(self, policy: VerifiedVictims, n: int) -> tuple[list[int], tuple[str, str] | None]:
        """Return the places in the order of their scores, the victim last, and the fault in the scores, if any."""
        score: Scores = policy.scorer  # type: ignore[assignment]  # a `Scorer` is both
        scores = score(self._columns, self._engine, n=n)
        if scores.shape != (n,) or int(scores.max()) > SCORE_LIMIT or int(scores.min()) < -SCORE_LIMIT:
            return [], ("out-of-range", f"{scores.shape[0]} scores for {n} requests, or one beyond the score's range")
        if policy.gap is not None:
            preemptions = self._columns[PREEMPTIONS, :n]
            victim = int(np.flatnonzero(scores == scores.max())[-1])
            spared = preemptions + policy.gap <= preemptions[victim]
            if bool((spared & (scores < scores[victim])).any()):
                return [], (
                    "pick-rule",
                    f"a request preempted {preemptions[victim]} times ranks above one preempted {policy.gap} times less",
                )
        return np.argsort(scores, kind="stable").tolist(), None

    def _view(self, offered: list[Any]) -> str | None:
        """Read the offered requests in the order of their admission; return the problem with their values, or None."""
        n = len(offered)
        if n > self._columns.shape[1]:
            self._columns = np.zeros((len(FIELDS), 2 * n), np.int64)
        rows = [self._row(request) for request in offered]
        try:
            self._columns[:, :n] = np.array(rows, np.int64).T
            self._pack_engine(self._engine.data.cast("B"), 0, *self._read_engine(self._oldest_waited_us()))
        except (StructError, OverflowError):
            return "a value does not fit 64 bits"
        at, capacity = self._columns.ctypes.data, self._columns.shape[1]
        if not self._assumptions.requests_hold(at, capacity, n):
            return "a running request holds a value no proof covers"
        if self._assumptions.hold(at, capacity, n, self._engine.ctypes.data):
            return None
        return self._assumptions.problem(self._columns, self._engine, n)

    def _row(self, request: Any) -> tuple[int, ...]:
        prompt, output, max_tokens, preemptions = _plain(request)
        # Under async scheduling tokens count as computed before they exist.
        computed = request.num_computed_tokens - getattr(request, "num_output_placeholders", 0)
        freed = self._groups.freed(request.request_id)
        waited_us = self.now_us - request.autopoiesis_clock.stamp_us
        return waited_us, prompt, max(computed, 0), output, max_tokens, priority_of(request), preemptions, freed

    def _restore(self) -> None:
        if self._moved:
            self._scheduler.running.sort(key=_admitted)
            self._moved = False

    def _give_up(self, kind: str, detail: str) -> None:
        self._restore()
        n = min(len(self._scheduler.running), self._columns.shape[1])
        engine = tuple(int(value) for value in self._engine)
        self.drop(kind, detail, engine=engine, columns=self._columns[:, :n].copy())


def _admitted(request: Any) -> int:
    number: int = request.autopoiesis_clock.admission
    return number
