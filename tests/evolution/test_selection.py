"""Who has offspring: elites, and rejected candidates in proportion to how many there are."""

import pytest
from autopoiesis_contracts.request_ordering import BASELINES

from autopoiesis_lib.evolution.archive import Archive
from autopoiesis_lib.evolution.selection import REPAIR, select
from autopoiesis_lib.store import CandidateRow, ProposalRow


def archive(rejections: int) -> Archive:
    """One elite, and so many candidates whose proof failed."""
    found = Archive(4)
    for number in range(rejections + 1):
        proposal = ProposalRow(id=number, generation=0, source=BASELINES["fcfs"], move="tune", island=number % 4)
        if number == 0:
            row = CandidateRow(id=0, verdict="PROVED", digest="d", descriptor="+waited_us", fitness=1.0)
        else:
            row = CandidateRow(id=number, verdict="REFUTED", gate="proof")
        found.add(proposal, row)
    return found


def repaired(rejections: int) -> float:
    slots = select(archive(rejections), seed=1, generation=1, first_id=100, count=2_000)
    return sum(slot.parents[0].gate is not None for slot in slots if slot.parents) / len(slots)


@pytest.mark.parametrize(("rejections", "share"), [(0, 0.0), (4, REPAIR / 12), (24, REPAIR / 2), (200, REPAIR)])
def test_the_share_of_repairs_grows_with_the_rejections_there_are(rejections: int, share: float) -> None:
    assert repaired(rejections) == pytest.approx(share, abs=0.015)


def test_equal_archives_and_seeds_give_equal_slots() -> None:
    first, again = (select(archive(9), seed=3, generation=2, first_id=64, count=32) for _ in range(2))
    assert first == again
