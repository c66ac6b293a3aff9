"""The kernel that the theorems of request ordering and admission speak of, small enough to be read at once and run.

It takes the certified policy's word for what fits: an over-committing admission policy drives `free_blocks` below zero here,
where an engine would have refused. No block is shared. Three kernels that forget age are derived from it, to show that the
checks can tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from autopoiesis_contracts.admission import Memory
from autopoiesis_contracts.request_ordering import Engine, Waiting

from autopoiesis_lib import Policy, View
from autopoiesis_lib.simulation import EngineConfig, Trace

__all__ = [
    "DAY_US",
    "ClockRunsWhileScoring",
    "Deadlocked",
    "Decision",
    "Kernel",
    "KernelViolation",
    "LatestWinsTies",
    "OverCommitted",
    "PassingLedger",
    "Request",
    "Starved",
    "WaitsRestart",
    "run_kernel",
]

DAY_US: Final = 86_400_000_000
Decision = tuple[int, int, int]
"""Time in us, 0 for an admission or 1 for a preemption, sequence number: as the simulator's decision log has them."""


class KernelViolation(AssertionError):
    """A run of the kernel that a theorem says cannot be."""


class Starved(KernelViolation):
    """A waiting request was passed by one that may not pass it."""


class OverCommitted(KernelViolation):
    """Blocks went below zero, below the watermark, or missing."""


class Deadlocked(KernelViolation):
    """Requests wait, nothing runs, and nobody is admitted."""


@dataclass(eq=False, kw_only=True)
class Request:
    """One request; `enqueued_us` is the truth, `stamp_us` what the kernel counts waits from."""

    sequence: int
    enqueued_us: int
    stamp_us: int
    num_prompt_tokens: int
    num_cached_tokens: int
    max_tokens: int
    output_tokens: int
    """Tokens it will generate: known to nobody but the kernel."""
    priority: int
    num_output_tokens: int = 0
    num_preemptions: int = 0
    held_blocks: int = 0

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens


