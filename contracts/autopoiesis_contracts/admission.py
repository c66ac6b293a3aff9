"""Whether the request at the head of the line is admitted now, and how many KV blocks are set aside for it.

The kernel (an adapter or the simulator) asks `admit` of the current argmax only; a refusal ends admission for that step. It
admits when the policy says yes *and* the blocks physically fit, so a policy cannot corrupt memory; what is proved here is that
it never even asks for that: the theorem models a kernel that trusts the policy. With nothing running, the kernel cuts the
reservation down to what is free.

Shared blocks make an admission cheaper than its tokens suggest. The cached count a request carries is a hint, and a cached
block may itself be counted as free, so no claim here subtracts it: the invariants hold however much is shared.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from autopoiesis_lib import Contract, Theorem, View, assumption, decision, invariant, lemma
from autopoiesis_lib.units import Blocks, Count, Unit

from .request_ordering import Waiting

__all__ = ["Admission", "BlocksConserved", "Memory", "NoAdmissionDeadlock", "Waiting"]

AnyBlocks = Annotated[int, Field(ge=-(2**40), le=2**40), Unit("blocks")]
"""Blocks in a theorem's state: wide enough that no kernel step is ruled out by its domain, below zero included."""


class Memory(View):
    """The KV memory at one step. Blocks that are cached but evictable count as free; a shared block counts once."""

    free_blocks: Blocks
    """Blocks free or evictable; reserved ones are not among them."""
    total_blocks: Annotated[Blocks, Field(ge=1)]
    """KV-cache blocks in all."""
    watermark_blocks: Blocks
    """Blocks an admission leaves free while anything runs, so that running requests can grow."""
    num_running: Count
    """Requests running."""
    reserved_blocks: Blocks
    """Blocks set aside for running requests and not yet used."""


class Admission(Contract, name="admission"):
    """The head of the line is admitted when `admit` says so; `reserve_blocks` more are set aside for its output."""

    slots: ClassVar[Mapping[str, str]] = {"admit": "admit", "reserve_blocks": "reserve_blocks"}

    block_size: Annotated[int, Field(ge=1, le=4_096), Unit("tokens")] = 16
    """Tokens a KV block holds, as the engine is configured: a policy is certified for one block size."""

    @decision
    def admit(self, request: Waiting, memory: Memory) -> bool:
        """Whether the request at the head of the line is admitted now."""
        raise NotImplementedError

    @decision
    def reserve_blocks(self, request: Waiting) -> Blocks:
        """Blocks set aside at admission beyond those its tokens fill."""
        raise NotImplementedError

    @assumption
    def cached_within_prompt(self, request: Waiting) -> bool:
        """A request has no more cached tokens than prompt tokens."""
        return request.num_cached_tokens <= request.num_prompt_tokens

    @assumption
    def output_within_limit(self, request: Waiting) -> bool:
        """A request has generated no more tokens than it may."""
        return request.num_output_tokens <= request.max_tokens

    @assumption
    def free_within_total(self, memory: Memory) -> bool:
        """Free and reserved blocks together are no more than there are."""
        return memory.free_blocks + memory.reserved_blocks <= memory.total_blocks

    @assumption
    def idle_memory_is_free(self, memory: Memory) -> bool:
        """With nothing running, every block is free and none is reserved."""
        return memory.num_running > 0 or (memory.free_blocks == memory.total_blocks and memory.reserved_blocks == 0)

    @invariant
    def never_overcommits(self, request: Waiting, memory: Memory) -> bool:
        """Whatever is admitted fits into the free blocks, its last partly filled block and its reservation included."""
        reserved = self.reserve_blocks(request) if memory.num_running > 0 else 0
        tokens = request.num_prompt_tokens + request.num_output_tokens
        return not self.admit(request, memory) or tokens <= (memory.free_blocks - reserved) * self.block_size

    @invariant
    def keeps_watermark(self, request: Waiting, memory: Memory) -> bool:
        """While anything runs, an admission leaves the watermark free."""
        left = memory.free_blocks - self.reserve_blocks(request) - memory.watermark_blocks
        tokens = request.num_prompt_tokens + request.num_output_tokens
        return memory.num_running == 0 or not self.admit(request, memory) or tokens <= left * self.block_size

    @invariant
    def fits_when_idle(self, request: Waiting, memory: Memory) -> bool:
        """FIT: with nothing running, whatever fits in total is admitted, watermark or not."""
        tokens = request.num_prompt_tokens + request.num_output_tokens
        too_large = tokens > memory.total_blocks * self.block_size
        return memory.num_running > 0 or too_large or self.admit(request, memory)

    @invariant
    def reserves_what_it_may_use(self, request: Waiting) -> bool:
        """No more is reserved than the tokens a request may still generate can fill."""
        may_generate = request.max_tokens - request.num_output_tokens
        return (self.reserve_blocks(request) - 1) * self.block_size < may_generate

    @classmethod
    def theorems(cls) -> tuple[type[Theorem], ...]:
        """Blocks are conserved and never over-committed; admission never deadlocks."""
        return (BlocksConserved, NoAdmissionDeadlock)

    @classmethod
    def baselines(cls) -> Mapping[str, str]:
        """Hand-written admission rules for blocks of 16 tokens; the first is vLLM's."""
        return BASELINES


