"""The local executor: worker processes with CPU, memory and time limits, killed and replaced when they exceed one.

A worker leads its own process group and dies with its parent, so none of its child processes outlives it. It inherits
none of the parent's secrets. A spawned process costs about a second, so each worker serves many jobs. A job can harm
only the worker that runs it.
"""

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from ..environment import only_clean_environment_inherited
from ..gates.verdict import Reason
from .budget import Limits
from .errors import EvolutionError
from .executor import Done, Failure, Key
from .work import Setup, Worker

__all__ = ["LocalPool", "answer_of", "limit_cpu", "pickled"]

START_S = 120.0
"""Seconds that a worker may take to start, including imports and a first compilation on a fresh machine."""
PR_SET_PDEATHSIG = 1


class LocalPool:
    """A fixed number of worker processes on this machine."""

    def __init__(self, setup: Setup, workers: int, limits: Limits) -> None:
        if workers < 1:
            raise EvolutionError(f"workers={workers}: give at least 1")
        self.workers = workers
        self._setup = pickled(setup)
        self._limits = limits
        self._queue: deque[tuple[Key, object, Limits]] = deque()
        self._failed_starts = 0
        self._staff = [_Member(self._setup, limits) for _ in range(workers)]

    def submit(self, key: Key, job: object, time_limit_s: float | None = None) -> None:
        """Queue a job, optionally with its own time limit, which applies to wall time and CPU time."""
        limits = (
            self._limits if time_limit_s is None else replace(self._limits, wall_s=time_limit_s, cpu_s=time_limit_s)
        )
        self._queue.append((key, job, limits))
        self._assign()

    def wait(self, timeout_s: float | None) -> Sequence[Done]:
        """Return answers and failures since the last call. Block until there is one or the time is up."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._assign()
            if not any(member.key for member in self._staff) and not self._queue:
                return []
            now = time.monotonic()
            limits = [member.deadline for member in self._staff if member.deadline is not None]
            until = min([*limits, *([end] if end is not None else [])], default=now + 1.0)
            ready = wait([item for member in self._staff for item in member.waitables], max(0.0, until - now))
            done = [item for member in list(self._staff) if (item := self._attend(member, ready)) is not None]
            if done:
                self._assign()
                return done
            if end is not None and time.monotonic() >= end:
                return []

    def clear(self) -> None:
        """Remove the jobs that have not started."""
        self._queue.clear()

    def close(self) -> None:
        """Kill all workers."""
        for member in self._staff:
            member.kill()
        self._staff, self._queue = [], deque()

    def _assign(self) -> None:
        for member in self._staff:
            if self._queue and member.ready and member.key is None:
                member.start(*self._queue.popleft())

    def _attend(self, member: "_Member", ready: Sequence[object]) -> Done | None:
        """Process the message of a worker, and replace the worker if it is dead or out of time."""
        if member.connection in ready:
            try:
                kind, content = member.connection.recv()
            except (EOFError, OSError):
                return self._replace(member, _cause(member.process))
            except Exception as error:  # an answer that cannot be unpickled loses only its candidate
                return self._replace(
                    member, Failure(Reason.RAISED, f"unreadable answer: {type(error).__name__}: {error}")
                )
            if kind == "ready":
                member.ready, member.deadline = True, None
                self._failed_starts = 0
                return None
            if kind == "broken":
                self.close()
                raise EvolutionError(f"a worker cannot start: {content}")
            return member.finish(content)
        if member.process.sentinel in ready:
            return self._replace(member, _cause(member.process))
        if member.deadline is not None and time.monotonic() >= member.deadline:
            return self._replace(member, Failure(Reason.TIME, f"killed after {member.limits.wall_s:g} s"))
        return None

    def _replace(self, member: "_Member", failure: Failure) -> Done | None:
        member.kill()
        if not member.ready:
            self._failed_starts += 1
            if self._failed_starts > 2 * self.workers:
                self.close()
                raise EvolutionError(
                    f'workers die while starting ({failure.detail}): call evolve() under `if __name__ == "__main__":` in a '
                    "script, free memory, or raise Limits(memory_mib=...)"
                )
        self._staff[self._staff.index(member)] = _Member(self._setup, self._limits)
        return member.finish(failure) if member.key is not None else None


class _Member:
    """One worker process as the pool sees it."""

    def __init__(self, setup: bytes, limits: Limits) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.limits = limits
        self.process: BaseProcess = context.Process(
            target=_serve, args=(theirs, setup, limits, os.getpid()), daemon=True
        )
        with only_clean_environment_inherited():
            self.process.start()
        theirs.close()
        self.ready = False
        self.key: Key | None = None
        self.started = 0.0
        self.deadline: float | None = time.monotonic() + START_S

    @property
    def waitables(self) -> tuple[Connection, int]:
        """The connection and the process sentinel, on which the pool waits."""
        return self.connection, self.process.sentinel

    def start(self, key: Key, job: object, limits: Limits) -> None:
        """Send a job to the worker."""
        self.limits = limits
        self.key, self.started = key, time.monotonic()
        self.deadline = self.started + limits.wall_s
        with contextlib.suppress(OSError):  # the sentinel of a worker that has just died reports its death
            self.connection.send((job, limits.cpu_s))

    def finish(self, answer: object) -> Done:
        """Clear the worker's job and return its answer."""
        assert self.key is not None
        done = Done(self.key, answer, time.monotonic() - self.started)
        self.key, self.deadline = None, None
        return done

    def kill(self) -> None:
        """Kill the worker and all processes of its process group."""
        pid = self.process.pid
        if pid is not None:
            for target in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    target(pid, signal.SIGKILL)
        self.process.join(5)
        self.connection.close()


def pickled(setup: Setup) -> bytes:
    try:
        return pickle.dumps(setup)
    except Exception as error:
        raise EvolutionError(
            f"the contract or evaluator cannot be sent to a worker process ({error}); define it in an importable module"
        ) from None


def _cause(process: BaseProcess) -> Failure:
    process.join(2)
    code = process.exitcode
    if code == -signal.SIGXCPU:
        return Failure(Reason.CPU, "killed at its CPU limit")
    name = signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"
    return Failure(Reason.DIED, f"the worker died ({name})")


def _serve(connection: Connection, setup: bytes, limits: Limits, parent: int) -> None:
    """Serve jobs in the worker process until the pipe closes, after setting the limits."""
    os.setpgrp()  # not a session of its own, because `watch --idle` would then have no effect (see `priority`)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    memory = limits.memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        worker = Worker(pickle.loads(setup))
        worker.warm()
    except BaseException as error:
        connection.send(("broken", f"{type(error).__name__}: {error}"))
        return
    connection.send(("ready", None))
    while True:
        try:
            job, cpu_s = connection.recv()
        except (EOFError, OSError):
            return
        limit_cpu(cpu_s)
        answer = answer_of(worker, job)
        limit_cpu(None)
        _send(connection, answer)


def answer_of(worker: Worker, job: object) -> object:
    try:
        return worker(job)
    except Exception as error:
        return Failure.of(error)


def _send(connection: Connection, answer: Any) -> None:
    try:
        connection.send(("done", answer))
    except (TypeError, pickle.PicklingError, AttributeError) as error:
        connection.send(("done", Failure(Reason.RAISED, f"the answer cannot be pickled: {error}")))


def limit_cpu(seconds: float | None) -> None:
    """Set a soft CPU limit that counts from now, or remove it. SIGXCPU ends the process at the limit."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = resource.RLIM_INFINITY if seconds is None else int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
