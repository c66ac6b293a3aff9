"""Contracts by name: any package may register one under the entry-point group `autopoiesis.contracts`."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from .contract import Contract
from .errors import ContractError

__all__ = ["contract_named", "contract_names"]

GROUP = "autopoiesis.contracts"


@cache
def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def contract_names() -> tuple[str, ...]:
    """Every registered contract, sorted."""
    return tuple(sorted(_registered()))


def contract_named(name: str, /, **parameters: object) -> Contract:
    """A registered contract with given parameters.

    Raises:
        ContractError: no such contract, it cannot be imported, or a parameter is wrong.
    """
    point = _registered().get(name)
    if point is None:
        raise ContractError(f"there is no contract {name!r}; known: {', '.join(contract_names()) or 'none'}")
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
