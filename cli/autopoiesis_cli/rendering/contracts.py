"""Contracts, for people."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from autopoiesis_cli.rendering.gates import verdict_text
from autopoiesis_lib import Contract
from autopoiesis_lib.formula import Formula

if TYPE_CHECKING:
    from rich.console import RenderableType

    from autopoiesis_lib.gates import ObligationResult

__all__ = ["render_contract", "render_list"]


def render_list(contracts: Sequence[Contract]) -> "list[RenderableType]":
    """Return a table with one line per contract."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("contract", "decisions", "invariants", "what it decides"):
        table.add_column(heading)
    for contract in contracts:
        table.add_row(
            contract.contract_name,
            ", ".join(contract.decisions),
            ", ".join(formula.name for formula in contract.invariants),
            Text(_one_line(type(contract).__doc__)),
        )
    return [table]


def render_contract(
    contract: Contract, lemmas: "Mapping[str, Sequence[ObligationResult]] | None"
) -> "list[RenderableType]":
    """Return a contract in full."""
    shown: list[RenderableType] = [
        Text(f"{contract.contract_name}: {_one_line(type(contract).__doc__)}", style="bold"),
        Text(f"digest {contract.digest}", style="dim"),
    ]
    for name, info in type(contract).model_fields.items():
        shown.append(Text(f"parameter {name} = {getattr(contract, name):,}: {_one_line(info.description)}"))
    for decision in contract.decisions.values():
        header = ", ".join(f"{param.name}: {param.type}" for param in decision.params)
        shown.append(_section(f"decision {decision.name}({header}) -> {decision.result.describe()}"))
        shown.append(_indented(decision.doc))
    for name, view in contract.views.items():
        shown.append(_section(f"view {name}: {_one_line(view.__doc__)}"))
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("field", "values", "what it is"):
            table.add_column(heading)
        for spec in view.fields():
            table.add_row(spec.name, Text(spec.domain.describe()), Text(spec.doc))
        shown.append(Padding(table, (0, 0, 0, 2)))
    shown += _formulas("assumption", contract.assumptions) + _formulas("invariant", contract.invariants)
    for theorem in contract.theorems():
        shown += [_section(f"theorem {theorem.__name__}"), _indented(_one_line(theorem.__doc__))]
        if lemmas is None:
            shown.append(
                _indented(f"lemmas: {', '.join(contract.theorem_formulas(theorem))} (--prove proves them now)")
            )
        else:
            shown += [
                _indented(Text.assemble(verdict_text(item.verdict), f"  {item.name}"))
                for item in lemmas[theorem.__name__]
            ]
    for name, source in contract.baselines().items():
        shown += [_section(f"baseline {name}"), Padding(_code(source), (0, 0, 0, 2))]
    return shown


def _formulas(kind: str, formulas: Sequence[Formula]) -> "list[RenderableType]":
    shown: list[RenderableType] = []
    for formula in formulas:
        limit = (
            ""
            if formula.least is None
            else f" (least {formula.least.name} is found, up to {formula.least.least_limit:,})"
        )
        shown += [_section(f"{kind} {formula.name}{limit}"), Padding(_code(formula.source), (0, 0, 0, 2))]
    return shown


def _section(title: str) -> Rule:
    return Rule(Text(title), align="left", style="dim")


def _indented(text: str | Text) -> Padding:
    return Padding(Text(text) if isinstance(text, str) else text, (0, 0, 0, 2))


def _code(source: str) -> Syntax:
    return Syntax(source.strip(), "python", background_color="default", word_wrap=True)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
