"""Shortest prompt first with aging: a long wait outweighs any prompt length. PROVED with T = 8.191 s."""

from autopoiesis_contracts.request_ordering import Engine, Waiting


def score(request: Waiting, engine: Engine) -> int:
    """Rank a request by its waiting time, less a millisecond for each of its first 8,192 prompt tokens."""
    return request.waited_us - min(request.num_prompt_tokens, 8_192) * 1_000
