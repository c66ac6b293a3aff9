# mypy: disable-error-code="no-any-return"
"""The waiting line of a replica in the compiled kernel: enqueue, score, pick, admit, preempt.

The line is kept in enqueue order (the request's index), so the first-come request is its head. Of equal scores, the
earlier enqueued request comes first. A preempted request returns to its old place: its waiting time never restarts.
"""

from autopoiesis_lib.simulation import _columns as c
from autopoiesis_lib.simulation._blocks import (
    cached_prefix,
    forget_remains,
    give_back,
    held_blocks,
    pin_prefix,
    prefix_length,
    request_node,
    take_blocks,
    unlink_free,
)
from autopoiesis_lib.simulation._native import State, View, call_policy, kernel


@kernel
def enqueue(s: State, r: int, i: int) -> None:
    """Add request i to the line of replica r.

    The row `len(rep)` of `line` holds requests that no replica can take.
    """
    q, line = s.q, s.line
    last = line[r, 1]
    if last < 0 or last < i:
        q[i, c.PREV_WAITING], q[i, c.NEXT_WAITING] = last, -1
        if last < 0:
            line[r, 0] = i
        else:
            q[last, c.NEXT_WAITING] = i
        line[r, 1] = i
    else:
        after = line[r, 0]
        while after < i:
            after = q[after, c.NEXT_WAITING]
        before = q[after, c.PREV_WAITING]
        q[i, c.PREV_WAITING], q[i, c.NEXT_WAITING] = before, after
        q[after, c.PREV_WAITING] = i
        if before < 0:
            line[r, 0] = i
        else:
            q[before, c.NEXT_WAITING] = i
    q[i, c.STATE] = c.QUEUED
    if r == s.rep.shape[0]:
        return
    rep = s.rep
    q[i, c.REPLICA] = r
    rep[r, c.NUM_WAITING] += 1
    rep[r, c.QUEUED_TOKENS] += q[i, c.PROMPT]
    need = 1
    if s.p[c.NUM_HASHES] == 0:
        need = _blocks_for(s, q[i, c.PROMPT] + q[i, c.GENERATED])
    else:
        q[i, c.CACHED_HINT] = cached_prefix(s, r, i) * s.p[c.HASH_WEIGHT] * s.p[c.BLOCK_SIZE]
    rep[r, c.MIN_NEED] = min(rep[r, c.MIN_NEED], need)
    if line[r, 0] == i:
        rep[r, c.HEAD_BLOCKED] = 0


@kernel
def record(s: State, r: int, what: int, i: int) -> None:
    """Add one row to the decision log if there is room."""
    row = s.out[6]
    s.out[6] = row + 1
    if row < s.decisions.shape[0]:
        s.decisions[row, 0] = s.rep[r, c.NOW_NS]
        s.decisions[row, 1] = r
        s.decisions[row, 2] = what
        s.decisions[row, 3] = i


@kernel
def leave_line(s: State, r: int, i: int) -> None:
    q, line = s.q, s.line
    before, after = q[i, c.PREV_WAITING], q[i, c.NEXT_WAITING]
    if before < 0:
        line[r, 0] = after
    else:
        q[before, c.NEXT_WAITING] = after
    if after < 0:
        line[r, 1] = before
    else:
        q[after, c.PREV_WAITING] = before
    if r < s.rep.shape[0]:
        s.rep[r, c.NUM_WAITING] -= 1
        s.rep[r, c.QUEUED_TOKENS] -= q[i, c.PROMPT]
        if s.rep[r, c.NUM_WAITING] == 0:
            s.rep[r, c.MIN_NEED] = c.NEVER


@kernel
def _blocks_for(s: State, tokens: int) -> int:
    return (tokens + s.p[c.BLOCK_SIZE] - 1) // s.p[c.BLOCK_SIZE]


@kernel
def oldest_wait_us(s: State, r: int) -> int:
    head = s.line[r, 0]
    if head < 0:
        return 0
    return s.rep[r, c.NOW_NS] // 1000 - s.q[head, c.ARRIVAL_US]


