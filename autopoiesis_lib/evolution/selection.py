"""Who has offspring: for each slot of a generation, an island, a parent to vary or repair, and a mate."""

from collections.abc import Sequence
from random import Random

from ..synthesis.proposer import Parent, Slot
from .archive import Archive, Elite

__all__ = ["MIGRATION_EVERY", "select"]

MIGRATION_EVERY = 5
"""Generations between migrations along the ring of islands."""
FRESH, REPAIR, EXPLORE = 0.05, 0.12, 0.25
"""Share of slots with no parent, with a rejected parent (as far as the memory of rejections is full: where few are rejected there
is little to repair), and with one from a random cell instead of the best."""
PRESSURE = 0.35
"""Of the elites of an island, best first, the k-th is chosen with probability about PRESSURE * (1 - PRESSURE)^k."""


def select(archive: Archive, seed: int, generation: int, first_id: int, count: int) -> list[Slot]:
    """Slots for the candidates `first_id` to `first_id + count - 1`: a function of the archive and the seed alone."""
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
    """An elite, better ones more often."""
    for elite in elites:
        if rng.random() < PRESSURE:
            return elite
    return rng.choice(elites)
