"""The choice of models: the user's weights, adjusted towards the models whose drafts are worth their cost.

This is a simple bandit with several arms. A model's value is its gain over its cost, shrunk towards the mean of all
models while few of its calls are known. Every model permanently keeps a part of its own share. A model that was
unlucky, or bad at an earlier workload, is therefore tried again. The method uses no random numbers: equal results give
equal weights.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Outcome", "Per", "Tally"]

Per = Literal["tokens", "dollars", "seconds"]
"""The unit of a draft's cost."""

EXPLORE = 0.1
"""Share of the calls that follows the user's weights alone."""
PRIOR_CALLS = 4.0
"""Number of calls of mean cost and mean gain that every model is credited with."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One call of a model, as the record holds it."""

    generation: int
    slot: int
    model: str
    digest: str | None
    """Digest of the policy if the cheap gates accepted it; None if the call gave no usable draft."""
    tokens: int
    dollars: float
    seconds: float
    better: tuple[tuple[int, str], ...] = ()
    """The (candidate, model) pairs of this call's parents that a model wrote.

    Only parents that passed every gate and beat the default baseline are included.
    """

    def cost(self, per: Per) -> float:
        """Return the cost of the call in the given unit."""
        return float(getattr(self, per))

    @classmethod
    def of_exchange(cls, exchange: Mapping[str, Any]) -> "Outcome | None":
        """Return the outcome in a line of the record.

        The result is None for lines of other versions, and for slots whose model was not asked.
        """
        told = exchange.get("outcome")
        if not isinstance(told, Mapping):
            return None
        better = tuple((int(number), str(model)) for number, model in told["better"])
        return cls(**{**told, "better": better})


@dataclass
class Tally:
    """The gains and costs of every model.

    `known` holds digests that count for no model, such as those of the baselines.
    """

    per: Per
    known: set[str] = field(default_factory=set)
    _calls: dict[str, int] = field(default_factory=dict)
    _gave: dict[str, float] = field(default_factory=dict)
    _took: dict[str, float] = field(default_factory=dict)
    _rewarded: set[int] = field(default_factory=set)

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Count outcomes in the order of generation and slot.

        A draft counts once if the cheap gates accept it and no earlier draft has the same policy. It counts once more
        if it occurs as a parent that beat the default baseline.
        """
        for outcome in sorted(outcomes, key=lambda one: (one.generation, one.slot)):
            self._calls[outcome.model] = self._calls.get(outcome.model, 0) + 1
            self._took[outcome.model] = self._took.get(outcome.model, 0.0) + outcome.cost(self.per)
            if outcome.digest is not None and outcome.digest not in self.known:
                self.known.add(outcome.digest)
                self._gave[outcome.model] = self._gave.get(outcome.model, 0.0) + 1.0
            for number, model in outcome.better:
                if number not in self._rewarded:
                    self._rewarded.add(number)
                    self._gave[model] = self._gave.get(model, 0.0) + 1.0

    def weights(self, given: Mapping[str, float]) -> dict[str, float]:
        """Return the share of each model, with a sum of 1: the given weights times the observed values, above a floor.

        value = (gave + PRIOR_CALLS * mean gain of a call) / (took + PRIOR_CALLS * mean cost of a call)
        share = EXPLORE * given + (1 - EXPLORE) * given * value, both terms normalised
        """
        total = sum(given.values())
        plain = {model: weight / total for model, weight in given.items()}
        calls = sum(self._calls.get(model, 0) for model in given)
        gain = sum(self._gave.get(model, 0.0) for model in given)
        cost = sum(self._took.get(model, 0.0) for model in given)
        if not calls or gain <= 0 or cost <= 0:
            return plain
        value = {
            model: (self._gave.get(model, 0.0) + PRIOR_CALLS * gain / calls)
            / (self._took.get(model, 0.0) + PRIOR_CALLS * cost / calls)
            for model in given
        }
        scale = sum(plain[model] * value[model] for model in given)
        return {model: EXPLORE * plain[model] + (1 - EXPLORE) * plain[model] * value[model] / scale for model in given}
