"""Shortest prompt first, and nothing else. REFUTED: a long prompt may wait forever while short ones keep arriving."""

from autopoiesis_contracts.request_ordering import Engine, Waiting


def score(request: Waiting, engine: Engine) -> int:
    """Rank a request by its prompt tokens: the fewest go first, however long the others have waited."""
    return -request.num_prompt_tokens
