"""Which running request loses its place when the KV memory runs out.

When a running request needs a block and none is free, the kernel (an adapter or the simulator) asks `victim_score` of every
running request but the oldest, under one frozen snapshot of engine and clock, and preempts the highest; ties go to the latest
admitted, so a policy that returns a constant is vLLM's own last-come rule. The victim keeps the tokens it generated and goes
back to its place in the line; `waited_us` and `num_preemptions` are never reset. Age among running requests is by admission.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from autopoiesis_lib import Contract, Least, Theorem, View, assumption, decision, invariant, lemma
from autopoiesis_lib.units import Blocks, Count, Micros, Priority, Score, Tokens

from .request_ordering import Engine

__all__ = ["BoundedDisplacement", "Engine", "Preemption", "Progress", "Running"]

AnyCount = Annotated[int, Field(ge=-(2**40), le=2**40)]
"""Counts in a theorem's state: wide enough that no kernel step is ruled out by its domain, below zero included."""


class Running(View):
    """A running request that may be preempted, as the scheduler sees it at one step."""

    waited_us: Micros
    """Since its first enqueue; a preemption never resets it."""
    num_prompt_tokens: Annotated[Tokens, Field(ge=1)]
    """Length of the prompt."""
    num_computed_tokens: Tokens
    """Tokens whose KV is computed: what a preemption may have to compute again."""
    num_output_tokens: Tokens
    """Tokens generated so far."""
    max_tokens: Annotated[Tokens, Field(ge=1)]
    """The most tokens the request may generate."""
    priority: Priority
    """Higher matters more; vLLM's priority p maps to clamp(8 - p, 0, 15), so its default is 8."""
    num_preemptions: Count
    """How often the request has been preempted."""
    num_blocks: Blocks
    """Blocks a preemption frees: those that no other request shares."""


class Preemption(Contract, name="preemption"):
    """Highest score is preempted; ties go to the latest admitted; the oldest running request is never offered."""

    slots: ClassVar[Mapping[str, str]] = {"victim_score": "victim"}

    max_preemption_gap: Annotated[Count, Field(ge=1)] = 16
    """A policy is refused when its least preemption gap lies above this."""

    @decision
    def victim_score(self, running: Running, engine: Engine) -> Score:
        """How fit a running request is to lose its place; the highest score is preempted."""
        raise NotImplementedError

    @assumption
    def computed_within_context(self, running: Running) -> bool:
        """No more tokens are computed than the request has."""
        return running.num_computed_tokens <= running.num_prompt_tokens + running.num_output_tokens

    @assumption
    def output_within_limit(self, running: Running) -> bool:
        """A request has generated no more tokens than it may."""
        return running.num_output_tokens <= running.max_tokens

    @assumption
    def free_within_total(self, engine: Engine) -> bool:
        """No more blocks are free than there are."""
        return engine.free_blocks <= engine.total_blocks

    @assumption
    def held_is_not_free(self, running: Running, engine: Engine) -> bool:
        """A block that a request holds is not free."""
        return running.num_blocks + engine.free_blocks <= engine.total_blocks

    @assumption
    def running_within_limit(self, engine: Engine) -> bool:
        """No more requests run than may run at once."""
        return engine.num_running <= engine.max_num_seqs

    @invariant
    def spares_the_preempted(
        self,
        more: Running,
        fewer: Running,
        engine: Engine,
        gap: Annotated[Count, Field(ge=1), Least(limit="max_preemption_gap")],
    ) -> bool:
        """Hysteresis: a request preempted `gap` times more often than another never scores above it, whatever else they are."""
        gapped = more.num_preemptions >= fewer.num_preemptions + gap
        return not gapped or self.victim_score(more, engine) <= self.victim_score(fewer, engine)

    @invariant
    def takes_from_holders(self, empty: Running, holder: Running, engine: Engine) -> bool:
        """Of two requests, one whose preemption would free no block never scores above one whose preemption frees some, unless it
        has been preempted fewer times."""
        pointless = empty.num_blocks == 0 and holder.num_blocks > 0
        no_excuse = empty.num_preemptions >= holder.num_preemptions
        worse = pointless and no_excuse
        return not worse or self.victim_score(empty, engine) <= self.victim_score(holder, engine)

    @classmethod
    def theorems(cls) -> tuple[type[Theorem], ...]:
        """The oldest progresses; nobody is displaced by newcomers more than `gap` times."""
        return (Progress, BoundedDisplacement)

    @classmethod
    def baselines(cls) -> Mapping[str, str]:
        """Hand-written victim rules; the first is vLLM's."""
        return BASELINES


