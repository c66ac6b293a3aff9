"""Behavioural fingerprints: the results of a policy on fixed probes, which decide novelty instead of its text.

If only the order of results matters (a decision whose unit is a score), the fingerprint is the ranking within each
group of probes. A policy and one with twice its score then share a fingerprint. The descriptor gives the direction in
which each field moves the result. It names the cell of the archive in which similar policies compete.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from ..contract import Contract
from ..language.columns import Rows, evaluate_columns
from ..language.ir import Field, walk
from ..policy import Policy
from ..view import INT64_MAX, INT64_MIN

__all__ = ["Behaviour", "Probes", "behaviour"]

Row = Mapping[str, int]
MOVES_AT = 0.15
"""Minimum standardised regression coefficient (of ranks) with which a field counts as moving the result."""


@dataclass(frozen=True)
class Behaviour:
    """The behaviour of a policy on the probes."""

    fingerprint: str
    """SHA-256 of the behaviour, equal for policies that no probe separates."""
    descriptor: str
    """Signed field names such as "+waited_us -num_prompt_tokens"; "constant" if no field moves the result."""


@dataclass(frozen=True, eq=False)
class Probes:
    """Probe arguments of one decision as columns: layout names, and an int64 array of shape (len(layout), n)."""

    decision: str
    layout: tuple[str, ...]
    columns: NDArray[np.int64]
    item_fields: int
    """Number of leading rows of `columns` that belong to the first view."""
    group_ends: tuple[int, ...]
    """End index of each group of probes that share all views but the first."""

    in_domain: bool = False
    """True if every probe lies in the domains of the views."""

    @cached_property
    def views(self) -> list[Rows]:
        """The columns by view and field."""
        found: dict[str, dict[str, NDArray[np.int64]]] = {}
        for name, column in zip(self.layout, self.columns, strict=True):
            view, _, field = name.partition(".")
            found.setdefault(view, {})[field] = column
        return list(found.values())

    @cached_property
    def arguments(self) -> list[tuple[SimpleNamespace, ...]]:
        """The probes as objects with the views' fields, in the form that the policy's Python functions take."""
        names = [name.split(".") for name in self.layout]
        views = list(dict.fromkeys(view for view, _ in names))
        return [
            tuple(
                SimpleNamespace(
                    **{field: value for (owner, field), value in zip(names, row, strict=True) if owner == view}
                )
                for view in views
            )
            for row in self.columns.T.tolist()
        ]

    @property
    def typical(self) -> dict[str, tuple[int, int]]:
        """The minimum and the maximum of each "parameter.field"; empty if there are no probes."""
        if self.columns.size == 0:
            return {}
        return {name: (int(row.min()), int(row.max())) for name, row in zip(self.layout, self.columns, strict=True)}

    @cached_property
    def groups(self) -> tuple[slice, ...]:
        """The groups as slices."""
        return tuple(slice(start, end) for start, end in zip((0, *self.group_ends), self.group_ends, strict=False))

    @cached_property
    def regressions(self) -> tuple[NDArray[np.float64], ...]:
        """A matrix per group that maps standardised ranks of results to regression coefficients.

        The coefficients are the least-squares ones on the standardised ranks of the item's fields.
        """
        return tuple(
            np.linalg.pinv(np.array([_standard(_ranks(row)) for row in self.columns[: self.item_fields, group]]).T)
            for group in self.groups
        )

    @classmethod
    def of(cls, contract: Contract, decision: str, rows: Sequence[Sequence[Row]]) -> "Probes":
        """Return the columns of probe rows."""
        params = contract.decisions[decision].params
        fields = [
            (index, spec.name) for index, param in enumerate(params) for spec in contract.views[param.type].fields()
        ]
        layout = tuple(f"{params[index].name}.{name}" for index, name in fields)
        columns = np.array([[row[index][name] for row in rows] for index, name in fields], dtype=np.int64)
        items = sum(1 for index, _ in fields if index == 0)
        ends = [i for i in range(1, len(rows)) if list(rows[i][1:]) != list(rows[i - 1][1:])]
        domains = [spec.domain for param in params for spec in contract.views[param.type].fields()]
        inside = all(
            value in domain for domain, column in zip(domains, columns.tolist(), strict=True) for value in column
        )
        return cls(decision, layout, columns, items, (*ends, len(rows)), inside)


def behaviour(policy: Policy, probes: Sequence[Probes]) -> Behaviour:
    """Run every decision on its probes and return the behaviour."""
    digest = hashlib.sha256()
    words: list[str] = []
    read = {
        node.name for function in policy.module.functions.values() for node in walk(function) if isinstance(node, Field)
    }
    for probe in probes:
        values = _answers(policy, probe)
        ordinal = policy.contract.decisions[probe.decision].result.unit == "score"
        for group in probe.groups:
            shown = np.unique(values[group], return_inverse=True)[1].astype(np.int64) if ordinal else values[group]
            digest.update(shown.tobytes())
        words += _directions(probe, values, read)
    return Behaviour(digest.hexdigest(), " ".join(words) or "constant")


def _answers(policy: Policy, probe: Probes) -> NDArray[np.int64]:
    """Return the results of a decision on its probes.

    They are evaluated over columns if that is exact, and otherwise by CPython.
    """
    if policy.settled and probe.in_domain:
        function = policy.module.functions[probe.decision]
        return evaluate_columns(policy.module.functions, function, probe.views, probe.columns.shape[1])
    python = policy.functions[probe.decision]
    return np.array([_value(python, row) for row in probe.arguments], dtype=np.int64)


def _value(function: Callable[..., int], row: Sequence[object]) -> int:
    """Return a result as int64.

    All faults and overflows share one value, because the proof will refuse such a policy.
    """
    try:
        value = int(function(*row))
    except ArithmeticError:
        return INT64_MIN
    return value if INT64_MIN < value <= INT64_MAX else INT64_MIN


def _directions(probe: Probes, values: NDArray[np.int64], read: Set[str]) -> list[str]:
    """Return the signed names of the item's fields that are read and move the result with the other fields held fixed.

    The decision uses the mean coefficient over the groups. Correlation would not suffice: cached tokens grow with the
    prompt, so policies that read only the prompt would share a cell with policies that use the uncached part.
    """
    sums = np.zeros(probe.item_fields)
    for group, regression in zip(probe.groups, probe.regressions, strict=True):
        sums += regression @ _standard(_ranks(values[group]))
    means = sums / len(probe.groups)
    names = [name.partition(".")[2] for name in probe.layout[: probe.item_fields]]
    return [
        ("+" if mean > 0 else "-") + name
        for name, mean in zip(names, means, strict=True)
        if name in read and abs(mean) > MOVES_AT
    ]


def _ranks(values: NDArray[np.int64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    result: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return result


def _standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the values centred and scaled to length 1, so that a dot product is a correlation.

    Constant values become 0.
    """
    centred = values - values.mean()
    length = float(np.sqrt(centred @ centred))
    result: NDArray[np.float64] = centred / length if length > 0 else centred
    return result
