"""Answers of gates. Only PROVED and PASSED are green; anything else keeps a policy from running."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from ..binding import GREEN

__all__ = [
    "Counterexample",
    "GateReport",
    "GateResult",
    "LeastBound",
    "ObligationResult",
    "Reason",
    "Row",
    "TheoremResult",
    "Verdict",
    "rests_on",
    "worst",
]

Row = dict[str, int]
"""A view as field name -> integer."""


class Verdict(StrEnum):
    """A gate's answer."""

    PROVED = "PROVED"
    """Holds for every input, by proof."""
    PASSED = "PASSED"
    """Nothing wrong was found by a gate that tests."""
    REFUTED = "REFUTED"
    """A counterexample exists, and it replays."""
    UNKNOWN = "UNKNOWN"
    """Neither proved nor refuted within the budget."""
    UNSUPPORTED = "UNSUPPORTED"
    """The text uses Python the policy language leaves out."""
    VACUOUS = "VACUOUS"
    """Proved only because nothing can satisfy the premises."""
    INVALID = "INVALID"
    """The text is not a policy of this contract."""

    @property
    def green(self) -> bool:
        """True if the policy may go on."""
        return self in GREEN


class Reason(StrEnum):
    """Reason for which a policy did not go on: what programs decide on, where `detail` is for people."""

    LANGUAGE = "language"
    """The text is not in the policy language."""
    CONTRACT = "contract"
    """The contract itself is not sound."""
    TYPES = "types"
    """mypy refuses the text."""
    DIVISION = "division by zero"
    """A decision divides by zero."""
    OVERFLOW = "int64 overflow"
    """An intermediate value of a decision leaves int64."""
    RANGE = "out of range"
    """A decision's result leaves its declared range."""
    INVARIANT = "invariant"
    """An invariant is false, or raises."""
    VACUOUS = "vacuous"
    """Nothing meets the premises."""
    RESOURCES = "resources"
    """A solver gave up."""
    COMPLEXITY = "complexity"
    """The terms are too large to be put to a solver."""
    MEANINGS = "meanings differ"
    """CPython, the interpreter and the machine code disagree."""
    REPLAY = "replay"
    """A replay breaks the contract."""
    TIME = "time"
    """A limit on the clock ended the job."""
    CPU = "cpu"
    """A limit on processor time ended the job."""
    MEMORY = "memory"
    """A limit on memory ended the job."""
    DIED = "died"
    """The worker process died."""
    RAISED = "raised"
    """The job raised an exception."""
    OWN_DEFECT = "defect"
    """A solver and CPython, or two solvers, disagree: a defect of this library."""
    DUPLICATE = "duplicate"
    """Another candidate behaves alike."""
    HOPELESS = "hopeless"
    """The fitness on some windows was too bad to go on."""


_SEVERITY = [
    Verdict.PASSED,
    Verdict.PROVED,
    Verdict.UNKNOWN,
    Verdict.VACUOUS,
    Verdict.REFUTED,
    Verdict.UNSUPPORTED,
    Verdict.INVALID,
]


def worst(*verdicts: Verdict) -> Verdict:
    """Return the verdict that decides: the worst one; PROVED when all is green and anything was proved."""
    return max(verdicts, key=_SEVERITY.index, default=Verdict.PASSED)


def rests_on(obligation: str) -> str:
    """Return the name of the obligation on which the bounds of products in another one rest (`language.products`)."""
    return f"{obligation}: products"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Counterexample(_Value):
    """Values on which a policy breaks an obligation, and a test that shows it."""

    arguments: Mapping[str, Row | int]
    """Values by argument name of the obligation: a view as its fields, a scalar as its value."""
    obligation: str
    """Name of the obligation that breaks."""
    reason: Reason
    explanation: str
    """Events on these values, in one line."""
    pytest: str
    """A test, ready to run, that fails for this policy."""


class LeastBound(_Value):
    """The least value of an invariant's parameter that makes the invariant true."""

    parameter: str
    value: int
    unit: str
    tight: bool
    """True if value - 1 was refuted. Otherwise `value` is sufficient and perhaps not tight."""
    refuted_below: Counterexample | None = None
    """Values that break the invariant at value - 1."""


