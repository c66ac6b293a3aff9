"""Selection of parents: for each slot of a generation, an island, a parent to vary or repair, and a mate."""

from collections.abc import Sequence
from random import Random

from ..synthesis.proposer import Parent, Slot
from .archive import Archive, Elite

__all__ = ["MIGRATION_EVERY", "select"]

MIGRATION_EVERY = 5
"""Number of generations between migrations along the ring of islands."""
FRESH, REPAIR, EXPLORE = 0.05, 0.12, 0.25
"""Shares of all slots without a parent and with a rejected one, and of the other slots with one from a random cell.

The second share is scaled by the number of remembered rejections: if few candidates are rejected, there is little to
repair.
"""
PRESSURE = 0.35
"""Of the elites of an island, best first, the k-th is chosen with probability about PRESSURE * (1 - PRESSURE)^k."""


def select(archive: Archive, seed: int, generation: int, first_id: int, count: int) -> list[Slot]:
    """Return slots for the candidates `first_id` to `first_id + count - 1`.

    The result is a function of the archive, the arguments and the seed alone.
    """
    slots: list[Slot] = []
    for offset in range(count):
        rng = Random(f"{seed}/select/{generation}/{offset}")
        island = offset % archive.islands
        elites = archive.elites(island) or archive.elites()
        roll = rng.random()
        if not elites or roll < FRESH:
            parents: tuple[Parent, ...] = ()
        elif roll < FRESH + REPAIR * len(archive.rejected) / (archive.rejected.maxlen or 1):
            parents = (rng.choice(archive.rejected), elites[0].parent())
        else:
            first = (
                rng.choice(rng.choice(archive.cells(island) or [elites]))
                if rng.random() < EXPLORE
                else _ranked(elites, rng)
            )
            others = [elite for elite in (archive.elites() if rng.random() < 0.3 else elites) if elite.id != first.id]
            parents = (first.parent(), *((_ranked(others, rng).parent(),) if others else ()))
        slots.append(Slot(id=first_id + offset, island=island, parents=parents))
    return slots


def _ranked(elites: Sequence[Elite], rng: Random) -> Elite:
    """Return a random elite, with a higher probability for better ones."""
    for elite in elites:
        if rng.random() < PRESSURE:
            return elite
    return rng.choice(elites)