@kernel
def engine_view(s: State, r: int) -> View:
    """Return the view of the engine that every policy receives, computed once per pass.

    Only the wait in the view is capped at its bound.
    """
    rep = s.rep
    return (
        rep[r, c.NUM_WAITING],
        rep[r, c.NUM_RUNNING],
        rep[r, c.FREE],
        s.p[c.TOTAL_BLOCKS],
        s.p[c.BLOCK_SIZE],
        s.p[c.MAX_NUM_SEQS],
        min(oldest_wait_us(s, r), c.DAY_US),
    )


@kernel
def waiting_view(s: State, i: int, now_us: int) -> View:
    q = s.q
    return (
        min(now_us - q[i, c.ARRIVAL_US], c.DAY_US),
        q[i, c.PROMPT],
        q[i, c.CACHED_HINT],
        q[i, c.GENERATED],
        q[i, c.MAX_TOKENS],
        q[i, c.PRIORITY],
        q[i, c.PREEMPTIONS],
    )


@kernel
def score_line(s: State, r: int, view: View) -> None:
    """Score all requests that wait on replica r against one fixed view, and tighten MIN_NEED."""
    q = s.q
    now_us = s.rep[r, c.NOW_NS] // 1000
    address = s.slots[c.ORDERING]
    least = c.NEVER
    plain = s.p[c.NUM_HASHES] == 0
    size = s.p[c.BLOCK_SIZE]
    i = s.line[r, 0]
    while i >= 0:
        waited = now_us - q[i, c.ARRIVAL_US]
        if waited <= c.DAY_US:
            q[i, c.SCORE] = call_policy(
                address,
                (
                    waited,
                    q[i, c.PROMPT],
                    q[i, c.CACHED_HINT],
                    q[i, c.GENERATED],
                    q[i, c.MAX_TOKENS],
                    q[i, c.PRIORITY],
                    q[i, c.PREEMPTIONS],
                    view[0],
                    view[1],
                    view[2],
                    view[3],
                    view[4],
                    view[5],
                    view[6],
                ),
            )
        least = min(least, q[i, c.PROMPT] + q[i, c.GENERATED])
        i = q[i, c.NEXT_WAITING]
    s.out[5] += s.rep[r, c.NUM_WAITING]
    s.rep[r, c.MIN_NEED] = (least + size - 1) // size if plain else 1


@kernel
def pick(s: State, r: int) -> int:
    """Return the next request to admit.

    It is the overdue head if there is one, else the request with the highest score. Of equals it is the earlier
    enqueued one.
    """
    q = s.q
    best = s.line[r, 0]
    if s.slots[c.ORDERING] == 0 or s.rep[r, c.NOW_NS] // 1000 - q[best, c.ARRIVAL_US] > c.DAY_US:
        return best
    highest = q[best, c.SCORE]
    i = q[best, c.NEXT_WAITING]
    while i >= 0:
        score = q[i, c.SCORE]
        if score > highest:
            best, highest = i, score
        i = q[i, c.NEXT_WAITING]
    return best