class ObligationResult(_Value):
    """One thing that had to be shown."""

    name: str
    verdict: Verdict
    seconds: float
    reason: Reason | None = None
    """Set when the verdict is not green."""
    detail: str = ""
    counterexample: Counterexample | None = None
    least: LeastBound | None = None
    assumptions_used: tuple[str, ...] | None = None
    """Assumptions that the proof needed; None when that was not asked for."""
    solvers: tuple[str, ...] = ()
    """The solvers that agree; one name only means the other gave up."""
    smtlib: str | None = Field(default=None, repr=False)
    """The refutation query: when it is unsatisfiable the obligation holds; None unless asked for."""
    proof: str | None = Field(default=None, repr=False)
    """An Alethe proof that `smtlib` is unsatisfiable, as `proofs.stored` keeps it; None unless asked for."""
    proof_gap: str = ""
    """Why there is no proof, or none that `proofs` can check, where one was asked for."""


class TheoremResult(_Value):
    """A system property of a contract, with the lemmas it follows from."""

    name: str
    statement: str
    lemmas: tuple[ObligationResult, ...]

    @property
    def proved(self) -> bool:
        """True if there are lemmas, and every one is discharged."""
        return bool(self.lemmas) and all(item.verdict is Verdict.PROVED for item in self.lemmas)


class GateResult(_Value):
    """One gate's answer."""

    name: str
    verdict: Verdict
    seconds: float
    reason: Reason | None = None
    """Set when the verdict is not green."""
    obligation: str | None = None
    """Name of the obligation that decided, when the verdict is not green and it was one."""
    detail: str = ""
    obligations: tuple[ObligationResult, ...] = ()
    counterexample: Counterexample | None = None

    @classmethod
    def refuted(cls, name: str, example: Counterexample, seconds: float) -> Self:
        """Return that a gate saw an obligation broken."""
        said: dict[str, Any] = {
            "verdict": Verdict.REFUTED,
            "seconds": seconds,
            "reason": example.reason,
            "detail": example.explanation,
            "counterexample": example,
        }
        broken = ObligationResult(name=example.obligation, **said)
        return cls(name=name, obligation=example.obligation, obligations=(broken,), **said)

    @classmethod
    def failed(
        cls, name: str, failed: ObligationResult, seconds: float, obligations: Sequence[ObligationResult]
    ) -> Self:
        """Return that a gate is not green because of one of its obligations."""
        return cls(
            name=name,
            verdict=failed.verdict,
            seconds=seconds,
            reason=failed.reason,
            obligation=failed.name,
            detail=f"{failed.name}: {failed.detail}",
            obligations=tuple(obligations),
            counterexample=failed.counterexample,
        )


class GateReport(_Value):
    """The chain's answer: every gate that ran, up to the first that was not green."""

    contract: str
    contract_digest: str
    policy_digest: str | None
    """None when the text could not be read as a policy."""
    verdict: Verdict
    seconds: float
    gates: tuple[GateResult, ...]
    theorems: tuple[TheoremResult, ...] = ()
    """The contract's theorems, as far as they were put to the solvers: with a verdict of PROVED, all of them."""
    claims: tuple[str, ...] = ()
    """Claims in plain words; empty unless the verdict is PROVED."""

    @property
    def obligations(self) -> tuple[ObligationResult, ...]:
        """Every obligation once; where two gates spoke of it, as the later one has it."""
        return tuple({item.name: item for gate in self.gates for item in gate.obligations}.values())

    @property
    def counterexample(self) -> Counterexample | None:
        """The counterexample of the gate that failed, if it has one."""
        return next((gate.counterexample for gate in reversed(self.gates) if gate.counterexample is not None), None)

    @property
    def failed(self) -> GateResult | None:
        """The gate that was not green, if any; the last one, which says most, when a refuted policy was explained further."""
        return next((gate for gate in reversed(self.gates) if not gate.verdict.green), None)

    def least(self) -> dict[str, int]:
        """Return the tightest bounds that were proved: obligation name -> value."""
        return {
            item.name: item.least.value for item in self.obligations if item.least is not None and item.verdict.green
        }
