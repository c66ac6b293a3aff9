"""First come, first served: what every engine does by default. PROVED with T = 0."""

from autopoiesis_contracts.request_ordering import Engine, Waiting


def score(request: Waiting, engine: Engine) -> int:
    """Rank a request by its waiting time: the longest wait goes first."""
    return request.waited_us