@kernel
def try_admit(s: State, r: int, i: int, view: View) -> bool:
    """Admit request i if its whole prompt fits, and return True if it was admitted.

    A request always fits if no other request runs.
    """
    q, rep, p = s.q, s.rep, s.p
    tokens = q[i, c.PROMPT] + q[i, c.GENERATED]
    total = _blocks_for(s, tokens)
    hits = cached_prefix(s, r, i)
    pinned = 0
    first = s.prefix_ptr[i]
    for j in range(hits):
        if s.cache[r * p[c.NUM_HASHES] + s.prefix_ids[first + j], 0] > 0:
            pinned += p[c.HASH_WEIGHT]
    now_us = rep[r, c.NOW_NS] // 1000
    spare = 0
    if s.slots[c.RESERVE] != 0:
        spare = min(max(call_policy(s.slots[c.RESERVE], waiting_view(s, i, now_us)), 0), p[c.TOTAL_BLOCKS])
    cost = total - pinned
    if rep[r, c.NUM_RUNNING] == 0:
        spare = min(spare, rep[r, c.FREE] - cost)
    else:
        if cost + spare + p[c.WATERMARK] > rep[r, c.FREE]:
            return False
        if s.slots[c.ADMIT] != 0:
            mine = waiting_view(s, i, now_us)
            allowed = call_policy(
                s.slots[c.ADMIT],
                (
                    mine[0],
                    mine[1],
                    mine[2],
                    mine[3],
                    mine[4],
                    mine[5],
                    mine[6],
                    rep[r, c.FREE],
                    p[c.TOTAL_BLOCKS],
                    p[c.WATERMARK],
                    rep[r, c.NUM_RUNNING],
                    rep[r, c.RESERVED],
                ),
            )
            if allowed == 0:
                return False
    leave_line(s, r, i)
    remains = s.links[request_node(s, i), 2]
    if remains > 0 and hits < prefix_length(s, i):
        forget_remains(s, r, i)
        remains = 0
    elif remains > 0:
        unlink_free(s, request_node(s, i))
        rep[r, c.FREE] -= remains
    pin_prefix(s, r, i, hits)
    private = total - hits * p[c.HASH_WEIGHT]
    fresh = private - remains + spare
    rep[r, c.FREE] -= fresh
    take_blocks(s, r, fresh, view)
    rep[r, c.RESERVED] += spare
    found = hits * p[c.HASH_WEIGHT] * p[c.BLOCK_SIZE] + remains * p[c.BLOCK_SIZE]
    if q[i, c.PREEMPTIONS] > 0:
        q[i, c.RECOMPUTED] += max(0, q[i, c.COMPUTED] - found)
    elif q[i, c.SCHEDULED_NS] < 0:
        q[i, c.CACHED] = found
    if q[i, c.SCHEDULED_NS] < 0:
        q[i, c.SCHEDULED_NS] = rep[r, c.NOW_NS]
    q[i, c.HELD] = private + spare
    q[i, c.COMPUTED] = found
    q[i, c.TARGET] = tokens
    q[i, c.STATE] = c.RUNNING
    k = rep[r, c.NUM_RUNNING]
    s.run[r, c.RUN_REQUEST, k] = i
    s.run[r, c.RUN_BASE, k] = c.PREFILLING
    s.run[r, c.RUN_FINISH, k] = c.NEVER
    s.run[r, c.RUN_SPARE_END, k] = c.NEVER
    s.run[r, c.RUN_EVENT, k] = c.NEVER
    rep[r, c.NUM_RUNNING] = k + 1
    s.pf[r, rep[r, c.NUM_PREFILLING]] = i
    rep[r, c.NUM_PREFILLING] += 1
    record(s, r, c.ADMITTED, i)
    return True


@kernel
def choose_victim(s: State, r: int) -> int:
    """Return the position in `run` of the request to preempt.

    It is never 0, the oldest admitted, so that some request always progresses.
    """
    n = s.rep[r, c.NUM_RUNNING]
    if s.slots[c.VICTIM] == 0:
        return n - 1
    view = engine_view(s, r)
    now_us = s.rep[r, c.NOW_NS] // 1000
    best, highest = 1, 0
    for k in range(1, n):
        i = s.run[r, c.RUN_REQUEST, k]
        computed, generated = progress(s, r, k)
        score = call_policy(
            s.slots[c.VICTIM],
            (
                min(now_us - s.q[i, c.ARRIVAL_US], c.DAY_US),
                s.q[i, c.PROMPT],
                computed,
                generated,
                s.q[i, c.MAX_TOKENS],
                s.q[i, c.PRIORITY],
                s.q[i, c.PREEMPTIONS],
                held_blocks(s, r, k),
                view[0],
                view[1],
                view[2],
                view[3],
                view[4],
                view[5],
                view[6],
            ),
        )
        if k == 1 or score >= highest:
            best, highest = k, score
    return best


@kernel
def progress(s: State, r: int, k: int) -> tuple[int, int]:
    """Return the tokens that the k-th running request has computed and generated so far."""
    i = s.run[r, c.RUN_REQUEST, k]
    base = s.run[r, c.RUN_BASE, k]
    if base == c.PREFILLING:
        return s.q[i, c.COMPUTED], s.q[i, c.GENERATED]
    computed = base + s.rep[r, c.DECODED]
    return computed, computed - s.q[i, c.PROMPT] + 1


