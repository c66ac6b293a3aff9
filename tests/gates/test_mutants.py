"""A small fixed sample of the mutants of `tests.support.mutants`: each is killed, or argued to be harmless."""

import subprocess
import sys
from pathlib import Path

import pytest

SAMPLED = ("theorem", "gates.theorems", "gates.contracts", "contract", "gates.claims")
EVERY = 37


@pytest.mark.slow
class TestSample:
    def test_every_survivor_is_argued(self, tmp_path: Path) -> None:
        """In a process of its own, which has not imported the library: the mutated modules are imported anew by each mutant."""
        modules = [argument for module in SAMPLED for argument in ("--module", module)]
        results = str(tmp_path / "mutants.jsonl")
        ran = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.support.mutants",
                "--every",
                str(EVERY),
                "--jobs",
                "1",
                "--results",
                results,
                *modules,
            ],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout[-2_000:] + ran.stderr[-2_000:]
        assert "killed by tests" in ran.stdout
