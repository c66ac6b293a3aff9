"""The result of a command: one document, its rendering for people, and an exit code, printed here for every command.

With `--json`, exactly one JSON object goes to stdout; any other output of a library goes to stderr.
"""

import getpass
import json as encoding
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TextIO

import typer

from autopoiesis_lib.protocol.text import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = [
    "DONE",
    "INTERRUPTED",
    "MISTAKE",
    "REFUSED",
    "Answer",
    "Json",
    "answering",
    "note",
    "people",
    "person",
    "print_json",
]

DONE, REFUSED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: done or PROVED; refused or not proved; bad input or usage; stopped by Ctrl-C."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]

P = ParamSpec("P")


@dataclass(frozen=True)
class Answer:
    """A command's result."""

    document: Mapping[str, Any]
    """The JSON object that `--json` prints."""
    shown: "Sequence[RenderableType]"
    """The output for people."""
    code: int = DONE
    error: str = ""
    """One line for stderr: the reason why the code is not 0."""


def answering(command: Callable[P, Answer]) -> Callable[P, None]:
    """Make a typer command of a function that has a `json` parameter and returns an `Answer`."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        json = bool(kwargs["json"])
        stdout = sys.stdout
        with redirect_stdout(sys.stderr) if json else nullcontext():
            answer = command(*args, **kwargs)
        if json:
            print_json(answer.document, stdout)
        elif answer.shown:
            people(stdout).print(*answer.shown, sep="\n")
        if answer.error:
            note(f"error: {one_line(answer.error)}")
        raise typer.Exit(answer.code)

    return run


def print_json(document: Mapping[str, Any], stream: TextIO) -> None:
    """Print one JSON object on one line; a number that JSON cannot hold becomes null."""
    print(encoding.dumps(_finite(document), default=str, allow_nan=False), file=stream, flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def one_line(text: object) -> str:
    """Return a message on one line, with control characters of a terminal as escapes."""
    return printable(" ".join(str(text).split(None)))


def person() -> str:
    """Return the name of the user who runs a command, or the number of one without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def note(message: str) -> None:
    """Print a line for people on stderr, with control characters of a terminal as escapes."""
    print(printable(message), file=sys.stderr, flush=True)


def people(stream: TextIO) -> "Console":
    """Return a console for people: as wide as the terminal, or 120 columns where there is none.

    Control, bidirectional and escape characters in any text on it are printed as escapes.
    """
    from rich.console import Console

    from autopoiesis_cli.rendering.visible import Visible

    console = Console(file=stream, width=None if stream.isatty() else 120, highlight=False, emoji=False, markup=False)
    console.push_render_hook(Visible())
    return console
