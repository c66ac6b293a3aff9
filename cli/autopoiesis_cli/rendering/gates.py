"""Gate reports and certificates, for people."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from autopoiesis_lib.gates import Counterexample, GateReport, ObligationResult, Verdict
from autopoiesis_lib.gates.claims import in_words

if TYPE_CHECKING:
    from rich.console import RenderableType

    from autopoiesis_lib.certificate import Certificate

__all__ = [
    "claim_lines",
    "grouped",
    "render_certificate",
    "render_counterexample",
    "render_proofs",
    "render_report",
    "seconds_text",
    "value_table",
    "verdict_text",
]


def render_report(report: GateReport, path: Path, certificate: str | None) -> "list[RenderableType]":
    """Return every gate and obligation, a counterexample as values and as a test, the claims, and the verdict."""
    digest = f"  digest {report.policy_digest[:12]}" if report.policy_digest else ""
    shown: list[RenderableType] = [Text(f"{path}  contract {report.contract}{digest}"), _gates(report)]
    if report.obligations:
        shown.append(_obligations(report.obligations))
    if report.counterexample is not None:
        shown += render_counterexample(report.counterexample)
    if report.claims:
        shown += [Rule("what this proves", align="left", style="dim"), *claim_lines(report.claims)]
    if certificate is not None:
        shown.append(Text(f"certificate written to {certificate}"))
    shown.append(Text.assemble(verdict_text(report.verdict), f" in {seconds_text(report.seconds)}"))
    return shown


def render_certificate(
    made: "Certificate | None", differences: Sequence[str], rests_on: str, signature: str, seconds: float
) -> "list[RenderableType]":
    """Return the obligations and claims of the certificate made here, and the file's differences from it."""
    shown: list[RenderableType] = []
    if made is not None:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("obligation", "verdict", "solvers"):
            table.add_column(heading)
        for item in made.items:
            table.add_row(item.name, verdict_text(item.verdict), ", ".join(item.solvers))
        shown += [
            Text(f"policy {made.policy_digest[:12]}, contract {made.contract}, all gates run here"),
            table,
            Rule("what this proves", align="left", style="dim"),
            *claim_lines(made.claims),
            Rule("what it does not cover", align="left", style="dim"),
            *claim_lines(made.not_covered),
        ]
    if differences:
        shown += [Rule("where the file says something else", align="left", style="dim"), *claim_lines(differences)]
    shown.append(Text(f"{RESTS_ON[rests_on].format(signature=signature)}, in {seconds_text(seconds)}"))
    return shown


def render_proofs(gaps: Mapping[str, str], seconds: float | None = None) -> "list[RenderableType]":
    """Return how many texts have a proof that was checked here without trust in a solver.

    The reasons for the others follow.
    """
    missing = [f"{name}: {gap}" for name, gap in gaps.items() if gap]
    took = "" if seconds is None else f", in {seconds_text(seconds)}"
    said = f"proofs checked here, without trust in a solver: {len(gaps) - len(missing)} of {len(gaps)}{took}"
    rule = [Rule("without a proof that is checked here", align="left", style="dim"), *claim_lines(missing)]
    return [Text(said), *(rule if missing else [])]


RESTS_ON = {
    "proof": "proved here, {signature}",
    "signature": "NOT proved here: this rests on the signature alone, {signature}",
    "nothing": "NOT what is proved here, {signature}",
}
"""Texts for people: the basis on which a certificate is accepted."""


def render_counterexample(example: Counterexample) -> "list[RenderableType]":
    """Return the values on which the policy violates an obligation, and a test for it.

    Values that share a view are side by side.
    """
    shown: list[RenderableType] = [Rule("counterexample", align="left", style="dim"), Text(example.explanation)]
    shown += [value_table(group) for group in grouped(example.arguments)]
    if example.pytest:
        shown += [
            Rule("as a test", align="left", style="dim"),
            Syntax(example.pytest.rstrip(), "python", background_color="default", word_wrap=True),
        ]
    return shown


def claim_lines(claims: Iterable[str]) -> "list[RenderableType]":
    """Return claims as a list."""
    return [Padding(Text(f"- {claim}"), (0, 0, 0, 1)) for claim in claims]


def verdict_text(verdict: Verdict) -> Text:
    """Return a verdict in its colour."""
    colour = "green" if verdict.green else "yellow" if verdict is Verdict.UNKNOWN else "red"
    return Text(str(verdict), style=f"bold {colour}")


def seconds_text(seconds: float) -> str:
    """Return a duration as text for people."""
    return f"{seconds * 1_000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _gates(report: GateReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("gate", "verdict"):
        table.add_column(heading, no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("detail")
    for gate in report.gates:
        table.add_row(gate.name, verdict_text(gate.verdict), seconds_text(gate.seconds), Text(gate.detail))
    return table


def _obligations(obligations: Sequence[ObligationResult]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("obligation")
    table.add_column("verdict", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("least bound")
    for item in obligations:
        bound = ""
        if item.least is not None:
            word = "least" if item.least.tight else "sufficient"
            value = f"{item.least.value:,} {item.least.unit} ({in_words(item.least.value, item.least.unit)}, {word})"
            bound = f"{item.least.parameter} = {value}"
        table.add_row(item.name, verdict_text(item.verdict), seconds_text(item.seconds), bound)
    return table


def grouped(arguments: Mapping[str, Any]) -> list[dict[str, dict[str, int]]]:
    """Return the arguments grouped by view fields, with all scalars in one group."""
    groups: dict[tuple[str, ...], dict[str, dict[str, int]]] = {}
    scalars: dict[str, int] = {}
    for name, value in arguments.items():
        if isinstance(value, int):
            scalars[name] = value
        else:
            groups.setdefault(tuple(value), {})[name] = dict(value)
    return [*groups.values(), *([{"value": scalars}] if scalars else [])]


def value_table(group: Mapping[str, Mapping[str, int]]) -> Table:
    """Return a table of the rows of one view side by side."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in group:
        table.add_column(name, justify="right")
    for field in next(iter(group.values())):
        table.add_row(field, *(f"{row[field]:,}" for row in group.values()))
    return table
