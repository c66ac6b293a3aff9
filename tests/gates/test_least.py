"""Least bounds equal brute force, on contracts small enough to enumerate."""

from itertools import product
from typing import Annotated

import pytest
from pydantic import Field

from autopoiesis_lib import Contract, Least, Policy, View, decision, invariant
from autopoiesis_lib.gates import Verdict, proof

Small = Annotated[int, Field(ge=0, le=15)]


class Job(View):
    """A waiting job in a tiny world."""

    waited: Small
    size: Annotated[int, Field(ge=0, le=3)]


class TinyOrdering(Contract, name="tiny-ordering"):
    """Additive aging over domains that can be enumerated."""

    max_aging: Small = 12

    @decision
    def score(self, job: Job) -> Annotated[int, Field(ge=-1_000, le=1_000)]:
        raise NotImplementedError

    @invariant
    def ages(self, older: Job, newer: Job, aging: Annotated[Small, Least(limit="max_aging")]) -> bool:
        """Who has waited `aging` longer goes first."""
        return older.waited < newer.waited + aging or self.score(older) >= self.score(newer)


def brute_force(policy: Policy, limit: int) -> int | None:
    """The least bound from which every bound up to the limit holds."""
    jobs = [Job(waited=waited, size=size) for waited, size in product(range(16), range(4))]
    scores = {job: policy(job) for job in jobs}

    def holds(aging: int) -> bool:
        return all(
            older.waited < newer.waited + aging or scores[older] >= scores[newer] for older in jobs for newer in jobs
        )

    agings = [aging for aging in range(limit + 1) if not holds(aging)]
    least = max(agings) + 1 if agings else 0
    return least if least <= limit else None


@pytest.mark.parametrize(
    "body",
    [
        "job.waited",
        "job.waited - job.size",
        "job.waited - job.size * 2",
        "job.waited - job.size * 4",
        "job.waited - job.size * 5",
        "job.waited * 2 - job.size * 5",
        "job.waited * job.waited - job.size",
        "job.waited // 4 - job.size",
        "job.waited % 5",
        "-job.size",
        "-job.waited",
        "job.waited if job.size < 2 else job.waited - 7",
        "job.waited + job.waited // (job.size + 1)",
        "min(job.waited, 9)",
        "max(job.waited, 5) - job.size",
        "abs(job.waited - 4) - job.size",
        "0",
    ],
)
def test_least_bound_equals_enumeration(body: str) -> None:
    contract = TinyOrdering()
    policy = Policy.from_source(
        f"from {__name__} import Job\n\n\ndef score(job: Job) -> int:\n    return {body}\n", contract
    )
    expected = brute_force(policy, contract.max_aging)
    [*_, ages] = proof.check(policy).obligations
    if expected is None:
        assert ages.verdict is Verdict.REFUTED
    else:
        assert ages.verdict is Verdict.PROVED
        assert ages.least is not None and ages.least.tight
        assert ages.least.value == expected


def test_a_bound_no_wait_can_reach_is_vacuous() -> None:
    class Job(View):
        waited: Annotated[int, Field(ge=0, le=5)]

    class Unreachable(Contract, name="unreachable"):
        max_aging: Small = 6

        @decision
        def score(self, job: Job) -> Annotated[int, Field(ge=-1_000, le=1_000)]:
            raise NotImplementedError

        @invariant
        def ages(self, older: Job, newer: Job, aging: Annotated[Small, Least(limit="max_aging")]) -> bool:
            return older.waited < newer.waited + aging or self.score(older) >= self.score(newer)

    contract = Unreachable()
    newest_first = f"from {__name__} import Job\n\n\ndef score(job: Job) -> int:\n    return -job.waited\n"
    result = proof.check(Policy.from_source(newest_first, contract))
    assert result.verdict is Verdict.VACUOUS
