"""The real command, run in this process or in one of its own."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from autopoiesis_cli.main import main

POLICIES = Path(__file__).parents[2] / "examples" / "policies"


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


Command = Callable[..., Ran]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run `autopoiesis` with arguments in this process, in an empty directory; what its libraries print counts as well."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Ran:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        return Ran(code, printed.out, printed.err)

    return run


@pytest.fixture
def process(tmp_path: Path) -> Command:
    """Run `autopoiesis` with arguments in a process of its own, in an empty directory."""

    def run(*arguments: str | Path) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "autopoiesis_cli", *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def policies() -> Path:
    """The folder of example policies."""
    return POLICIES
