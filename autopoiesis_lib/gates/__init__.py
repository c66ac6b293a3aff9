"""Gates: what a policy must pass before it may run, cheapest first. One gate a file; `check` runs the chain."""

from .chain import GATES, check
from .counterexample import EncoderBug
from .verdict import Counterexample, GateReport, GateResult, LeastBound, ObligationResult, Verdict

__all__ = [
    "GATES",
    "Counterexample",
    "EncoderBug",
    "GateReport",
    "GateResult",
    "LeastBound",
    "ObligationResult",
    "Verdict",
    "check",
]
