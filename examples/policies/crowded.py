"""Shortest prompt first only while the engine is crowded; each priority level counts for two seconds. PROVED."""

from autopoiesis_contracts.request_ordering import Engine, Waiting

MILLISECOND = 1_000
SECOND = 1_000 * MILLISECOND
LONG_PROMPT = 4_096


def remaining(request: Waiting) -> int:
    """Return the prompt tokens that still have to be computed, capped so that long prompts count as equal."""
    return min(request.num_prompt_tokens - request.num_cached_tokens, LONG_PROMPT)


def score(request: Waiting, engine: Engine) -> int:
    """Rank by waiting time and priority; while more requests wait than run, a shorter remaining prompt goes first."""
    urgency = request.waited_us + request.priority * 2 * SECOND
    if engine.num_waiting > engine.num_running:
        urgency -= remaining(request) * 2 * MILLISECOND
    return urgency
