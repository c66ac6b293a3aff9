"""Contracts by name: any package may register one under the entry-point group `autopoiesis.contracts`."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from .contract import Contract
from .errors import ContractError

__all__ = ["contract_conflicts", "contract_named", "contract_names"]

GROUP = "autopoiesis.contracts"


@cache
def _registered() -> Mapping[str, Sequence[EntryPoint]]:
    """Return every registration by name; several distributions under one name are a conflict."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, []).append(point)
    return found


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown distribution"


def contract_names() -> tuple[str, ...]:
    """Return every registered name, sorted; names that several distributions claim are among them."""
    return tuple(sorted(_registered()))


def contract_conflicts() -> dict[str, str]:
    """Return a line for each name that several distributions claim; `contract_named` refuses such a name."""
    return {
        name: f"the contract {name!r} is registered by "
        f"{' and by '.join(f'{_distribution(point)} ({point.value})' for point in points)}; uninstall all but one"
        for name, points in sorted(_registered().items())
        if len(points) > 1
    }


def contract_named(name: str, /, **parameters: object) -> Contract:
    """Return a registered contract with given parameters.

    Raises:
        ContractError: no such contract, several of this name, it cannot be imported, or a parameter is wrong.
    """
    points = _registered().get(name)
    if points is None:
        raise ContractError(f"there is no contract {name!r}; known: {', '.join(contract_names()) or 'none'}")
    if len(points) > 1:
        raise ContractError(contract_conflicts()[name])
    point = points[0]
    try:
        contract = point.load()
    except Exception as error:
        raise ContractError(f"the contract {name!r} ({point.value}) cannot be loaded: {error}") from error
    if not (isinstance(contract, type) and issubclass(contract, Contract)):
        raise ContractError(f"the entry point of {name!r} ({point.value}) is not a Contract class")
    try:
        return contract(**parameters)
    except ValueError as error:
        first = str(error).splitlines()
        raise ContractError(f"the parameters of {name!r} are wrong: {' '.join(first[1:3]) or first[0]}") from None
