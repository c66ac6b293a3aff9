"""IR to text: what is printed reads back as the same IR, and is the text CPython's own unparser would write."""

import ast
import json
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from autopoiesis_contracts.request_ordering import RequestOrdering

from autopoiesis_lib import Contract
from autopoiesis_lib.language import LanguageError, Module, parse
from autopoiesis_lib.language.ir import Const, Negate
from autopoiesis_lib.language.python import to_source
from tests.language.programs import Small, Wide, program

CORPUS = Path(__file__).parents[1] / "corpus" / "request_ordering.jsonl"


def shape(node: object) -> object:
    """A tree without the lines it came from and the docstrings; a constant's sign is part of it, however it was written."""
    match node:
        case Negate(Const(value, False)) if value >= 0:
            return shape(Const(-value))
    if isinstance(node, tuple):
        return tuple(shape(item) for item in node)
    if not is_dataclass(node):
        return node
    parts = [shape(getattr(node, item.name)) for item in fields(node) if item.name not in ("line", "doc")]
    return type(node).__name__, *parts


def modules() -> list[tuple[Module, Contract]]:
    """The corpus, and random programs over every construct of the language."""
    found: list[tuple[Module, Contract]] = []
    ordering = RequestOrdering()
    texts = [(json.loads(line)["source"], ordering) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    texts += [(program(seed, contract), contract) for contract in (Small(), Wide()) for seed in range(120)]
    for text, contract in texts:
        try:
            found.append((parse(text, contract.interface), contract))
        except LanguageError:  # too many operations
            continue
    return found


@pytest.mark.slow
def test_what_is_printed_reads_back_as_the_same_policy_and_is_what_ast_unparse_writes() -> None:
    found = modules()
    assert len(found) > 300
    for module, contract in found:
        text = to_source(module, contract.interface)
        enums = "".join(f"from {contract.interface.modules[0]} import {name}\n" for name in module.enums)
        again = parse(enums + text, contract.interface)
        assert shape(tuple(again.functions.values())) == shape(tuple(module.functions.values())), text
        bare = to_source(module)
        functions = [ast.unparse(function) for function in ast.parse(bare).body]
        assert "\n\n\n".join(functions) + "\n" == bare