class Progress(Theorem):
    """PROGRESS: the oldest running request is never preempted, and in every step that occurs it computes at least one token, so
    it finishes within as many steps as it has tokens left."""

    class State(View):
        """The oldest running request, from the moment it is the oldest."""

        tokens_left: AnyCount
        """Tokens it has still to compute, at most those of its prompt and of its longest output."""
        times_preempted: AnyCount
        """Preemptions of it since it is the oldest."""
        num_running: AnyCount
        """Requests running, itself included."""

    def init(self, s: State) -> bool:
        """It runs, has something left to compute, and has not been preempted as the oldest."""
        return s.tokens_left >= 0 and s.times_preempted == 0 and s.num_running >= 1

    def step(self, s: State, t: State, victim: AnyCount, computed: AnyCount) -> bool:
        """RUN-STEP: an engine step (token budget and chunk are at least 1, and the oldest is served first), a preemption of one
        of the others (`victim` is its place in order of admission, the oldest's being 0), an admission, or another's end."""
        same_preempted = t.times_preempted == s.times_preempted
        same_left = t.tokens_left == s.tokens_left
        engine_step = (
            1 <= computed <= s.tokens_left
            and t.tokens_left == s.tokens_left - computed
            and same_preempted
            and t.num_running == s.num_running
        )
        preemption = (
            1 <= victim < s.num_running
            and t.times_preempted == s.times_preempted + (1 if victim == 0 else 0)
            and same_left
            and t.num_running == s.num_running - 1
        )
        admission = same_preempted and same_left and t.num_running == s.num_running + 1
        other_ends = s.num_running >= 2 and same_preempted and same_left and t.num_running == s.num_running - 1
        return engine_step or preemption or admission or other_ends

    def inductive(self, s: State) -> bool:
        """It still runs, and has not been preempted."""
        return s.tokens_left >= 0 and s.times_preempted == 0 and s.num_running >= 1

    def goal(self, s: State) -> bool:
        """Never preempted, and a preemption loop ends before it is reached."""
        return s.times_preempted == 0 and s.num_running >= 1

    def progress(self, s: State, t: State) -> bool:
        """An engine step."""
        return t.tokens_left < s.tokens_left

    def ranking(self, s: State) -> int:
        """Tokens it has still to compute."""
        return s.tokens_left


class BoundedDisplacement(Theorem):
    """No thrashing: a request r that has been preempted `gap` times or more is never the victim while a request that was admitted
    after it and has never been preempted could be taken instead; so newcomers displace r at most `gap` times in its life. Here
    `gap` is the largest preemption gap of the policies that are active during that life."""

    class State(View):
        """The life of one request r."""

        gap: AnyCount
        """The largest preemption gap of any policy active during it; never changes."""
        preemptions: AnyCount
        """How often r has been preempted."""
        displaced: AnyCount
        """Those of them at which a request admitted after r and never preempted was offered too, and kept its place."""

    @lemma
    def victim_came_last_or_was_spared(
        self,
        victim: Running,
        kept: Running,
        engine: Engine,
        gap: Annotated[Count, Field(ge=1)],
        victim_admission: Count,
        kept_admission: Count,
    ) -> bool:
        """VIC-STEP: if the kernel takes `victim` though it was preempted `gap` times more often than `kept`, then `kept` was
        admitted earlier. Admission numbers follow the time of the latest admission."""
        victim_score = self.policy.victim_score(victim, engine)
        kept_score = self.policy.victim_score(kept, engine)
        taken = victim_score > kept_score or (victim_score == kept_score and victim_admission > kept_admission)
        gapped = victim.num_preemptions >= kept.num_preemptions + gap
        return not (taken and gapped) or victim_admission > kept_admission

    @lemma
    def victim_frees_memory(
        self, victim: Running, kept: Running, engine: Engine, victim_admission: Count, kept_admission: Count
    ) -> bool:
        """The victim holds blocks, but for hysteresis and ties: one whose preemption frees no block, and which was not preempted
        fewer times than a request that holds some, tied with it and was admitted later."""
        victim_score = self.policy.victim_score(victim, engine)
        kept_score = self.policy.victim_score(kept, engine)
        taken = victim_score > kept_score or (victim_score == kept_score and victim_admission > kept_admission)
        pointless = victim.num_blocks == 0 and kept.num_blocks > 0 and victim.num_preemptions >= kept.num_preemptions
        return not (taken and pointless) or (victim_score == kept_score and victim_admission > kept_admission)

    def init(self, s: State) -> bool:
        """At its enqueue r has never been preempted."""
        return s.preemptions == 0 and s.displaced == 0 and s.gap >= 1

    def step(
        self,
        s: State,
        t: State,
        r: Running,
        kept: Running,
        engine: Engine,
        gap: Annotated[Count, Field(ge=1)],
        r_admission: Count,
        kept_admission: Count,
        by_admission: bool,
    ) -> bool:
        """KER-VIC: r is preempted beside `kept`. The kernel's argmax took r under a policy whose bound is `gap`, ties to the
        latest admitted; or, `by_admission`, a fall-back step took the latest admitted."""
        r_score = self.policy.victim_score(r, engine)
        kept_score = self.policy.victim_score(kept, engine)
        argmax = r_score > kept_score or (r_score == kept_score and r_admission > kept_admission)
        by_policy = r.num_preemptions == s.preemptions and argmax and gap <= s.gap
        newcomer = kept_admission > r_admission and kept.num_preemptions == 0
        preempted = t.preemptions == s.preemptions + 1 and t.displaced == s.displaced + (1 if newcomer else 0)
        return t.gap == s.gap and preempted and (by_policy or (by_admission and r_admission > kept_admission))

    def inductive(self, s: State) -> bool:
        """Newcomers displaced r at most `gap` times, and no more often than it was preempted."""
        return 0 <= s.displaced <= s.preemptions and s.displaced <= s.gap

    def goal(self, s: State) -> bool:
        """At most `gap` displacements by newcomers."""
        return s.displaced <= s.gap


BASELINES: Mapping[str, str] = {
    "last-come": '''"""Last come, first preempted: vLLM's rule under first-come first-served."""

from autopoiesis_contracts.preemption import Engine, Running


def victim_score(running: Running, engine: Engine) -> int:
    """All alike, and ties go to the latest admitted."""
    return 0
''',
    "most-recompute-cheap": '''"""Preempt what is cheapest to compute again; a preemption counts as 1,024 tokens of cost."""

from autopoiesis_contracts.preemption import Engine, Running


def victim_score(running: Running, engine: Engine) -> int:
    """The fewer tokens (up to 8,192) are computed, the likelier a victim; one that holds no block counts as dearest."""
    cost = min(running.num_computed_tokens, 8_192) if running.num_blocks > 0 else 8_192
    return -cost - running.num_preemptions * 1_024
''',
}
