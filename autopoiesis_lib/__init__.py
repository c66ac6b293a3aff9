"""Serving policies that evolve while the engine runs, and are proved safe before they run.

The light names are imported here; names that need a solver, a simulator or an LLM client are loaded at their first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .contract import Contract
from .errors import AutopoiesisError, ContractError, PolicyError
from .formula import Least, assumption, decision, invariant, lemma
from .policy import Policy
from .registry import contract_named, contract_names
from .theorem import Theorem
from .view import Saturates, View

if TYPE_CHECKING:
    from .certificate import Certificate, CertificateError, Rejected, verify
    from .evolution import Budget, EvolutionResult, evolve
    from .gates import Verdict
    from .simulation.trace import Trace
    from .store import Store
    from .synthesis import LLMProposer, SearchProposer

__all__ = [
    "AutopoiesisError",
    "Budget",
    "Certificate",
    "CertificateError",
    "Contract",
    "ContractError",
    "EvolutionResult",
    "LLMProposer",
    "Least",
    "Policy",
    "PolicyError",
    "Rejected",
    "Saturates",
    "SearchProposer",
    "Store",
    "Theorem",
    "Trace",
    "Verdict",
    "View",
    "assumption",
    "contract_named",
    "contract_names",
    "decision",
    "evolve",
    "invariant",
    "lemma",
    "verify",
]

_LAZY = {
    "Store": ".store",
    "SearchProposer": ".synthesis",
    "LLMProposer": ".synthesis",
    "evolve": ".evolution",
    "EvolutionResult": ".evolution",
    "Budget": ".evolution",
    "Certificate": ".certificate",
    "CertificateError": ".certificate",
    "Rejected": ".certificate",
    "Trace": ".simulation.trace",
    "Verdict": ".gates.verdict",
    "verify": ".certificate",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)
