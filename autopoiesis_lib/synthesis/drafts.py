"""The shape of a model's answer. Its validator runs the cheap gates, so that instructor tells the model what is wrong."""

import ast
import re
import threading
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, create_model, field_validator

from ..contract import Contract
from ..gates import check
from ..protocol.text import printable
from .proposer import ProposerError

__all__ = ["PolicyDraft", "Shape", "draft_model"]

CHEAP_GATES = ("grammar", "types", "ranges")

Shape = Literal["any", "linear"]
"""`any`: a whole program. `linear`: a weighted sum of view fields, for models too small to write a program; the server's guided
decoding must honour `pattern` in a JSON schema, as vLLM's does."""

TERMS = 4
"""The most terms of a linear policy."""


class PolicyDraft(BaseModel):
    """One policy with its reason."""

    rationale: str = Field(max_length=4_000, description="Why this should do better, in one or two sentences.")
    expected_effect: str = Field(max_length=2_000, description="Which metric moves, which way, and at what cost.")
    source: str = Field(
        max_length=32_768, description="The whole Python text of the policy, imports included; no markdown."
    )

    @field_validator("rationale", "expected_effect")
    @classmethod
    def _shows_every_character(cls, text: str) -> str:
        """Write control and bidirectional characters as escapes. In a policy's text the grammar refuses them."""
        return printable(text, allowed="\n")


def draft_model(contract: Contract, lock: threading.Lock, shape: Shape = "any") -> type[PolicyDraft]:
    """`PolicyDraft` whose source must pass the cheap gates of a contract. `lock` is held while a text is checked.

    Raises:
        ProposerError: the contract has no linear policies.
    """

    def passes_cheap_gates(cls: type[BaseModel], source: str) -> str:
        text = _with_imports(_unfenced(source), contract)
        with lock:
            report = check(text, contract, gates=CHEAP_GATES)
        if report.failed is not None:
            raise ValueError(f"{report.failed.verdict} ({report.failed.name}): {report.failed.detail}")
        return text

    fields: dict[str, Any] = {}
    if shape == "linear":
        # Short, so that an answer ends within few tokens even if a weak model goes in circles.
        for name, length in (("rationale", 160), ("expected_effect", 80)):
            description = PolicyDraft.model_fields[name].description
            fields[name] = (str, Field(max_length=length, description=description))
        told = PolicyDraft.model_fields["source"].description
        fields["source"] = (
            Annotated[str, Field(description=told, json_schema_extra={"pattern": linear_pattern(contract)})],
            ...,
        )
    model: type[PolicyDraft] = create_model(
        "PolicyDraft",
        __base__=PolicyDraft,
        __validators__={"passes_cheap_gates": field_validator("source")(passes_cheap_gates)},
        **fields,
    )
    return model


def linear_pattern(contract: Contract) -> str:
    """The policies of one line that return a weighted sum of a decision's view fields, as a regular expression.

    One line, because a pattern says nothing of how JSON escapes a newline. Imports are added afterwards.
    """
    decisions = list(contract.decisions.values())
    if len(decisions) != 1 or decisions[0].result.kind == "bool":
        raise ProposerError(f"{contract.contract_name} has no linear policies: they need one decision that is a number")
    decision = decisions[0]
    names = [
        f"{param.name}.{spec.name}"
        for param in decision.params
        for spec in contract.views[param.type].fields()
        if spec.domain.kind == "int"
    ]
    params = ", ".join(f"{param.name}: {param.type}" for param in decision.params)
    head = f"def {decision.name}({params}) -> int: return "
    term = f"([1-9][0-9]{{0,4}} \\* )?({'|'.join(map(re.escape, names))})"
    return f"^{re.escape(head).replace(chr(92) + ' ', ' ')}{term}( (\\+|-) {term}){{0,{TERMS - 1}}}$"


def _unfenced(text: str) -> str:
    """The text without a markdown fence around it, which models like to add."""
    lines = text.replace("\r\n", "\n").strip(" \t\n").split("\n")
    if len(lines) >= 2 and lines[0].startswith("```") and lines[-1].strip() == "```":
        lines = lines[1:-1]
    return "\n".join(lines) + "\n"


def _with_imports(text: str, contract: Contract) -> str:
    """The text with the views imported, where it imports nothing: the one line that models forget and that says nothing."""
    if re.search(r"^\s*(from|import)\b", text, re.MULTILINE):
        return text
    used = sorted(name for name in contract.views if re.search(rf"\b{name}\b", text))
    modules = sorted({contract.views[name].__module__ for name in used})
    lines = [
        f"from {module} import {', '.join(name for name in used if contract.views[name].__module__ == module)}\n"
        for module in modules
    ]
    if not lines:
        return text
    try:
        first = next(iter(ast.parse(text).body), None)
    except SyntaxError:
        return text
    is_doc = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    after = first.end_lineno or 0 if first is not None and is_doc else 0
    parts = text.splitlines(keepends=True)
    return "".join([*parts[:after], *(["\n"] if after else []), *lines, "\n\n", *parts[after:]])
