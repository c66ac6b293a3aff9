"""Evolution: search for a policy of a contract, and certify the best candidate."""

from .budget import Budget, Limits
from .errors import EvolutionError
from .evaluator import Evaluator, Measurement, SimulationEvaluator
from .inline import Inline
from .loop import evolve
from .report import write_report
from .result import EvolutionResult, Progress

__all__ = [
    "Budget",
    "Evaluator",
    "EvolutionError",
    "EvolutionResult",
    "Inline",
    "Limits",
    "Measurement",
    "Progress",
    "SimulationEvaluator",
    "evolve",
    "write_report",
]
