"""Which waiting request the engine admits next.

The kernel (an adapter or the simulator) asks `score` of every waiting request under one frozen snapshot of engine and clock,
admits the highest score while it fits, and breaks ties by enqueue sequence number. A request that does not fit ends admission
for that step. `waited_us` counts from the request's first enqueue and never restarts, not even after preemption.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from autopoiesis_lib import Contract, Least, Theorem, View, assumption, decision, invariant
from autopoiesis_lib.units import Blocks, Count, Micros, Priority, Score, Tokens, Unit

if TYPE_CHECKING:
    from autopoiesis_lib.simulation.result import SimulationResult

__all__ = ["BoundedBypass", "Engine", "RequestOrdering", "Waiting"]


Clock = Annotated[int, Field(ge=0, le=2**62), Unit("us")]
"""Time on a kernel's clock: 146,000 years, so that no step of a theorem is ruled out by its domain."""


class Waiting(View):
    """A request in the waiting queue, as the scheduler sees it at one step."""

    waited_us: Micros
    """Since its first enqueue; a preemption never resets it. Beyond a day the kernel serves it first-in first-out."""
    num_prompt_tokens: Annotated[Tokens, Field(ge=1)]
    """Length of the prompt."""
    num_cached_tokens: Tokens
    """Prompt tokens already in the prefix cache: a hint, as old as the engine's last look-up (0 when unknown)."""
    num_output_tokens: Tokens
    """Tokens generated so far (more than 0 only after a preemption)."""
    max_tokens: Annotated[Tokens, Field(ge=1)]
    """The most tokens the request may generate."""
    priority: Priority
    """Higher is served first; vLLM's priority p maps to clamp(8 - p, 0, 15), so its default is 8."""
    num_preemptions: Count
    """How often the request has been preempted."""


class Engine(View):
    """The engine at one step, the same for every request scored in it."""

    num_waiting: Count
    """Requests waiting."""
    num_running: Count
    """Requests running."""
    free_blocks: Blocks
    """KV-cache blocks free or evictable."""
    total_blocks: Annotated[Blocks, Field(ge=1)]
    """KV-cache blocks in all."""
    block_size: Annotated[Tokens, Field(ge=1)]
    """Tokens a block holds."""
    max_num_seqs: Annotated[Count, Field(ge=1)]
    """The most requests that may run at once."""
    oldest_waited_us: Micros
    """The longest wait among the waiting requests."""


class RequestOrdering(Contract, name="request-ordering"):
    """Highest score is admitted next; ties go to the earlier arrival."""

    slots: ClassVar[Mapping[str, str]] = {"score": "ordering"}

    max_aging_us: Micros = 600_000_000
    """A policy is refused when its least aging bound T lies above this."""
    priority_order: bool = False
    """Whether a policy must also serve higher priorities first, as engines that schedule by priority do."""

    @decision
    def score(self, request: Waiting, engine: Engine) -> Score:
        """How urgent a waiting request is; the highest score is admitted next."""
        raise NotImplementedError

    @assumption
    def cached_within_prompt(self, request: Waiting) -> bool:
        """A request has no more cached tokens than prompt tokens."""
        return request.num_cached_tokens <= request.num_prompt_tokens

    @assumption
    def free_within_total(self, engine: Engine) -> bool:
        """No more blocks are free than there are."""
        return engine.free_blocks <= engine.total_blocks

    @assumption
    def oldest_is_oldest(self, request: Waiting, engine: Engine) -> bool:
        """No request has waited longer than the oldest."""
        return request.waited_us <= engine.oldest_waited_us

    @assumption
    def running_within_limit(self, engine: Engine) -> bool:
        """No more requests run than may run at once."""
        return engine.num_running <= engine.max_num_seqs

    @invariant
    def ages(
        self, older: Waiting, newer: Waiting, engine: Engine, aging: Annotated[Micros, Least(limit="max_aging_us")]
    ) -> bool:
        """A request that has waited T longer than another is never ranked behind it, whatever their sizes."""
        return older.waited_us < newer.waited_us + aging or self.score(older, engine) >= self.score(newer, engine)

    @invariant(when="priority_order")
    def serves_priority_first(self, urgent: Waiting, other: Waiting, engine: Engine) -> bool:
        """A request of higher priority that has waited at least as long as another ranks before it, whatever their sizes."""
        outranks = urgent.priority > other.priority and urgent.waited_us >= other.waited_us
        return not outranks or self.score(urgent, engine) > self.score(other, engine)

    def check_replay(self, result: "SimulationResult", bounds: Mapping[str, int]) -> str | None:
        """Bounded bypass as a replay shows it: nobody enqueued more than T after r is first admitted before r."""
        aging_us = bounds.get("ages", self.max_aging_us)
        arrival, first_admitted = result.times.arrival_ns, result.times.scheduled_ns
        earliest_after = np.minimum.accumulate(first_admitted[::-1])[::-1]
        later = np.searchsorted(arrival, arrival + aging_us * 1_000, side="right")
        known = np.append(earliest_after, np.iinfo(np.int64).max)[later]
        bypassed = np.flatnonzero(result.times.served & (known < first_admitted))
        if len(bypassed) == 0:
            return None
        return f"request {bypassed[0]} was overtaken by one enqueued more than {aging_us:,} us after it"

    @classmethod
    def theorems(cls) -> tuple[type[Theorem], ...]:
        """Bounded bypass."""
        return (BoundedBypass,)

    @classmethod
    def baselines(cls) -> Mapping[str, str]:
        """Hand-written orderings; the first is every engine's default."""
        return BASELINES


