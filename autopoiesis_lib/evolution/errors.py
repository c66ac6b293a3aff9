"""Errors of evolution."""

from ..errors import AutopoiesisError

__all__ = ["EvolutionError"]


class EvolutionError(AutopoiesisError):
    """A run cannot be started, resumed or finished."""
