"""Adaptation of requests to a server: the limit that it refused, and the request to send instead.

Servers have no common way to announce their limits, but all of them report a limit when they refuse a request (HTTP
400). A learned limit is kept, so the next request fits immediately.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Messages", "Request", "context_limit"]

Messages = Sequence[Mapping[str, str]]

CHARS_PER_TOKEN = 3.0
"""Characters of a prompt per token until a server's count is known. English with code has 3 to 4."""
ROOM = 512
"""Minimum number of output tokens worth a request. If fewer would fit, a shorter prompt is used."""
LEAST = 128
"""Number of output tokens below which no policy fits."""
MARGIN = 32
"""Tokens that a chat template may add."""

LONGEST_REFUSAL = 4_096
"""Number of characters of a refusal that are read."""
CHARS_BOUNDS = (0.5, 16.0)
"""Lower and upper bound on the characters per token that a server's count is accepted for."""

_LIMIT = re.compile(r"context (?:length|size|window)\D{0,40}?([0-9][0-9,]{0,14})", re.IGNORECASE)
_PROMPT = re.compile(
    r"(?:contains|in the messages|prompt)\D{0,30}?([0-9][0-9,]{0,14})\s+(?:input\s+|prompt\s+)?tokens", re.IGNORECASE
)


def context_limit(refusal: str) -> int | None:
    """Return the context length in tokens that a refusal names; None if it is about another problem."""
    found = _LIMIT.search(refusal[:LONGEST_REFUSAL])
    return None if found is None else int(found[1].replace(",", ""))


@dataclass(frozen=True)
class Request:
    """The request parameters that a server is known to accept."""

    max_output_tokens: int
    temperature: float | None
    context_tokens: int | None = None
    """Tokens of prompt and answer together; None if the limit is unknown or absent."""
    chars_per_token: float = CHARS_PER_TOKEN
    limit_name: str = "max_tokens"

    def fit(self, prompts: Sequence[Messages]) -> tuple[Messages, int]:
        """Return the longest prompt version that leaves room for an answer, and the output tokens to request."""
        if self.context_tokens is None:
            return prompts[0], self.max_output_tokens
        wanted = min(ROOM, self.max_output_tokens)
        for prompt in prompts:
            left = self.context_tokens - self._tokens(prompt)
            if left >= wanted:
                return prompt, min(left, self.max_output_tokens)
        return prompts[-1], max(LEAST, min(self.max_output_tokens, self.context_tokens - self._tokens(prompts[-1])))

    def arguments(self, max_tokens: int) -> dict[str, Any]:
        """Return the keyword arguments of the call."""
        heat = {} if self.temperature is None else {"temperature": self.temperature}
        return {self.limit_name: max_tokens, **heat}

    def after(self, refusal: str, prompt: Messages) -> "Request | None":
        """Return the request to send after a refusal of `prompt`; None if the refusal does not help."""
        limit = context_limit(refusal)
        if limit is not None:
            told = _PROMPT.search(refusal[:LONGEST_REFUSAL])
            length = _chars(prompt)
            if told is not None and int(told[1].replace(",", "")) > 0:
                ratio = max(CHARS_BOUNDS[0], min(CHARS_BOUNDS[1], length / int(told[1].replace(",", ""))))
            else:
                ratio = self.chars_per_token
            # A server that refuses a request again after the limit was applied counts more tokens than this estimate.
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
