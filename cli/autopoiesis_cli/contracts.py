"""`autopoiesis contracts`: list policy types, show one in full, and create a new one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopoiesis_cli.answer import DONE, REFUSED, Answer, Json, answering
from autopoiesis_cli.options import SettingsOption, contract_from

if TYPE_CHECKING:
    from autopoiesis_lib import Contract
    from autopoiesis_lib.formula import Formula
    from autopoiesis_lib.gates import ObligationResult

__all__ = ["app"]

app = typer.Typer(help="Policy types: list them, show one, start a new one.", no_args_is_help=True)


@app.command("list")
@answering
def list_contracts(json: Json = False) -> Answer:
    """List every policy type installed here."""
    from rich.text import Text

    from autopoiesis_cli.rendering.contracts import render_list
    from autopoiesis_lib.registry import contract_conflicts, contract_named, contract_names

    conflicts = contract_conflicts()
    contracts = [contract_named(name) for name in contract_names() if name not in conflicts]
    return Answer(
        document={
            "contracts": [
                {
                    "name": contract.contract_name,
                    "description": _description(contract),
                    "decisions": list(contract.decisions),
                    "invariants": [formula.name for formula in contract.invariants],
                    "baselines": list(contract.baselines()),
                    "digest": contract.digest,
                }
                for contract in contracts
            ],
            "conflicts": conflicts,
        },
        shown=[*render_list(contracts), *(Text(line) for line in conflicts.values())],
    )


@app.command("show")
@answering
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The policy type.")],
    settings: SettingsOption = None,
    prove: Annotated[bool, typer.Option("--prove", help="Also prove every lemma of its theorems now.")] = False,
    json: Json = False,
) -> Answer:
    """Show one policy type in full: views with units and bounds, assumptions, invariants, theorems, baselines."""
    from autopoiesis_cli.rendering.contracts import render_contract

    contract = contract_from(name, settings)
    lemmas = _prove(contract) if prove else None
    good = lemmas is None or all(item.verdict.green for items in lemmas.values() for item in items)
    return Answer(
        document=_document(contract, lemmas),
        shown=render_contract(contract, lemmas),
        code=DONE if good else REFUSED,
        error="" if good else f"a theorem of {name} does not hold",
    )


@app.command("new")
@answering
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, such as batch-sizing.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The new folder; default: ./NAME.")] = None,
    json: Json = False,
) -> Answer:
    """Create a new policy type: a small package that works and whose tests pass, to be changed into yours."""
    from rich.text import Text

    from autopoiesis_cli.scaffold import write_scaffold

    target = Path(name) if out is None else out
    files = write_scaffold(name, target)
    where = target if target.is_absolute() else f"./{target}"
    steps = f"next: pip install --editable {where} && python -m pytest {where}, then edit {files[0]}"
    return Answer(
        document={"contract": name, "path": str(target), "files": [str(file) for file in files]},
        shown=[*(Text(f"wrote {file}") for file in files), Text(steps)],
    )


def _description(contract: "Contract") -> str:
    return " ".join((type(contract).__doc__ or "").split())


def _prove(contract: "Contract") -> "dict[str, tuple[ObligationResult, ...]]":
    from autopoiesis_lib.gates.theorems import prove_theorem

    return {theorem.__name__: prove_theorem(contract, theorem) for theorem in contract.theorems()}


def _document(contract: "Contract", lemmas: "dict[str, tuple[ObligationResult, ...]] | None") -> dict[str, Any]:
    return {
        "name": contract.contract_name,
        "description": _description(contract),
        "digest": contract.digest,
        "parameters": contract.model_dump(),
        "decisions": [
            {
                "name": decision.name,
                "parameters": {param.name: param.type for param in decision.params},
                "returns": decision.result.describe(),
                "description": decision.doc,
            }
            for decision in contract.decisions.values()
        ],
        "views": {
            name: [
                {
                    "name": spec.name,
                    "unit": spec.domain.unit,
                    "low": spec.domain.lo,
                    "high": spec.domain.hi,
                    "description": spec.doc,
                }
                for spec in view.fields()
            ]
            for name, view in contract.views.items()
        },
        "assumptions": [_formula(formula) for formula in contract.assumptions],
        "invariants": [_formula(formula) for formula in contract.invariants],
        "theorems": [
            {
                "name": theorem.__name__,
                "statement": " ".join((theorem.__doc__ or "").split()),
                "lemmas": list(contract.theorem_formulas(theorem)),
                "proofs": None
                if lemmas is None
                else [
                    {"name": item.name, "verdict": item.verdict, "seconds": item.seconds}
                    for item in lemmas[theorem.__name__]
                ],
            }
            for theorem in contract.theorems()
        ],
        "baselines": dict(contract.baselines()),
    }


def _formula(formula: "Formula") -> dict[str, Any]:
    least = formula.least
    return {
        "name": formula.name,
        "claim": formula.doc,
        "source": formula.source,
        "least": None if least is None else {"parameter": least.name, "limit": least.least_limit},
    }
