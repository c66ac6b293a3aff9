# mypy: disable-error-code="no-any-return"
"""KV blocks in the compiled kernel: the free queue, the prefix cache, allocation and release.

As in vLLM, freed blocks keep their content and join the tail of a first-in first-out queue. New blocks are taken from
its head, which evicts their content. A node of the queue is one of three things: an unpinned hash block, the blocks
that a preempted request left behind, or the blocks of a finished request. A preempted request gets back the blocks of
its node that are still there. Every node's weight is in engine blocks.
"""

from autopoiesis_lib.simulation import _columns as c
from autopoiesis_lib.simulation._native import State, View, call_policy, kernel


@kernel
def prefix_length(s: State, i: int) -> int:
    """Return the number of hash blocks of request i that are full of prompt tokens, hence cacheable."""
    if s.p[c.NUM_HASHES] == 0:
        return 0
    known = s.prefix_ptr[i + 1] - s.prefix_ptr[i]
    full = s.q[i, c.PROMPT] // (s.p[c.HASH_WEIGHT] * s.p[c.BLOCK_SIZE])
    return min(known, full)


@kernel
def cached_prefix(s: State, r: int, i: int) -> int:
    """Return the number of leading hash blocks of request i that are cached on replica r.

    The result leaves at least one token to compute.
    """
    limit = prefix_length(s, i)
    if limit == 0:
        return 0
    limit = min(limit, (s.q[i, c.PROMPT] + s.q[i, c.GENERATED] - 1) // (s.p[c.HASH_WEIGHT] * s.p[c.BLOCK_SIZE]))
    first = s.prefix_ptr[i]
    offset = r * s.p[c.NUM_HASHES]
    for j in range(limit):
        if s.cache[offset + s.prefix_ids[first + j], 0] < 0:
            return j
    return limit


@kernel
def append_free(s: State, sentinel: int, node: int, weight: int) -> None:
    last = s.links[sentinel, 0]
    s.links[last, 1] = node
    s.links[node, 0] = last
    s.links[node, 1] = sentinel
    s.links[sentinel, 0] = node
    s.links[node, 2] = weight


@kernel
def unlink_free(s: State, node: int) -> None:
    before = s.links[node, 0]
    after = s.links[node, 1]
    s.links[before, 1] = after
    s.links[after, 0] = before
    s.links[node, 2] = 0


@kernel
def sentinel_of(s: State, r: int) -> int:
    return s.rep.shape[0] * s.p[c.NUM_HASHES] + s.q.shape[0] + r


@kernel
def request_node(s: State, i: int) -> int:
    return s.rep.shape[0] * s.p[c.NUM_HASHES] + i


@kernel
def _to_evict(s: State, r: int, sentinel: int, view: View) -> int:
    """Return the node that the eviction policy values least. Of equals it is the least recently used."""
    hashes = s.rep.shape[0] * s.p[c.NUM_HASHES]
    now_us = s.rep[r, c.NOW_NS] // 1000
    best = s.links[sentinel, 1]
    least = 0
    node = best
    first = True
    while node != sentinel:
        if node < hashes:
            idle, hits, depth, preempted = now_us - s.cache[node, 1], s.cache[node, 2], s.cache[node, 3], 0
        else:
            idle, hits, depth, preempted = now_us - s.q[node - hashes, c.PREFIX_DONE], 0, 0, 1
        score = call_policy(
            s.slots[c.KEEP],
            (
                idle,
                hits,
                depth,
                s.links[node, 2],
                preempted,
                view[0],
                view[1],
                view[2],
                view[3],
                view[4],
                view[5],
                view[6],
            ),
        )
        if first or score < least:
            best, least, first = node, score, False
        node = s.links[node, 1]
    return best


@kernel
def take_blocks(s: State, r: int, count: int, view: View) -> None:
    """Allocate `count` blocks of replica r, and evict as needed.

    The caller has already lowered FREE. `view` is the state of the engine when the step began.
    """
    rep = s.rep
    direct = min(rep[r, c.UNUSED], count)
    rep[r, c.UNUSED] -= direct
    count -= direct
    if count == 0:
        return
    hashes = rep.shape[0] * s.p[c.NUM_HASHES]
    sentinel = sentinel_of(s, r)
    while count > 0:
        node = s.links[sentinel, 1]
        if s.slots[c.KEEP] != 0:
            node = _to_evict(s, r, sentinel, view)
        weight = s.links[node, 2]
        if node >= hashes and weight > count:
            s.links[node, 2] = weight - count
            return
        unlink_free(s, node)
        if node < hashes:
            s.cache[node, 0] = -1
        if weight > count:
            rep[r, c.UNUSED] += weight - count
            return
        count -= weight


@kernel
def pin_prefix(s: State, r: int, i: int, blocks: int) -> None:
    """Pin the first `blocks` hash blocks of request i.

    Blocks that were not pinned before leave the free queue and FREE.
    """
    first = s.prefix_ptr[i]
    offset = r * s.p[c.NUM_HASHES]
    for j in range(blocks):
        node = offset + s.prefix_ids[first + j]
        if s.cache[node, 0] == 0:
            unlink_free(s, node)
            s.rep[r, c.FREE] -= s.p[c.HASH_WEIGHT]
        s.cache[node, 0] += 1
        s.cache[node, 2] += 1
        s.owned[first + j] = 1
    s.q[i, c.OWNED] = blocks
    s.q[i, c.PREFIX_DONE] = blocks


@kernel
def publish_prefix(s: State, r: int, i: int) -> None:
    """Make the hash blocks of request i that its last chunk completed visible to other requests."""
    done = s.q[i, c.PREFIX_DONE]
    tokens = s.p[c.HASH_WEIGHT] * s.p[c.BLOCK_SIZE]
    limit = min(prefix_length(s, i), s.q[i, c.COMPUTED] // tokens)
    first = s.prefix_ptr[i]
    offset = r * s.p[c.NUM_HASHES]
    while done < limit:
        node = offset + s.prefix_ids[first + done]
        if s.cache[node, 0] < 0:
            s.cache[node, 0] = 1
            s.cache[node, 2] = 0
            s.cache[node, 3] = done
            s.owned[first + done] = 1
            s.q[i, c.OWNED] += 1
            s.q[i, c.HELD] -= s.p[c.HASH_WEIGHT]
        else:
            s.q[i, c.DUPLICATED] = 1
        done += 1
    s.q[i, c.PREFIX_DONE] = done


@kernel
def give_back(s: State, r: int, i: int, held: int, resumable: int) -> None:
    """Free the `held` private blocks of request i and unpin its prefix.

    `resumable` of the blocks are worth finding again (-1: the request has finished). The last blocks are freed first,
    so that the start of a prompt survives longest. With an eviction policy or without prefix caching, the blocks of a
    finished request go directly to UNUSED, because no request will look them up.
    """
    rep = s.rep
    rep[r, c.FREE] += held
    if s.p[c.CACHING] == 0 or (s.slots[c.KEEP] != 0 and resumable < 0):
        rep[r, c.UNUSED] += held
    elif resumable < 0:
        if held > 0:
            append_free(s, sentinel_of(s, r), request_node(s, i), held)
    else:
        rep[r, c.UNUSED] += held - resumable
        if resumable > 0:
            append_free(s, sentinel_of(s, r), request_node(s, i), resumable)
    s.q[i, c.HELD] = 0
    if s.q[i, c.OWNED] > 0:
        _unpin_prefix(s, r, i)
    s.q[i, c.DUPLICATED] = 0
    s.q[i, c.PREFIX_DONE] = rep[r, c.NOW_NS] // 1000  # while it waits: when its old blocks were last used


@kernel
def _unpin_prefix(s: State, r: int, i: int) -> None:
    first = s.prefix_ptr[i]
    offset = r * s.p[c.NUM_HASHES]
    sentinel = sentinel_of(s, r)
    now_us = s.rep[r, c.NOW_NS] // 1000
    for j in range(s.prefix_ptr[i + 1] - first - 1, -1, -1):
        if s.owned[first + j] == 1:
            s.owned[first + j] = 0
            node = offset + s.prefix_ids[first + j]
            s.cache[node, 0] -= 1
            s.cache[node, 1] = now_us
            if s.cache[node, 0] == 0:
                append_free(s, sentinel, node, s.p[c.HASH_WEIGHT])
                s.rep[r, c.FREE] += s.p[c.HASH_WEIGHT]
    s.q[i, c.OWNED] = 0


@kernel
def forget_remains(s: State, r: int, i: int) -> None:
    """Turn the blocks that a preempted request left behind into plain unused blocks.

    Its prefix is evicted, so the request cannot resume from them.
    """
    node = request_node(s, i)
    weight = s.links[node, 2]
    if weight > 0:
        unlink_free(s, node)
        s.rep[r, c.UNUSED] += weight


@kernel
def conserved(s: State, r: int) -> bool:
    """Return True if every block of replica r is held, pinned once or free, and the free queue adds up to FREE.

    The check runs in checked mode only.
    """
    weight = s.rep[r, c.UNUSED]
    sentinel = sentinel_of(s, r)
    node = s.links[sentinel, 1]
    while node != sentinel:
        if s.links[node, 2] <= 0:
            return False
        weight += s.links[node, 2]
        node = s.links[node, 1]
    if weight != s.rep[r, c.FREE] or s.rep[r, c.UNUSED] < 0:
        return False
    used = 0
    for k in range(s.rep[r, c.NUM_RUNNING]):
        used += held_blocks(s, r, k)
    for h in range(s.p[c.NUM_HASHES]):
        if s.cache[r * s.p[c.NUM_HASHES] + h, 0] > 0:
            used += s.p[c.HASH_WEIGHT]
    return used + weight == s.p[c.TOTAL_BLOCKS]


@kernel
def held_blocks(s: State, r: int, k: int) -> int:
    """Return the number of private blocks that the k-th running request of replica r holds."""
    i = s.run[r, c.RUN_REQUEST, k]
    held = s.q[i, c.HELD]
    base = s.run[r, c.RUN_BASE, k]
    if base != c.PREFILLING:
        context = base + s.rep[r, c.DECODED]
        size = s.p[c.BLOCK_SIZE]
        held = max(held, (context + size - 1) // size - s.p[c.HASH_WEIGHT] * s.q[i, c.OWNED])
    return held