class BlocksConserved(Theorem):
    """Free blocks and distinct held blocks always add up to the total, and neither is ever negative, even in a kernel that takes
    the policy's word for what fits."""

    class State(View):
        """The memory as the kernel accounts for it."""

        free: AnyBlocks
        """Blocks free or evictable."""
        held: AnyBlocks
        """Distinct blocks held by running requests, reserved ones included."""
        reserved: AnyBlocks
        """Held blocks that hold no token yet."""
        total: AnyBlocks
        """Blocks in all; never changes."""
        num_running: AnyBlocks
        """Requests running."""

    def init(self, s: State) -> bool:
        """At the start everything is free and nothing runs."""
        return s.total >= 1 and s.free == s.total and s.held == 0 and s.reserved == 0 and s.num_running == 0

    def step(self, s: State, t: State, request: Waiting, memory: Memory, blocks: AnyBlocks, spare: AnyBlocks) -> bool:
        """MEM-STEP: the kernel admits, grows or ends (finishes or preempts) one request, sets more aside, or does nothing.

        An admission takes at most the blocks its tokens fill (fewer when some are shared) and its reservation; growing takes
        free blocks while there are any, or reserved ones; an ending gives back what nobody else holds, and the last running
        request gives back everything. Blocks are set aside later where a reservation was cut down for want of free ones.
        """
        seen = (
            memory.free_blocks == s.free
            and memory.total_blocks == s.total
            and memory.num_running == s.num_running
            and memory.reserved_blocks == s.reserved
        )
        tokens = request.num_prompt_tokens + request.num_output_tokens
        reserve = self.policy.reserve_blocks(request)
        clamped = min(reserve, s.free - blocks) if s.num_running == 0 else reserve
        moved = t.free == s.free - blocks - spare and t.held == s.held + blocks + spare
        admission = (
            seen
            and self.policy.admit(request, memory)
            and blocks >= 0
            and (blocks - 1) * self.contract.block_size < tokens
            and spare == clamped
            and moved
            and t.reserved == s.reserved + spare
            and t.num_running == s.num_running + 1
        )
        growth = (
            s.num_running > 0
            and 0 <= blocks <= s.free
            and 0 <= spare <= s.reserved
            and t.free == s.free - blocks
            and t.held == s.held + blocks
            and t.reserved == s.reserved - spare
            and t.num_running == s.num_running
        )
        ending = (
            s.num_running > 0
            and 0 <= spare <= s.reserved
            and spare <= blocks <= s.held - (s.reserved - spare)
            and t.free == s.free + blocks
            and t.held == s.held - blocks
            and t.reserved == s.reserved - spare
            and t.num_running == s.num_running - 1
            and (t.num_running > 0 or (blocks == s.held and spare == s.reserved))
        )
        set_aside = (
            s.num_running > 0
            and 0 <= spare <= s.free
            and t.free == s.free - spare
            and t.held == s.held + spare
            and t.reserved == s.reserved + spare
            and t.num_running == s.num_running
        )
        nothing = t.free == s.free and t.held == s.held and t.reserved == s.reserved and t.num_running == s.num_running
        return t.total == s.total and (admission or growth or ending or set_aside or nothing)

    def inductive(self, s: State) -> bool:
        """Every block is free or held, reserved ones are held, and what is held is held by somebody."""
        counted = s.free + s.held == s.total and s.free >= 0 and 0 <= s.reserved <= s.held and s.num_running >= 0
        return counted and (s.num_running > 0 or s.held == 0)

    def goal(self, s: State) -> bool:
        """Never over-committed, never negative, and what the contract assumes of the memory view is so."""
        sound = 0 <= s.free <= s.total and 0 <= s.held <= s.total and s.free + s.held == s.total
        idle_is_free = s.num_running > 0 or (s.free == s.total and s.reserved == 0)
        return sound and s.free + s.reserved <= s.total and idle_is_free


