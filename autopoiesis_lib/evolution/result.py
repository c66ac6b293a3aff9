"""The result of a run: the winner, its comparison on held-out windows, and the counts of rejected candidates."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..certificate import Certificate
from ..policy import Policy
from .archive import Elite
from .compare import Improvement

__all__ = ["REJECTIONS", "EvolutionResult", "Progress"]

REJECTIONS = ("duplicate", "grammar", "types", "ranges", "fuzz", "proof", "replay")
"""Gates that may reject a candidate, in the order of the cascade."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The state of a run for a progress bar, reported after every candidate."""

    run: str
    phase: str
    """The phase: "search", "held-out" or "certify"."""
    seconds: float
    done: int
    total: int | None
    """The candidate budget, or None."""
    rejected: Mapping[str, int]
    best: Elite | None
    generation: int
    note: str = ""
    """A note for the user, for example about a language model that stopped answering."""


@dataclass(frozen=True, kw_only=True)
class EvolutionResult:
    """The outcome of `evolve`."""

    run: str
    contract: str
    seconds: float
    proposed: int
    rejected: Mapping[str, int]
    """Number of rejected candidates by gate. Every name of `REJECTIONS` is present."""
    evaluated: int
    objective: str
    """The metric with the largest weight, in which improvements are stated."""
    best: Policy
    """The winner of the search, certified unless `certificate` is None."""
    best_id: int
    best_origin: str
    """The move that made the winner; "baseline:NAME" if no candidate beat that baseline."""
    runners_up: tuple[Policy, ...]
    """The next best policies, for a caller who certifies candidates himself."""
    fitness: float
    held_out: Mapping[str, float]
    """The winner's metrics on held-out windows."""
    baselines: Mapping[str, Mapping[str, float]]
    """Held-out metrics of the contract's baselines."""
    improvement: Improvement | None
    """Improvement over the contract's default baseline; None if the contract has no baselines."""
    over_best_baseline: Improvement | None
    """Improvement over the baseline with the best held-out value of the objective."""
    certificate: Certificate | None
    """The `Certificate`, or None if certification was switched off."""
    counterexample: Mapping[str, Any] | None
    """One real counterexample that a gate found during the search."""
    workload: Mapping[str, Any]
    curves: Mapping[str, Mapping[str, Sequence[float]]]
    """Policy ("evolved", or a baseline) -> sample -> 101 quantiles over the held-out requests, from 0% to 100%."""
    notes: tuple[str, ...] = ()
    path: str | None = None
    certificate_path: str | None = None

    @property
    def winner(self) -> str:
        """The policy that did better on held-out windows: "evolved", or the name of a baseline."""
        best = self.over_best_baseline
        return "evolved" if best is None or best.reduction > 0 else best.over

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `autopoiesis evolve --json` prints."""
        improvement = None if self.improvement is None else _plain(self.improvement)
        if improvement is not None and self.over_best_baseline is not None:
            improvement["best_baseline"] = _plain(self.over_best_baseline)
            improvement["winner"] = self.winner
        return {
            "run": self.run,
            "contract": self.contract,
            "seconds": round(self.seconds, 3),
            "candidates": {"proposed": self.proposed, "rejected": dict(self.rejected), "evaluated": self.evaluated},
            "best": {
                "digest": self.best.digest,
                "path": self.path,
                "certificate": self.certificate_path,
                "held_out": dict(self.held_out),
            },
            "baselines": {name: {"held_out": dict(metrics)} for name, metrics in self.baselines.items()},
            "improvement": improvement,
        }

    def record(self) -> dict[str, Any]:
        """Return the record for the store: the JSON object, and the further data of a report."""
        claims = () if self.certificate is None else self.certificate.claims
        return {
            **self.to_json(),
            "report": {
                "source": self.best.source,
                "best_id": self.best_id,
                "best_origin": self.best_origin,
                "objective": self.objective,
                "fitness": self.fitness,
                "claims": list(claims),
                "notes": list(self.notes),
                "counterexample": self.counterexample,
                "curves": {
                    name: {key: list(values) for key, values in item.items()} for name, item in self.curves.items()
                },
                "strongest": self.over_best_baseline.over if self.over_best_baseline is not None else "",
                "baseline_sources": dict(self.best.contract.baselines()),
            },
        }

    def dumps(self) -> str:
        """Return the JSON text."""
        return json.dumps(self.to_json())

    def write(self, folder: str | Path) -> "EvolutionResult":
        """Write `policy.py` and `certificate.json` to a folder, and return a result with their paths.

        The folder is created if it does not exist.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        policy = target / "policy.py"
        policy.write_text(self.best.source, encoding="utf-8")
        certificate = None
        if self.certificate is not None:
            certificate = target / "certificate.json"
            self.certificate.write(certificate)
        changes = {"path": str(policy), "certificate_path": None if certificate is None else str(certificate)}
        return EvolutionResult(**{**self.__dict__, **changes})


def _plain(improvement: Improvement) -> dict[str, Any]:
    record = asdict(improvement)
    record["ci95"] = list(improvement.ci95)
    return record