class BoundedBypass(Theorem):
    """Before an eligible request r is picked, the kernel picks at most the distinct requests that were present when r was
    enqueued or were enqueued no later than T after it; re-admissions after preemption do not count again. T is the largest
    aging bound of the policies that are active while r waits."""

    class State(View):
        """One wait of a request r, from its first enqueue until it is first picked."""

        r_stamp: Micros
        """Time at which r was enqueued; never changes."""
        aging: Micros
        """T: the largest aging bound of any policy active during the wait; never changes."""
        present: Count
        """Distinct requests waiting or running when r was enqueued; never changes."""
        late_arrivals: Count
        """Requests enqueued after r and no later than T after it."""
        unpicked: Count
        """Those of both kinds that have not been picked since r was enqueued."""
        picked: Count
        """Those of both kinds that have been."""
        outside: Count
        """Picks of any other request: one enqueued more than T after r."""

    def init(self, s: State) -> bool:
        """At the enqueue of r nothing has been picked and nothing has come since."""
        empty = s.picked == 0 and s.late_arrivals == 0 and s.outside == 0
        return empty and s.present >= 0 and s.unpicked == s.present and s.aging >= 0

    def step(
        self,
        s: State,
        t: State,
        picked: Waiting,
        r: Waiting,
        engine: Engine,
        aging: Micros,
        now: Clock,
        stamp: Clock,
        picked_is_earlier: bool,
        first: bool,
        by_arrival: bool,
    ) -> bool:
        """KER-STEP: a request is enqueued, or one is picked while r waits and is eligible.

        `stamp` is when the enqueued or picked request was enqueued, `aging` the bound of the policy that is active in this step.
        A pick by the policy (KER-ARGMAX) is of the highest score under one snapshot; a tie goes to the earlier enqueued
        (`picked_is_earlier`: by sequence number, which follows the stamps). A pick `by_arrival`, as the overdue lane and a
        fall-back step make it, is of a request enqueued no later than T after r, to which engines keep there, or of one that was
        preempted. A `first` pick since r was enqueued takes the request out of the unpicked ones, if it is one of those that
        count; another pick is of a request that was picked before, be it one that counts or not.
        """
        same = t.r_stamp == s.r_stamp and t.aging == s.aging and t.present == s.present
        counts = stamp <= s.r_stamp + s.aging
        late = 1 if counts else 0
        arrival = (
            stamp >= s.r_stamp
            and t.late_arrivals == s.late_arrivals + late
            and t.unpicked == s.unpicked + late
            and t.picked == s.picked
            and t.outside == s.outside
        )
        waits = r.waited_us == now - s.r_stamp and picked.waited_us == now - stamp
        in_order = stamp <= s.r_stamp if picked_is_earlier else stamp >= s.r_stamp
        picked_score = self.policy.score(picked, engine)
        r_score = self.policy.score(r, engine)
        argmax = picked_score > r_score or (picked_score == r_score and picked_is_earlier)
        by_policy = waits and in_order and argmax and 0 <= aging <= s.aging
        taken = 1 if first and counts else 0
        again = not first and (s.picked if counts else s.outside) >= 1
        pick = (
            (first or again)
            and (by_policy or (by_arrival and (counts or again)))
            and s.unpicked >= taken
            and t.unpicked == s.unpicked - taken
            and t.picked == s.picked + taken
            and t.late_arrivals == s.late_arrivals
            and t.outside == s.outside + (0 if counts else 1)
        )
        return same and (arrival or pick)

    def inductive(self, s: State) -> bool:
        """Every request that counts is either picked or not yet, and no other is ever picked."""
        counted = s.picked + s.unpicked == s.present + s.late_arrivals and s.picked >= 0 and s.unpicked >= 0
        return counted and s.outside == 0 and s.aging >= 0

    def goal(self, s: State) -> bool:
        """No request enqueued more than T after r is picked before r, and of the others each is counted once."""
        return s.outside == 0 and s.picked <= s.present + s.late_arrivals

    def progress(self, s: State, t: State) -> bool:
        """A first pick of a request that counts."""
        return t.picked == s.picked + 1

    def ranking(self, s: State) -> int:
        """Requests that may still be picked before r, among those enqueued so far."""
        return s.unpicked


BASELINES: Mapping[str, str] = {
    "fcfs": '''"""First come, first served: every engine's default."""

from autopoiesis_contracts.request_ordering import Engine, Waiting


def score(request: Waiting, engine: Engine) -> int:
    """The longer it has waited, the sooner it goes."""
    return request.waited_us
''',
    "priority-aging": '''"""Priority classes that age: a class is worth ten seconds of waiting."""

from autopoiesis_contracts.request_ordering import Engine, Waiting


def score(request: Waiting, engine: Engine) -> int:
    """Waiting time plus ten seconds a priority level."""
    return request.waited_us + request.priority * 10_000_000
''',
    "shortest-prompt-aging": '''"""Shortest prompt first, but waiting always wins in the end."""

from autopoiesis_contracts.request_ordering import Engine, Waiting


def score(request: Waiting, engine: Engine) -> int:
    """Each prompt token, up to 8,192 of them, weighs as much as ten milliseconds of waiting."""
    return request.waited_us - min(request.num_prompt_tokens, 8_192) * 10_000
''',
    "longest-cached-prefix-aging": '''"""Longest cached prefix first, with aging: reuse the cache while it is warm."""

from autopoiesis_contracts.request_ordering import Engine, Waiting


def score(request: Waiting, engine: Engine) -> int:
    """Each uncached prompt token, up to 8,192 of them, weighs as much as ten milliseconds of waiting."""
    return request.waited_us - min(request.num_prompt_tokens - request.num_cached_tokens, 8_192) * 10_000
''',
}
