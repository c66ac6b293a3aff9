"""A watch over a real vLLM scheduler: every pick, admission and preemption of the engine is held against the theorems' kernel.

The watch keeps stamps, sequence numbers and admission numbers of its own, and reads everything else from the engine: which
requests there are, what their status is, and who holds which block. It sees the engine through wrappers around the engine's own
methods and around the waiting queue that the engine asks. Of what the adapter keeps, it reads the counters of the events that the
proofs exclude, and compares them with its own.

vLLM's own managers count the blocks. With one KV-cache group, every admission and every growth is a step of `BlocksConserved`.
With several groups, a policy is shown the memory as the blocks that the head of the line can fill. That is no sum over requests,
so the steps of `BlocksConserved` are not evaluated there; its `inductive` and `goal` are, and so is `NoAdmissionDeadlock`, in the
blocks that are shown. For any number of groups the watch checks the pool itself: free and distinct held blocks add up to the
total, no request holds more than vLLM counts for it, what is admitted fits beside what is promised to others, and the watermark
stays free while anything runs.
"""

import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Final

from autopoiesis_contracts.admission import BlocksConserved, Memory, NoAdmissionDeadlock, Waiting
from autopoiesis_contracts.preemption import BoundedDisplacement, Progress
from autopoiesis_contracts.request_ordering import BoundedBypass
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import FCFSRequestQueue, RequestQueue
from vllm.v1.core.single_type_kv_cache_manager import SlidingWindowManager
from vllm.v1.request import Request, RequestStatus

from autopoiesis_lib import Policy
from autopoiesis_lib.units import DAY_US

from ..contracts.kernel import Deadlocked, KernelViolation, OverCommitted, Starved
from .vllm_bench import BLOCK_SIZE, Bench

__all__ = [
    "Certified",
    "Clock",
    "InQuarantine",
    "KernelWatch",
    "LostRequest",
    "WrongAdmission",
    "WrongPick",
    "WrongVictim",
]

ORDERING, ADMISSION, PREEMPTION = "request-ordering", "admission", "preemption"
NOBODY: Final = -1
NO_POLICY: Final = SimpleNamespace(policy=SimpleNamespace(score=lambda *_views: 0, victim_score=lambda *_views: 0))
"""What to pass as `self` to a theorem's method where no policy decides."""


class WrongPick(KernelViolation):
    """The engine was shown another request than the argmax."""


class WrongAdmission(KernelViolation):
    """A request was admitted against the word of the policy, or held back against it."""


class WrongVictim(KernelViolation):
    """A request was preempted that the victim rule does not take."""


class InQuarantine(KernelViolation):
    """The adapter took out a policy that is certified."""


class LostRequest(KernelViolation):
    """The waiting queue and the engine disagree on who waits."""


@dataclass(frozen=True, eq=False)
class Certified:
    """A certified policy, what an engine runs of it, and its least bound (T in microseconds, or the gap)."""

    policy: Policy
    runs: Any
    bound: int = 0

    @property
    def theorem_self(self) -> Any:
        """Return what to pass as `self` to a theorem's method."""
        return SimpleNamespace(policy=self.policy.stand_in, contract=self.policy.contract)


class Clock:
    """The engine's clock: every reading by the engine's thread takes a microsecond, and it is remembered."""

    def __init__(self) -> None:
        self.now_us = 10**13
        self.reads: list[int] = []
        self._thread = threading.get_ident()

    def __call__(self) -> int:
        if threading.get_ident() == self._thread:
            self.now_us += 1
            self.reads.append(self.now_us)
        return self.now_us * 1_000


@dataclass(eq=False)
class Seen:
    """The life of one request as the watch saw it."""

    request: Request
    sequence: int
    stamp_us: int
    present: frozenset[int]
    """Sequence numbers of the requests that waited or ran when it came."""
    admission: int = 0
    picked: bool = False
    preemptions: int = 0
    displaced: int = 0
    gap: int = 1
    """Largest gap of a policy that chose it as a victim."""
    aging_us: int = 0
    """Largest T of a policy that picked while it waited."""
    picked_before: set[int] = field(default_factory=set)
    """Sequence numbers of the requests first picked while it waited and could have been picked."""
    passed_over: set[int] = field(default_factory=set)
    """Sequence numbers of the requests picked while the engine held it back; the theorem speaks of eligible requests only."""
    hints: set[int] = field(default_factory=lambda: {0})
    """Cached prompt tokens that a policy may be shown: one number, unless an unknown one is among them."""
    promised: int = 0
    """Blocks of the pool promised at admission; 0 when none are."""


@dataclass(frozen=True)
class Word:
    """An answer of the admission policy about one request, from the values that the watch read."""

    request: Request
    view: Any
    memory: Any
    admits: bool
    reserve: int
    pool_free: int
    promised: int
    """Blocks of the pool that were promised to others and not taken yet."""


@dataclass(frozen=True)
class Pick:
    """Inputs of the engine's pick: by the order of arrival, unless a policy scored."""

    certified: Certified | None = None
    views: dict[int, list[Any]] = field(default_factory=dict)
    """By sequence number what the policy may have been shown of each waiting request."""
    engine: Any = None
    now_us: int = 0


