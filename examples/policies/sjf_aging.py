"""Shortest prompt first, but waiting always wins in the end. PROVED with T = 8.191 s."""

from autopoiesis_contracts.request_ordering import Engine, Waiting


def score(request: Waiting, engine: Engine) -> int:
    """A prompt token, up to 8,192 of them, weighs as much as a millisecond of waiting."""
    return request.waited_us - min(request.num_prompt_tokens, 8_192) * 1_000
