"""A watch over a real vLLM scheduler: every pick, admission and preemption of the engine is held against the theorems' kernel.

The watch keeps stamps, sequence numbers and admission numbers of its own, and reads everything else from the engine: which
requests there are, what their status is, and who holds which block. It sees the engine through wrappers around the engine's own
methods and around the waiting queue that the engine asks. It reads nothing that the adapter keeps.
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
from vllm.v1.request import Request, RequestStatus

from autopoiesis_lib import Policy
from autopoiesis_lib.units import DAY_US

from ..contracts.kernel import Deadlocked, KernelViolation, OverCommitted, Starved
from .vllm_bench import BLOCK_SIZE, Bench

__all__ = [
    "KNOWN_FAULTS",
    "Certified",
    "Clock",
    "KernelWatch",
    "LostRequest",
    "WrongAdmission",
    "WrongPick",
    "WrongVictim",
]

ORDERING, ADMISSION, PREEMPTION = "request-ordering", "admission", "preemption"
NOBODY: Final = -1

KNOWN_FAULTS: frozenset[str] = frozenset({"resumed-keeps-admission", "groups-counted-as-one"})
"""Faults of the adapter that the watch tolerates until they are mended; the end of a fault is to take its name out of here.

`resumed-keeps-admission`: a request that the engine resumes from `kv_holding_waiting` gets no new admission number.
`groups-counted-as-one`: with several KV-cache groups, admission counts the blocks of the first one.
"""


class WrongPick(KernelViolation):
    """The engine was shown another request than the argmax."""


class WrongAdmission(KernelViolation):
    """A request was admitted against the word of the policy, or held back against it."""


class WrongVictim(KernelViolation):
    """A request was preempted that the victim rule does not take."""


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
    resumed: bool = False
    """Whether the engine ever resumed it from `kv_holding_waiting`."""
    hints: set[int] = field(default_factory=lambda: {0})
    """Cached prompt tokens that a policy may be shown: one number, unless an unknown one is among them."""
    promised: int = 0
    """Blocks promised at admission; 0 when none are."""


@dataclass(frozen=True)
class Word:
    """An answer of the admission policy about one request, from the values that the watch read."""

    request: Request
    view: Any
    memory: Any
    admits: bool
    reserve: int
    pool_free: int


@dataclass(frozen=True)
class Pick:
    """What the engine's pick was made from: by the order of arrival, unless a policy scored."""

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
        forgiven: names in `KNOWN_FAULTS`.
    """

    def __init__(self, bench: Bench, clock: Clock, forgiven: frozenset[str] = KNOWN_FAULTS) -> None:
        self.scheduler = scheduler = bench.scheduler
        self.clock, self.forgiven = clock, forgiven
        self.counts: Counter[str] = Counter()
        self.active: dict[str, Certified | None] = {ORDERING: None, ADMISSION: None, PREEMPTION: None}
        self.offered: dict[str, Certified | None] = {}
        self.seen: dict[str, Seen] = {}
        manager = scheduler.kv_cache_manager
        self.managers = manager.coordinator.single_type_managers
        self.pool = manager.block_pool
        self.total = int(self.pool.num_gpu_blocks) - 1
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
        before = self._memory_state() if self._models_memory() and request.status == RequestStatus.RUNNING else None
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
            for one in scheduler.running:
                self.seen[one.request_id].promised = blocks_of(one.num_tokens)
        request = scheduler.waiting.inner.peek_request()
        self.peeked(request)
        view = self._waiting_view(self.seen[request.request_id], self._boundary_us)
        free = self.pool.get_num_free_blocks()
        reserved = min(self._outstanding(), free)
        memory = SimpleNamespace(
            free_blocks=free - reserved,
            total_blocks=self.total,
            watermark_blocks=self.watermark,
            num_running=running,
            reserved_blocks=reserved,
        )
        if not self._assumed(certified, request=view, memory=memory):
            self._own_admission = True
            self.counts["admission left to the engine: an assumption does not hold"] += 1
            return
        self._check_shown_views(view, memory)
        admits = bool(certified.policy.decision("admit")(view, memory))
        reserve = int(certified.policy.decision("reserve_blocks")(view))
        self._word = Word(request, view, memory, admits, reserve, free)
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
            seen.promised = blocks_of(request.num_tokens) + word.reserve
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
        self._rows: dict[int, Any] = {}
        if self.active[PREEMPTION] is not None:
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
        for one in self.scheduler.running:
            if one is not request and one.request_id not in self._running_before | known:
                seen = self.seen[one.request_id]
                self.counts["resumed by the engine"] += 1
                seen.resumed = True
                seen.admission = self._next_admission()
                self._admitted.append(seen)
        if request is None:
            return
        seen = self.seen[request.request_id]
        if request.status != RequestStatus.RUNNING:
            self.counts["skipped by the engine"] += 1
            self._skipped.add(request.request_id)
            seen.promised = 0
            return
        self._check_admission(seen)
        seen.admission = self._next_admission()
        self._admitted.append(seen)

    def _end_step(self, output: Any) -> None:
        self._settle()
        self._check_blocks()
        self._check_progress(output)
        self._check_idle()
        for contract, seat in self.seats.items():
            if seat.quarantined:
                raise KernelViolation(f"{contract}: a certified policy is in quarantine: {seat.quarantined}")
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
        check_pick(self._pick, seen, self._eligible_at_pop, self.arrivals)
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
        if not self._models_memory() or word.memory.num_running != len(self._holders()) - 1:
            return
        request, memory = seen.request, word.memory
        free = self._free_at_pop - min(self._outstanding_at_pop, self._free_at_pop)
        own = sum(len(manager.req_to_blocks[request.request_id]) for manager in self.managers)
        shared = own - (word.pool_free - self._free_at_pop)
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
        several = len(self.managers) > 1 and "groups-counted-as-one" in self.forgiven
        return self.active[ADMISSION] is not None and not several and not self._promise_late

    def _memory_state(self) -> Any:
        free = self.pool.get_num_free_blocks()
        reserved = min(self._outstanding(), free)
        holders = len(self._holders())
        return SimpleNamespace(
            free=free - reserved,
            held=self.total - free + reserved,
            reserved=reserved,
            total=self.total,
            num_running=holders,
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
        total = 0
        for seen in self.seen.values():
            if seen.promised and (seen is besides or seen.request.status == RequestStatus.RUNNING):
                held = len(self.managers[0].req_to_blocks.get(seen.request.request_id, ()))
                if held >= seen.promised:
                    seen.promised = 0
                total += max(seen.promised - held, 0)
        return total

    def _holders(self) -> set[str]:
        return {name for manager in self.managers for name, blocks in manager.req_to_blocks.items() if blocks}

    # --- victims

    def _numbers_unknown(self) -> bool:
        """Return whether the adapter's admission numbers are wrong by a known fault."""
        return "resumed-keeps-admission" in self.forgiven and any(
            self.seen[one.request_id].resumed for one in self.scheduler.running
        )

    def _check_victim(self, victim: Seen) -> None:
        self._preempted += 1
        if self._numbers_unknown() or (victim.resumed and "resumed-keeps-admission" in self.forgiven):
            self.counts["victims not checked: a request was resumed"] += 1
            return
        running = sorted([*(self.seen[one.request_id] for one in self.scheduler.running), victim], key=_admission)
        name = victim.request.request_id
        if len(running) == 1:
            if self._holders() == {name}:
                raise Deadlocked(f"{name} runs alone and is preempted")
            self.counts["the last running request gave way to paused sessions"] += 1
            return
        place = running.index(victim)
        left = tokens_left(running[0].request)
        before = SimpleNamespace(tokens_left=left, times_preempted=0, num_running=len(running))
        after = SimpleNamespace(tokens_left=left, times_preempted=int(place == 0), num_running=len(running) - 1)
        if not Progress.step(None, before, after, victim=place, computed=0) or not Progress.goal(None, after):
            raise WrongVictim(f"{name} is preempted and is the oldest of {len(running)}")
        certified = self.active[PREEMPTION]
        offered = running[1:]
        if certified is not None and not self._own_victims:
            views = {seen.sequence: self._victim_view(seen) for seen in offered}
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

    def _check_progress(self, output: Any) -> None:
        oldest = self._oldest
        if (
            self._numbers_unknown()
            or oldest is None
            or not output.total_num_scheduled_tokens
            or oldest.request.status != RequestStatus.RUNNING
        ):
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

    def _check_blocks(self) -> None:
        held: set[int] = set()
        for manager in self.managers:
            for name, blocks in manager.req_to_blocks.items():
                if blocks and name not in self.scheduler.requests:
                    raise OverCommitted(f"{name} holds blocks and is not there")
                held |= {block.block_id for block in blocks if not block.is_null}
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