class WatchedQueue(RequestQueue):  # type: ignore[misc]  # vLLM ships no type information
    """The queue that the engine asks: tells the watch and hands on to the adapter's."""

    def __init__(self, inner: RequestQueue, watch: "KernelWatch") -> None:
        self.inner, self.watch = inner, watch

    def add_request(self, request: Request) -> None:
        with_hint = self.watch.hinted(request)
        self.inner.add_request(request)
        self.watch.queued(request, with_hint, front=False)

    def prepend_request(self, request: Request) -> None:
        with_hint = self.watch.hinted(request)
        self.inner.prepend_request(request)
        self.watch.queued(request, with_hint, front=True)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        for request in list(requests):
            self.prepend_request(request)

    def peek_request(self) -> Request:
        request = self.inner.peek_request()
        self.watch.peeked(request)
        return request

    def pop_request(self) -> Request:
        request = self.inner.pop_request()
        self.watch.popped(request)
        return request

    def remove_request(self, request: Request) -> None:
        self.inner.remove_request(request)
        self.watch.removed([request])

    def remove_requests(self, requests: Iterable[Request]) -> None:
        requests = list(requests)
        self.inner.remove_requests(requests)
        self.watch.removed(requests)

    def __bool__(self) -> bool:
        self.watch.about_to_ask()
        answer = bool(self.inner)
        self.watch.asked()
        return answer

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[Request]:
        return iter(self.inner)


