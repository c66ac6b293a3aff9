"""Behaviour, not text, decides novelty: a policy is a pure function, and its answers on fixed probes are its
fingerprint.

Where only the order of results matters (a decision whose unit is a score), the fingerprint is the ranking of each
group of probes, so that a policy and its double are one. The descriptor says in which direction each field moves the
result: it names the cell of the archive in which policies of one kind compete.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..contract import Contract
from ..policy import Policy

__all__ = ["Behaviour", "Probes", "behaviour"]

Row = Mapping[str, int]
MOVES_AT = 0.15
"""Rank correlation from which a field counts as moving the result."""


@dataclass(frozen=True)
class Behaviour:
    """What a policy does on the probes."""

    fingerprint: str
    """SHA-256; equal for policies that no probe tells apart."""
    descriptor: str
    """Such as "+waited_us -num_prompt_tokens"; "constant" when nothing moves the result."""


@dataclass(frozen=True, eq=False)
class Probes:
    """Probe arguments of one decision as columns: layout names, and an int64 array of shape (len(layout), n)."""

    decision: str
    layout: tuple[str, ...]
    columns: NDArray[np.int64]
    item_fields: int
    """How many leading rows of `columns` belong to the first view."""
    group_ends: tuple[int, ...]
    """Where each group of probes that share all views but the first ends."""

    @classmethod
    def of(cls, contract: Contract, decision: str, rows: Sequence[Sequence[Row]]) -> "Probes":
        """Columns of probe rows."""
        params = contract.decisions[decision].params
        fields = [
            (index, spec.name) for index, param in enumerate(params) for spec in contract.views[param.type].fields()
        ]
        layout = tuple(f"{params[index].name}.{name}" for index, name in fields)
        columns = np.array([[row[index][name] for row in rows] for index, name in fields], dtype=np.int64)
        items = sum(1 for index, _ in fields if index == 0)
        ends = [i for i in range(1, len(rows)) if list(rows[i][1:]) != list(rows[i - 1][1:])]
        return cls(decision, layout, columns, items, (*ends, len(rows)))


def behaviour(policy: Policy, probes: Sequence[Probes]) -> Behaviour:
    """Run every decision on its probes."""
    digest = hashlib.sha256()
    words: list[str] = []
    for probe in probes:
        function = policy.native(probe.decision, probe.layout)
        values = np.array([function(*row) for row in probe.columns.T.tolist()], dtype=np.int64)
        ordinal = policy.contract.decisions[probe.decision].result.unit == "score"
        start = 0
        for end in probe.group_ends:
            group = values[start:end]
            shown = np.unique(group, return_inverse=True)[1].astype(np.int64) if ordinal else group
            digest.update(shown.tobytes())
            start = end
        words += _directions(probe, values)
    return Behaviour(digest.hexdigest(), " ".join(words) or "constant")


def _directions(probe: Probes, values: NDArray[np.int64]) -> list[str]:
    """Fields of the item that move the result, by mean rank correlation over the groups."""
    sums = np.zeros(probe.item_fields)
    start = 0
    for end in probe.group_ends:
        target = _ranks(values[start:end])
        for field in range(probe.item_fields):
            sums[field] += _correlation(_ranks(probe.columns[field, start:end]), target)
        start = end
    means = sums / max(1, len(probe.group_ends))
    names = [name.partition(".")[2] for name in probe.layout[: probe.item_fields]]
    return [("+" if mean > 0 else "-") + name for name, mean in zip(names, means, strict=True) if abs(mean) > MOVES_AT]


def _ranks(values: NDArray[np.int64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    result: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return result


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    x, y = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else 0.0
