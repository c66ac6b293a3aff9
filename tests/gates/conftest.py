"""Policies with known verdicts, written once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from autopoiesis_contracts.request_ordering import RequestOrdering

from autopoiesis_lib import Policy

HEADER = "from autopoiesis_contracts.request_ordering import Engine, Waiting\n\n\n"
SIGNATURE = "def score(request: Waiting, engine: Engine) -> int:\n"
CORPUS = Path(__file__).parents[1] / "corpus" / "request_ordering.jsonl"


@pytest.fixture(scope="session")
def contract() -> RequestOrdering:
    return RequestOrdering()


@pytest.fixture(scope="session")
def ordering() -> Callable[[str], str]:
    """A request-ordering text whose `score` returns an expression, or has a body (given with its indentation)."""

    def text(body: str) -> str:
        return HEADER + SIGNATURE + (body if body.startswith("    ") else f"    return {body}\n")

    return text


@pytest.fixture(scope="session")
def corpus(contract: RequestOrdering) -> dict[str, Policy]:
    entries = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    return {entry["name"]: Policy.from_source(entry["source"], contract) for entry in entries}