class KernelWatch:
    """Raises a `KernelViolation` as soon as the engine does what the theorems' kernel does not.

    Args:
        bench: a bench whose scheduler has the adapter.
        clock: the clock that the adapter is to read.
    """

    def __init__(self, bench: Bench, clock: Clock) -> None:
        self.scheduler = scheduler = bench.scheduler
        self.clock = clock
        self.counts: Counter[str] = Counter()
        self.active: dict[str, Certified | None] = {ORDERING: None, ADMISSION: None, PREEMPTION: None}
        self.offered: dict[str, Certified | None] = {}
        self.seen: dict[str, Seen] = {}
        manager = scheduler.kv_cache_manager
        self.managers = manager.coordinator.single_type_managers
        self.pool = manager.block_pool
        self.several = len(self.managers) > 1
        self.forgets = any(isinstance(one, SlidingWindowManager) for one in self.managers)
        """Whether a running request may give blocks back."""
        self._counted: dict[int, list[int]] = {}
        self.total = int(self.pool.num_gpu_blocks) - 1
        self.total_units = self._units(self.total)
        self.oldest_preempted = 0
        """How often the oldest lost its place under a policy: by a reset, or alone beside requests that wait and hold memory."""
        self.watermark = int(manager.watermark_blocks)
        self.limit = int(scheduler.max_num_active_reqs)
        self.mirror = FCFSRequestQueue()
        """The engine's own queue: what the built-in order would be."""
        self.sequences = self.admissions = 0
        self.arrivals: list[int] = []
        """When request 1, 2, ... came (us)."""
        self._promise_late = False
        self._in_step = self._engine_looks = False
        self._looked_up: set[str] = set()
        side = scheduler.autopoiesis
        side.watcher.stop()
        side.clock_ns = clock
        self.seats = side.seats
        self._reset_pass()
        scheduler.waiting = WatchedQueue(scheduler.waiting, self)
        self._schedule, scheduler.schedule = scheduler.schedule, self.schedule
        self._preempt, scheduler._preempt_request = scheduler._preempt_request, self.preempt
        self._look_up, manager.get_computed_blocks = manager.get_computed_blocks, self.look_up
        self._hit, scheduler._get_local_prefix_cache_hit = scheduler._get_local_prefix_cache_hit, self.local_hit
        self._allocate, manager.allocate_slots = manager.allocate_slots, self.allocate

    # --- what is done to the engine

    def offer(self, contract: str, certified: Certified | None) -> None:
        """Offer a policy, or the built-in rule; it decides from the next step on."""
        runs = certified.runs if certified is not None else None
        if contract == ADMISSION and runs is not None:
            runs = replace(runs, admit=self._recording(runs.admit))
        self.seats[contract].offer(runs, 0)
        self.offered[contract] = certified

    def _recording(self, admit: Callable[..., int]) -> Callable[..., int]:
        """Return an admission decision that remembers the last views it was shown."""

        def recorded(*values: int) -> int:
            self._shown_memory = values
            return admit(*values)

        return recorded

    def add(self, request: Request) -> None:
        """Add a request, or an update of a session that is there."""
        known = request.request_id in self.scheduler.requests
        if not known:
            self.sequences += 1
            live = frozenset(self.seen[name].sequence for name in self.scheduler.requests)
            self.seen[request.request_id] = Seen(request, self.sequences, 0, live)
        self.clock.reads.clear()
        self.scheduler.add_request(request)
        if not known:
            if not self.clock.reads:
                raise KernelViolation(f"request {request.request_id} was enqueued and the clock not read")
            self.seen[request.request_id].stamp_us = self.clock.reads[0]
            self.arrivals.append(self.clock.reads[0])

    def reset(self, *, running: bool) -> None:
        """Reset the prefix cache; with `running` everybody is preempted first."""
        if running and self.scheduler.running and self.active[PREEMPTION] is not None:
            self.oldest_preempted += 1
        self.scheduler.reset_prefix_cache(reset_running_requests=running)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Check one step of the engine."""
        self._begin_step()
        self._in_step = True
        try:
            output = self._schedule(*args, **kwargs)
        finally:
            self._in_step = False
        self._end_step(output)
        return output

    # --- what the engine tells

    def hinted(self, request: Request) -> str:
        """Forget that the prefix cache was looked up for a request; answer its name."""
        self._looked_up.discard(request.request_id)
        return str(request.request_id)

    def queued(self, request: Request, name: str, *, front: bool) -> None:
        """Note that a request has joined the queue."""
        if name in [one.request_id for one in self.mirror]:
            self.counts["queued twice by the engine"] += 1
        (self.mirror.prepend_request if front else self.mirror.add_request)(request)
        if name not in self._looked_up:
            self.seen[name].hints = {0}

    def removed(self, requests: list[Request]) -> None:
        """Note that requests left the queue without being picked."""
        self.mirror.remove_requests(requests)

    def look_up(self, request: Request) -> Any:
        """Note a look-up of the prefix cache that the engine did not ask for: it is a hint for a policy."""
        found = self._look_up(request)
        seen = self.seen.get(request.request_id)
        if not self._engine_looks and seen is not None:
            self._looked_up.add(request.request_id)
            seen.hints = {min(int(found[1]), request.num_prompt_tokens)}
        return found

    def local_hit(self, request: Request) -> Any:
        """Look up the prefix cache for the engine."""
        self._engine_looks = True
        try:
            return self._hit(request)
        finally:
            self._engine_looks = False

    def allocate(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """Hold the growth of a running request against the memory model."""
        grows = self._models_memory() and not self.several and request.status == RequestStatus.RUNNING
        before = self._memory_state() if grows else None
        blocks = self._allocate(request, *args, **kwargs)
        if before is not None and blocks is not None:
            after = self._memory_state()
            taken = before.free - after.free
            spare = before.reserved - after.reserved
            if taken >= 0 and spare >= 0:
                self._memory_step(before, after, taken, spare, "a running request grows")
            elif spare < 0 and taken == -spare:
                self._memory_step(before, after, 0, -spare, "more is set aside for running requests")
        return blocks

    def about_to_ask(self) -> None:
        """The engine is about to ask whether anybody waits."""
        self._settle()

    def asked(self) -> None:
        """The engine has asked: the admission policy had its say about the argmax."""
        self._word = None
        certified = self.active[ADMISSION]
        if certified is None or self._own_admission or not self._in_step:
            return
        scheduler = self.scheduler
        running = len(scheduler.running)
        waiting = self._eligible()
        if not waiting or running + scheduler.num_waiting_for_streaming_input >= self.limit:
            return
        if self._promise_late:  # nothing was promised to those that were admitted before the first policy
            self._promise_late = False
            for name in self._holders():
                self.seen[name].promised = self._needed(self.seen[name].request.num_tokens)
        request = scheduler.waiting.inner.peek_request()
        self.peeked(request)
        view = self._waiting_view(self.seen[request.request_id], self._boundary_us)
        pool_free = self.pool.get_num_free_blocks()
        promised = min(self._outstanding(), pool_free)
        free = self._units(pool_free - promised)
        memory = SimpleNamespace(
            free_blocks=free,
            total_blocks=self.total_units,
            watermark_blocks=free - self._units(pool_free - promised - self.watermark),
            num_running=len(self._holders() | {one.request_id for one in scheduler.running}),
            reserved_blocks=self._units(pool_free) - free,
        )
        if not self._assumed(certified, request=view, memory=memory):
            self._own_admission = True
            self.counts["admission left to the engine: an assumption does not hold"] += 1
            return
        self._check_shown_views(view, memory)
        admits = bool(certified.policy.decision("admit")(view, memory))
        reserve = int(certified.policy.decision("reserve_blocks")(view))
        self._word = Word(request, view, memory, admits, reserve, pool_free, promised)
        self._must_peek = admits
        self.counts["admission answers"] += 1
        self.counts["held back"] += not admits
        check_admission_lemmas(certified, view, memory)

    def peeked(self, request: Request) -> None:
        """The engine is shown this request: it must be the argmax of those that wait and were not skipped."""
        self._must_peek = False
        if not self._in_step:
            raise KernelViolation("the engine looks at its queue outside of a step")
        if self._pick_us is None:
            self._pick_us = next(iter(self.clock.reads[self._boundary_reads :]), self.clock.now_us)
        if self._shown is request:
            return
        self._shown = request
        self._pick = Pick()
        self.counts["picks"] += 1
        waiting = self._eligible()
        if request not in [seen.request for seen in waiting]:
            raise LostRequest(f"the engine is shown {request.request_id}, which does not wait")
        certified = self.active[ORDERING]
        for seen in waiting:
            seen.aging_us = max(seen.aging_us, certified.bound if certified is not None else 0)
        if certified is None or self._own_order:
            self._check_builtin(request)
            return
        oldest = min(waiting, key=lambda seen: (seen.stamp_us, seen.sequence))
        if self._pick_us - oldest.stamp_us > DAY_US:
            self.counts["overdue picks"] += 1
            if request is not oldest.request:
                raise WrongPick(f"{request.request_id} is picked before {oldest.request.request_id}, which is overdue")
            return
        views = {seen.sequence: self._waiting_views(seen, self._pick_us) for seen in waiting}
        engine = self._engine_view
        if engine is None:  # one snapshot for all that is scored in a pass; overdue requests are picked before it
            engine = self._engine_view = self._read_engine(self._pick_us)
            every = [view for shown in views.values() for view in shown]
            if not all(self._assumed(certified, request=view, engine=engine) for view in every):
                self._own_order = True
                self.counts["order left to the engine: an assumption does not hold"] += 1
                self._check_builtin(request)
                return
        score = certified.policy.decision("score")
        scores = {number: [int(score(view, engine)) for view in shown] for number, shown in views.items()}
        picked = self.seen[request.request_id]
        best = max(scores[picked.sequence])
        for seen in waiting:
            least = min(scores[seen.sequence])
            if seen is not picked and (least, -seen.sequence) > (best, -picked.sequence):
                raise WrongPick(
                    f"{request.request_id} (score {best}, sequence {picked.sequence}) is picked before "
                    f"{seen.request.request_id} (score {least}, sequence {seen.sequence})"
                )
        self._pick = Pick(certified, views, engine, self._pick_us)

    def popped(self, request: Request) -> None:
        """The engine takes a request out of the queue: it admits or skips it."""
        self._settle()
        if request is not self._shown:
            raise WrongPick(f"{request.request_id} leaves the queue, and was not shown")
        self.mirror.remove_request(request)
        self._eligible_at_pop = [seen for seen in self._eligible(with_popped=request) if seen.request is not request]
        self._shown, self._popped = None, request
        seen = self.seen[request.request_id]
        word = self._word
        if word is not None and word.request is request and word.admits:
            seen.promised = self._needed(request.num_tokens + word.reserve * BLOCK_SIZE)
        self._free_at_pop = self.pool.get_num_free_blocks()
        self._outstanding_at_pop = self._outstanding(besides=seen)

    def preempt(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """A running request loses its place: in a step it must be the victim that the rule takes."""
        seen = self.seen[request.request_id]
        if self._in_step:
            self.counts["preemptions"] += 1
            self._check_victim(seen)
        seen.promised = 0
        seen.preemptions += 1
        self._preempt(request, *args, **kwargs)
        if request.num_preemptions != seen.preemptions:
            raise KernelViolation(
                f"{request.request_id} was preempted {seen.preemptions} times and counts another number"
            )

    # --- one step

    def _reset_pass(self) -> None:
        self._pick_us: int | None = None
        self._engine_view: Any = None
        self._own_order = self._own_admission = self._own_victims = False
        self._skipped: set[str] = set()
        self._shown: Request | None = None
        self._popped: Request | None = None
        self._pick = Pick()
        self._word: Word | None = None
        self._must_peek = False
        self._shown_memory: tuple[int, ...] | None = None
        self._admitted: list[Seen] = []
        self._preempted = 0

    def _begin_step(self) -> None:
        self.counts["steps"] += 1
        before = self.active[ORDERING]
        admitted_freely = self.active[ADMISSION] is None
        self.active |= self.offered
        self.offered.clear()
        if self.active[ADMISSION] is None:
            self._promise_late = False
            for seen in self.seen.values():
                seen.promised = 0
        elif admitted_freely:
            self._promise_late = True
        if before is not self.active[ORDERING]:
            for seen in self.seen.values():
                seen.hints = seen.hints | {0}
        self._reset_pass()
        self.clock.reads.clear()
        self._boundary_reads = 0
        running = self.scheduler.running
        self._running_before = {request.request_id for request in running}
        self._rows = {self.seen[one.request_id].sequence: self._running_row(one) for one in running}
        self._engine_before = self._read_engine_row()
        self._oldest = min((self.seen[one.request_id] for one in running), key=_admission, default=None)
        self._left_before = tokens_left(self._oldest.request) if self._oldest is not None else 0
        self._began_engine = False
        self._free_at_pop = self._outstanding_at_pop = 0
        self._eligible_at_pop: list[Seen] = []

    @property
    def _boundary_us(self) -> int:
        """The clock at the boundary: the first reading of the step."""
        return self.clock.reads[0] if self.clock.reads else self.clock.now_us

    def _settle(self) -> None:
        """Find out what became of the request that was popped last, and of those that the engine resumed by itself."""
        if not self._began_engine and self._in_step:
            # the engine has left its running requests behind and comes to those that wait
            self._began_engine = True
            self._boundary_reads = len(self.clock.reads)
        if self._must_peek:
            self._must_peek = False
            raise WrongAdmission("the policy admits the head of the line, and the engine does not look at it")
        request, self._popped = self._popped, None
        known = {seen.request.request_id for seen in self._admitted}
        for one in self.scheduler.running:  # vLLM appends those that enter, wherever they waited
            if one.request_id in self._running_before | known:
                continue
            seen = self.seen[one.request_id]
            if one is request:
                self._check_admission(seen)
            else:
                self.counts["resumed by the engine"] += 1
            seen.admission = self._next_admission()
            self._admitted.append(seen)
        if request is not None and request.status != RequestStatus.RUNNING:
            self.counts["skipped by the engine"] += 1
            self._skipped.add(request.request_id)
            self.seen[request.request_id].promised = 0

    def _end_step(self, output: Any) -> None:
        self._settle()
        self._check_blocks()
        self._check_progress(output)
        self._check_idle()
        self._check_counters()
        for contract, seat in self.seats.items():
            if seat.quarantined:
                raise InQuarantine(f"{contract}: a certified policy is in quarantine: {seat.quarantined}")
        self.seen = {name: seen for name, seen in self.seen.items() if name in self.scheduler.requests}

    def _next_admission(self) -> int:
        self.admissions += 1
        return self.admissions

    # --- admission

    def _check_admission(self, seen: Seen) -> None:
        request = seen.request
        self.counts["admissions"] += 1
        beside = len(self.scheduler.running) > 1
        if beside and self._free_at_pop < self.watermark:
            raise OverCommitted(
                f"{request.request_id} is admitted and leaves {self._free_at_pop} of {self.watermark} blocks"
            )
        certified = self.active[ADMISSION]
        if certified is not None and not self._own_admission:
            word = self._word
            if word is None or word.request is not request:
                raise WrongAdmission(f"{request.request_id} is admitted and the policy was not asked about it")
            if not word.admits:
                raise WrongAdmission(f"{request.request_id} is admitted though the policy says no")
            self._check_admission_step(certified, seen, word)
        self.counts["first picks"] += not seen.picked
        self.counts["picks by arrival that follow what the engine held back"] += check_pick(
            self._pick, seen, self._eligible_at_pop, self.arrivals
        )
        for other in self.seen.values():
            if not other.picked and other is not seen and other not in self._eligible_at_pop:
                other.passed_over.add(seen.sequence)
        seen.picked = True

    def _check_shown_views(self, view: Any, memory: Any) -> None:
        shown, self._shown_memory = self._shown_memory, None
        if shown is None:
            raise WrongAdmission("the policy was not asked about the head of the line")
        names = [spec.name for model in (Waiting, Memory) for spec in model.fields()]
        true = vars(view) | vars(memory)
        for name, value in zip(names, shown, strict=True):
            if name != "num_cached_tokens" and value != true[name]:  # that one is a hint
                raise WrongAdmission(f"the admission policy is shown {name} = {value}; it is {true[name]}")

    def _check_admission_step(self, certified: Certified, seen: Seen, word: Word) -> None:
        request, memory = seen.request, word.memory
        beside = memory.num_running > 0
        fits_in = word.pool_free - word.promised - self.watermark if beside else self.total
        needed = self._needed(request.num_tokens + (word.reserve * BLOCK_SIZE if beside else 0))
        if needed > fits_in:
            raise OverCommitted(f"{request.request_id} is admitted with {needed} blocks, and {fits_in} may be taken")
        left = self._free_at_pop - self._outstanding_at_pop
        if beside and left < self.watermark:
            raise OverCommitted(
                f"{request.request_id} is admitted and leaves {left} of {self.watermark} blocks unpromised"
            )
        self.counts["memory checks"] += 1
        if self.several:
            return
        free = self._free_at_pop - min(self._outstanding_at_pop, self._free_at_pop)
        shared = self._held(request.request_id) - (word.pool_free - self._free_at_pop)
        blocks = blocks_of(request.num_tokens) - shared
        spare = memory.free_blocks - free - blocks
        before = SimpleNamespace(
            free=memory.free_blocks,
            held=self.total - memory.free_blocks,
            reserved=memory.reserved_blocks,
            total=self.total,
            num_running=memory.num_running,
        )
        after = SimpleNamespace(
            free=free,
            held=self.total - free,
            reserved=before.reserved + spare,
            total=self.total,
            num_running=memory.num_running + 1,
        )
        self.counts["memory steps"] += 1
        if not BlocksConserved.step(
            certified.theorem_self, before, after, request=word.view, memory=memory, blocks=blocks, spare=spare
        ):
            raise OverCommitted(f"the admission of {request.request_id} is no step of the model: {before} -> {after}")

    def _models_memory(self) -> bool:
        return self.active[ADMISSION] is not None and not self._promise_late

    def _memory_state(self) -> Any:
        """Return the state of `BlocksConserved`, in the blocks that a policy is shown."""
        pool_free = self.pool.get_num_free_blocks()
        free = self._units(pool_free - min(self._outstanding(), pool_free))
        return SimpleNamespace(
            free=free,
            held=self.total_units - free,
            reserved=self._units(pool_free) - free,
            total=self.total_units,
            num_running=len(self._holders()),
        )

    def _memory_step(self, before: Any, after: Any, blocks: int, spare: int, what: str) -> None:
        certified = self.active[ADMISSION]
        assert certified is not None
        memory = SimpleNamespace(free_blocks=0, total_blocks=0, watermark_blocks=0, num_running=0, reserved_blocks=0)
        request = waiting_view(0, 1, 0, 0, 1, 0, 0)
        self.counts["memory steps"] += 1
        if not BlocksConserved.step(
            certified.theorem_self, before, after, request=request, memory=memory, blocks=blocks, spare=spare
        ):
            raise OverCommitted(f"{what}, and this is no step of the model: {before} -> {after}")

    def _outstanding(self, besides: Seen | None = None) -> int:
        """Return the blocks that are promised to requests that hold memory, and are not taken by them yet."""
        total, holders = 0, self._holders()
        for name, seen in self.seen.items():
            if not seen.promised or not (seen is besides or name in holders):
                continue
            held = self._held(name)
            if held >= seen.promised and not self.forgets:
                seen.promised = 0
            total += max(seen.promised - held, 0)
        return total

    def _holders(self) -> set[str]:
        return {name for manager in self.managers for name, blocks in manager.req_to_blocks.items() if blocks}

    def _held(self, name: str) -> int:
        """Return the blocks of the pool in a request's tables."""
        return sum(not block.is_null for manager in self.managers for block in manager.req_to_blocks.get(name, ()))

    def _needed_by_group(self, tokens: int) -> list[int]:
        """Return vLLM's own count, group by group, of the blocks for a request of so many tokens of which none is cached."""
        if tokens not in self._counted:
            self._counted[tokens] = [
                int(
                    manager.get_num_blocks_to_allocate(
                        request_id="",
                        num_tokens=tokens,
                        new_computed_blocks=(),
                        total_computed_tokens=0,
                        num_local_computed_tokens=0,
                        num_tokens_main_model=tokens,
                        apply_admission_cap=True,
                    )
                )
                for manager in self.managers
            ]
        return self._counted[tokens]

    def _needed(self, tokens: int) -> int:
        return sum(self._needed_by_group(tokens))

    def _units(self, blocks: int) -> int:
        """Return the most blocks of the engine's block size that one request can fill in so many blocks of the pool.

        A negative count, of blocks that are lacking, stays as it is.
        """
        units = min(blocks, 0)
        while units < blocks and self._needed((units + 1) * BLOCK_SIZE) <= blocks:
            units += 1
        return units

    # --- victims

    def _check_victim(self, victim: Seen) -> None:
        self._preempted += 1
        running = sorted([*(self.seen[one.request_id] for one in self.scheduler.running), victim], key=_admission)
        name = victim.request.request_id
        if len(running) == 1:
            if self._holders() == {name}:
                raise Deadlocked(f"{name} runs alone and is preempted")
            self.counts["the last running request gave way to those that wait and hold memory"] += 1
            self.oldest_preempted += self.active[PREEMPTION] is not None
            return
        place = running.index(victim)
        left = tokens_left(running[0].request)
        before = SimpleNamespace(tokens_left=left, times_preempted=0, num_running=len(running))
        after = SimpleNamespace(tokens_left=left, times_preempted=int(place == 0), num_running=len(running) - 1)
        if not Progress.step(None, before, after, victim=place, computed=0) or not Progress.goal(None, after):
            raise WrongVictim(f"{name} is preempted and is the oldest of {len(running)}")
        certified = self.active[PREEMPTION]
        offered = running[1:]
        views = {seen.sequence: self._victim_view(seen) for seen in offered}
        if certified is not None and not self._own_victims:
            engine = SimpleNamespace(**self._engine_before, oldest_waited_us=self._oldest_waited(self._boundary_us))
            if all(self._assumed(certified, running=view, engine=engine) for view in views.values()):
                score = certified.policy.decision("victim_score")
                scores = {number: int(score(view, engine)) for number, view in views.items()}
                expected = max(offered, key=lambda seen: (scores[seen.sequence], seen.admission))
                if expected is not victim:
                    raise WrongVictim(
                        f"{name} (score {scores[victim.sequence]}, admission {victim.admission}) is preempted, not "
                        f"{expected.request.request_id} (score {scores[expected.sequence]}, admission {expected.admission})"
                    )
                check_victim(certified, victim, offered, views, engine)
                self.counts["victims by policy"] += 1
                return
            self._own_victims = True
            self.counts["victims left to the engine: an assumption does not hold"] += 1
        expected = max(offered, key=_admission)
        if expected is not victim:
            raise WrongVictim(f"{name} is preempted, and {expected.request.request_id} was admitted later")
        check_victim(None, victim, offered, views, None)
        self.counts["victims by admission"] += 1

    def _check_progress(self, output: Any) -> None:
        oldest = self._oldest
        if oldest is None or not output.total_num_scheduled_tokens or oldest.request.status != RequestStatus.RUNNING:
            return
        computed = output.num_scheduled_tokens.get(oldest.request.request_id, 0)
        if self._left_before <= 0 and not computed:
            return  # its last token is on its way
        before = SimpleNamespace(tokens_left=self._left_before, times_preempted=0, num_running=1)
        after = SimpleNamespace(tokens_left=self._left_before - computed, times_preempted=0, num_running=1)
        self.counts["steps of the oldest"] += 1
        if not Progress.step(None, before, after, victim=NOBODY, computed=computed):
            raise KernelViolation(
                f"the oldest, {oldest.request.request_id}, computes {computed} of {self._left_before} tokens"
            )

    def _check_idle(self) -> None:
        scheduler = self.scheduler
        if scheduler.running or self._preempted or scheduler.pause_state != PauseState.UNPAUSED or self._holders():
            return
        waiting = [seen.request.request_id for seen in self._eligible()]
        if waiting and not scheduler.num_waiting_for_streaming_input:
            raise Deadlocked(f"{waiting} wait, nothing runs, and nobody is admitted")

    def _check_counters(self) -> None:
        """What the proofs exclude is counted by the adapter, neither more nor less."""
        counters = self.seats[PREEMPTION].counters
        if counters["oldest_preempted"] != self.oldest_preempted or counters["oldest_idle"]:
            raise KernelViolation(
                f"the oldest was preempted {self.oldest_preempted} times; the adapter counts {counters}"
            )

    def _check_blocks(self) -> None:
        held: set[int] = set()
        for group, manager in enumerate(self.managers):
            for name, blocks in manager.req_to_blocks.items():
                if blocks and name not in self.scheduler.requests:
                    raise OverCommitted(f"{name} holds blocks and is not there")
                own = {block.block_id for block in blocks if not block.is_null}
                request = self.scheduler.requests.get(name)
                tokens = max(request.num_tokens, request.num_computed_tokens) if blocks else 0
                if blocks and len(own) > self._needed_by_group(tokens)[group]:
                    raise OverCommitted(f"{name} holds {len(own)} blocks of group {group} with {tokens} tokens")
                held |= own
        free = self.pool.get_num_free_blocks()
        if free < 0 or free + len(held) != self.total:
            raise OverCommitted(f"{free} free and {len(held)} held blocks are not {self.total}")
        if self._models_memory():
            state = self._memory_state()
            if not (BlocksConserved.inductive(None, state) and BlocksConserved.goal(None, state)):
                raise OverCommitted(f"the memory is in no state of the model: {state}")

    # --- what the engine is

    def _eligible(self, with_popped: Request | None = None) -> list[Seen]:
        """Requests that wait in the queue and were not skipped in this pass, in the order of their arrival."""
        scheduler = self.scheduler
        running = {one.request_id for one in scheduler.running}
        found = []
        for name, request in scheduler.requests.items():
            if request is with_popped or request is self._popped or name in running or name in self._skipped:
                continue
            if request.is_finished() or request.status == RequestStatus.RUNNING or scheduler._holds_kv_blocks(request):
                continue
            if request.status == RequestStatus.WAITING_FOR_STREAMING_REQ:
                continue
            found.append(self.seen[name])
        return found

    def _check_builtin(self, request: Request) -> None:
        first = self.mirror.peek_request()
        if first is not request:
            raise WrongPick(f"{request.request_id} is picked, and the engine's own order has {first.request_id} first")

    def _oldest_waited(self, now_us: int) -> int:
        return now_us - min((seen.stamp_us for seen in self._eligible()), default=now_us)

    def _read_engine_row(self) -> dict[str, int]:
        scheduler = self.scheduler
        return {
            "num_waiting": len(self._eligible()),
            "num_running": len(scheduler.running),
            "free_blocks": self.pool.get_num_free_blocks(),
            "total_blocks": self.total,
            "block_size": BLOCK_SIZE,
            "max_num_seqs": int(scheduler.max_num_running_reqs),
        }

    def _read_engine(self, now_us: int) -> Any:
        return SimpleNamespace(**self._read_engine_row(), oldest_waited_us=self._oldest_waited(now_us))

    def _waiting_views(self, seen: Seen, now_us: int) -> list[Any]:
        request = seen.request
        return [
            waiting_view(
                now_us - seen.stamp_us,
                request.num_prompt_tokens,
                hint,
                request.num_output_tokens,
                request.max_tokens,
                priority_of(request),
                request.num_preemptions,
            )
            for hint in sorted(seen.hints)
        ]

    def _waiting_view(self, seen: Seen, now_us: int) -> Any:
        return self._waiting_views(seen, now_us)[-1]

    def _running_row(self, request: Request) -> dict[str, int]:
        held = [block for manager in self.managers for block in manager.req_to_blocks.get(request.request_id, ())]
        return {
            "num_prompt_tokens": request.num_prompt_tokens,
            "num_computed_tokens": max(request.num_computed_tokens - request.num_output_placeholders, 0),
            "num_output_tokens": request.num_output_tokens,
            "max_tokens": request.max_tokens,
            "priority": priority_of(request),
            "num_preemptions": request.num_preemptions,
            "num_blocks": len({block.block_id for block in held if not block.is_null and block.ref_cnt == 1}),
        }

    def _victim_view(self, seen: Seen) -> Any:
        return SimpleNamespace(waited_us=self._boundary_us - seen.stamp_us, **self._rows[seen.sequence])

    def _assumed(self, certified: Certified, **views: Any) -> bool:
        """Return whether what the proofs take for granted of these views is so: domains and assumptions."""
        contract = certified.policy.contract
        for decision in contract.decisions.values():
            for param in decision.params:
                view = views.get(param.name)
                if view is None:
                    continue
                for spec in contract.views[param.type].fields():
                    if not spec.domain.lo <= getattr(view, spec.name) <= spec.domain.hi:
                        return False
        return all(
            formula.method(certified.policy.stand_in, **{param.name: views[param.name] for param in formula.params})
            for formula in contract.assumptions
        )


