"""`SearchProposer`: candidates by typed program search, without a key or a network.

Equal seeds give equal candidates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from random import Random
from typing import Any, Literal

from ..contract import Contract, Unhashed
from ..language import LanguageError, Module, parse
from ..language.ir import Function, Param, Return
from ..language.python import to_source
from .aging import within_limit
from .moves import MOVES, Typical, Workbench, tuned
from .palette import Palette
from .proposer import Context, Draft, Parent, Slot
from .repair import repair
from .tree import simplify, size

__all__ = ["SearchProposer", "fresh_module"]

MAX_SIZE = 120
"""Maximum number of nodes of a candidate. Larger offspring are discarded before they are proposed."""
TRIES = 8


@dataclass(frozen=True, kw_only=True)
class SearchProposer:
    """A proposer that searches the policy IR by typed mutation and crossover.

    A self-adaptive evolution strategy tunes the constants, and repairs change a policy so that a failed proof can
    succeed. The proposer is deterministic: a draft depends on the run's seed, the generation, its slot and its parents.
    """

    mode: Literal["full", "random", "tune"] = "full"
    """The kind of search.

    `random` samples the same grammar anew each time, and `tune` only changes the constants of its parents. They are the
    two controls that the full search is compared with.
    """
    moves: Mapping[str, float] = field(default_factory=lambda: {name: share for name, (_, share) in MOVES.items()})
    """Move name -> relative frequency."""

    @property
    def name(self) -> str:
        """`search`, or the control's name."""
        return "search" if self.mode == "full" else f"search-{self.mode}"

    def describe(self) -> Mapping[str, Any]:
        """Return the settings for the run's record."""
        return {"proposer": self.name, "moves": dict(self.moves)}

    def propose(self, context: Context, slots: Sequence[Slot]) -> Sequence[Draft]:
        """Return one draft per slot."""
        parents = {parent.id: parent for slot in slots for parent in slot.parents}
        modules = {number: _read(parent, context.contract) for number, parent in parents.items()}
        return [self._draft(context, slot, modules) for slot in slots]

    def _draft(self, context: Context, slot: Slot, modules: Mapping[int, Module | None]) -> Draft:
        rng = Random(f"{context.seed}/{context.generation}/{slot.id}")
        contract = context.contract
        parents = [(parent, modules[parent.id]) for parent in slot.parents]
        readable = [(parent, module) for parent, module in parents if module is not None]
        if self.mode == "random" or not readable:
            return _printed(fresh_module(contract, rng, context.typical), contract, "renew", ())
        parent, module = readable[0]
        mate = readable[1] if len(readable) > 1 else None
        if parent.gate is not None:
            repaired = repair(contract, module, rng, parent)
            if repaired is not None:
                return _printed(repaired[0], contract, repaired[1], (parent.id,))
        sigma = _sigma(parent, rng)
        if self.mode == "tune":
            new = tuned(module, rng, sigma, share=None)
            return _printed(new or module, contract, "tune", (parent.id,), {"sigma": sigma})
        return self._vary(context, rng, parent, module, mate, sigma)

    def _vary(
        self,
        context: Context,
        rng: Random,
        parent: Parent,
        module: Module,
        mate: tuple[Parent, Module] | None,
        sigma: float,
    ) -> Draft:
        contract = context.contract
        names, weights = list(self.moves), list(self.moves.values())
        before = to_source(module, contract.interface)
        for _ in range(TRIES):
            chosen = rng.choices(names, weights)[0]
            bench = Workbench(contract, module, rng, mate[1] if mate is not None else None, sigma, context.typical)
            changed = MOVES[chosen][0](bench)
            if changed is None:
                continue
            if chosen != "tune" and rng.random() < 0.3:
                changed = tuned(changed, rng, sigma, share=None) or changed
            simple = simplified(changed)
            limited = within_limit(simple, bench.palette)
            changed = simple if limited is simple else simplified(limited)
            if size(changed) > MAX_SIZE or (text := to_source(changed, contract.interface)) == before:
                continue
            made_from = (parent.id, mate[0].id) if chosen == "crossover" and mate is not None else (parent.id,)
            return Draft(source=text, move=chosen, parents=made_from, details={"sigma": sigma})
        return _printed(fresh_module(contract, rng, context.typical), contract, "renew", ())


def fresh_module(contract: Contract, rng: Random, typical: Typical | None = None) -> Module:
    """Return a random policy of the contract's grammar, with fields that vary in the workload if it is known."""
    functions: dict[str, Function] = {}
    for name, signature in contract.decisions.items():
        params = tuple(Param(param.name, param.type) for param in signature.params)
        body = (Return(Palette(contract, name, typical=(typical or {}).get(name)).result(rng)),)
        functions[name] = Function(name, params, body, signature.result.kind == "bool")
    return simplified(Module(functions, dict(contract.views)))


def simplified(module: Module) -> Module:
    """Return the module with every function simplified."""
    functions = {name: simplify(function) for name, function in module.functions.items()}
    same = all(functions[name] is function for name, function in module.functions.items())
    return module if same else replace(module, functions=functions)


def _sigma(parent: Parent, rng: Random) -> float:
    """Return a variation of the parent's step size, so that a step size that led to good constants is inherited."""
    inherited = float(parent.details.get("sigma", 0.6))
    return min(2.0, max(0.02, inherited * math.exp(rng.gauss(0.0, 0.5))))


def _read(parent: Parent, contract: Contract) -> Module | None:
    return _module(parent.source, contract.digest, Unhashed(contract))


@lru_cache(maxsize=1_024)
def _module(source: str, digest: str, handle: Unhashed) -> Module | None:
    """Return a parent's text as IR. The cache avoids parsing the elites of a run in every generation."""
    try:
        return parse(source, handle.contract.interface)
    except LanguageError:
        return None


def _printed(
    module: Module, contract: Contract, move: str, parents: tuple[int, ...], details: Mapping[str, Any] | None = None
) -> Draft:
    return Draft(source=to_source(module, contract.interface), move=move, parents=parents, details=details or {})
