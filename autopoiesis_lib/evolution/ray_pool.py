"""The Ray executor: the same jobs in Ray actors, on one machine or many. Ray does all of the cluster's work.

Each worker is an actor that holds the setup. A job that exceeds its limits kills its actor, and a new actor starts on
any node with free resources. Every node needs the library and the contract's package installed.
"""

import os
import pickle
import resource
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from ..environment import clean_environment
from ..gates.verdict import Reason
from .budget import Limits
from .errors import EvolutionError
from .executor import Done, Failure, Key
from .pool import START_S, answer_of, limit_cpu, pickled
from .work import Setup, Worker

__all__ = ["RayPool"]


class RayPool:
    """A fixed number of actors on the Ray cluster that this process is connected to, or on a new local cluster.

    Set RAY_ADDRESS (or call `ray.init`) to use a cluster that already runs.
    """

    def __init__(self, setup: Setup, workers: int, limits: Limits) -> None:
        try:
            import ray
        except ImportError:
            raise EvolutionError(
                "the Ray executor needs Ray: pip install 'autopoiesis-lib[ray]', or use --executor local"
            ) from None
        if workers < 1:
            raise EvolutionError(f"workers={workers}: give at least 1")
        self._ray: Any = ray
        self._mine = not ray.is_initialized()
        if self._mine:
            local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "include_dashboard": False}
            ray.init(log_to_driver=False, configure_logging=False, **local)
        self.workers = workers
        self._limits = limits
        self._setup = ray.put(pickled(setup))
        hidden = os.environ.keys() - clean_environment().keys()
        kept_back = {
            name: "" for name in hidden if not name.startswith("RAY_")
        }  # Ray's own variables let a worker join the cluster
        self._actor: Any = ray.remote(
            num_cpus=1, max_restarts=0, max_task_retries=0, runtime_env={"env_vars": kept_back}
        )(_Actor)
        self._queue: deque[tuple[Key, object, Limits]] = deque()
        self._failed_starts = 0
        self._staff = [self._hire() for _ in range(workers)]

    def submit(self, key: Key, job: object, time_limit_s: float | None = None) -> None:
        """Queue a job."""
        limits = self._limits if time_limit_s is None else Limits(
            wall_s=time_limit_s, cpu_s=time_limit_s, memory_mib=self._limits.memory_mib
        )  # fmt: skip
        self._queue.append((key, job, limits))
        self._assign()

    def wait(self, timeout_s: float | None) -> Sequence[Done]:
        """Return answers and failures. Block until there is one or the time is up."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._assign()
            if not self._queue and not any(member.key for member in self._staff):
                return []
            pending = {member.reference: member for member in self._staff if member.reference is not None}
            now = time.monotonic()
            until = min([member.deadline for member in pending.values()] + ([end] if end is not None else []))
            ready, _ = self._ray.wait(list(pending), num_returns=1, timeout=max(0.0, until - now))
            done = [item for reference in ready if (item := self._take(pending[reference])) is not None]
            for member in pending.values():
                if (
                    member.reference is not None
                    and time.monotonic() >= member.deadline
                    and member.reference not in ready
                ):
                    late = self._dismiss(member, Failure(Reason.TIME, f"killed after {member.limits.wall_s:g} s"))
                    done += [late] if late is not None else []
            if done:
                self._assign()
                return done
            if end is not None and time.monotonic() >= end:
                return []

    def clear(self) -> None:
        """Remove the jobs that have not started."""
        self._queue.clear()

    def close(self) -> None:
        """Kill the actors, and shut down the cluster if it was started here."""
        for member in self._staff:
            self._ray.kill(member.actor)
        self._staff = []
        if self._mine:
            self._ray.shutdown()

    def _hire(self) -> "_Member":
        actor = self._actor.remote(self._setup, self._limits.memory_mib)
        return _Member(actor, actor.ready.remote(), Limits(wall_s=START_S))

    def _assign(self) -> None:
        for member in self._staff:
            if self._queue and member.reference is None:
                key, job, limits = self._queue.popleft()
                member.begin(key, member.actor.run.remote(pickle.dumps(job), limits.cpu_s), limits)

    def _take(self, member: "_Member") -> Done | None:
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(member.reference)
        except (errors.RayActorError, errors.WorkerCrashedError, errors.OutOfMemoryError):
            return self._dismiss(member, Failure(Reason.DIED, "the actor died"))
        except errors.RayError as error:
            return self._dismiss(member, Failure(Reason.RAISED, str(error).splitlines()[0][:300]))
        if member.key is None:
            self._failed_starts = 0
        return member.end(pickle.loads(answer))

    def _dismiss(self, member: "_Member", failure: Failure) -> Done | None:
        self._ray.kill(member.actor)
        if member.key is None:
            self._failed_starts += 1
            if self._failed_starts > 2 * self.workers:
                self.close()
                raise EvolutionError(
                    f"Ray actors die while starting ({failure.detail}); is the library installed on every node?"
                )
        self._staff[self._staff.index(member)] = self._hire()
        return member.end(failure)


class _Member:
    """One actor as the pool sees it. `key` is None while it starts."""

    def __init__(self, actor: Any, reference: Any, limits: Limits) -> None:
        self.actor = actor
        self.key: Key | None = None
        self.reference: Any = reference
        self.limits = limits
        self.started = time.monotonic()
        self.deadline = self.started + limits.wall_s

    def begin(self, key: Key, reference: Any, limits: Limits) -> None:
        """Record that a job was sent to the actor."""
        self.key, self.reference, self.limits, self.started = key, reference, limits, time.monotonic()
        self.deadline = self.started + limits.wall_s

    def end(self, answer: object) -> Done | None:
        """Clear the actor's job and return its answer; None if the actor was starting."""
        key, self.key, self.reference = self.key, None, None
        return None if key is None else Done(key, answer, time.monotonic() - self.started)


class _Actor:
    """The worker inside a Ray process."""

    def __init__(self, setup: bytes, memory_mib: int) -> None:
        memory = memory_mib * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        self._worker = Worker(pickle.loads(setup))
        self._worker.warm()

    def ready(self) -> bytes:
        """Return once the worker is set up."""
        return pickle.dumps(None)

    def run(self, job: bytes, cpu_s: float) -> bytes:
        """Run one job and return its pickled answer, or a failure if the answer cannot be pickled."""
        limit_cpu(cpu_s)
        answer = answer_of(self._worker, pickle.loads(job))
        limit_cpu(None)
        try:
            return pickle.dumps(answer)
        except Exception as error:
            return pickle.dumps(Failure(Reason.RAISED, f"the answer cannot be pickled: {error}"))
