"""What proofs take for granted about views, checked while serving: domains and the contract's own assumptions.

Facts about one request are checked once, when it starts to wait (its fields stand still until it is admitted). Facts
about the engine, and facts that join a request with the engine, are checked on the snapshot of each scheduling pass:
the joined ones for every waiting request, by the same machine-code loop that scores them.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopoiesis_lib.contract import Contract, Formula, formula_module
from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.language import Param, Signature
from autopoiesis_lib.view import Domain, View

__all__ = ["Assumptions", "UncheckableError"]

Int64s = NDArray[np.int64]


class UncheckableError(AutopoiesisError):
    """A contract assumes something that this adapter has no way to check while serving."""


class Assumptions:
    """The domains and assumptions of an ordering contract: one request view, one engine view."""

    def __init__(self, contract: Contract, request: type[View], engine: type[View]) -> None:
        self._self = contract.stand_in({})
        self._request = request
        self._engine = engine
        self._of_request: list[Formula] = []
        self._of_engine: list[Formula] = []
        self._joined: list[tuple[str, Callable[..., Int64s]]] = []
        for formula in contract.assumptions:
            views = tuple(param.view for param in formula.params)
            if views == (request,):
                # A wait grows while the request stands in the queue; everything else about it stands still.
                if "waited_us" in formula.source:
                    raise UncheckableError(
                        f"{formula.name}: an assumption about a wait alone; state it against the engine view"
                    )
                self._of_request.append(formula)
            elif views == (engine,):
                self._of_engine.append(formula)
            elif views == (request, engine):
                self._joined.append((formula.name, _compile(formula)))
            else:
                raise UncheckableError(
                    f"{formula.name}: the vLLM adapter checks assumptions on (request), (engine) or (request, engine)"
                )
        self._request_names = tuple(spec.name for spec in request.fields())
        self._engine_names = tuple(spec.name for spec in engine.fields())
        self._engine_domains = tuple((spec.name, spec.domain.lo, spec.domain.hi) for spec in engine.fields())

    def request_holds(self, row: tuple[int, ...]) -> bool:
        """Whether every assumption about a request alone holds of one row in declared order."""
        if not self._of_request:
            return True
        view = SimpleNamespace(**dict(zip(self._request_names, row, strict=True)))
        return all(formula.method(self._self, view) for formula in self._of_request)

    def engine_problem(self, row: tuple[int, ...]) -> str | None:
        """What is wrong with an engine row, in words; None when it lies in its domains and meets its assumptions."""
        for value, (name, lo, hi) in zip(row, self._engine_domains, strict=True):
            if not lo <= value <= hi:
                return f"engine.{name} = {value} is outside {lo} to {hi}"
        if self._of_engine:
            view = SimpleNamespace(**dict(zip(self._engine_names, row, strict=True)))
            for formula in self._of_engine:
                if not formula.method(self._self, view):
                    return f"assumption {formula.name} does not hold of the engine"
        return None

    def joined_problem(self, fields: Int64s, engine: Int64s, n: int) -> str | None:
        """The first assumption joining request and engine that some waiting request breaks; None when all hold."""
        for name, holds in self._joined:
            if not holds(fields, engine, n=n).all():
                return f"assumption {name} does not hold of a waiting request"
        return None


def _compile(formula: Formula) -> Callable[..., Any]:
    from autopoiesis_lib.language.scorer import compile_scorer

    params = tuple(Param(param.name, param.view.__name__) for param in formula.params if param.view is not None)
    signature = Signature(formula.name, params, Domain(0, 1, "bool"), formula.doc)
    return compile_scorer(formula_module((formula,)), signature)
