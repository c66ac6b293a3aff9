"""What README and docs show runs: Python blocks in order on each page, policies by their verdict, options by their commands."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from autopoiesis_cli.main import main

from autopoiesis_lib.gates import check
from autopoiesis_lib.registry import contract_named

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
VERDICTS = {"policy": "PROVED", "refuted": "REFUTED", "unsupported": "UNSUPPORTED"}


@dataclass(frozen=True)
class Block:
    """A fenced block: the words after the fence, its text, and where it is."""

    info: tuple[str, ...]
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(tuple(found["info"].split()), found["text"], text[: found.start()].count("\n") + 2)
        for found in re.finditer(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


POLICIES = [
    (page, block) for page in PAGES for block in blocks(page) if block.info[:1] == ("python",) and len(block.info) > 1
]
COMMANDS = [
    line.removeprefix("$ ")
    for page in PAGES
    for block in blocks(page)
    if block.info == ("console",)
    for line in block.text.splitlines()
    if line.startswith("$ autopoiesis ")
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.info == ("python",):
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)


@pytest.mark.parametrize(("page", "block"), POLICIES, ids=[f"{page.name}:{block.line}" for page, block in POLICIES])
def test_a_policy_that_is_shown_has_the_verdict_it_is_shown_with(page: Path, block: Block) -> None:
    _, kind, contract = block.info
    assert check(block.text, contract_named(contract)).verdict == VERDICTS[kind]


DEPLOY = ("approve", "freeze", "init", "log", "quarantine", "release", "rollback", "serve", "status", "unfreeze")


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_that_is_shown_has_its_options(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line, comments=True)[1:]
    named = [word for word in words if word.startswith("--")]
    command = words[:1]
    if command[0] in ("contracts", "trace", "certificate", "keys"):
        command = words[:2]
    if command[0] == "deploy":
        command = ["deploy", words[1] if words[1] in DEPLOY else "policy"]
    assert main([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert [option for option in named if option not in shown] == []


def test_the_pages_show_something() -> None:
    assert len(POLICIES) >= 4
    assert len(COMMANDS) >= 12