# --- the text that is proved, evaluated on what was observed


def check_pick(pick: Pick, picked: Seen, waiting: list[Seen], arrivals: list[int]) -> int:
    """Hold an admission against the transition system of `BoundedBypass`, for each request that waits for its first pick.

    Return for how many it was not a step, because the engine held r back when the request was first picked, and the request was
    preempted and came back since.
    """
    uncovered = 0
    certified = pick.certified
    theorem, bound = (NO_POLICY, 0) if certified is None else (certified.theorem_self, certified.bound)
    for r in waiting:
        if r.picked:
            continue
        late = bisect_right(arrivals, r.stamp_us + r.aging_us) - r.sequence
        counted = r.present | set(range(r.sequence + 1, r.sequence + late + 1))
        earlier = (r.picked_before | r.passed_over) & counted
        counts = picked.sequence in counted
        if certified is None and not counts and picked.sequence in r.passed_over:
            uncovered += 1
            continue
        first = picked.sequence not in earlier
        before = SimpleNamespace(
            r_stamp=r.stamp_us,
            aging=r.aging_us,
            present=len(r.present),
            late_arrivals=late,
            unpicked=len(counted) - len(earlier),
            picked=len(earlier),
            outside=0,
        )
        after = SimpleNamespace(
            **{
                **vars(before),
                "unpicked": before.unpicked - int(counts and first),
                "picked": before.picked + int(counts and first),
                "outside": int(not counts),
            }
        )
        nobody = [waiting_view(0, 1, 0, 0, 1, 0, 0)]
        follows = any(
            BoundedBypass.step(
                theorem,
                before,
                after,
                picked=one,
                r=other,
                engine=pick.engine,
                aging=bound,
                now=pick.now_us,
                stamp=picked.stamp_us,
                picked_is_earlier=picked.sequence < r.sequence,
                first=first,
                by_arrival=certified is None,
            )
            for one in pick.views.get(picked.sequence, nobody)
            for other in pick.views.get(r.sequence, nobody)
        )
        if not (follows and BoundedBypass.inductive(None, after) and BoundedBypass.goal(None, after)):
            younger = picked.stamp_us - r.stamp_us
            raise Starved(f"{picked.request.request_id}, {younger} us younger, is picked before {r.request.request_id}")
        r.picked_before.add(picked.sequence)
    return uncovered


