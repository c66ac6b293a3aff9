"""The outcome of an evolution run, for people."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from autopoiesis_cli.rendering.gates import claim_lines, grouped, value_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from autopoiesis_lib import Contract
    from autopoiesis_lib.evolution import EvolutionResult
    from autopoiesis_lib.evolution.compare import Improvement

__all__ = ["improvement_line", "render_result"]

_TIMES = {
    "ttft_mean_us": "TTFT\nmean s",
    "ttft_p99_us": "TTFT\np99 s",
    "e2e_mean_us": "E2E\nmean s",
    "e2e_p99_us": "E2E\np99 s",
    "worst_wait_us": "worst\nwait s",
}


def render_result(result: "EvolutionResult", workloads: Sequence[str], report: str | None) -> "list[RenderableType]":
    """Return the candidates by gate, a counterexample, the winner's code, its claims and its held-out results."""
    shown: list[RenderableType] = [Text(f"workload: {line}") for line in workloads]
    shown += [_section("candidates"), _candidates(result)]
    if result.counterexample is not None:
        shown += _counterexample(result.counterexample, result.best.contract)
    shown += [
        _section(f"winner: candidate {result.best_id}, from {result.best_origin}"),
        Syntax(result.best.source.strip(), "python", background_color="default", word_wrap=True),
    ]
    if result.certificate is not None:
        shown += [_section("what is proved of it"), *claim_lines(result.certificate.claims)]
    shown += [_section("on held-out traffic"), _table(result)]
    for found in (result.improvement, result.over_best_baseline):
        if found is not None:
            shown.append(Text(improvement_line(found)))
    shown.append(
        Text(
            f"best on held-out traffic: {'the evolved policy' if result.winner == 'evolved' else result.winner}",
            style="bold",
        )
    )
    shown += [Text(line) for line in result.notes]
    shown.append(Rule(style="dim"))
    shown += [Text(f"{name}: {path}") for name, path in _files(result, report).items() if path is not None]
    shown.append(Text(f"run {result.run}, {result.seconds:.1f} s"))
    return shown


def improvement_line(found: "Improvement") -> str:
    """Return a gain in both forms, with its interval."""
    low, high = found.ci95
    return (
        f"{found.objective} against {found.over}: speed-up {found.speedup:.2f}x, reduction {found.reduction:.1%} "
        f"(95% interval {low:.1%} to {high:.1%})"
    )


def _files(result: "EvolutionResult", report: str | None) -> dict[str, str | None]:
    return {"policy": result.path, "certificate": result.certificate_path, "report": report}


def _candidates(result: "EvolutionResult") -> Text:
    rejected = ", ".join(f"{name} {count}" for name, count in result.rejected.items())
    return Text(
        f"{result.proposed:,} proposed, {result.evaluated:,} evaluated, {sum(result.rejected.values()):,} rejected ({rejected})"
    )


def _counterexample(example: Mapping[str, Any], contract: "Contract") -> "list[RenderableType]":
    obligation = str(example.get("obligation", "an obligation"))
    arguments = _declared(example.get("arguments", {}), obligation, contract)
    shown: list[RenderableType] = [Text(f"one of them broke `{obligation}`, on these values:")]
    shown += [value_table(group) for group in grouped(arguments)]
    if example.get("explanation"):
        shown.append(Text(str(example["explanation"])))
    return shown


def _declared(arguments: Mapping[str, Any], obligation: str, contract: "Contract") -> dict[str, Any]:
    """Return arguments and fields in the order the contract declares them; a record has them sorted by name."""
    formula = next((item for item in contract.invariants if item.name == obligation), None)
    if formula is None:
        return dict(arguments)
    found: dict[str, Any] = {}
    for param in formula.params:
        value = arguments.get(param.name)
        if param.view is not None and isinstance(value, Mapping):
            found[param.name] = {spec.name: value[spec.name] for spec in param.view.fields() if spec.name in value}
        elif value is not None:
            found[param.name] = value
    return found


def _table(result: "EvolutionResult") -> Table:
    default = next(iter(result.baselines), None)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, heading in enumerate(
        ["policy", *_TIMES.values(), "goodput\n1/s", "SLO\nmet", "TTFT\nspeed-up", "TTFT\nreduced"]
    ):
        table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
    rows: dict[str, Mapping[str, float]] = {**result.baselines, "evolved": result.held_out}
    for name, metrics in rows.items():
        base = metrics if default is None else result.baselines[default]
        table.add_row(
            name,
            *(_seconds(metrics.get(metric)) for metric in _TIMES),
            f"{metrics['goodput_rps']:.2f}" if "goodput_rps" in metrics else "",
            f"{metrics['slo_attainment']:.1%}" if "slo_attainment" in metrics else "",
            *_both_forms(base.get("ttft_mean_us"), metrics.get("ttft_mean_us")),
            style="bold" if name == "evolved" else "",
        )
    return table


def _seconds(micros: float | None) -> str:
    return "" if micros is None else f"{micros / 1e6:.2f}"


def _both_forms(base: float | None, ours: float | None) -> tuple[str, str]:
    if not base or not ours:
        return "", ""
    return f"{base / ours:.2f}x", f"{1 - ours / base:.1%}"


def _section(title: str) -> Rule:
    return Rule(Text(title), align="left", style="dim")
