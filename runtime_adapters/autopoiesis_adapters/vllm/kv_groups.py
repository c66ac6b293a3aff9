"""Block counts over all KV-cache groups: blocks that a request needs, that it holds, and that a step may take.

A model with sliding-window layers beside full attention has several groups of layers. Each group has its own block
table for every request, and its own block size; all groups take their blocks from one pool. A policy sees blocks of the
engine's block size, which is a multiple of every group's. `units` translates the pool into such blocks: the blocks that
one request can fill. For a group whose layers drop old tokens, vLLM counts at most the blocks of its window.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm.v1.core.single_type_kv_cache_manager import (
    CrossAttentionManager,
    MambaManager,
    SingleTypeKVCacheManager,
)

__all__ = ["Group", "KVGroups", "read_groups"]

MAMBA_STEP = 3
"""Blocks that a step may take for the state of one request: the state, a copy on write and a checkpoint."""


@dataclass(frozen=True)
class Group:
    """One KV-cache group."""

    block_size: int
    """Tokens a block of this group holds."""
    cap: int | None
    """The most blocks that vLLM counts for one request; None when it counts all blocks that the request's tokens fill.
    """
    extra_a_step: int = 0
    """Blocks that a step may take for one request in addition to those that its tokens fill."""

    def needed(self, tokens: int) -> int:
        """Return the blocks that so many tokens of one request need in this group."""
        filled = -(-tokens // self.block_size)
        return filled if self.cap is None else min(filled, self.cap)


class KVGroups:
    """Arithmetic over the groups of one engine; all counts are of pool blocks, unless a name says `units`.

    Args:
        manager: vLLM's `KVCacheManager`.
        groups: its groups.
        block_size: the engine's block size (tokens), a multiple of every group's.
    """

    def __init__(self, manager: Any, groups: Sequence[Group], block_size: int) -> None:
        self._manager = manager
        self._groups = tuple(groups)
        self.recycles = any(group.cap is not None for group in groups)
        """True when a request may give blocks back while it runs."""
        self._plain = len(groups) == 1 and not self.recycles and groups[0].block_size == block_size
        self._block_size = block_size

    def needed(self, tokens: int) -> int:
        """Return the blocks that vLLM counts for a request of so many tokens."""
        return sum(group.needed(tokens) for group in self._groups)

    def units(self, blocks: int) -> int:
        """Return the most blocks of the engine's block size that one request can fill in `blocks` of the pool.

        Where every group drops old tokens, a request of any length may fit; the result is then `blocks`. The result is
        also `blocks` where it is negative: that many blocks are missing.
        """
        if self._plain or blocks <= 0:
            return blocks
        return bisect_right(range(1, blocks + 1), blocks, key=lambda units: self.needed(units * self._block_size))

    def held(self, request_id: str) -> int:
        """Return the blocks in a request's tables, shared ones included and skipped ones not."""
        tables = self._manager.get_blocks(request_id).blocks
        if not self.recycles:
            return sum(map(len, tables))
        return sum(not block.is_null for table in tables for block in table)

    def freed(self, request_id: str) -> int:
        """Return the blocks that a preemption of the request gives back to the pool."""
        tables = self._manager.get_blocks(request_id).blocks
        return sum(block.ref_cnt == 1 and not block.is_null for table in tables for block in table)

    def growth(self, tokens: int) -> int:
        """Return the most blocks that one request may take in a step in which it computes so many tokens."""
        return sum(-(-tokens // group.block_size) + group.extra_a_step for group in self._groups)

    def filled_by(self, tokens: int) -> int:
        """Return the most blocks that so many tokens fill completely, whichever requests the tokens belong to."""
        return sum(tokens // group.block_size for group in self._groups)


def read_groups(scheduler: Any) -> tuple[KVGroups, str]:
    """Return the groups of a scheduler, and the name of a kind of group that admission cannot count.

    The name is empty when there is no such group.

    Raises:
        TypeError: a group takes blocks in a way that is not known here.
    """
    groups, uncounted = [], ""
    for manager in scheduler.kv_cache_manager.coordinator.single_type_managers:
        kind, extra = type(manager), 0
        if isinstance(manager, MambaManager):
            extra = MAMBA_STEP + int(manager.num_speculative_blocks)
        elif kind.get_num_blocks_to_allocate is not SingleTypeKVCacheManager.get_num_blocks_to_allocate:
            raise TypeError(f"the KV-cache groups of {kind.__name__} take blocks in a way of their own")
        if extra or isinstance(manager, CrossAttentionManager):
            uncounted = kind.__name__
        cap = manager.max_admission_blocks_per_request
        groups.append(Group(int(manager.block_size), None if cap is None else int(cap), extra))
    return KVGroups(scheduler.kv_cache_manager, groups, int(scheduler.block_size)), uncounted