def check_admission_lemmas(certified: Certified, view: Any, memory: Any) -> None:
    """Hold an answer of the admission policy against `NoAdmissionDeadlock`."""
    theorem, blocks = certified.theorem_self, blocks_of(view.num_prompt_tokens + view.num_output_tokens)
    if not NoAdmissionDeadlock.idle_engine_admits(theorem, view, memory, blocks):
        raise Deadlocked("an idle engine does not admit what fits")
    if not NoAdmissionDeadlock.watermark_survives(theorem, view, memory, blocks):
        raise OverCommitted("an admission does not leave the watermark")
    at_end = blocks_of(view.num_prompt_tokens + view.max_tokens)
    if not NoAdmissionDeadlock.reservation_can_be_used(theorem, view, at_end, blocks):
        raise OverCommitted("more is reserved than can be used")


def check_victim(
    certified: Certified | None, victim: Seen, offered: list[Seen], views: dict[int, Any], engine: Any
) -> None:
    """Hold one preemption against `BoundedDisplacement`, beside each request that was offered and kept.

    Without a policy (`certified` is None) the victim is the latest admitted, as in a fall-back step.
    """
    name = victim.request.request_id
    theorem, gap = (NO_POLICY, 1) if certified is None else (certified.theorem_self, certified.bound)
    largest = max(victim.gap, gap)
    displaced = victim.displaced
    for kept in offered:
        if kept is victim:
            continue
        views_of_both = {"kept": views[kept.sequence], "engine": engine}
        numbers = {"victim_admission": victim.admission, "kept_admission": kept.admission}
        if certified is not None:
            lemmas = {"victim": views[victim.sequence], **views_of_both, **numbers}
            if not BoundedDisplacement.victim_came_last_or_was_spared(theorem, gap=gap, **lemmas):
                raise WrongVictim(f"{name} is preempted {gap} times more often than one that is kept")
            if not BoundedDisplacement.victim_frees_memory(theorem, **lemmas):
                raise WrongVictim(f"{name} is preempted and frees nothing")
        newcomer = kept.admission > victim.admission and not kept.request.num_preemptions
        displaced = max(displaced, victim.displaced + newcomer)
        before = SimpleNamespace(gap=largest, preemptions=victim.preemptions, displaced=victim.displaced)
        after = SimpleNamespace(gap=largest, preemptions=victim.preemptions + 1, displaced=victim.displaced + newcomer)
        if not BoundedDisplacement.step(
            theorem,
            before,
            after,
            r=views[victim.sequence],
            gap=gap,
            r_admission=victim.admission,
            kept_admission=kept.admission,
            by_admission=certified is None,
            **views_of_both,
        ):
            raise WrongVictim(f"the preemption of {name} is no step of the model")
        if not (BoundedDisplacement.inductive(None, after) and BoundedDisplacement.goal(None, after)):
            raise WrongVictim(f"{name} was displaced {after.displaced} times by newcomers; the gap is {largest}")
    victim.gap, victim.displaced = largest, displaced


def waiting_view(
    waited_us: int, prompt: int, cached: int, output: int, max_tokens: int, priority: int, preemptions: int
) -> Any:
    """Return a view of a waiting request."""
    return SimpleNamespace(
        waited_us=waited_us,
        num_prompt_tokens=prompt,
        num_cached_tokens=cached,
        num_output_tokens=output,
        max_tokens=max_tokens,
        priority=priority,
        num_preemptions=preemptions,
    )


def priority_of(request: Request) -> int:
    """Return the contract's priority: vLLM's p maps to clamp(8 - p, 0, 15)."""
    return max(0, min(15, 8 - request.priority))


def blocks_of(tokens: int) -> int:
    """Return the blocks that so many tokens fill."""
    return -(-tokens // BLOCK_SIZE)


def tokens_left(request: Request) -> int:
    """Return the tokens that a request has still to compute: the last one it generates is never computed."""
    return int(request.num_prompt_tokens + request.max_tokens - 1 - request.num_computed_tokens)


def _admission(seen: Seen) -> int:
    return seen.admission
