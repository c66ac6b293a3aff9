"""Errors that a caller can name. Every message says what is wrong, where, and what to do next, in one line."""


class AutopoiesisError(Exception):
    """Base of every error that this library raises on purpose."""


class ContractError(AutopoiesisError):
    """A wrongly written contract: its author has to correct the contract, not a policy."""


class PolicyError(AutopoiesisError):
    """A policy text that cannot be read as a policy of its contract."""
