"""The report of a run: one self-contained HTML page, made from the store alone."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError

from ..protocol.text import printable
from ..store import CandidateRow, ProposalRow, RunRow, Store, StoreError
from .charts import Series, chart
from .errors import EvolutionError
from .evaluator import HIGHER_IS_BETTER

__all__ = ["pareto_front", "render", "write_report"]

SECOND = ("e2e_p99_us", "ttft_p99_us", "worst_wait_us")
"""Metrics tried in this order as the second axis of the Pareto front if a run has one objective."""


def _visible(value: Any) -> Any:
    """Return a template value with hidden characters as escapes. Markup remains markup."""
    return type(value)(printable(value, allowed="\n\t")) if isinstance(value, str) else value


_environment = Environment(
    loader=PackageLoader("autopoiesis_lib.evolution"),
    undefined=StrictUndefined,
    autoescape=True,
    finalize=_visible,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(store: Store, run: str, path: str | Path) -> Path:
    """Render a run's report to a file.

    Raises:
        StoreError: the store has no such run, or its record of the run cannot be read.
        EvolutionError: the run has no result yet.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(render(store, run), encoding="utf-8")
    return target


def render(store: Store, run: str) -> str:
    """Return the report of a run as HTML. The errors are those of `write_report`."""
    row = store.run(run)
    if row.result is None or "report" not in row.result:
        raise EvolutionError(f"run {row.id} is {row.status} and has no result yet; finish it with `--resume {row.id}`")
    try:
        return _rendered(row, row.result, store.proposals(row.id), store.candidates(row.id))
    except (LookupError, TypeError, ValueError, AttributeError, UndefinedError) as error:
        raise StoreError(
            f"run {row.id}: its stored result is damaged or of another version of this library "
            f"({type(error).__name__}: {printable(error)}); restore the store from a backup, or run it again"
        ) from error


def _rendered(
    row: RunRow, result: Mapping[str, Any], proposals: Sequence[ProposalRow], candidates: Sequence[CandidateRow]
) -> str:
    extra = result["report"]
    strongest = extra["strongest"]
    return _environment.get_template("report.html.j2").render(
        run=row,
        result=result,
        extra=extra,
        counts=result["candidates"],
        table=_table(result),
        higher=HIGHER_IS_BETTER,
        score_chart=_score_chart(candidates),
        pareto_chart=_pareto_chart(row, candidates),
        cdf_charts=_cdf_charts(extra["curves"]),
        lineage=_lineage(extra["best_id"], proposals, candidates),
        moves=_moves(proposals, candidates),
        diff=_diff(extra["baseline_sources"].get(strongest, ""), extra["source"], strongest),
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other point dominates (lower is better on both coordinates), from left to right."""
    front: list[tuple[float, float]] = []
    for point in sorted(set(points)):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def _table(result: Mapping[str, Any]) -> dict[str, Any]:
    rows = {
        "evolved": result["best"]["held_out"],
        **{name: item["held_out"] for name, item in result["baselines"].items()},
    }
    return {"metrics": list(result["best"]["held_out"]), "rows": rows}


def _score_chart(candidates: Sequence[CandidateRow]) -> str:
    scored = [(float(row.id), row.fitness) for row in candidates if row.fitness is not None]
    best: list[tuple[float, float]] = []
    for x, fitness in scored:
        if not best or fitness < best[-1][1]:
            best.append((x, fitness))
    if scored and best[-1][0] != scored[-1][0]:
        best.append((scored[-1][0], best[-1][1]))
    return chart(
        [Series("candidates", [(x, min(y, 2.0)) for x, y in scored], "dots"), Series("best so far", best, "steps")],
        "candidate", "fitness (default baseline = 1, above 2 shown at 2)",
    )  # fmt: skip


def _pareto_chart(row: RunRow, candidates: Sequence[CandidateRow]) -> str:
    scores = [item.scores for item in candidates if item.scores is not None and item.fitness is not None]
    if not scores:
        return "<p>Nothing was evaluated.</p>"
    names = sorted(row.config["objectives"], key=lambda name: -row.config["objectives"][name])
    first = names[0]
    second = next((name for name in (*names[1:], *SECOND) if name != first and name in scores[0]), None)
    if second is None:
        return "<p>Only one metric was measured.</p>"

    def value(metrics: Mapping[str, float], name: str) -> float:
        return -metrics[name] if name in HIGHER_IS_BETTER else metrics[name]

    points = [(value(item, first), value(item, second)) for item in scores]
    front = pareto_front(points)
    return chart([Series("candidates", points, "dots"), Series("Pareto front", front, "steps")], first, second)


def _cdf_charts(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> list[tuple[str, str]]:
    names = sorted({sample for policy in curves.values() for sample in policy})
    charts = []
    for name in names:
        series = [
            Series(policy, [(x, i / (len(samples[name]) - 1)) for i, x in enumerate(samples[name])])
            for policy, samples in curves.items()
            if len(samples.get(name, ())) > 1
        ]
        charts.append((name, chart(series, f"{name} (us)", "share of requests", log_x=True)))
    return charts


def _lineage(best: int, proposals: Sequence[ProposalRow], candidates: Sequence[CandidateRow]) -> list[dict[str, Any]]:
    """Return the winner and its ancestors by first parent, oldest first."""
    by_id = {row.id: row for row in proposals}
    fates = {row.id: row for row in candidates}
    chain: list[dict[str, Any]] = []
    current: int | None = best
    while current is not None and current in by_id:
        row, fate = by_id[current], fates.get(current)
        chain.append(
            {
                "id": row.id,
                "generation": row.generation,
                "move": row.move,
                "parents": row.parents,
                "rationale": row.rationale,
                "fitness": None if fate is None else fate.fitness,
                "gate": None if fate is None else fate.gate,
                "source": row.source,
            }
        )
        current = row.parents[0] if row.parents and row.parents[0] < current else None
    return chain[::-1]


def _moves(proposals: Sequence[ProposalRow], candidates: Sequence[CandidateRow]) -> list[dict[str, Any]]:
    fates = {row.id: row for row in candidates}
    tally: dict[str, list[CandidateRow]] = {}
    for row in proposals:
        if row.id in fates:
            tally.setdefault(row.move, []).append(fates[row.id])
    return [
        {
            "move": move,
            "tried": len(rows),
            "duplicate": sum(row.gate == "duplicate" for row in rows),
            "rejected": sum(row.gate not in (None, "duplicate") for row in rows),
            "best": min((row.fitness for row in rows if row.fitness is not None), default=None),
        }
        for move, rows in sorted(tally.items(), key=lambda item: -len(item[1]))
    ]


def _diff(before: str, after: str, name: str) -> list[tuple[str, str]]:
    """Return the lines of a unified diff with their kind: "add", "del" or ""."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), name, "evolved", lineterm="", n=8)
    kinds = {"+": "add", "-": "del"}
    return [(kinds.get(line[:1], ""), line) for line in lines]
