"""Texts of strangers on a terminal: what it would obey comes out as escapes, whatever is printed and wherever."""

import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from autopoiesis_cli.answer import note, people, print_json
from autopoiesis_cli.watch import _log_to_stderr
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from autopoiesis_lib.evolution.report import _environment
from autopoiesis_lib.store import RunRow, Store
from tests.cli.conftest import Command

EVIL = "a\x1b[2J\x1b]0;t\x07b\u202ec\u2066\x9bd\x08\u200be"
OBEYED = "\x1b\x07\x08\x9b\u202e\u2066\u200b"


def obeyed(text: str) -> Sequence[str]:
    """The characters of a text that a terminal does not show but obeys."""
    return [letter for letter in text if letter in OBEYED]


def table() -> Table:
    found = Table(title=EVIL, caption=EVIL)
    found.add_column(EVIL)
    found.add_row(EVIL)
    found.add_row(Text(EVIL))
    return found


SHOWN: dict[str, Any] = {
    "a string": EVIL,
    "a text": Text(EVIL),
    "an assembled text": Text.assemble("x", (EVIL, "bold")),
    "a table": table(),
    "padding": Padding(Text(EVIL), (0, 0, 0, 2)),
    "a rule": Rule(Text(EVIL)),
    "code": Syntax(f"x = 1  # {EVIL}", "python"),
    "a panel": Panel(EVIL, title=EVIL),
}


class TestConsole:
    @pytest.mark.parametrize("name", SHOWN)
    def test_shows_escapes_for_what_a_terminal_obeys(self, name: str) -> None:
        stream = io.StringIO()
        people(stream).print(SHOWN[name])
        assert not obeyed(stream.getvalue())
        assert r"\u202e" in stream.getvalue()

    def test_keeps_its_own_colours_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.delenv("NO_COLOR", raising=False)
        stream = Terminal()
        people(stream).print(Text(EVIL, style="bold red"))
        assert stream.getvalue().startswith("\x1b[1;31m") and stream.getvalue().count("\x1b") == 2
        assert "[2J" in stream.getvalue() and r"\x1b[2J" in stream.getvalue()


class TestLines:
    def test_a_note_and_a_log_line_show_escapes(self, capfd: pytest.CaptureFixture[str]) -> None:
        logger = logging.getLogger("autopoiesis.online")
        before = list(logger.handlers)
        try:
            logger.handlers = []
            _log_to_stderr()
            logger.warning("engine %s", f"{EVIL}\nforged line")
            try:
                raise ValueError(EVIL)
            except ValueError:
                logger.exception("failed")
        finally:
            logger.handlers = before
        note(EVIL)
        err = capfd.readouterr().err
        assert not obeyed(err)
        assert r"\nforged line" in err and err.count(r"\x1b[2J") == 3

    @pytest.mark.parametrize(
        "arguments", [("verify", f"{EVIL}.py"), ("report", EVIL), (EVIL,), ("contracts", "show", EVIL)]
    )
    def test_an_error_names_what_was_given_with_escapes(self, command: Command, arguments: tuple[str, ...]) -> None:
        ran = command(*arguments)
        assert ran.code == 2 and ran.err.startswith("error: ") and ran.err.count("\n") == 1
        assert not obeyed(ran.err + ran.out)
        assert command(*arguments, "--json").out.isascii()

    def test_json_stays_json(self) -> None:
        stream = io.StringIO()
        print_json({EVIL: EVIL}, stream)
        assert json.loads(stream.getvalue()) == {EVIL: EVIL}
        assert stream.getvalue().isascii() and "\x1b" not in stream.getvalue()


class TestStoredTexts:
    def test_a_row_of_a_store_is_listed_with_escapes(self, command: Command, tmp_path: Path) -> None:
        store = Store.open(tmp_path / "s.db")
        row = RunRow(
            id=EVIL, contract=EVIL, contract_digest="d", seed=1, status="done", config={}, started_at=EVIL, result=None
        )
        store.start_run(row)
        store.close()
        ran = command("report", "--store", tmp_path / "s.db")
        assert ran.code == 0 and not obeyed(ran.out)

    def test_the_page_of_a_run_shows_escapes_and_markup_as_text(self) -> None:
        page = _environment.from_string("<p>{{ text }}</p>{{ chart|safe }}").render(
            text=f"{EVIL}<script>", chart=f"<svg>{EVIL}</svg>"
        )
        assert not obeyed(page)
        assert "<script>" not in page and "<svg>" in page
