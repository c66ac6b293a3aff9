"""Errors a caller can name. Every message says what is wrong, where, and what to do next, in one line."""


class AutopoiesisError(Exception):
    """Base of every error this library raises on purpose."""


class ContractError(AutopoiesisError):
    """A contract is written wrongly: the author has to mend the contract, not a policy."""


class PolicyError(AutopoiesisError):
    """A policy text cannot be read as a policy of its contract."""