def check_pick(pick: Pick, picked: Seen, waiting: list[Seen], arrivals: list[int]) -> None:
    """Hold an admission against the transition system of `BoundedBypass`, for each request that waits for its first pick."""
    certified = pick.certified
    policy = SimpleNamespace(score=lambda *views: 0) if certified is None else certified.policy.stand_in
    theorem, bound = SimpleNamespace(policy=policy), 0 if certified is None else certified.bound
    for r in waiting:
        if r.picked:
            continue
        late = bisect_right(arrivals, r.stamp_us + r.aging_us) - r.sequence
        counts = picked.sequence in r.present or r.sequence < picked.sequence <= r.sequence + late
        first = picked.sequence not in r.picked_before
        before = SimpleNamespace(
            r_stamp=r.stamp_us,
            aging=r.aging_us,
            present=len(r.present),
            late_arrivals=late,
            unpicked=len(r.present) + late - len(r.picked_before),
            picked=len(r.picked_before),
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


def check_victim(certified: Certified, victim: Seen, offered: list[Seen], views: dict[int, Any], engine: Any) -> None:
    """Hold one preemption against `BoundedDisplacement`, beside each request that was offered and kept."""
    theorem, gap = certified.theorem_self, certified.bound
    taken = views[victim.sequence]
    newcomers = [
        kept for kept in offered if kept.admission > victim.admission and views[kept.sequence].num_preemptions == 0
    ]
    for kept in offered:
        if kept is victim:
            continue
        view = views[kept.sequence]
        numbers = {"victim_admission": victim.admission, "kept_admission": kept.admission}
        if not BoundedDisplacement.victim_came_last_or_was_spared(
            theorem, victim=taken, kept=view, engine=engine, gap=gap, **numbers
        ):
            raise WrongVictim(f"{victim.request.request_id} is preempted {gap} times more often than one that is kept")
        if not BoundedDisplacement.victim_frees_memory(theorem, victim=taken, kept=view, engine=engine, **numbers):
            raise WrongVictim(f"{victim.request.request_id} is preempted and frees nothing")
        largest = max(victim.gap, gap)
        before = SimpleNamespace(gap=largest, preemptions=victim.preemptions, displaced=victim.displaced)
        after = SimpleNamespace(
            gap=largest, preemptions=victim.preemptions + 1, displaced=victim.displaced + int(kept in newcomers)
        )
        if not BoundedDisplacement.step(
            theorem,
            before,
            after,
            r=taken,
            kept=view,
            engine=engine,
            gap=gap,
            r_admission=victim.admission,
            kept_admission=kept.admission,
            by_admission=False,
        ):
            raise WrongVictim(f"the preemption of {victim.request.request_id} is no step of the model")
    victim.gap = max(victim.gap, gap)
    victim.displaced += bool(newcomers)
    if not BoundedDisplacement.goal(None, victim):
        raise WrongVictim(
            f"{victim.request.request_id} was displaced {victim.displaced} times; the gap is {victim.gap}"
        )


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
