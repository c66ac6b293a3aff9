"""The parts from which the search builds policies.

They are fields by unit, plausible constants, the aging field, and random expressions. Everything is read from the
contract's declarations. Nothing here depends on one type of policy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

from ..contract import Contract
from ..language.ir import ArithmeticOp, Binary, Compare, Cond, Const, Expr, Field, MinMax, walk
from ..view import Domain, View

__all__ = ["Aging", "Feature", "Palette"]

SIGNS: Sequence[ArithmeticOp] = ("+", "-")

TYPICAL: Mapping[str, int] = {"us": 60_000_000, "tokens": 8_192, "blocks": 65_536, "count": 1_024}
"""Largest constant of a unit that is usually worth trying. A domain's own bound applies if it is lower."""


@dataclass(frozen=True)
class Feature:
    """A readable field: parameter and field name, domain, and a flag for fields that all compared items share."""

    view: str
    name: str
    domain: Domain
    shared: bool
    typical: tuple[int, int] | None = None
    """The minimum and the maximum that the workload shows, if known."""

    @property
    def reach(self) -> int:
        """The largest constant that is usually worth comparing the field with."""
        usual = TYPICAL.get(self.domain.unit, self.domain.hi)
        return max(1, min(self.domain.hi, usual if self.typical is None else max(self.typical[1], 1)))

    @property
    def varies(self) -> bool:
        """True if the field may differ between two situations of the workload, as far as known."""
        return self.typical is None or self.typical[0] < self.typical[1]

    def read(self) -> Field:
        """Return a new node that reads the field."""
        return Field(self.view, self.name, self.domain.kind == "bool")


@dataclass(frozen=True)
class Aging:
    """An item's field that must win in the end.

    An invariant with a tightest bound compares this field between two items.
    """

    feature: Feature
    limit: int
    """The largest tightest bound that the contract accepts, in the field's unit."""