class NoAdmissionDeadlock(Theorem):
    """Admission never deadlocks: with nothing running, a head of the line that fits in total is admitted and fits; while anything
    runs, an admission leaves the watermark free."""

    @lemma
    def idle_engine_admits(self, request: Waiting, memory: Memory, blocks: AnyBlocks) -> bool:
        """FIT: with nothing running, a request whose blocks (the ceiling of its tokens) fit in total is admitted, and its blocks
        are free."""
        tokens = request.num_prompt_tokens + request.num_output_tokens
        is_ceiling = (blocks - 1) * self.contract.block_size < tokens <= blocks * self.contract.block_size
        idle = memory.num_running == 0 and is_ceiling and blocks <= memory.total_blocks
        return not idle or (self.policy.admit(request, memory) and blocks <= memory.free_blocks)

    @lemma
    def watermark_survives(self, request: Waiting, memory: Memory, blocks: AnyBlocks) -> bool:
        """An admission beside running requests leaves at least the watermark, after its blocks and its reservation."""
        tokens = request.num_prompt_tokens + request.num_output_tokens
        is_ceiling = (blocks - 1) * self.contract.block_size < tokens <= blocks * self.contract.block_size
        admitted = is_ceiling and memory.num_running > 0 and self.policy.admit(request, memory)
        left = memory.free_blocks - blocks - self.policy.reserve_blocks(request)
        return not admitted or left >= memory.watermark_blocks

    @lemma
    def reservation_can_be_used(self, request: Waiting, blocks_at_end: AnyBlocks, blocks_now: AnyBlocks) -> bool:
        """Tokens and reservation together exceed the blocks of the longest possible output by at most one block."""
        tokens = request.num_prompt_tokens + request.num_output_tokens
        longest = request.num_prompt_tokens + request.max_tokens
        now = (blocks_now - 1) * self.contract.block_size < tokens <= blocks_now * self.contract.block_size
        at_end = (blocks_at_end - 1) * self.contract.block_size < longest <= blocks_at_end * self.contract.block_size
        return not (now and at_end) or blocks_now + self.policy.reserve_blocks(request) <= blocks_at_end + 1


BASELINES: Mapping[str, str] = {
    "watermark": '''"""vLLM's rule: the blocks of the tokens fit and leave the watermark; nothing is set aside for the output."""

from autopoiesis_contracts.admission import Memory, Waiting


def blocks(tokens: int) -> int:
    """Blocks of 16 tokens, the last one perhaps partly filled."""
    return (tokens + 15) // 16


def admit(request: Waiting, memory: Memory) -> bool:
    """While anything runs the watermark stays free; an idle engine takes whatever fits."""
    needed = blocks(request.num_prompt_tokens + request.num_output_tokens)
    if memory.num_running == 0:
        return needed <= memory.total_blocks
    return needed + memory.watermark_blocks <= memory.free_blocks


def reserve_blocks(request: Waiting) -> int:
    """Nothing: output grows into free blocks, and somebody is preempted when there are none."""
    return 0
''',
    "conservative": '''"""Room for the longest output is set aside at admission, so that nobody is ever preempted for memory."""

from autopoiesis_contracts.admission import Memory, Waiting


def blocks(tokens: int) -> int:
    """Blocks of 16 tokens, the last one perhaps partly filled."""
    return (tokens + 15) // 16


def admit(request: Waiting, memory: Memory) -> bool:
    """The longest it may become fits beside the watermark; an idle engine takes whatever fits."""
    if memory.num_running == 0:
        return blocks(request.num_prompt_tokens + request.num_output_tokens) <= memory.total_blocks
    longest = blocks(request.num_prompt_tokens + request.max_tokens)
    return longest + memory.watermark_blocks <= memory.free_blocks


def reserve_blocks(request: Waiting) -> int:
    """Every block the rest of its output may need."""
    longest = blocks(request.num_prompt_tokens + request.max_tokens)
    return longest - blocks(request.num_prompt_tokens + request.num_output_tokens)
''',
    "optimistic": '''"""Most requests stop long before their limit: room for an eighth of the rest is set aside."""

from autopoiesis_contracts.admission import Memory, Waiting


def blocks(tokens: int) -> int:
    """Blocks of 16 tokens, the last one perhaps partly filled."""
    return (tokens + 15) // 16


def reserve_blocks(request: Waiting) -> int:
    """Blocks of an eighth of the tokens it may still generate."""
    return (request.max_tokens - request.num_output_tokens) // 128


def admit(request: Waiting, memory: Memory) -> bool:
    """Tokens, the small reservation and the watermark fit; an idle engine takes whatever fits."""
    needed = blocks(request.num_prompt_tokens + request.num_output_tokens)
    if memory.num_running == 0:
        return needed <= memory.total_blocks
    return needed + reserve_blocks(request) + memory.watermark_blocks <= memory.free_blocks
''',
}
