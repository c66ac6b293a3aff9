"""A second implementation of the engine model, in plain Python and one step at a time, for comparison with the kernel.

The compiled kernel must agree with it exactly. It is written for reading, not for speed (about 10,000 steps per
second): objects instead of columns, lists instead of linked nodes, Python integers for time, and no jump over steps. It
shares only the definitions of the slots with the kernel.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from autopoiesis_lib.simulation.calibration import EngineConfig, StepTimeModel
from autopoiesis_lib.simulation.engine import Fleet, SimulationError
from autopoiesis_lib.simulation.trace import Trace

__all__ = ["ReferenceRequest", "ReferenceRun", "reference_simulate"]

_DAY_US: Final = 86_400_000_000
_FS_PER_US: Final = 1_000_000_000
_FS_PER_NS: Final = 1_000_000
Policy = Callable[..., int]
Policies = Mapping[str, Policy]


@dataclass(eq=False)
class ReferenceRequest:
    """One request and its history. Times are in ns, and -1 until the event happens."""

    index: int
    arrival_us: int
    prompt: int
    output: int
    max_tokens: int
    priority: int
    prefix: list[int]
    generated: int = 0
    decoding: bool = False
    """True if the prefill is complete. Each step that includes the request then gives one token."""
    computed: int = 0
    target: int = 0
    private: int = 0
    """Number of held blocks that no other request shares."""
    pinned: list[int] = field(default_factory=list)
    published: int = 0
    duplicated: bool = False
    cached_hint: int = 0
    preemptions: int = 0
    recomputed: int = 0
    cached: int = 0
    scheduled_ns: int = -1
    first_token_ns: int = -1
    finish_ns: int = -1
    replica: int = -1

    @property
    def tokens(self) -> int:
        return self.prompt + self.generated


@dataclass(frozen=True, eq=False, kw_only=True)
class ReferenceRun:
    """The requests in order of arrival, and the decisions: (time in ns, replica, kind, request index)."""

    requests: tuple[ReferenceRequest, ...]
    decisions: tuple[tuple[int, int, str, int], ...]
    steps: int


def reference_simulate(
    trace: Trace,
    engine: EngineConfig,
    step_time: StepTimeModel,
    policies: Policies | None = None,
    *,
    fleet: Fleet | None = None,
) -> ReferenceRun:
    """Serve `trace` as `simulate` does, without autoscaling. Policies are plain callables of the slot's layout.

    Raises:
        SimulationError: a block is lost or held twice after a step, or requests wait that no replica can serve.
    """
    fleet = fleet or Fleet()
    policies = policies or {}
    world = _World(trace, engine, step_time, policies)
    replicas = [_Replica(r, world) for r in range(fleet.replicas)]
    orphans: list[ReferenceRequest] = []
    events: list[tuple[int, int, int]] = []
    for outage in fleet.outages:
        events.append((round(outage.start_s * 1e9) * _FS_PER_NS, outage.replica, 1))
        if outage.end_s is not None:
            events.append((round(outage.end_s * 1e9) * _FS_PER_NS, outage.replica, 0))
    events.sort()
    arrivals = list(world.requests)
    while arrivals or events:
        now = min([a.arrival_us * _FS_PER_US for a in arrivals[:1]] + [e[0] for e in events[:1]])
        for replica in replicas:
            if replica.alive:
                replica.advance(now)
        while events and events[0][0] <= now:
            _, index, lost = events.pop(0)
            if lost and replicas[index].alive:
                orphans.extend(replicas[index].lose(now))
            elif not lost and not replicas[index].alive:
                replicas[index].alive = True
                replicas[index].now = now
        for request in sorted(orphans, key=lambda q: q.index):
            if any(r.alive for r in replicas):
                orphans.remove(request)
                world.route(replicas, request).enqueue(request, now)
        while arrivals and arrivals[0].arrival_us * _FS_PER_US <= now:
            request = arrivals.pop(0)
            if -(-(request.prompt + request.output - 1) // engine.block_size) > engine.total_blocks:
                continue
            if any(r.alive for r in replicas):
                world.route(replicas, request).enqueue(request, now)
            else:
                orphans.append(request)
    for replica in replicas:
        if replica.alive:
            replica.advance(None)
    if orphans:
        raise SimulationError("requests are waiting and no replica comes back")
    decisions = tuple(d for replica in replicas for d in replica.decisions)
    return ReferenceRun(
        requests=tuple(world.requests), decisions=decisions, steps=sum(replica.steps for replica in replicas)
    )


class _World:
    """The state that all replicas share: the requests, the engine's limits and the policies."""

    def __init__(self, trace: Trace, engine: EngineConfig, step_time: StepTimeModel, policies: Policies) -> None:
        self.engine = engine
        self.costs = step_time.femtoseconds()
        self.policies = policies
        prefixes = trace.prefixes if engine.enable_prefix_caching else None
        self.hash_tokens = prefixes.block_tokens if prefixes else engine.block_size
        self.hash_weight = self.hash_tokens // engine.block_size
        self.has_prefixes = prefixes is not None and len(prefixes.ids) > 0
        self.requests = []
        for i in range(len(trace)):
            prefix = [] if prefixes is None else prefixes.ids[prefixes.ptr[i] : prefixes.ptr[i + 1]].tolist()
            prompt = int(trace.num_prompt_tokens[i])
            self.requests.append(
                ReferenceRequest(
                    index=i,
                    arrival_us=int(trace.arrival_us[i]),
                    prompt=prompt,
                    output=int(trace.num_output_tokens[i]),
                    max_tokens=int(trace.max_tokens[i]),
                    priority=int(trace.priority[i]),
                    prefix=prefix[: prompt // self.hash_tokens],
                )
            )

    def route(self, replicas: list["_Replica"], request: ReferenceRequest) -> "_Replica":
        alive = [r for r in replicas if r.alive]
        policy = self.policies.get("routing")
        if len(replicas) == 1:
            return alive[0]
        if policy is None:
            return min(alive, key=lambda r: (4 * len(r.waiting) + len(r.running), r.index))

        def score(r: _Replica) -> int:
            return policy(
                request.prompt,
                request.max_tokens,
                request.priority,
                r.index,
                len(r.waiting),
                len(r.running),
                r.free,
                self.engine.total_blocks,
                self.engine.max_num_seqs,
                sum(q.prompt for q in r.waiting),
                r.hits(request) * self.hash_tokens,
            )

        return max(alive, key=score)  # the first of equals: the lowest index


class _Replica:
    """One engine.

    `remains` is the free queue: free blocks that still hold content, oldest first.
    """

    def __init__(self, index: int, world: _World) -> None:
        self.index, self.world, self.engine = index, world, world.engine
        self.alive = True
        self.now = 0
        self.end: int | None = None
        self.waiting: list[ReferenceRequest] = []
        self.running: list[ReferenceRequest] = []
        self.in_step: list[ReferenceRequest] = []
        self.step_view: tuple[int, ...] = ()
        self.decisions: list[tuple[int, int, str, int]] = []
        self.steps = 0
        self._cold()

    def _cold(self) -> None:
        self.unused = self.engine.total_blocks
        self.remains: dict[tuple[str, int], int] = {}
        self.pins: dict[int, int] = {}
        self.history: dict[int, tuple[int, int, int]] = {}
        """Hash -> (last use in us, hits, depth)."""
        self.left_us: dict[int, int] = {}

    @property
    def free(self) -> int:
        return self.unused + sum(self.remains.values())

    @property
    def reserved(self) -> int:
        return sum(self._spare(q) for q in self.running)

    def _spare(self, q: ReferenceRequest) -> int:
        used = q.computed + (q in self.in_step) if q.decoding else q.target
        return q.private + self.world.hash_weight * len(q.pinned) - -(-used // self.engine.block_size)

    # --- time -----

    def advance(self, until: int | None) -> None:
        """Finish steps that end by `until` (in fs; None: no limit), and schedule those that start before it."""
        while True:
            if self.end is not None:
                if until is not None and self.end > until:
                    return
                self.now, self.end = self.end, None
                self._finish_step()
                self._check()
            if (until is not None and self.now >= until) or not (self.running or self.waiting):
                return
            self._schedule()

    def enqueue(self, q: ReferenceRequest, now: int) -> None:
        if self.end is None and self.now < now:
            self.now = now
        q.replica = self.index
        if self.world.has_prefixes:
            q.cached_hint = self.hits(q) * self.world.hash_tokens
        self.waiting.append(q)
        self.waiting.sort(key=lambda w: w.index)

    def lose(self, now: int) -> list[ReferenceRequest]:
        while self.running:
            self._preempt(self.running[-1])
        orphans, self.waiting = self.waiting, []
        self.alive, self.end, self.now, self.in_step = False, None, max(now, self.now), []
        self._cold()
        return orphans

    # --- one step -----

    def _schedule(self) -> None:
        policies, size = self.world.policies, self.engine.block_size
        self.step_view = self._engine_view()
        preempted = False

        def growing() -> list[ReferenceRequest]:
            decodes = (q for q in self.running if q.decoding)
            return [q for q in decodes if q.computed == (q.private + self.world.hash_weight * len(q.pinned)) * size]

        while len(growing()) > self.free:
            self._preempt(self._victim())
            preempted = True
        for q in growing():
            self._take(1)
            q.private += 1
        decodes = [q for q in self.running if q.decoding]
        view = self._engine_view()
        budget = self.engine.max_num_batched_tokens
        if "token_budget" in policies:
            budget = max(1, min(budget, policies["token_budget"](*view)))
        budget -= len(decodes)
        if not decodes:
            budget = max(budget, 1)
        costs = self.world.costs
        # the fitted model of a step: see StepTimeModel
        duration = costs[0] + costs[2] * len(decodes) + costs[3] * sum(q.computed for q in decodes)
        prefill, tokens = 0, 0
        self.in_step = decodes
        for q in [q for q in self.running if not q.decoding]:
            if budget <= 0:
                break
            done, chunk = q.computed, self._chunk(q, budget, view)
            prefill += costs[1] * chunk + costs[4] * chunk * (2 * done + chunk)
            tokens, budget = tokens + chunk, budget - chunk
        scores: dict[int, int] | None = None
        now_us = self.now // _FS_PER_US
        while not preempted and budget > 0 and self.waiting and len(self.running) < self.engine.max_num_seqs:
            head = self.waiting[0]
            if "ordering" in policies and now_us - head.arrival_us <= _DAY_US:
                if scores is None:
                    scores = {
                        q.index: policies["ordering"](*self._waiting_view(q), *view)
                        for q in self.waiting
                        if now_us - q.arrival_us <= _DAY_US
                    }
                known = scores
                head = max(self.waiting, key=lambda q: known[q.index])
            if not self._admit(head):
                break
            done, chunk = head.computed, self._chunk(head, budget, view)
            prefill += costs[1] * chunk + costs[4] * chunk * (2 * done + chunk)
            tokens, budget = tokens + chunk, budget - chunk
        if not decodes and not tokens:
            raise SimulationError(f"replica {self.index} has work and cannot run any of it")
        self.end = self.now + duration + (max(costs[5], prefill) if tokens else 0)
        self.steps += 1

    def _chunk(self, q: ReferenceRequest, budget: int, view: tuple[int, ...]) -> int:
        chunk = min(q.target - q.computed, budget)
        if self.engine.long_prefill_token_threshold:
            chunk = min(chunk, self.engine.long_prefill_token_threshold)
        if "prefill_chunk" in self.world.policies:
            chunk = min(chunk, max(1, self.world.policies["prefill_chunk"](*self._waiting_view(q), *view)))
        q.computed += chunk
        while q.published < min(len(q.prefix), q.computed // self.world.hash_tokens):
            block = q.prefix[q.published]
            if block in self.pins:
                q.duplicated = True
            else:
                self.pins[block] = 1
                self.history[block] = (0, 0, q.published)
                q.pinned.append(block)
                q.private -= self.world.hash_weight
            q.published += 1
        return chunk

    def _finish_step(self) -> None:
        now_ns = self.now // _FS_PER_NS
        for q in self.in_step:
            q.computed += 1
            q.generated += 1
        for q in self.running:
            if not q.decoding and q.computed == q.target:
                q.decoding = True
                q.generated += 1
                if q.first_token_ns < 0:
                    q.first_token_ns = now_ns
        self.in_step = []
        for q in [q for q in self.running if q.decoding and q.generated == q.output]:
            q.finish_ns = now_ns
            self.running.remove(q)
            self._give_back(q, finished=True)

    # --- decisions -----

    def _waiting_view(self, q: ReferenceRequest) -> tuple[int, ...]:
        waited = min(self.now // _FS_PER_US - q.arrival_us, _DAY_US)
        return (waited, q.prompt, q.cached_hint, q.generated, q.max_tokens, q.priority, q.preemptions)

    def _engine_view(self) -> tuple[int, ...]:
        oldest = self.now // _FS_PER_US - self.waiting[0].arrival_us if self.waiting else 0
        e = self.engine
        return (
            len(self.waiting),
            len(self.running),
            self.free,
            e.total_blocks,
            e.block_size,
            e.max_num_seqs,
            min(oldest, _DAY_US),
        )

    def _victim(self) -> ReferenceRequest:
        policy = self.world.policies.get("victim")
        if policy is None:
            return self.running[-1]
        view = self._engine_view()

        def score(q: ReferenceRequest) -> int:
            waited = min(self.now // _FS_PER_US - q.arrival_us, _DAY_US)
            mine = (waited, q.prompt, q.computed, q.generated, q.max_tokens, q.priority, q.preemptions, q.private)
            return policy(*mine, *view)

        return max(reversed(self.running[1:]), key=score)

    def _admit(self, q: ReferenceRequest) -> bool:
        policies, e, weight = self.world.policies, self.engine, self.world.hash_weight
        blocks = -(-q.tokens // e.block_size)
        hits = self.hits(q)
        cost = blocks - weight * sum(1 for block in q.prefix[:hits] if self.pins.get(block, 0) > 0)
        spare = 0
        if "reserve_blocks" in policies:
            spare = min(max(policies["reserve_blocks"](*self._waiting_view(q)), 0), e.total_blocks)
        if not self.running:
            spare = min(spare, self.free - cost)
        else:
            if cost + spare + e.watermark_blocks > self.free:
                return False
            memory = (self.free, e.total_blocks, e.watermark_blocks, len(self.running), self.reserved)
            if "admit" in policies and not policies["admit"](*self._waiting_view(q), *memory):
                return False
        self.waiting.remove(q)
        found = self.remains.pop(("rest", q.index), 0)
        if hits < len(q.prefix):
            self.unused, found = self.unused + found, 0
        q.pinned = q.prefix[:hits]
        for block in q.pinned:
            self.remains.pop(("hash", block), None)
            self.pins[block] += 1
            last, uses, depth = self.history[block]
            self.history[block] = (last, uses + 1, depth)
        q.private = blocks - weight * hits + spare
        self._take(q.private - found)
        recovered = hits * self.world.hash_tokens + found * e.block_size
        if q.preemptions:
            q.recomputed += max(0, q.computed - recovered)
        else:
            q.cached = recovered
        if q.scheduled_ns < 0:
            q.scheduled_ns = self.now // _FS_PER_NS
        q.computed, q.target, q.published, q.duplicated, q.decoding = recovered, q.tokens, hits, False, False
        self.running.append(q)
        self.decisions.append((self.now // _FS_PER_NS, self.index, "admit", q.index))
        return True

    def _preempt(self, q: ReferenceRequest) -> None:
        self.running.remove(q)
        q.preemptions += 1
        self._give_back(q, finished=False)
        self.decisions.append((self.now // _FS_PER_NS, self.index, "preempt", q.index))
        self.enqueue(q, self.now)

    # --- blocks -----

    def hits(self, q: ReferenceRequest) -> int:
        limit = min(len(q.prefix), (q.tokens - 1) // self.world.hash_tokens)
        for j in range(limit):
            if q.prefix[j] not in self.pins:
                return j
        return limit

    def _take(self, count: int) -> None:
        while count > 0:
            direct = min(self.unused, count)
            self.unused, count = self.unused - direct, count - direct
            if count == 0:
                return
            kind, key = self._to_evict()
            weight = self.remains[kind, key]
            if kind == "rest" and weight > count:
                self.remains[kind, key], count = weight - count, 0
            else:
                del self.remains[kind, key]
                if kind == "hash":
                    del self.pins[key]
                self.unused += weight

    def _to_evict(self) -> tuple[str, int]:
        policy = self.world.policies.get("eviction")
        if policy is None:
            return next(iter(self.remains))
        now_us, view = self.now // _FS_PER_US, self.step_view

        def score(entry: tuple[str, int]) -> int:
            kind, key = entry
            if kind == "hash":
                last, uses, depth = self.history[key]
                return policy(now_us - last, uses, depth, self.remains[entry], 0, *view)
            return policy(now_us - self.left_us[key], 0, 0, self.remains[entry], 1, *view)

        return min(self.remains, key=score)

    def _give_back(self, q: ReferenceRequest, *, finished: bool) -> None:
        now_us = self.now // _FS_PER_US
        keep = 0
        if self.engine.enable_prefix_caching:
            if finished:
                keep = 0 if "eviction" in self.world.policies else q.private
            elif not q.duplicated:
                beyond = (q.computed - len(q.prefix) * self.world.hash_tokens) // self.engine.block_size
                keep = max(0, min(q.private, beyond))
        self.unused += q.private - keep
        if keep:
            self.remains["rest", q.index] = keep
            self.left_us[q.index] = now_us
        for block in reversed(q.pinned):
            self.pins[block] -= 1
            _, uses, depth = self.history[block]
            self.history[block] = (now_us, uses, depth)
            if self.pins[block] == 0:
                self.remains["hash", block] = self.world.hash_weight
        q.private, q.pinned = 0, []

    def _check(self) -> None:
        held = sum(q.private for q in self.running)
        pinned = self.world.hash_weight * sum(1 for pins in self.pins.values() if pins > 0)
        if held + pinned + self.free != self.engine.total_blocks or self.unused < 0:
            raise SimulationError(f"blocks are not conserved on replica {self.index} at {self.now // _FS_PER_NS} ns")
