"""Fitting a request to a server: what it refused, and what to send instead.

No server says beforehand what it takes in a way that all share, but all say so when they refuse (HTTP 400). What was learned
stays: the next request fits at once.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Messages", "Request", "context_limit"]

Messages = Sequence[Mapping[str, str]]

CHARS_PER_TOKEN = 3.0
"""Characters of a prompt for a token, until a server tells better: English with code is at 3 to 4."""
ROOM = 512
"""Output tokens worth asking for: below it the prompt is shortened rather than the answer."""
LEAST = 128
"""Output tokens below which no policy fits."""
MARGIN = 32
"""Tokens that a chat template may add."""

LONGEST_REFUSAL = 4_096
"""Characters of a refusal that are read."""
CHARS_BOUNDS = (0.5, 16.0)
"""The least and the most characters for a token that a server is believed."""

_LIMIT = re.compile(r"context (?:length|size|window)\D{0,40}?([0-9][0-9,]{0,14})", re.IGNORECASE)
_PROMPT = re.compile(
    r"(?:contains|in the messages|prompt)\D{0,30}?([0-9][0-9,]{0,14})\s+(?:input\s+|prompt\s+)?tokens", re.IGNORECASE
)


def context_limit(refusal: str) -> int | None:
    """The tokens of context that a refusal speaks of; None when it is about something else."""
    found = _LIMIT.search(refusal[:LONGEST_REFUSAL])
    return None if found is None else int(found[1].replace(",", ""))


@dataclass(frozen=True)
class Request:
    """What a server is known to take."""

    max_output_tokens: int
    temperature: float | None
    context_tokens: int | None = None
    """Tokens of prompt and answer together; None: not known, or not limited."""
    chars_per_token: float = CHARS_PER_TOKEN
    limit_name: str = "max_tokens"

    def fit(self, prompts: Sequence[Messages]) -> tuple[Messages, int]:
        """The longest version of a prompt that leaves room for an answer, and the output tokens to ask for."""
        if self.context_tokens is None:
            return prompts[0], self.max_output_tokens
        wanted = min(ROOM, self.max_output_tokens)
        for prompt in prompts:
            left = self.context_tokens - self._tokens(prompt)
            if left >= wanted:
                return prompt, min(left, self.max_output_tokens)
        return prompts[-1], max(LEAST, min(self.max_output_tokens, self.context_tokens - self._tokens(prompts[-1])))

    def arguments(self, max_tokens: int) -> dict[str, Any]:
        """Keyword arguments of the call."""
        heat = {} if self.temperature is None else {"temperature": self.temperature}
        return {self.limit_name: max_tokens, **heat}

    def after(self, refusal: str, prompt: Messages) -> "Request | None":
        """What to send after a refusal of `prompt`; None when it says nothing that helps."""
        limit = context_limit(refusal)
        if limit is not None:
            told = _PROMPT.search(refusal[:LONGEST_REFUSAL])
            length = _chars(prompt)
            if told is not None and int(told[1].replace(",", "")) > 0:
                ratio = max(CHARS_BOUNDS[0], min(CHARS_BOUNDS[1], length / int(told[1].replace(",", ""))))
            else:
                ratio = self.chars_per_token
            # A server that was told of its limit and refused again counts more tokens than we do.
            if self.context_tokens == limit and ratio >= self.chars_per_token:
                ratio = 0.8 * self.chars_per_token
            return replace(
                self, context_tokens=limit, chars_per_token=max(CHARS_BOUNDS[0], min(ratio, self.chars_per_token))
            )
        if "max_completion_tokens" in refusal and self.limit_name == "max_tokens":  # reasoning models of OpenAI
            return replace(self, limit_name="max_completion_tokens")
        if "temperature" in refusal and self.temperature is not None:
            return replace(self, temperature=None)
        return None

    def _tokens(self, prompt: Messages) -> int:
        return int(_chars(prompt) / self.chars_per_token) + MARGIN


def _chars(prompt: Messages) -> int:
    return sum(len(message["content"]) for message in prompt)