@kernel
def stop_decoding(s: State, r: int, k: int) -> None:
    """Remove the k-th running request from the sums over decodes."""
    rep = s.rep
    base = s.run[r, c.RUN_BASE, k]
    rep[r, c.NUM_DECODING] -= 1
    rep[r, c.CONTEXT] -= base + rep[r, c.DECODED]
    phase = (-base) % s.p[c.BLOCK_SIZE]
    spare_end = s.run[r, c.RUN_SPARE_END, k]
    if spare_end == c.NEVER:
        s.grow[r, 0, phase] -= 1
    else:
        s.grow[r, 1, phase] -= 1


@kernel
def unused_reservation(s: State, r: int, k: int) -> int:
    """Return the number of blocks that the k-th running request holds beyond its context."""
    i = s.run[r, c.RUN_REQUEST, k]
    tokens = s.q[i, c.TARGET]
    if s.run[r, c.RUN_BASE, k] != c.PREFILLING:
        tokens = s.run[r, c.RUN_BASE, k] + s.rep[r, c.DECODED]
    return held_blocks(s, r, k) + s.p[c.HASH_WEIGHT] * s.q[i, c.OWNED] - _blocks_for(s, tokens)


@kernel
def move_running(s: State, r: int, k: int, to: int) -> None:
    """Move the k-th running request to position `to`."""
    if to != k:
        for f in range(c.RUN_COLUMNS):
            s.run[r, f, to] = s.run[r, f, k]


@kernel
def first_event(s: State, r: int) -> int:
    """Return the least value of DECODED at which a running request finishes or exceeds a reservation."""
    event = c.NEVER
    for k in range(s.rep[r, c.NUM_RUNNING]):
        event = min(event, s.run[r, c.RUN_EVENT, k])
    return event


@kernel
def drop_running(s: State, r: int, k: int) -> None:
    """Remove the k-th running request from the array, and compute the next event again."""
    for j in range(k + 1, s.rep[r, c.NUM_RUNNING]):
        move_running(s, r, j, j - 1)
    s.rep[r, c.NUM_RUNNING] -= 1
    s.rep[r, c.NEXT_EVENT] = first_event(s, r)


@kernel
def preempt(s: State, r: int, k: int) -> None:
    """Preempt the k-th running request and return it to its place in the line.

    The request later recomputes what is evicted.
    """
    q, rep = s.q, s.rep
    i = s.run[r, c.RUN_REQUEST, k]
    computed, generated = progress(s, r, k)
    held = held_blocks(s, r, k)
    rep[r, c.RESERVED] -= unused_reservation(s, r, k)
    if s.run[r, c.RUN_BASE, k] == c.PREFILLING:
        remove_prefilling(s, r, i)
    else:
        stop_decoding(s, r, k)
    prefix = prefix_length(s, i)
    resumable = 0
    if q[i, c.DUPLICATED] == 0:
        beyond = computed - prefix * s.p[c.HASH_WEIGHT] * s.p[c.BLOCK_SIZE]
        resumable = max(0, min(held, beyond // s.p[c.BLOCK_SIZE]))
    q[i, c.GENERATED] = generated
    q[i, c.COMPUTED] = computed
    q[i, c.PREEMPTIONS] += 1
    rep[r, c.NUM_PREEMPTED] += 1
    record(s, r, c.PREEMPTED, i)
    give_back(s, r, i, held, resumable)
    drop_running(s, r, k)
    rep[r, c.HEAD_BLOCKED] = 0
    enqueue(s, r, i)


@kernel
def remove_prefilling(s: State, r: int, i: int) -> None:
    n = s.rep[r, c.NUM_PREFILLING]
    k = 0
    while s.pf[r, k] != i:
        k += 1
    for j in range(k, n - 1):
        s.pf[r, j] = s.pf[r, j + 1]
    s.rep[r, c.NUM_PREFILLING] = n - 1
