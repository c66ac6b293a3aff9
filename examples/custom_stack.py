"""A verified policy in a custom serving loop: no engine, no framework, one machine-code function.

The loop below is the whole "engine": four lanes that each serve one request at a time. It asks the policy for the next
waiting request in two ways. The vectorised scorer suits a queue kept in columns; the scalar function pointer suits C,
numba or a plain Python loop. Both give the same order, and the proof holds for both.

    python examples/custom_stack.py
"""

import random
from dataclasses import dataclass

import numpy as np
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Policy
from autopoiesis_lib.certificate import verify

LANES = 4
US_PER_TOKEN = 500
FIELDS = ("request.waited_us", "request.num_prompt_tokens")
"""The only fields that this stack knows; compiling a policy that reads others fails."""


@dataclass
class Job:
    """One request of this stack."""

    number: int
    arrived_us: int
    tokens: int
    finished_us: int = 0


def serve(jobs: list[Job], pick: "Picker") -> float:
    """Serve every job and return the mean latency in milliseconds."""
    lanes = [0] * LANES
    waiting: list[Job] = []
    arriving = sorted(jobs, key=lambda job: job.arrived_us)
    while waiting or arriving:
        lane = min(range(LANES), key=lanes.__getitem__)
        now_us = lanes[lane]
        while arriving and (arriving[0].arrived_us <= now_us or not waiting):
            now_us = max(now_us, arriving[0].arrived_us)
            waiting.append(arriving.pop(0))
        job = waiting.pop(pick(waiting, now_us))
        job.finished_us = lanes[lane] = now_us + job.tokens * US_PER_TOKEN
    return float(np.mean([job.finished_us - job.arrived_us for job in jobs])) / 1_000


class Picker:
    """A callable that returns the index of the waiting job to serve next: highest score, ties to the lower number."""

    def __init__(self, policy: Policy) -> None:
        self._native = policy.native(layout=FIELDS)  # keep a reference: it owns the machine code

    def __call__(self, waiting: list[Job], now_us: int) -> int:
        scores = [self._native(now_us - job.arrived_us, job.tokens) for job in waiting]
        return min(range(len(waiting)), key=lambda i: (-scores[i], waiting[i].number))


class VectorPicker(Picker):
    """A picker that scores the whole queue in one call."""

    def __init__(self, policy: Policy) -> None:
        request, engine = (policy.contract.views[param.type] for param in policy.contract.decisions["score"].params)
        self._scorer = policy.scorer()
        self._names = [spec.name for spec in request.fields()]
        # Fields that this stack does not have are set to the lowest value of their domain.
        self._blank = np.array([spec.domain.lo for spec in request.fields()], np.int64)
        self._engine = np.array([spec.domain.lo for spec in engine.fields()], np.int64)

    def __call__(self, waiting: list[Job], now_us: int) -> int:
        columns = np.repeat(self._blank[:, None], len(waiting), axis=1)
        columns[self._names.index("waited_us")] = [now_us - job.arrived_us for job in waiting]
        columns[self._names.index("num_prompt_tokens")] = [job.tokens for job in waiting]
        numbers = np.array([job.number for job in waiting], np.int64)
        return self._scorer.argmax(columns, numbers, self._engine)


def workload(seed: int = 1) -> list[Job]:
    """Return five hundred jobs that arrive a little faster than four lanes can serve them.

    Most are short and a few are very long.
    """
    chance = random.Random(seed)
    arrived_us, jobs = 0, []
    for number in range(500):
        arrived_us += int(chance.expovariate(1 / 25_000))
        jobs.append(Job(number, arrived_us, chance.choice([20, 30, 40, 60, 900])))
    return jobs


def main() -> None:
    """Certify two policies, serve the same jobs with each, and print the mean latencies."""
    contract = RequestOrdering()
    for name in ("fcfs", "shortest-prompt-aging"):
        policy = Policy.from_source(BASELINES[name], contract)
        certificate = verify(policy)  # raises Rejected, with a counterexample, if anything does not hold
        scalar, vector = serve(workload(), Picker(policy)), serve(workload(), VectorPicker(policy))
        assert scalar == vector
        aging_s = certificate.bounds["ages"] / 1e6
        print(f"{name:>22}: mean latency {scalar:7.1f} ms; proved: nobody overtakes who came {aging_s:g} s later")


if __name__ == "__main__":
    main()
