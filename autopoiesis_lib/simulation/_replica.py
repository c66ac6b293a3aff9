# mypy: disable-error-code="no-any-return"
"""One replica in the compiled kernel: schedule a step, execute it, or skip over many decode steps at once.

A step is scheduled at NOW, is in flight until END, and takes effect at END. A request that arrives in between waits for
the next step. Pure decode steps that nothing can interrupt are computed in closed form. All times are integers (ns and
fs), so the sum equals the result of single steps exactly.
"""

import math

from autopoiesis_lib.simulation import _columns as c
from autopoiesis_lib.simulation._blocks import conserved, give_back, held_blocks, publish_prefix, take_blocks
from autopoiesis_lib.simulation._native import Ints, State, View, call_policy, kernel
from autopoiesis_lib.simulation._waiting import (
    choose_victim,
    engine_view,
    first_event,
    move_running,
    pick,
    preempt,
    remove_prefilling,
    score_line,
    stop_decoding,
    try_admit,
    unused_reservation,
    waiting_view,
)

_WINDOW_FS = 1 << 61


@kernel
def advance(s: State, r: int, until_ns: int) -> None:
    """Run replica r until `until_ns`.

    Steps that end by then take effect. No step is scheduled at or after that time.
    """
    rep = s.rep
    while s.out[0] == 0:
        if rep[r, c.BUSY] == 1:
            end, fraction = rep[r, c.END_NS], rep[r, c.END_FS]
            if end > until_ns or (end == until_ns and fraction > 0):
                return
            rep[r, c.NOW_NS], rep[r, c.NOW_FS] = end, fraction
            rep[r, c.BUSY] = 0
            _finish_step(s, r)
        if rep[r, c.NOW_NS] >= until_ns or rep[r, c.NUM_RUNNING] + rep[r, c.NUM_WAITING] == 0:
            return
        calm = rep[r, c.NUM_PREFILLING] == 0 and rep[r, c.NUM_DECODING] > 0
        if calm and _line_is_shut(s, r) and _jump(s, r, until_ns):
            continue
        _schedule(s, r)


@kernel
def _line_is_shut(s: State, r: int) -> bool:
    """Return True if no request can be admitted before a running one finishes, for any result of the policies."""
    rep, p = s.rep, s.p
    return (
        rep[r, c.NUM_WAITING] == 0
        or rep[r, c.NUM_RUNNING] >= p[c.MAX_NUM_SEQS]
        or rep[r, c.FREE] < rep[r, c.MIN_NEED] + p[c.WATERMARK]
        or rep[r, c.HEAD_BLOCKED] == 1
    )


