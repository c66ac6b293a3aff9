"""Which model to ask: the user's weights, moved towards the models whose drafts are worth what they cost.

A bandit with several arms, kept plain on purpose: a model's value is what it gave for what it took, shrunk towards the mean of
all models while little is known of it, and every model keeps a part of its own share for ever, so that one that was unlucky,
or that was bad at the old workload, is tried again. There is no chance in it: the same results give the same weights.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Outcome", "Per", "Tally"]

Per = Literal["tokens", "dollars", "seconds"]
"""What a draft costs is counted in."""

EXPLORE = 0.1
"""Part of the calls that goes by the user's weights whatever was seen."""
PRIOR_CALLS = 4.0
"""Calls of mean cost and mean success that every model is credited with."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One call of a model, as it stands in the record."""

    generation: int
    slot: int
    model: str
    digest: str | None
    """Of the policy, when the cheap gates took it; None when no usable draft came."""
    tokens: int
    dollars: float
    seconds: float
    better: tuple[tuple[int, str], ...] = ()
    """(candidate, model) of this call's parents that a model wrote, that passed every gate and beat the default baseline."""

    def cost(self, per: Per) -> float:
        """What it took."""
        return float(getattr(self, per))

    @classmethod
    def of_exchange(cls, exchange: Mapping[str, Any]) -> "Outcome | None":
        """From a line of the record; None for lines of other versions and for slots whose model was not asked."""
        told = exchange.get("outcome")
        if not isinstance(told, Mapping):
            return None
        better = tuple((int(number), str(model)) for number, model in told["better"])
        return cls(**{**told, "better": better})


@dataclass
class Tally:
    """What every model gave and took. `known` are digests that are nobody's merit, such as the baselines'."""

    per: Per
    known: set[str] = field(default_factory=set)
    _calls: dict[str, int] = field(default_factory=dict)
    _gave: dict[str, float] = field(default_factory=dict)
    _took: dict[str, float] = field(default_factory=dict)
    _rewarded: set[int] = field(default_factory=set)

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Count them, in order of generation and slot.

        A draft counts once when the cheap gates take it and nobody wrote the same policy before, and once more when it turns up
        as a parent that beat the default baseline.
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
        """The share of each model, adding up to 1: the weights given times the value seen, over a floor.

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
