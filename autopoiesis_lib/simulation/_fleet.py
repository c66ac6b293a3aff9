"""The whole run in compiled code: arrivals, routing, autoscaling, and the loss and recovery of replicas.

`compiled_run()` builds the only specialisation. Its cache key holds a digest of every kernel source file, because numba
itself checks only the file of the outermost function. An edited helper is therefore never served from a stale cache.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from autopoiesis_lib.simulation import _columns as c
from autopoiesis_lib.simulation._blocks import cached_prefix, sentinel_of
from autopoiesis_lib.simulation._native import Ints, State, borrowed, call_policy, kernel
from autopoiesis_lib.simulation._replica import advance
from autopoiesis_lib.simulation._waiting import enqueue, leave_line, preempt

_SOURCES = ("_columns", "_native", "_blocks", "_waiting", "_replica", "_fleet")


@kernel
def _reset_replica(s: State, r: int, now_ns: int) -> None:
    """Make replica r empty and cold, and move its clock forward to `now_ns`."""
    rep = s.rep
    sentinel = sentinel_of(s, r)
    node = s.links[sentinel, 1]
    while node != sentinel:
        after = s.links[node, 1]
        s.links[node, 2] = 0
        node = after
    s.links[sentinel, 0] = sentinel
    s.links[sentinel, 1] = sentinel
    for h in range(s.p[c.NUM_HASHES]):
        s.cache[r * s.p[c.NUM_HASHES] + h, 0] = -1
    rep[r, c.NOW_NS] = max(rep[r, c.NOW_NS], now_ns)
    rep[r, c.BUSY] = 0
    rep[r, c.FREE] = s.p[c.TOTAL_BLOCKS]
    rep[r, c.UNUSED] = s.p[c.TOTAL_BLOCKS]
    rep[r, c.NEXT_EVENT] = c.NEVER
    rep[r, c.MIN_NEED] = c.NEVER


@kernel
def _switch_on(s: State, r: int, now_ns: int) -> None:
    _reset_replica(s, r, now_ns)
    s.rep[r, c.NOW_NS] = now_ns
    s.rep[r, c.NOW_FS] = 0
    s.rep[r, c.HEALTH] = c.ACTIVE


@kernel
def _switch_off(s: State, r: int, now_ns: int, health: int) -> None:
    if s.rep[r, c.HEALTH] != c.OFF and s.rep[r, c.HEALTH] != c.LOST:
        s.rep[r, c.ON_NS] += now_ns - s.rep[r, c.STARTED_NS]
    s.rep[r, c.HEALTH] = health


@kernel
def _choose_replica(s: State, i: int) -> int:
    """Return the replica for request i: the policy's choice, or vLLM's balance without a policy.

    vLLM's balance is the least 4 * waiting + running, and the lowest index of equals. The result is -1 if no replica is
    active.
    """
    rep, q = s.rep, s.q
    best, highest = -1, 0
    for r in range(rep.shape[0]):
        if rep[r, c.HEALTH] != c.ACTIVE:
            continue
        if s.slots[c.ROUTE] == 0:
            score = -(4 * rep[r, c.NUM_WAITING] + rep[r, c.NUM_RUNNING])
        else:
            score = call_policy(
                s.slots[c.ROUTE],
                (
                    q[i, c.PROMPT],
                    q[i, c.MAX_TOKENS],
                    q[i, c.PRIORITY],
                    r,
                    rep[r, c.NUM_WAITING],
                    rep[r, c.NUM_RUNNING],
                    rep[r, c.FREE],
                    s.p[c.TOTAL_BLOCKS],
                    s.p[c.MAX_NUM_SEQS],
                    rep[r, c.QUEUED_TOKENS],
                    cached_prefix(s, r, i) * s.p[c.HASH_WEIGHT] * s.p[c.BLOCK_SIZE],
                ),
            )
        if best < 0 or score > highest:
            best, highest = r, score
    return best


@kernel
def _dispatch(s: State, i: int, now_ns: int) -> None:
    """Send request i to a replica, or to the line of requests that no replica can take now."""
    r = _choose_replica(s, i) if s.rep.shape[0] > 1 or s.rep[0, c.HEALTH] != c.ACTIVE else 0
    if r < 0:
        enqueue(s, s.rep.shape[0], i)
        return
    if s.rep[r, c.BUSY] == 0 and s.rep[r, c.NOW_NS] < now_ns:
        s.rep[r, c.NOW_NS] = now_ns
        s.rep[r, c.NOW_FS] = 0
    enqueue(s, r, i)


@kernel
def _dispatch_orphans(s: State, now_ns: int) -> None:
    nowhere = s.rep.shape[0]
    while s.line[nowhere, 0] >= 0:
        any_active = False
        for r in range(nowhere):
            any_active = any_active or s.rep[r, c.HEALTH] == c.ACTIVE
        if not any_active:
            return
        i = s.line[nowhere, 0]
        leave_line(s, nowhere, i)
        _dispatch(s, i, now_ns)


@kernel
def _lose(s: State, r: int, now_ns: int) -> None:
    """Remove replica r with its step in flight and its cache.

    The requests that it held are computed again on other replicas.
    """
    rep = s.rep
    _switch_off(s, r, now_ns, c.LOST)
    while rep[r, c.NUM_RUNNING] > 0:
        preempt(s, r, rep[r, c.NUM_RUNNING] - 1)
    while s.line[r, 0] >= 0:
        i = s.line[r, 0]
        leave_line(s, r, i)
        enqueue(s, rep.shape[0], i)
    _reset_replica(s, r, now_ns)
    for f in range(2):
        for phase in range(s.p[c.BLOCK_SIZE]):
            s.grow[r, f, phase] = 0
    rep[r, c.CONTEXT] = 0
    rep[r, c.RESERVED] = 0


@kernel
def _autoscale(s: State, now_ns: int, arrivals: int) -> None:
    """Ask the policy for a target, and start or drain at most SCALE_STEP replicas."""
    rep, p = s.rep, s.p
    active, starting, waiting, running, free = 0, 0, 0, 0, 0
    for r in range(rep.shape[0]):
        if rep[r, c.HEALTH] == c.ACTIVE:
            active += 1
            waiting += rep[r, c.NUM_WAITING]
            running += rep[r, c.NUM_RUNNING]
            free += rep[r, c.FREE]
        elif rep[r, c.HEALTH] == c.STARTING:
            starting += 1
    have = active + starting
    view = (active, starting, waiting, running, free, p[c.TOTAL_BLOCKS], p[c.MAX_NUM_SEQS], arrivals)
    target = max(p[c.SCALE_MIN], min(p[c.SCALE_MAX], call_policy(s.slots[c.SCALE], view)))
    target = max(have - p[c.SCALE_STEP], min(have + p[c.SCALE_STEP], target))
    for r in range(rep.shape[0]):
        if have < target and rep[r, c.HEALTH] == c.OFF:
            rep[r, c.HEALTH] = c.STARTING
            rep[r, c.STARTED_NS] = now_ns
            rep[r, c.READY_NS] = now_ns + p[c.START_DELAY_US] * 1000
            have += 1
    for r in range(rep.shape[0] - 1, -1, -1):
        if have > target and rep[r, c.HEALTH] == c.STARTING:
            _switch_off(s, r, now_ns, c.OFF)
            have -= 1
    for r in range(rep.shape[0] - 1, -1, -1):
        if have > target and rep[r, c.HEALTH] == c.ACTIVE and active > 1:
            rep[r, c.HEALTH] = c.DRAINING
            active -= 1
            have -= 1


@kernel
def _drained(s: State, now_ns: int) -> None:
    for r in range(s.rep.shape[0]):
        if s.rep[r, c.HEALTH] == c.DRAINING and s.rep[r, c.NUM_RUNNING] + s.rep[r, c.NUM_WAITING] == 0:
            _switch_off(s, r, max(s.rep[r, c.NOW_NS], s.rep[r, c.STARTED_NS]), c.OFF)


def _kernel(version: int) -> Callable[..., Any]:
    def run(
        p: Ints,
        slots: Ints,
        trace: Ints,
        prefix_ptr: Ints,
        prefix_ids: Ints,
        outages: Ints,
        q: Ints,
        rep: Ints,
        runs: Ints,
        pf: Ints,
        grow: Ints,
        line: Ints,
        links: Ints,
        cache: Ints,
        owned: NDArray[np.uint8],
        log: Ints,
        decisions: Ints,
        out: Ints,
    ) -> None:
        s = State(
            borrowed(p),
            borrowed(slots),
            borrowed(q),
            borrowed(rep),
            borrowed(runs),
            borrowed(pf),
            borrowed(grow),
            borrowed(line),
            borrowed(links),
            borrowed(cache),
            borrowed(prefix_ptr),
            borrowed(prefix_ids),
            borrowed(owned),
            borrowed(log),
            borrowed(decisions),
            borrowed(out),
        )
        n, replicas = q.shape[0], rep.shape[0]
        if version == 0:
            return
        for r in range(replicas):
            sentinel = sentinel_of(s, r)
            links[sentinel, 0] = sentinel
            links[sentinel, 1] = sentinel
            _reset_replica(s, r, 0)
        i, outage, arrivals = 0, 0, 0
        next_scale = p[c.SCALE_INTERVAL_US] * 1000 if slots[c.SCALE] != 0 else c.NEVER
        rejected = 0
        while out[0] == 0:
            now = c.NEVER
            if i < n:
                now = trace[0, i] * 1000
            if outage < outages.shape[0]:
                now = min(now, outages[outage, 0])
            if out[4] + rejected < n:
                now = min(now, next_scale)
            for r in range(replicas):
                if rep[r, c.HEALTH] == c.STARTING:
                    now = min(now, rep[r, c.READY_NS])
            for r in range(replicas):
                if rep[r, c.HEALTH] == c.ACTIVE or rep[r, c.HEALTH] == c.DRAINING:
                    advance(s, r, now)
            if out[4] + rejected == n:
                break
            if now == c.NEVER:
                out[0] = 1 if out[0] == 0 else out[0]
                break
            _drained(s, now)
            for r in range(replicas):
                if rep[r, c.HEALTH] == c.STARTING and rep[r, c.READY_NS] <= now:
                    _switch_on(s, r, now)
            while outage < outages.shape[0] and outages[outage, 0] <= now:
                r = outages[outage, 1]
                if outages[outage, 2] == 1 and rep[r, c.HEALTH] != c.LOST:
                    _lose(s, r, now)
                elif outages[outage, 2] == 0 and rep[r, c.HEALTH] == c.LOST:
                    rep[r, c.STARTED_NS] = now
                    _switch_on(s, r, now)
                outage += 1
            if next_scale <= now:
                _autoscale(s, now, arrivals)
                arrivals = 0
                next_scale += p[c.SCALE_INTERVAL_US] * 1000
            _dispatch_orphans(s, now)
            while i < n and trace[0, i] * 1000 <= now:
                arrivals += 1
                for f in range(5):
                    q[i, f] = trace[f, i]
                most = (q[i, 1] + q[i, 2] - 1 + p[c.BLOCK_SIZE] - 1) // p[c.BLOCK_SIZE]
                if most > p[c.TOTAL_BLOCKS]:
                    q[i, c.STATE] = c.REJECTED
                    rejected += 1
                else:
                    _dispatch(s, i, now)
                i += 1
        for r in range(replicas):
            if rep[r, c.HEALTH] != c.OFF and rep[r, c.HEALTH] != c.LOST:
                rep[r, c.ON_NS] += max(0, rep[r, c.NOW_NS] - rep[r, c.STARTED_NS])

    return run


@cache
def compiled_run() -> Callable[..., None]:
    """Return the compiled kernel.

    It is compiled on a machine's first use (about 30 s), then loaded from numba's cache (well under 1 s).
    """
    here = Path(__file__).parent
    text = b"".join((here / f"{name}.py").read_bytes() for name in _SOURCES)
    version = int.from_bytes(hashlib.sha256(text).digest()[:7], "little") | 1
    one, two, three = (types.Array(types.int64, d, "C") for d in (1, 2, 3))
    flags = types.Array(types.uint8, 1, "C")
    signature = types.void(
        one, one, two, one, one, two, two, two, three, two, three, two, two, two, flags, two, two, one
    )
    compiled: Callable[..., None] = njit(signature, cache=True, nogil=True, error_model="numpy")(_kernel(version))
    return compiled
