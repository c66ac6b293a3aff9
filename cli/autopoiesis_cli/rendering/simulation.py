"""Traces and simulated runs, for people."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["render_runs", "render_trace", "run_table"]


def render_runs(
    workload: Mapping[str, Any],
    rows: Sequence[Mapping[str, float | str]],
    comparisons: Mapping[str, Mapping[str, Mapping[str, Any]]],
    default: str,
) -> "list[RenderableType]":
    """Return a table with one row per policy, then the comparison of each policy with the default."""
    slo = workload["slo"]
    shown: list[RenderableType] = [
        Text(
            f"{workload['requests']:,} requests of {workload['trace']} at {workload['rate_factor']:g} times the recorded rate "
            f"({workload['rate_rps']:.1f} requests/s) on {workload['replicas']} x {workload['calibration']}; "
            f"SLO TTFT {slo['ttft_s']:g} s and TPOT {slo['tpot_s']:g} s"
        ),
        run_table(rows),
    ]
    if comparisons:
        shown.append(Text(f"reduction against {default}, with its 95% interval:"))
        table = _table("policy", *(name.replace("_", " ") for name in next(iter(comparisons.values()))))
        for name, measures in comparisons.items():
            table.add_row(name, *(_reduction(item) for item in measures.values()))
        shown.append(table)
    return shown


def run_table(rows: Sequence[Mapping[str, float | str]]) -> Table:
    """Return the rows of `comparison_rows` as a table."""
    table = _table(
        "policy",
        "TTFT\nmean s",
        "TTFT\np99 s",
        "E2E\nmean s",
        "E2E\np99 s",
        "TPOT\nmean ms",
        "goodput\n1/s",
        "SLO\nmet",
        "worst\nwait s",
        "TTFT\nspeed-up",
        "TTFT\nreduced",
    )
    for row in rows:
        table.add_row(
            str(row["policy"]),
            *(f"{float(row[name]):.2f}" for name in ("ttft_mean_s", "ttft_p99_s", "e2e_mean_s", "e2e_p99_s")),
            f"{float(row['tpot_mean_s']) * 1_000:.1f}",
            f"{float(row['goodput_rps']):.2f}",
            f"{float(row['slo_attainment']):.1%}",
            f"{float(row['worst_wait_s']):.1f}",
            f"{float(row['ttft_speedup']):.2f}x",
            f"{float(row['ttft_reduction']):.1%}",
        )
    return table


def render_trace(facts: Mapping[str, Any]) -> "list[RenderableType]":
    """Return the facts of `trace inspect`."""
    shown: list[RenderableType] = [
        Text(f"{facts['name']}  {facts['source']}".rstrip()),
        Text(
            f"{facts['requests']:,} requests in {facts['duration_s']:,.0f} s: {facts['rate_rps']:.2f} a second, at most "
            f"{facts['peak_second']} in one second"
            + (
                f", gaps vary by {facts['arrival_gap_cv']:.2f} (1 is Poisson)"
                if facts["arrival_gap_cv"] is not None
                else ""
            )
        ),
    ]
    table = _table("tokens", "mean", "p50", "p90", "p99", "max")
    for name in ("num_prompt_tokens", "num_output_tokens", "max_tokens"):
        table.add_row(name, *(f"{value:,.0f}" for value in facts[name].values()))
    shown.append(table)
    shown.append(Text(f"priorities: {', '.join(map(str, facts['priorities']))}"))
    blocks = facts["prefix_blocks"]
    if blocks is not None:
        shared = 1 - blocks["distinct"] / blocks["entries"] if blocks["entries"] else 0.0
        shown.append(
            Text(f"prefixes: {blocks['entries']:,} blocks of {blocks['tokens_each']} tokens, {shared:.0%} seen before")
        )
    return shown


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _reduction(item: Mapping[str, Any]) -> str:
    low, high = item["ci95"]
    return f"{item['reduction']:.1%} ({low:.0%} to {high:.0%})"
