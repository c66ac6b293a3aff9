"""The command itself: its sub-commands, and the handling of errors."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from autopoiesis_cli.answer import INTERRUPTED, MISTAKE, note, one_line, print_json
from autopoiesis_cli.calibrate import calibrate
from autopoiesis_cli.certificate import app as certificate
from autopoiesis_cli.contracts import app as contracts
from autopoiesis_cli.deploy import app as deploy
from autopoiesis_cli.doctor import doctor
from autopoiesis_cli.evolve import evolve
from autopoiesis_cli.keys import app as keys
from autopoiesis_cli.report import report
from autopoiesis_cli.simulate import simulate
from autopoiesis_cli.trace import app as trace
from autopoiesis_cli.verify import verify
from autopoiesis_cli.watch import approve, freeze, quarantine, release, unfreeze, watch

__all__ = ["INTERNAL", "app", "main"]

INTERNAL = 70
"""Exit code of a defect in autopoiesis."""

ClickException: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
"""Usage errors of typer; newer versions of typer have their own class."""

app = typer.Typer(
    name="autopoiesis",
    help="Serving policies that evolve while the engine runs, and are proved safe before they run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("autopoiesis-lib"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


app.command("verify")(verify)
app.command("evolve")(evolve)
app.command("simulate")(simulate)
app.command("calibrate")(calibrate)
app.add_typer(deploy, name="deploy")
app.add_typer(contracts, name="contracts")
app.add_typer(trace, name="trace")
app.add_typer(certificate, name="certificate")
app.add_typer(keys, name="keys")
app.command("report")(report)
app.command("watch")(watch)
app.command("doctor")(doctor)
deploy.command("approve")(approve)
deploy.command("freeze")(freeze)
deploy.command("unfreeze")(unfreeze)
deploy.command("quarantine")(quarantine)
deploy.command("release")(release)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Errors are one line on stderr, and one object on stdout with `--json`.
    """
    from autopoiesis_lib.errors import AutopoiesisError

    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(args=given, prog_name="autopoiesis", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED, given)
    except ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError" and "--json" not in given:
            print(error.format_message())  # type: ignore[attr-defined]
            return MISTAKE
        return _fail(error.format_message() or "give a command; see autopoiesis --help", MISTAKE, given)  # type: ignore[attr-defined]
    except AutopoiesisError as error:
        internal = type(error).__name__ == "EncoderBug"
        return _fail(error, INTERNAL if internal else MISTAKE, given)
    except BrokenPipeError:
        # The reader has closed the pipe: print nothing more, not even when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        return _fail(f"{named}{error.strerror or error}", MISTAKE, given)
    except Exception as error:
        if os.environ.get("AUTOPOIESIS_TRACEBACK"):
            raise
        return _fail(
            f"a defect of autopoiesis, please report it: {type(error).__name__}: {error}; AUTOPOIESIS_TRACEBACK=1 shows where",
            INTERNAL,
            given,
        )


def _fail(message: object, code: int, given: Sequence[str]) -> int:
    line = one_line(message)
    note(f"error: {line}")
    if "--json" in given:
        print_json({"error": line}, sys.stdout)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
