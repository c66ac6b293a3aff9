"""Claims of a green report in plain words, and the list of what no report covers."""

from ..contract import Contract
from .verdict import GateReport, LeastBound, Verdict

__all__ = ["NOT_COVERED", "claims_of", "in_words"]

NOT_COVERED = (
    "requests the engine itself holds back in a pass (grammar not ready, remote KV pending, LoRA limit, connector)",
    "requests that already hold KV, which vLLM resumes before it admits others, and memory that they hold while they wait",
    "steps in which the engine passes over the oldest running request: encoder budget or cache, pipeline parallelism, deferred "
    "prefills; a preemption policy is kept off under the latter two",
    "preemptions that are nobody's choice: a reset of the prefix cache by the operator, or an oldest request that runs alone and "
    "finds no memory; engines count them",
    "steps left to the engine's own rule after a fault of the adapter or an input outside the contract's domains; in those an "
    "ordering keeps its bound T and nothing else",
    "the engine's own order by priority, unless the policy reads `priority`",
    "speculative decoding, prefill/decode disaggregation and routing between data-parallel replicas",
    "the engine's own bugs, and hardware or driver faults",
    "how good the policy is: speed is measured, not proved",
)
"""List of what no certificate of this library covers."""


def claims_of(contract: Contract, report: GateReport) -> tuple[str, ...]:
    """Return the claims of a report whose verdict is PROVED: safety, each invariant with its bound, each theorem discharged."""
    claims = [
        f"`{name}` always returns a value within {signature.result.describe()}: it never divides by zero, never overflows "
        "int64 and always ends"
        for name, signature in contract.decisions.items()
    ]
    said = {formula.name: formula.doc or f"`{formula.name}` holds" for formula in contract.invariants}
    for item in report.obligations:
        if item.verdict is not Verdict.PROVED or item.name not in said:
            continue
        claims.append(said[item.name].rstrip(".") + (f" ({_bound(item.least)})" if item.least is not None else ""))
    claims += [theorem.statement.rstrip(".") for theorem in report.theorems if theorem.proved]
    return tuple(claims)


def _bound(least: LeastBound) -> str:
    symbol = "T" if least.parameter == "aging" else least.parameter
    words = in_words(least.value, least.unit)
    return f"{symbol} = {words}, and less is refuted" if least.tight and least.refuted_below else f"{symbol} = {words}"


def in_words(value: int, unit: str) -> str:
    """Return a value with its unit as people say it: 8,191,000 us is 8.191 s."""
    if unit != "us":
        return f"{value:,} {unit}".strip()
    if value >= 1_000_000:
        return f"{value / 1_000_000:,.6f}".rstrip("0").rstrip(".") + " s"
    return f"{value / 1_000:,.3f}".rstrip("0").rstrip(".") + " ms" if value >= 1_000 else f"{value} us"
