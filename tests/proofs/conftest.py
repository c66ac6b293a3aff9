"""Genuine proofs, made once."""

import json
from functools import cache
from pathlib import Path

import pytest
from autopoiesis_contracts.request_ordering import RequestOrdering

from autopoiesis_lib import Policy
from autopoiesis_lib.certificate import Certificate, verify
from autopoiesis_lib.proofs.stored import unpacked

CORPUS = Path(__file__).parents[1] / "corpus" / "request_ordering.jsonl"


@cache
def corpus() -> dict[str, str]:
    """Policy texts by name."""
    return {
        entry["name"]: entry["source"] for entry in map(json.loads, CORPUS.read_text(encoding="utf-8").splitlines())
    }


@cache
def certified(name: str) -> Certificate:
    """A certificate of a policy of the corpus, with proofs."""
    return verify(Policy.from_source(corpus()[name], RequestOrdering()), proofs=True)


def proofs_of(certificate: Certificate) -> list[tuple[str, str]]:
    """Texts and proofs."""
    return [
        (item.smtlib, unpacked(item.proof))
        for item in certificate.items
        if item.smtlib is not None and item.proof is not None
    ]


@pytest.fixture(scope="session")
def genuine() -> list[tuple[str, str]]:
    """Every rule but a few of nonlinear arithmetic occurs in these."""
    return [pair for name in ("tiers", "modulo-jitter") for pair in proofs_of(certified(name))]
