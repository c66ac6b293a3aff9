"""The archive: islands of elites, separated by behaviour and built only from committed candidates in id order.

Each island is a grid whose cells are behaviour descriptors: the fields that move the result, and the direction of each.
A cell keeps its few best policies. Policies compete only within their cell, so a good family cannot crowd out a
different family that still improves.
"""

import ast
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..store import CandidateRow, ProposalRow
from ..synthesis.proposer import Parent

__all__ = ["Archive", "Elite"]

CELL_SIZE = 3
SIMPLER = 2e-5
"""The cost of one node of the syntax tree, relative to the fitness.

Of two policies that a window can hardly separate, the simpler one ranks first. A term that improves the fitness by less
than its cost was fitted to noise, and it is one more term to tune and to prove.
"""
REPAIRABLE = frozenset({"ranges", "fuzz", "proof"})


@dataclass(frozen=True, kw_only=True)
class Elite:
    """A candidate that was evaluated in full."""

    id: int
    island: int
    source: str
    digest: str
    descriptor: str
    fitness: float
    scores: Mapping[str, float]
    move: str
    details: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def rank(self) -> tuple[float, int]:
        """The sort key, where lower is better: the fitness, penalised by the size, then the id."""
        return (self.fitness * (1 + SIMPLER * self.size), self.id)

    @cached_property
    def size(self) -> int:
        """Number of nodes of the syntax tree."""
        return sum(1 for _ in ast.walk(ast.parse(self.source)))

    def parent(self) -> Parent:
        """Return the elite in the form that proposers receive."""
        return Parent(
            id=self.id, source=self.source, move=self.move, fitness=self.fitness, scores=self.scores,
            details=self.details
        )  # fmt: skip


class Archive:
    """Elites by island and cell, recent rejections worth repairing, and the fingerprints seen so far."""

    def __init__(self, islands: int) -> None:
        self._cells: list[dict[str, list[Elite]]] = [{} for _ in range(islands)]
        self._ranked: dict[int | None, list[Elite]] = {}
        """Elites sorted best first, by island (None: all islands), cached until the next elite is placed."""
        self.fingerprints: dict[str, int] = {}
        """Fingerprint -> id of the first candidate that had it."""
        self.rejected: deque[Parent] = deque(maxlen=48)
        self.counterexamples: deque[Mapping[str, Any]] = deque(maxlen=8)
        self.best: Elite | None = None
        self.history: list[Elite] = []
        """Every candidate that was the best when it was added."""
        self.moves: dict[str, list[int]] = {}
        """Move -> [proposed, passed every gate, became an elite, became the best]."""

    @property
    def islands(self) -> int:
        """Number of islands."""
        return len(self._cells)

    def elites(self, island: int | None = None) -> Sequence[Elite]:
        """Return the elites of an island, or of all islands for None, best first."""
        if island not in self._ranked:
            cells = self._cells if island is None else [self._cells[island]]
            self._ranked[island] = sorted(
                (elite for grid in cells for cell in grid.values() for elite in cell), key=lambda elite: elite.rank
            )
        return self._ranked[island]

    def cells(self, island: int) -> list[list[Elite]]:
        """Return the cells of an island in the order in which they were first filled."""
        return list(self._cells[island].values())

    def add(self, proposal: ProposalRow, candidate: CandidateRow) -> None:
        """Add one committed candidate. Calls must be in id order."""
        tally = self.moves.setdefault(proposal.move, [0, 0, 0, 0])
        tally[0] += 1
        if candidate.fingerprint is not None:
            self.fingerprints.setdefault(candidate.fingerprint, candidate.id)
        if candidate.gate is not None:
            self._reject(proposal, candidate)
            return
        tally[1] += 1
        if candidate.fitness is None or candidate.digest is None or candidate.fitness != candidate.fitness:
            return
        elite = Elite(
            id=proposal.id,
            island=proposal.island,
            source=proposal.source,
            digest=candidate.digest,
            descriptor=candidate.descriptor or "",
            fitness=candidate.fitness,
            scores=candidate.scores or {},
            move=proposal.move,
            details=proposal.details,
        )
        tally[2] += self._place(elite, proposal.island)
        if self.best is None or elite.rank < self.best.rank:
            self.best = elite
            self.history.append(elite)
            tally[3] += 1

    def migrate(self) -> None:
        """Copy the best elite of each island to the next island."""
        bests = [self.elites(island)[:1] for island in range(self.islands)]
        for island, migrants in enumerate(bests):
            for elite in migrants:
                self._place(elite, (island + 1) % self.islands)

    def runners_up(self, count: int) -> Iterator[Elite]:
        """Yield at most `count` elites with distinct digests, best first."""
        seen: set[str] = set()
        for elite in self.elites():
            if elite.digest not in seen and len(seen) < count:
                seen.add(elite.digest)
                yield elite

    def _place(self, elite: Elite, island: int) -> bool:
        cell = self._cells[island].setdefault(elite.descriptor, [])
        self._ranked.clear()
        if any(other.digest == elite.digest for other in cell):
            return False
        cell.append(elite)
        cell.sort(key=lambda item: item.rank)
        del cell[CELL_SIZE:]
        return elite in cell

    def _reject(self, proposal: ProposalRow, candidate: CandidateRow) -> None:
        if candidate.counterexample is not None:
            self.counterexamples.append(candidate.counterexample)
        if candidate.gate in REPAIRABLE and not proposal.move.startswith("repair"):
            self.rejected.append(
                Parent(
                    id=proposal.id, source=proposal.source, move=proposal.move, gate=candidate.gate,
                    reason=candidate.reason, obligation=candidate.obligation, detail=candidate.detail,
                    counterexample=candidate.counterexample, details=proposal.details,
                )
            )  # fmt: skip
