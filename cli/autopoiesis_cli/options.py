"""Options that several commands share, and the conversion of their texts to values."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from autopoiesis_lib import Contract

__all__ = [
    "ContractArgument",
    "ContractOption",
    "ObjectiveOption",
    "PolicyPath",
    "SettingsOption",
    "StoreOption",
    "contract_from",
    "objectives_from",
]

ContractOption = Annotated[
    str, typer.Option("--contract", metavar="NAME", help="The policy type; see `contracts list`.")
]
ContractArgument = Annotated[str, typer.Argument(metavar="CONTRACT", help="The policy type; see `contracts list`.")]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the contract, such as max_aging_us=60000000."),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="URL", help="Where runs are kept: a file or a SQLAlchemy URL; default .autopoiesis/store.db."
    ),
]
ObjectiveOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="METRIC=WEIGHT",
        help="What to improve, such as ttft_mean_us=1 or e2e_p99_us=2; may be repeated.  [default: ttft_mean_us=1]",
    ),
]
PolicyPath = Annotated[Path, typer.Argument(metavar="POLICY.py", help="A policy file.")]


def contract_from(name: str, settings: list[str] | None = None) -> "Contract":
    """Return the contract of that name with `NAME=VALUE` settings.

    Raises:
        ContractError: there is none, or a setting is wrong.
    """
    from autopoiesis_lib.errors import ContractError
    from autopoiesis_lib.registry import contract_named

    parameters: dict[str, object] = {}
    for setting in settings or ():
        key, _, value = setting.partition("=")
        words = {"true": True, "false": False}
        try:
            parameters[key.strip()] = words[value] if value in words else int(value.replace("_", ""))
        except ValueError:
            raise ContractError(f"--set {setting}: write NAME=INTEGER, NAME=true or NAME=false") from None
        if not key.strip():
            raise ContractError(f"--set {setting}: write NAME=INTEGER, NAME=true or NAME=false")
    return contract_named(name, **parameters)


def objectives_from(texts: list[str] | None) -> dict[str, float] | None:
    """Return a map from a metric to its weight, from `METRIC=WEIGHT` texts; None when there are none.

    Raises:
        EvolutionError: a weight is not a number.
    """
    from autopoiesis_lib.evolution import EvolutionError

    found: dict[str, float] = {}
    for text in texts or ():
        name, _, weight = text.partition("=")
        try:
            found[name] = float(weight or 1)
        except ValueError:
            raise EvolutionError(f"--objective {text}: write METRIC=WEIGHT, such as e2e_p99_us=2") from None
    return found or None
