"""Shortest prompt first only while the engine is crowded; priorities count for two seconds a level. PROVED."""

from autopoiesis_contracts.request_ordering import Engine, Waiting

MILLISECOND = 1_000
SECOND = 1_000 * MILLISECOND
LONG_PROMPT = 4_096


def remaining(request: Waiting) -> int:
    """Prompt tokens that still have to be computed, long prompts counted as equal."""
    return min(request.num_prompt_tokens - request.num_cached_tokens, LONG_PROMPT)


def score(request: Waiting, engine: Engine) -> int:
    """Waiting time and priority; a shorter rest goes first when more wait than run."""
    urgency = request.waited_us + request.priority * 2 * SECOND
    if engine.num_waiting > engine.num_running:
        urgency -= remaining(request) * 2 * MILLISECOND
    return urgency