class Kernel:
    """Waiting and running requests, a block pool and a clock. `ordering` None is first come first served, `admission` None is
    the simulator's own rule: the blocks fit, and leave the watermark while anything runs."""

    def __init__(self, engine: EngineConfig, ordering: Policy | None = None, admission: Policy | None = None) -> None:
        self.engine, self.ordering, self.admission = engine, ordering, admission
        self.now_us = 0
        self.waiting: list[Request] = []
        """In order of sequence numbers."""
        self.running: list[Request] = []
        """In order of admission."""
        self.free_blocks = engine.total_blocks
        self.arrivals = 0
        self.log: list[Decision] = []

    # --- what happens to it

    def arrive(
        self,
        *,
        num_prompt_tokens: int,
        max_tokens: int,
        priority: int,
        num_cached_tokens: int = 0,
        output_tokens: int | None = None,
    ) -> Request | None:
        """Enqueue a request, stamped once; None when it could never fit the memory. `output_tokens` None: all it may generate."""
        output = max_tokens if output_tokens is None else output_tokens
        sequence, self.arrivals = self.arrivals, self.arrivals + 1
        if self.blocks(num_prompt_tokens + output - 1) > self.engine.total_blocks:
            return None
        request = Request(
            sequence=sequence,
            enqueued_us=self.now_us,
            stamp_us=self.now_us,
            num_prompt_tokens=num_prompt_tokens,
            num_cached_tokens=num_cached_tokens,
            max_tokens=max_tokens,
            output_tokens=output,
            priority=priority,
        )
        self.waiting.append(request)
        return request

    def pass_time(self, us: int) -> None:
        self.now_us += us

    def pick(self, limit: int | None = None) -> list[Request]:
        """The admissions of one step, at most `limit`, in order, under one frozen clock and one view of the engine.

        Running requests take the blocks of their next token first; where somebody was preempted for it, nobody is admitted.
        """
        if self._grow() or not self.waiting:
            return []
        order = self._order()
        picked: list[Request] = []
        for request in order:
            if len(self.running) >= self.engine.max_num_seqs or (limit is not None and len(picked) >= limit):
                break
            blocks = self._blocks_to_take(request)
            if blocks is None:
                break
            self.waiting.remove(request)
            self.running.append(request)
            request.held_blocks = blocks
            self.free_blocks -= blocks
            self.log.append((self.now_us, 0, request.sequence))
            picked.append(request)
            self.audit()
        if not self.running:
            raise Deadlocked(f"request {order[0].sequence} waits, nothing runs, and it is not admitted")
        return picked

    def decode(self) -> list[Request]:
        """Every running request generates a token; those that have generated all of theirs finish and are returned."""
        self._grow()
        for request in self.running:
            request.num_output_tokens += 1
        finished = [q for q in self.running if q.num_output_tokens >= q.output_tokens]
        for request in finished:
            self.finish(request)
        return finished

    def finish(self, request: Request) -> None:
        self._release(request)

    def preempt(self, request: Request) -> None:
        """Back to the queue, at the place of its sequence number, with its stamp and its generated tokens."""
        self._release(request)
        request.num_preemptions += 1
        request.stamp_us = self.stamp_after_preemption(request)
        self.waiting.append(request)
        self.waiting.sort(key=lambda q: q.sequence)
        self.log.append((self.now_us, 1, request.sequence))

    def audit(self) -> None:
        """Raises OverCommitted unless every block is either free or held by one request, and none is held that is not there."""
        held = sum(q.held_blocks for q in self.running)
        if self.free_blocks + held != self.engine.total_blocks:
            raise OverCommitted(f"{self.free_blocks} free + {held} held blocks are not {self.engine.total_blocks}")
        if self.free_blocks < 0:
            raise OverCommitted(f"{self.free_blocks} free blocks")
        if any(q.held_blocks for q in self.waiting) or any(q.held_blocks < 1 for q in self.running):
            raise OverCommitted("a waiting request holds blocks, or a running one none")

    # --- what a kernel that forgets age does otherwise

    def stamp_after_preemption(self, request: Request) -> int:
        return request.stamp_us

    def clock_us(self, already_scored: int) -> int:
        del already_scored
        return self.now_us

    def tie(self, request: Request) -> int:
        """The smallest goes first among equal scores."""
        return request.sequence

    # --- how it decides

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.engine.block_size)

    def _order(self) -> list[Request]:
        """The overdue, first in first out, then the others by score."""
        if self.ordering is None:
            return list(self.waiting)
        overdue = [q for q in self.waiting if self.now_us - q.stamp_us > DAY_US]
        scored = [q for q in self.waiting if self.now_us - q.stamp_us <= DAY_US]
        engine = self._engine()
        scores: dict[int, int] = {}
        for request in scored:
            view = self._view(request, self.clock_us(len(scores)))
            # a clock that runs while scoring is a broken kernel's, and breaks the contract's assumptions openly
            if view.waited_us <= engine.oldest_waited_us:
                self._assumed(self.ordering, request=view, engine=engine)
            scores[request.sequence] = self.ordering.decision("score")(view, engine)
        return overdue + sorted(scored, key=lambda q: (-scores[q.sequence], self.tie(q)))

    def _blocks_to_take(self, request: Request) -> int | None:
        needed = self.blocks(request.num_tokens)
        idle = not self.running
        if self.admission is None:
            keep = 0 if idle else self.engine.watermark_blocks
            return needed if needed + keep <= self.free_blocks else None
        view = self._view(request, self.now_us)
        memory = Memory(
            free_blocks=self.free_blocks,
            total_blocks=self.engine.total_blocks,
            watermark_blocks=self.engine.watermark_blocks,
            num_running=len(self.running),
            reserved_blocks=sum(q.held_blocks - self.blocks(q.num_tokens) for q in self.running),
        )
        self._assumed(self.admission, request=view, memory=memory)
        if not self.admission.decision("admit")(view, memory):
            return None
        spare = self.admission.decision("reserve_blocks")(view)
        if idle:
            return needed + min(spare, self.free_blocks - needed)
        if self.free_blocks - needed - spare < self.engine.watermark_blocks:
            raise OverCommitted(f"request {request.sequence} was admitted into the watermark")
        return needed + spare

    def _view(self, request: Request, now_us: int) -> Waiting:
        return Waiting(
            waited_us=min(now_us - request.stamp_us, DAY_US),
            num_prompt_tokens=request.num_prompt_tokens,
            num_cached_tokens=request.num_cached_tokens,
            num_output_tokens=request.num_output_tokens,
            max_tokens=request.max_tokens,
            priority=request.priority,
            num_preemptions=request.num_preemptions,
        )

    def _engine(self) -> Engine:
        oldest = max(self.now_us - q.stamp_us for q in self.waiting)
        return Engine(
            num_waiting=len(self.waiting),
            num_running=len(self.running),
            free_blocks=self.free_blocks,
            total_blocks=self.engine.total_blocks,
            block_size=self.engine.block_size,
            max_num_seqs=self.engine.max_num_seqs,
            oldest_waited_us=min(oldest, DAY_US),
        )

    def _assumed(self, policy: Policy, **views: View) -> None:
        """What the proofs assume of views holds of the views shown."""
        for formula in policy.contract.assumptions:
            values = {param.name: views[param.name] for param in formula.params}
            if not formula.method(policy.stand_in, **values):
                raise KernelViolation(f"the kernel shows views that break `{formula.name}`: {values}")

    def _grow(self) -> bool:
        """Blocks for the next token of every running request; the last admitted is preempted while there are too few."""
        preempted = False
        while True:
            short = [q for q in self.running if self.blocks(q.num_tokens) > q.held_blocks]
            if len(short) <= self.free_blocks:
                break
            if len(self.running) == 1:
                raise OverCommitted(f"request {self.running[0].sequence} runs alone and cannot grow")
            self.preempt(self.running[-1])
            preempted = True
        for request in short:
            request.held_blocks += 1
            self.free_blocks -= 1
        return preempted

    def _release(self, request: Request) -> None:
        self.running.remove(request)
        self.free_blocks += request.held_blocks
        request.held_blocks = 0


