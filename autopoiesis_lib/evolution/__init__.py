"""Evolution: candidates in, a certified policy out."""

from .budget import Budget, Limits
from .errors import EvolutionError
from .evaluator import Evaluator, Measurement, SimulationEvaluator
from .loop import evolve
from .result import EvolutionResult, Progress

__all__ = [
    "Budget",
    "Evaluator",
    "EvolutionError",
    "EvolutionResult",
    "Limits",
    "Measurement",
    "Progress",
    "SimulationEvaluator",
    "evolve",
]
