"""The shape of a model's answer. Its validator runs the cheap gates, so that instructor tells the model what is wrong."""

import threading

from pydantic import BaseModel, Field, create_model, field_validator

from ..contract import Contract
from ..gates import check

__all__ = ["PolicyDraft", "draft_model"]

CHEAP_GATES = ("grammar", "types", "ranges")


class PolicyDraft(BaseModel):
    """One policy with its reason."""

    rationale: str = Field(max_length=4_000, description="Why this should do better, in one or two sentences.")
    expected_effect: str = Field(max_length=2_000, description="Which metric moves, which way, and at what cost.")
    source: str = Field(
        max_length=32_768, description="The whole Python text of the policy, imports included; no markdown."
    )


def draft_model(contract: Contract, lock: threading.Lock) -> type[PolicyDraft]:
    """`PolicyDraft` whose source must pass the cheap gates of a contract. `lock` is held while a text is checked."""

    def passes_cheap_gates(cls: type[BaseModel], source: str) -> str:
        text = _unfenced(source)
        with lock:
            report = check(text, contract, gates=CHEAP_GATES)
        if report.failed is not None:
            raise ValueError(f"{report.failed.verdict} ({report.failed.name}): {report.failed.detail}")
        return text

    return create_model(
        "PolicyDraft",
        __base__=PolicyDraft,
        __validators__={"passes_cheap_gates": field_validator("source")(passes_cheap_gates)},
    )


def _unfenced(text: str) -> str:
    """The text without a markdown fence around it, which models like to add."""
    lines = text.strip().splitlines()
    if len(lines) >= 2 and lines[0].startswith("```") and lines[-1].strip() == "```":
        lines = lines[1:-1]
    return "\n".join(lines) + "\n"