@kernel
def _window_fs(base: int, slope: int, k: int) -> int:
    """Return the femtoseconds of k decode steps: base + (base + slope) + ... (k terms)."""
    return k * base + slope * (k * (k - 1) // 2)


@kernel
def _growth(s: State, r: int, which: int, k: int) -> int:
    """Return the number of blocks that the next k decode steps fill."""
    size = s.p[c.BLOCK_SIZE]
    start = s.rep[r, c.DECODED] % size
    total = 0
    if k >= size:
        for phase in range(size):
            total += s.grow[r, which, phase]
        total *= k // size
        k %= size
    phase = start
    for _ in range(k):
        total += s.grow[r, which, phase]
        phase += 1
        if phase == size:
            phase = 0
    return total


@kernel
def _jump(s: State, r: int, until_ns: int) -> bool:
    """Take as many whole decode steps as possible, and return False if that is none.

    The steps must end by `until_ns`, meet no event and find their blocks.
    """
    rep, p = s.rep, s.p
    n = rep[r, c.NUM_DECODING]
    base = p[c.C0] + p[c.C2] * n + p[c.C3] * rep[r, c.CONTEXT]
    slope = p[c.C3] * n
    k = rep[r, c.NEXT_EVENT] - rep[r, c.DECODED]
    # prevent an int64 overflow of the window
    if (float(base) + float(slope) * 0.5 * float(k)) * float(k) > float(_WINDOW_FS):
        k = min(k, max(1, int(float(_WINDOW_FS) / (float(base) + float(slope) * float(k)))))
    left_ns = until_ns - rep[r, c.NOW_NS]
    if left_ns < _WINDOW_FS // c.FS_PER_NS:
        left = left_ns * c.FS_PER_NS - rep[r, c.NOW_FS]
        if _window_fs(base, slope, k) > left:
            # the largest k whose end is not after `until`: an estimate in floats, corrected in integers
            b = float(base) - 0.5 * float(slope)
            guess = (
                int((-b + math.sqrt(b * b + 2.0 * float(slope) * float(left))) / float(slope))
                if slope > 0
                else (left // base if base > 0 else k)
            )
            guess = max(0, min(guess, k))
            while guess > 0 and _window_fs(base, slope, guess) > left:
                guess -= 1
            while guess < k and _window_fs(base, slope, guess + 1) <= left:
                guess += 1
            k = guess
    if k == 0:
        return False
    if n * (k // p[c.BLOCK_SIZE] + 1) > rep[r, c.FREE] and _growth(s, r, 0, k) > rep[r, c.FREE]:
        low, high = 0, k
        while high - low > 1:
            middle = (low + high) // 2
            if _growth(s, r, 0, middle) > rep[r, c.FREE]:
                high = middle
            else:
                low = middle
        k = low
        if k == 0:
            return False
    blocks = _growth(s, r, 0, k)
    if blocks > 0:
        if s.slots[c.KEEP] != 0 and blocks > rep[r, c.UNUSED]:
            return False  # an eviction policy is asked at the step that needs the block
        rep[r, c.FREE] -= blocks
        take_blocks(s, r, blocks, (0, 0, 0, 0, 0, 0, 0))
    if rep[r, c.RESERVED] > 0:
        rep[r, c.RESERVED] -= _growth(s, r, 1, k)
    start = rep[r, c.NOW_NS]
    _move_clock(rep, r, c.NOW_NS, c.NOW_FS, _window_fs(base, slope, k))
    _log(s, r, start, rep[r, c.NOW_NS], k, 0, 0, n * k, rep[r, c.CONTEXT] * k + n * (k * (k - 1) // 2), 0)
    rep[r, c.DECODED] += k
    rep[r, c.CONTEXT] += n * k
    rep[r, c.STEPS] += k
    if rep[r, c.NEXT_EVENT] <= rep[r, c.DECODED]:
        _events(s, r)
    if p[c.CHECKED] == 1 and not conserved(s, r):
        _fail(s, r, c.NOT_CONSERVED)
    return True


@kernel
def _move_clock(rep: Ints, r: int, ns: int, fs: int, duration_fs: int) -> None:
    """Set the column pair (ns, fs) to the replica's clock plus a duration."""
    total = rep[r, c.NOW_FS] + duration_fs
    rep[r, ns] = rep[r, c.NOW_NS] + total // c.FS_PER_NS
    rep[r, fs] = total % c.FS_PER_NS


@kernel
def _schedule(s: State, r: int) -> None:
    """Schedule one step at NOW: decodes first, then running prefills, then admissions."""
    rep, p = s.rep, s.p
    preempted = False
    step_view = engine_view(s, r)
    phase = rep[r, c.DECODED] % p[c.BLOCK_SIZE]
    while s.grow[r, 0, phase] > rep[r, c.FREE]:
        preempt(s, r, choose_victim(s, r))
        preempted = True
    if rep[r, c.NUM_DECODING] > 0:
        need = s.grow[r, 0, phase]
        rep[r, c.FREE] -= need
        take_blocks(s, r, need, step_view)
        rep[r, c.RESERVED] -= s.grow[r, 1, phase]
    decodes = rep[r, c.NUM_DECODING]
    view = engine_view(s, r)
    budget = p[c.MAX_BATCHED_TOKENS]
    if s.slots[c.BUDGET] != 0:
        budget = max(1, min(budget, call_policy(s.slots[c.BUDGET], view)))
    budget -= decodes
    if decodes == 0:
        budget = max(budget, 1)
    tokens = 0
    attention2 = 0
    for k in range(rep[r, c.NUM_PREFILLING]):
        if budget <= 0:
            break
        chunk, quadratic = _prefill(s, r, s.pf[r, k], budget, view)
        tokens += chunk
        attention2 += quadratic
        budget -= chunk
    scored = False
    while not preempted and budget > 0 and rep[r, c.NUM_WAITING] > 0 and rep[r, c.NUM_RUNNING] < p[c.MAX_NUM_SEQS]:
        if rep[r, c.NUM_RUNNING] > 0 and rep[r, c.FREE] < rep[r, c.MIN_NEED] + p[c.WATERMARK]:
            break
        if not scored and s.slots[c.ORDERING] != 0:
            score_line(s, r, view)
            scored = True
        i = pick(s, r)
        if not try_admit(s, r, i, step_view):
            if s.slots[c.ORDERING] == 0 and s.slots[c.ADMIT] == 0 and s.slots[c.RESERVE] == 0 and p[c.NUM_HASHES] == 0:
                rep[r, c.HEAD_BLOCKED] = 1
            break
        chunk, quadratic = _prefill(s, r, i, budget, view)
        tokens += chunk
        attention2 += quadratic
        budget -= chunk
    if tokens == 0 and decodes == 0:
        _fail(s, r, c.STUCK)
        return
    duration = p[c.C0] + p[c.C2] * decodes + p[c.C3] * rep[r, c.CONTEXT]
    if tokens > 0:
        duration += max(p[c.PREFILL_FLOOR], p[c.C1] * tokens + p[c.C4_HALF] * attention2)
    rep[r, c.BUSY] = 1
    rep[r, c.ACTIVE_STEP_DECODES] = decodes
    _move_clock(rep, r, c.END_NS, c.END_FS, duration)
    rep[r, c.STEPS] += 1
    prefill_steps = 1 if tokens > 0 else 0
    _log(s, r, rep[r, c.NOW_NS], rep[r, c.END_NS], 1, prefill_steps, tokens, decodes, rep[r, c.CONTEXT], attention2)


@kernel
def _prefill(s: State, r: int, i: int, budget: int, view: View) -> tuple[int, int]:
    """Compute a chunk of request i in this step, and return its tokens and twice their attention work."""
    q, p = s.q, s.p
    done = q[i, c.COMPUTED]
    chunk = min(q[i, c.TARGET] - done, budget)
    if p[c.CHUNK_LIMIT] > 0:
        chunk = min(chunk, p[c.CHUNK_LIMIT])
    if s.slots[c.CHUNK] != 0:
        mine = waiting_view(s, i, s.rep[r, c.NOW_NS] // 1000)
        limit = call_policy(
            s.slots[c.CHUNK],
            (
                mine[0],
                mine[1],
                mine[2],
                mine[3],
                mine[4],
                mine[5],
                mine[6],
                view[0],
                view[1],
                view[2],
                view[3],
                view[4],
                view[5],
                view[6],
            ),
        )
        chunk = min(chunk, max(1, limit))
    q[i, c.COMPUTED] = done + chunk
    if p[c.NUM_HASHES] > 0:
        publish_prefix(s, r, i)
    return chunk, chunk * (2 * done + chunk)


@kernel
def _finish_step(s: State, r: int) -> None:
    """Apply the step in flight.

    Decodes advance, complete prefills produce a token, and finished requests leave.
    """
    rep, q, run, p = s.rep, s.q, s.run, s.p
    decodes = rep[r, c.ACTIVE_STEP_DECODES]
    if decodes > 0:
        rep[r, c.DECODED] += 1
        rep[r, c.CONTEXT] += decodes
    n = rep[r, c.NUM_RUNNING]
    k = 0
    pending = rep[r, c.NUM_PREFILLING]
    while pending > 0 and k < rep[r, c.NUM_PREFILLING]:
        i = s.pf[r, k]
        if q[i, c.COMPUTED] < q[i, c.TARGET]:
            k += 1
            continue
        remove_prefilling(s, r, i)
        position = n - 1
        while run[r, c.RUN_REQUEST, position] != i:
            position -= 1
        if q[i, c.FIRST_TOKEN_NS] < 0:
            q[i, c.FIRST_TOKEN_NS] = rep[r, c.NOW_NS]
        q[i, c.GENERATED] += 1
        base = q[i, c.TARGET] - rep[r, c.DECODED]
        run[r, c.RUN_BASE, position] = base
        run[r, c.RUN_FINISH, position] = rep[r, c.DECODED] + q[i, c.OUTPUT] - q[i, c.GENERATED]
        rep[r, c.NUM_DECODING] += 1
        rep[r, c.CONTEXT] += q[i, c.TARGET]
        phase = (-base) % p[c.BLOCK_SIZE]
        room = (q[i, c.HELD] + p[c.HASH_WEIGHT] * q[i, c.OWNED]) * p[c.BLOCK_SIZE]
        if room - q[i, c.TARGET] >= p[c.BLOCK_SIZE]:
            run[r, c.RUN_SPARE_END, position] = room - base
            s.grow[r, 1, phase] += 1
        else:
            s.grow[r, 0, phase] += 1
        event = min(run[r, c.RUN_FINISH, position], run[r, c.RUN_SPARE_END, position])
        run[r, c.RUN_EVENT, position] = event
        rep[r, c.NEXT_EVENT] = min(rep[r, c.NEXT_EVENT], event)
    if rep[r, c.NEXT_EVENT] <= rep[r, c.DECODED]:
        _events(s, r)
    if p[c.CHECKED] == 1 and not conserved(s, r):
        _fail(s, r, c.NOT_CONSERVED)


@kernel
def _events(s: State, r: int) -> None:
    """Remove requests that produced their last token, in admission order, and end used-up reservations."""
    rep, q, run = s.rep, s.q, s.run
    decoded, n = rep[r, c.DECODED], rep[r, c.NUM_RUNNING]
    kept = 0
    while kept < n and run[r, c.RUN_EVENT, kept] > decoded:
        kept += 1
    for k in range(kept, n):
        if run[r, c.RUN_EVENT, k] > decoded:
            move_running(s, r, k, kept)
            kept += 1
        elif run[r, c.RUN_FINISH, k] <= decoded:
            i = run[r, c.RUN_REQUEST, k]
            held = held_blocks(s, r, k)
            rep[r, c.RESERVED] -= unused_reservation(s, r, k)
            stop_decoding(s, r, k)
            q[i, c.FINISH_NS] = rep[r, c.NOW_NS]
            q[i, c.STATE] = c.FINISHED
            q[i, c.GENERATED] = q[i, c.OUTPUT]
            give_back(s, r, i, held, -1)
            rep[r, c.HEAD_BLOCKED] = 0
            rep[r, c.SERVED] += 1
            s.out[4] += 1
        else:
            phase = (-run[r, c.RUN_BASE, k]) % s.p[c.BLOCK_SIZE]
            s.grow[r, 1, phase] -= 1
            s.grow[r, 0, phase] += 1
            run[r, c.RUN_SPARE_END, k] = c.NEVER
            run[r, c.RUN_EVENT, k] = run[r, c.RUN_FINISH, k]
            move_running(s, r, k, kept)
            kept += 1
    rep[r, c.NUM_RUNNING] = kept
    rep[r, c.NEXT_EVENT] = first_event(s, r)


@kernel
def _log(
    s: State,
    r: int,
    start: int,
    end: int,
    steps: int,
    prefill_steps: int,
    tokens: int,
    decodes: int,
    context: int,
    attention2: int,
) -> None:
    """Add one row to the step log if there is room.

    The count continues without room, so that the caller can repeat the run with a larger log.
    """
    row = s.out[3]
    s.out[3] = row + 1
    if row < s.log.shape[0]:
        log = s.log
        log[row, c.LOG_START_NS] = start
        log[row, c.LOG_END_NS] = end
        log[row, c.LOG_REPLICA] = r
        log[row, c.LOG_STEPS] = steps
        log[row, c.LOG_PREFILL_STEPS] = prefill_steps
        log[row, c.LOG_PREFILL_TOKENS] = tokens
        log[row, c.LOG_DECODES] = decodes
        log[row, c.LOG_CONTEXT] = context
        log[row, c.LOG_ATTENTION2] = attention2
        log[row, c.LOG_RUNNING] = s.rep[r, c.NUM_RUNNING]
        log[row, c.LOG_WAITING] = s.rep[r, c.NUM_WAITING]
        log[row, c.LOG_FREE] = s.rep[r, c.FREE]


@kernel
def _fail(s: State, r: int, status: int) -> None:
    s.out[0] = status
    s.out[1] = r
    s.out[2] = s.rep[r, c.NOW_NS]