def run_kernel(kernel: Kernel, trace: Trace, step_us: int) -> None:
    """Drive the kernel as an engine whose steps all take the same time."""
    upcoming = list(
        zip(
            trace.arrival_us.tolist(),
            trace.num_prompt_tokens.tolist(),
            trace.num_output_tokens.tolist(),
            trace.max_tokens.tolist(),
            trace.priority.tolist(),
            strict=True,
        )
    )
    while upcoming or kernel.waiting or kernel.running:
        if not (kernel.waiting or kernel.running):
            kernel.pass_time(max(0, upcoming[0][0] - kernel.now_us))
        while upcoming and upcoming[0][0] <= kernel.now_us:
            arrival_us, prompt, output, limit, priority = upcoming.pop(0)
            request = kernel.arrive(num_prompt_tokens=prompt, output_tokens=output, max_tokens=limit, priority=priority)
            if request is not None:
                request.stamp_us = request.enqueued_us = arrival_us
        if kernel.waiting or kernel.running:
            kernel.pick()
            kernel.pass_time(step_us)
            kernel.decode()


class WaitsRestart(Kernel):
    """A preemption starts the wait anew."""

    def stamp_after_preemption(self, request: Request) -> int:
        return self.now_us


class LatestWinsTies(Kernel):
    """Among equal scores the latest goes first."""

    def tie(self, request: Request) -> int:
        return -request.sequence


class ClockRunsWhileScoring(Kernel):
    """Every request is scored a millisecond after the one before it."""

    def clock_us(self, already_scored: int) -> int:
        return self.now_us + 1_000 * already_scored


@dataclass(kw_only=True)
class PassingLedger:
    """Bounded bypass, counted: who may pass each request, and who has. Independent of scores, stamps and policies."""

    bound_us: int
    """T."""
    enqueued_us: dict[int, int] = field(default_factory=dict)
    may_pass: dict[int, set[int]] = field(default_factory=dict)
    """For each request, those present at its enqueue or enqueued at most T after it."""
    passed: dict[int, set[int]] = field(default_factory=dict)
    """For each request, those first picked while it waited."""
    picked: set[int] = field(default_factory=set)

    def arrived(self, request: Request, present: Sequence[Request]) -> None:
        """`present`: everybody waiting or running, without the request."""
        new, now_us = request.sequence, request.enqueued_us
        for earlier, enqueued_us in self.enqueued_us.items():
            if now_us <= enqueued_us + self.bound_us:
                self.may_pass[earlier].add(new)
        self.enqueued_us[new] = now_us
        self.may_pass[new] = {q.sequence for q in present}
        self.passed[new] = set()

    def admitted(self, request: Request, still_waiting: Sequence[Request]) -> None:
        """Raises Starved when somebody still waiting is passed by more than may pass. A re-admission passes nobody."""
        if request.sequence in self.picked:
            return
        self.picked.add(request.sequence)
        for r in still_waiting:
            passed, may_pass = self.passed[r.sequence], self.may_pass[r.sequence]
            passed.add(request.sequence)
            # a subset, and so no more of them than the theorem's count
            if not passed <= may_pass:
                late_us = request.enqueued_us - r.enqueued_us
                raise Starved(
                    f"request {r.sequence} was passed by {request.sequence}, enqueued {late_us:,} us after it"
                )
