"""The structure of a model's answer.

Its validator runs the cheap gates, so instructor reports the violation to the model.
"""

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
"""The shape of the policies that a model may write.

`any` is a whole program. `linear` is a weighted sum of view fields, for models too small to write a program. It needs a
server whose guided decoding honours `pattern` in a JSON schema, as vLLM's does.
"""

TERMS = 4
"""Maximum number of terms of a linear policy."""


class PolicyDraft(BaseModel):
    """One policy with the reasons for it."""

    rationale: str = Field(max_length=4_000, description="Why this should do better, in one or two sentences.")
    expected_effect: str = Field(max_length=2_000, description="Which metric moves, which way, and at what cost.")
    source: str = Field(
        max_length=32_768, description="The whole Python text of the policy, imports included; no markdown."
    )

    @field_validator("rationale", "expected_effect")
    @classmethod
    def _shows_every_character(cls, text: str) -> str:
        """Return the text with control and bidirectional characters as escapes.

        In a policy's text the grammar refuses such characters.
        """
        return printable(text, allowed="\n")


def draft_model(contract: Contract, lock: threading.Lock, shape: Shape = "any") -> type[PolicyDraft]:
    """Return a `PolicyDraft` class whose source must pass the cheap gates of a contract.

    `lock` is held while a text is checked.

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
        # Short limits, so that an answer ends within few tokens even if a weak model repeats itself.
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
    """Return a regular expression for the one-line policies that return a weighted sum of a decision's view fields.

    The policies have one line, because a pattern cannot express how JSON escapes a newline. Imports are added
    afterwards.

    Raises:
        ProposerError: the contract has no single decision that is a number.
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
    """Return the text without an enclosing markdown fence, which models often add."""
    lines = text.replace("\r\n", "\n").strip(" \t\n").split("\n")
    if len(lines) >= 2 and lines[0].startswith("```") and lines[-1].strip() == "```":
        lines = lines[1:-1]
    return "\n".join(lines) + "\n"


def _with_imports(text: str, contract: Contract) -> str:
    """Return the text with an import of its views added if it imports nothing.

    Models often omit this line, and it carries no information.
    """
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
