"""Limits of a run. None means no limit, but a run needs a limit on candidates or on seconds."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from .errors import EvolutionError

__all__ = ["Budget", "Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one job of a worker. A worker that exceeds one is killed, and only its candidate is lost."""

    wall_s: float = 60.0
    """Wall seconds. A job killed at this limit is recorded as UNKNOWN."""
    cpu_s: float = 60.0
    """Seconds of CPU time."""
    memory_mib: int = 4_096
    """Private memory of a worker process, in MiB."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of a whole run. With a limit on candidates alone, equal seeds give equal runs."""

    candidates: int | None = None
    seconds: float | None = None
    """Wall seconds, including held-out evaluation and certification."""
    tokens: int | None = None
    """Prompt and completion tokens of all language-model calls. A call in flight counts at its upper bound."""
    dollars: float | None = None
    """Price of all language-model calls, by the run's price table."""
    patience: int | None = None
    """Number of generations without an improvement of at least 0.1% after which the run stops."""
    generation_size: int = 32
    """Number of candidates in a generation, independent of the number of workers."""
    islands: int = 4
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if self.candidates is None and self.seconds is None:
            raise EvolutionError("a run needs an end: give Budget(candidates=...) or Budget(seconds=...)")
        for name in ("candidates", "seconds", "tokens", "dollars", "patience"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise EvolutionError(f"Budget({name}={value}): give a number above 0, or None for no limit")
        if self.generation_size < 1 or self.islands < 1:
            raise EvolutionError("Budget: generation_size and islands are at least 1")

    def to_json(self) -> dict[str, Any]:
        """Return the budget as JSON for the run's record."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Return the budget of a run's record."""
        return cls(**{**record, "limits": Limits(**record["limits"])})