class Palette:
    """Random typed expressions over the views of one decision, with the parameter names of a given function."""

    def __init__(
        self,
        contract: Contract,
        decision: str,
        names: tuple[str, ...] | None = None,
        typical: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        self.contract = contract
        self.signature = contract.decisions[decision]
        names = names or tuple(param.name for param in self.signature.params)
        self.views: dict[str, type[View]] = {
            name: contract.views[param.type] for name, param in zip(names, self.signature.params, strict=True)
        }
        self._typical = {
            f"{name}.{spec}": bounds
            for name, param in zip(names, self.signature.params, strict=True)
            for key, bounds in (typical or {}).items()
            for owner, _, spec in (key.partition("."),)
            if owner == param.name
        }
        """The minimum and the maximum that the workload shows, by "parameter.field" in the function's own names."""

    @cached_property
    def features(self) -> tuple[Feature, ...]:
        """All fields with more than one value; those of the first view (the item) come first."""
        return tuple(
            Feature(name, spec.name, spec.domain, index > 0, self._typical.get(f"{name}.{spec.name}"))
            for index, (name, view) in enumerate(self.views.items())
            for spec in view.fields()
            if spec.domain.size > 1
        )

    @cached_property
    def aging(self) -> Aging | None:
        """The field that must win in the end; None if no invariant requires one."""
        item = next(iter(self.views.values()))
        for formula in self.contract.invariants:
            least = formula.least
            if least is None or least.domain is None or least.least_limit is None:
                continue
            holders = {param.name for param in formula.params if param.view is item}
            read = {node.name for node in walk(formula.function) if isinstance(node, Field) and node.view in holders}
            for feature in self.features:
                if not feature.shared and feature.name in read and feature.domain.unit == least.domain.unit:
                    return Aging(feature, least.least_limit)
        return None

    def usual(self, expression: Expr) -> int:
        """Return the approximate usual size of an expression, judged by the largest field that it reads."""
        reaches = {(feature.view, feature.name): feature.reach for feature in self.features}
        read = [reaches.get((node.view, node.name), 1) for node in walk(expression) if isinstance(node, Field)]
        return max(read, default=1)

    def constant(self, rng: Random, high: int) -> Const:
        """Return a random constant from 1 to `high`, uniform in its logarithm."""
        return Const(_rounded(math.exp(rng.uniform(0.0, math.log(max(2, high))))))

    def feature(self, rng: Random, *, unit: str | None = None, item: bool | None = None) -> Feature | None:
        """Return a random numeric field that varies; None if none qualifies.

        `unit` restricts the choice to a unit. `item` restricts it to fields of the item (True) or to shared fields
        (False).
        """
        pool = [
            feature
            for feature in self.features
            if (unit is None or feature.domain.unit == unit)
            and (item is None or feature.shared != item)
            and feature.domain.kind == "int"
            and feature.varies
        ]
        return rng.choice(pool) if pool else None

    def quantity(self, rng: Random, depth: int = 2) -> tuple[Expr, int]:
        """Return an integer expression and its usual size: mostly a field, sometimes a meaningful combination."""
        # a shared field moves every score alike, so on its own it orders nothing
        item = True if self.signature.result.unit == "score" or rng.random() < 0.8 else None
        first = self.feature(rng, item=item) or self.feature(rng)
        if first is None:
            return self.constant(rng, 1_000), 1_000
        roll = rng.random()
        if depth > 0 and roll < 0.12:  # a difference of equal units, such as uncached tokens
            other = self.feature(rng, unit=first.domain.unit)
            if other is not None and other != first:
                difference = Binary("-", first.read(), other.read())
                return MinMax("max", (difference, Const(0))), first.reach
        if depth > 0 and roll < 0.18:  # a product of different units, such as free blocks times block size
            other = self.feature(rng, item=not first.shared)
            if other is not None and other.domain.unit != first.domain.unit:
                return Binary("*", self._clamped(rng, first), self._clamped(rng, other)), first.reach * other.reach
        if depth > 0 and roll < 0.24:  # a ratio in per mille, such as wait by size
            other = self.feature(rng, item=not first.shared or None)
            if other is not None and other != first:
                scaled = Binary("*", self._clamped(rng, first), Const(1_000))
                return Binary("//", scaled, Binary("+", other.read(), Const(1))), first.reach
        if roll < 0.32:  # a square, rescaled, so that large values count more
            return Binary(
                "//", Binary("*", self._clamped(rng, first), first.read()), self.constant(rng, first.reach)
            ), first.reach
        return first.read(), first.reach

    def term(self, rng: Random, currency: int) -> Expr:
        """Return a weighted, usually clamped quantity that moves the result by at most about `currency`."""
        quantity, reach = self.quantity(rng)
        if rng.random() < 0.8:
            ceiling = self.constant(rng, reach)
            quantity, reach = MinMax("min", (quantity, ceiling)), ceiling.value
        elif rng.random() < 0.3:
            floor = self.constant(rng, reach)
            quantity = MinMax("max", (Binary("-", quantity, floor), Const(0)))
        weight = currency / max(1, reach) * math.exp(rng.uniform(-7.0, 0.0))
        if weight >= 1.5:
            quantity = Binary("*", quantity, Const(_rounded(weight)))
        elif weight < 0.7:
            quantity = Binary("//", quantity, Const(_rounded(1 / weight)))
        if rng.random() < 0.12:
            quantity = Cond(self.test(rng), quantity, Const(0))
        return quantity

    def test(self, rng: Random) -> Expr:
        """Return a random condition: a boolean field, or a field against a constant or another field of its unit."""
        flags = [feature for feature in self.features if feature.domain.kind == "bool"]
        if flags and rng.random() < 0.3:
            return rng.choice(flags).read()
        feature = self.feature(rng) or self.features[0]
        other = self.feature(rng, unit=feature.domain.unit) if rng.random() < 0.2 else None
        right: Expr = other.read() if other is not None and other != feature else self.constant(rng, feature.reach)
        return Compare((rng.choice(("<", ">", "<=", ">=")),), (feature.read(), right))

    def result(self, rng: Random) -> Expr:
        """Return a random value for the decision, in its declared range and in a shape that suits the proofs."""
        domain = self.signature.result
        if domain.kind == "bool":
            left, reach = self.quantity(rng)
            body: Expr = Compare((rng.choice(("<=", ">=")),), (left, self._threshold(rng, reach)))
            return body
        aging = self.aging
        currency = aging.limit if aging is not None else min(domain.hi, 1_000_000_000)
        value: Expr = aging.feature.read() if aging is not None else self.term(rng, currency)
        for _ in range(1 + (rng.random() < 0.5) + (rng.random() < 0.3)):
            value = Binary(rng.choice(SIGNS), value, self.term(rng, currency))
        return self.in_range(value)

    def in_range(self, value: Expr) -> Expr:
        """Return the value clamped to the decision's range if that range is narrow."""
        domain = self.signature.result
        if domain.hi - domain.lo >= 2**40:
            return value
        return MinMax("min", (MinMax("max", (value, Const(domain.lo))), Const(domain.hi)))

    def _threshold(self, rng: Random, reach: int) -> Expr:
        if rng.random() < 0.4:
            quantity, _ = self.quantity(rng, depth=1)
            return quantity
        return self.constant(rng, reach)

    def _clamped(self, rng: Random, feature: Feature) -> Expr:
        return (
            MinMax("min", (feature.read(), self.constant(rng, feature.reach))) if rng.random() < 0.5 else feature.read()
        )


def _rounded(value: float) -> int:
    """Return a positive integer with at most three significant digits, so that people can read the constants."""
    whole = max(1, round(value))
    digits = len(str(whole)) - 3
    return whole if digits <= 0 else round(whole, -digits)
