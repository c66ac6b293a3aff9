"""Shortest prompt first, and nothing else. REFUTED: a long prompt may wait for ever while short ones keep coming."""

from autopoiesis_contracts.request_ordering import Engine, Waiting


def score(request: Waiting, engine: Engine) -> int:
    """Fewer prompt tokens go first, however long the others have waited."""
    return -request.num_prompt_tokens
