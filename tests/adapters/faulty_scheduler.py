"""The adapter's scheduler with a saboteur inside the engine process, told by files what to break and when to mend it.

    --scheduler-cls tests.adapters.faulty_scheduler.make_scheduler

The test writes a fault's name into `FAULTS_FOLDER/wanted`; a thread in the engine takes out what it put in before, puts
this in, and removes the file (which works on a full disk too). An empty name only takes out.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import MemberDescriptorType
from typing import Any

import numpy as np
from autopoiesis_adapters.vllm import make_scheduler as make_honest_scheduler
from autopoiesis_adapters.vllm.engine_side import ENGINE_FIELDS

__all__ = ["FAULTS", "FAULTS_FOLDER", "LATE_S", "WANTED", "make_scheduler"]

FAULTS_FOLDER = "FAULTS_FOLDER"
WANTED = "wanted"
LATE_S = 0.5
"""How long a slow decision takes; the server's deadline must be shorter."""
HOUR_NS = 3_600_000_000_000

Fault = Callable[[Any], AbstractContextManager[None]]
"""Of the adapter's `EngineSide`: entered to break it, left to mend it."""


def raising(*_args: object) -> Any:
    raise RuntimeError("a bug of our own")


class Unreadable:
    """Asked whether it is anything, it raises."""

    def __bool__(self) -> bool:
        raise RuntimeError("a bug of our own")


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of one object is another one for a while."""
    slot = isinstance(getattr(type(owner), name, None), MemberDescriptorType)
    own = slot or name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


class Misled:
    """A certified policy's scorer whose machine code does something else than was proved."""

    def __init__(self, honest: Any, pick: Callable[[Any, Any], int | None], times: int = 1_000_000) -> None:
        self._honest, self._pick, self._left = honest, pick, times

    def argmax(self, columns: Any, tiebreak: Any, *context: Any, n: int | None = None) -> int:
        if self._left > 0:
            self._left -= 1
            picked = self._pick(columns, tiebreak[:n])
            if picked is not None:
                return picked
        return int(self._honest.argmax(columns, tiebreak, *context, n=n))


def misled(pick: Callable[[Any, Any], int | None], times: int = 1_000_000, seat: str = "active", **more: Any) -> Fault:
    """The policy in a seat misbehaves so many times; it is taken out by whoever publishes the next one."""

    @contextmanager
    def fault(side: Any) -> Iterator[None]:
        policy = getattr(side.governor, seat)
        setattr(side.governor, seat, replace(policy, scorer=Misled(policy.scorer, pick, times), **more))
        yield

    return fault


def slow(_columns: object, _seqs: object) -> None:
    time.sleep(LATE_S)


def jumped(hours: int) -> Fault:
    def fault(side: Any) -> AbstractContextManager[None]:
        real = side.clock_ns
        return replaced(side, "clock_ns", lambda: real() + hours * HOUR_NS)

    return fault


def engine_says(field: str, value: int) -> Fault:
    """The engine's view holds a value that is not so."""

    def fault(side: Any) -> AbstractContextManager[None]:
        good, place = side.governor.read_engine, ENGINE_FIELDS.index(field)

        def read(oldest_waited_us: int) -> tuple[int, ...]:
            row = list(good(oldest_waited_us))
            row[place] = value
            return tuple(row)

        return replaced(side.governor, "read_engine", read)

    return fault


def outside_its_domain(side: Any) -> AbstractContextManager[None]:
    """Requests that arrive hold a value that no proof covers."""
    honest = side.columns._stamp

    def stamp(request: Any) -> Any:
        request.num_preemptions = -1
        return honest(request)

    return replaced(side.columns, "_stamp", stamp)


def ended(*_args: object) -> Any:
    raise SystemExit


@contextmanager
def stuck(side: Any) -> Iterator[None]:
    """Whatever policy comes, its verification does not end before this does."""
    mended, loads = threading.Event(), side.watcher._loads
    honest = dict(loads)

    def load(contract: str) -> Callable[[str, str | bytes], Any]:
        def wait(source: str, certificate: str | bytes) -> Any:
            mended.wait()
            return honest[contract](source, certificate)

        return wait

    loads.update({contract: load(contract) for contract in honest})
    try:
        yield
    finally:
        loads.update(honest)
        mended.set()


FAULTS: Mapping[str, Fault] = {
    "raises": misled(raising),
    "picks-beyond-the-end": misled(lambda _columns, _seqs: 10_000),
    "picks-nobody": misled(lambda _columns, _seqs: -1),
    "picks-the-youngest": misled(lambda _columns, seqs: int(np.argmax(seqs)), aging_us=0),
    "shadow-raises": misled(raising, seat="shadow"),
    "shadow-picks-beyond-the-end": misled(lambda _columns, _seqs: 10_000, seat="shadow"),
    "one-slow-decision": misled(slow, times=1),
    "slow-decisions": misled(slow),
    "clock-jumps-back": jumped(-1),
    "clock-jumps-ahead": jumped(48),
    "request-outside-its-domain": outside_its_domain,
    "engine-outside-its-domain": engine_says("free_blocks", -1),
    "engine-value-beyond-64-bits": engine_says("total_blocks", 2**70),
    "assumption-on-blocks-broken": engine_says("free_blocks", 16_000_000),
    "assumption-on-running-broken": engine_says("num_running", 1_000_000),
    "bug-before-the-step": lambda side: replaced(side.queue, "unsettled", Unreadable()),
    "bug-in-the-pick": lambda side: replaced(side.governor, "read_engine", raising),
    "bug-after-the-step": lambda side: replaced(side, "_record", raising),
    "bug-when-a-request-leaves": lambda side: replaced(side, "_record_request", raising),
    "bug-in-the-prefix-cache-look-up": lambda side: replaced(side, "_look_up", raising),
    "verification-does-not-end": stuck,
    "watcher-dies": lambda side: replaced(side.watcher, "look", ended),
}


def make_scheduler(vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
    """What vLLM is given in place of the adapter's own factory."""
    scheduler = make_honest_scheduler(vllm_config, *args, **kwargs)
    folder = Path(os.environ[FAULTS_FOLDER])
    threading.Thread(target=_sabotage, args=(scheduler.autopoiesis, folder), daemon=True).start()
    return scheduler


def _sabotage(side: Any, folder: Path) -> None:
    fault = None
    while True:
        time.sleep(0.01)
        try:
            wanted = (folder / WANTED).read_text()
        except FileNotFoundError:
            continue
        if fault is not None:
            fault.__exit__(None, None, None)
        fault = FAULTS[wanted](side) if wanted else None
        if fault is not None:
            fault.__enter__()
        (folder / WANTED).unlink()
