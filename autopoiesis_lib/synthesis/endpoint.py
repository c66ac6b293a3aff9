"""A language model behind an endpoint: one structured answer, with back-off, usage, and errors told apart.

instructor asks again when an answer does not validate; this module asks again when the endpoint fails for a moment, and gives up
in a way the proposer can count on: every failure is an `EndpointError` that says whether trying later may help.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import instructor
import openai
from instructor.core.exceptions import InstructorError
from instructor.core.hooks import Hooks
from pydantic import BaseModel
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_exponential, wait_random
from tenacity.wait import wait_base

from .proposer import ProposerError
from .record import Scrubber

__all__ = ["Answer", "Endpoint", "EndpointError", "Price"]

Draft = TypeVar("Draft", bound=BaseModel)


class EndpointError(ProposerError):
    """A model gave no usable answer. `permanent`: asking again cannot help (a refused key, an unknown model)."""

    def __init__(self, message: str, permanent: bool, tokens: int = 0) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.tokens = tokens


@dataclass(frozen=True)
class Price:
    """Dollars for a million tokens."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Dollars for one call."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclass
class _Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0
    replies: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """A validated answer and what it took."""

    draft: BaseModel
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    replies: Sequence[Any]
    """Every raw reply, those that did not validate too."""


class Endpoint:
    """One model. `model` is "provider/name"; with a `base_url` it is any OpenAI-compatible server, and the provider
    is dropped."""

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None,
        api_key: str | None,
        timeout_s: float,
        max_output_tokens: int,
        temperature: float,
        repairs: int,
        attempts: int,
        mode: str | None,
        scrubber: Scrubber,
    ) -> None:
        self.model = model
        self.timeout_s, self.max_output_tokens, self.repairs, self.attempts = (
            timeout_s,
            max_output_tokens,
            repairs,
            attempts,
        )
        self._temperature = temperature
        self._scrubber = scrubber
        try:
            self._client = _client(model, base_url, api_key, timeout_s, mode)
        except (InstructorError, openai.OpenAIError, ImportError, ValueError, KeyError) as error:
            raise ProposerError(f"the model {model!r} cannot be reached: {scrubber.text(_line(error))}") from None
        _scrub_logs(scrubber)
        self._name = model.partition("/")[2] if base_url is not None and "/" in model else None

    def ask(
        self, messages: Sequence[Mapping[str, str]], response_model: type[Draft], deadline_s: float | None
    ) -> Answer:
        """A validated answer.

        Raises:
            EndpointError: none came within the attempts, the time-out and the deadline.
        """
        started = time.monotonic()
        budget_s = (
            self.timeout_s * self.attempts if deadline_s is None else min(deadline_s, self.timeout_s * self.attempts)
        )
        usage = _Usage()
        hooks = Hooks()
        hooks.on("completion:response", lambda response: _note(usage, response))
        retrying = Retrying(
            stop=stop_after_attempt(self.attempts) | stop_after_delay(budget_s),
            wait=_WaitAsTold(wait_exponential(multiplier=0.2, max=20.0) + wait_random(0.0, 0.3)),
            retry=retry_if_exception(_passing),
            reraise=True,
        )
        try:
            draft = retrying(self._once, messages, response_model, hooks, min(self.timeout_s, budget_s))
        except Exception as error:
            tokens = usage.prompt_tokens + usage.completion_tokens
            raise EndpointError(self._scrubber.text(_describe(error)), _permanent(error), tokens) from None
        return Answer(
            draft, usage.prompt_tokens, usage.completion_tokens, time.monotonic() - started, [_plain(r) for r in usage.replies]
        )  # fmt: skip

    def _once(
        self, messages: Sequence[Mapping[str, str]], response_model: type[Draft], hooks: Hooks, timeout_s: float
    ) -> Draft:
        named = {"model": self._name} if self._name is not None else {}
        answer = self._client.create(
            messages=[dict(message) for message in messages],
            response_model=response_model,
            max_retries=self.repairs,
            hooks=hooks,
            timeout=timeout_s,
            max_tokens=self.max_output_tokens,
            temperature=self._temperature,
            **named,
        )
        return answer  # type: ignore[no-any-return]


def _client(model: str, base_url: str | None, api_key: str | None, timeout_s: float, mode: str | None) -> Any:
    chosen = None if mode is None else instructor.Mode[mode.upper()]
    if base_url is not None:
        client = openai.OpenAI(base_url=base_url, api_key=api_key or "none", timeout=timeout_s, max_retries=0)
        return instructor.from_openai(client, mode=chosen or instructor.Mode.JSON_SCHEMA)
    if "/" not in model:
        raise ValueError("name it as provider/model, such as openai/gpt-4o-mini, or give a base_url")
    settings: dict[str, Any] = {} if api_key is None else {"api_key": api_key}
    if chosen is not None:
        settings["mode"] = chosen
    return instructor.from_provider(model, **settings)


class _WaitAsTold(wait_base):
    """Waits as long as a rate-limiting server asks for (`Retry-After`, up to a minute), otherwise as usual."""

    def __init__(self, usual: wait_base) -> None:
        self._usual = usual

    def __call__(self, retry_state: Any) -> float:
        error = _root(retry_state.outcome.exception())
        response = getattr(error, "response", None)
        told = None if response is None else response.headers.get("retry-after")
        try:
            return min(60.0, float(told)) if told is not None else self._usual(retry_state)
        except ValueError:
            return self._usual(retry_state)


def _root(error: BaseException) -> BaseException:
    """The cause below instructor's wrapping."""
    while error.__cause__ is not None and not isinstance(error, openai.OpenAIError):
        error = error.__cause__
    return error


def _passing(error: BaseException) -> bool:
    root = _root(error)
    if isinstance(
        root, (openai.APIConnectionError, openai.APITimeoutError, openai.RateLimitError, openai.InternalServerError)
    ):
        return True
    status = getattr(root, "status_code", None)
    return isinstance(status, int) and (status >= 500 or status in (408, 409, 429))


def _permanent(error: BaseException) -> bool:
    return getattr(_root(error), "status_code", None) in (400, 401, 403, 404, 422)


def _describe(error: BaseException) -> str:
    root = _root(error)
    status = getattr(root, "status_code", None)
    if isinstance(root, openai.APITimeoutError):
        return "it did not answer in time"
    if isinstance(root, openai.APIConnectionError):
        return "it cannot be reached"
    if isinstance(root, openai.RateLimitError):
        return "it limits the rate (HTTP 429)"
    if status is not None:
        return f"it answered HTTP {status}: {_line(root)[:200]}"
    return f"no usable answer ({type(root).__name__}: {_line(root)[:200]})"


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _note(usage: _Usage, response: Any) -> None:
    usage.replies.append(response)
    counts = getattr(response, "usage", None)
    for name, other in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
        value = getattr(counts, name, None)
        value = getattr(counts, other, 0) if value is None else value
        setattr(usage, name, getattr(usage, name) + int(value or 0))


def _plain(reply: Any) -> Any:
    return reply.model_dump(mode="json") if isinstance(reply, BaseModel) else str(reply)


class _Scrubbing(logging.Filter):
    def __init__(self, scrubber: Scrubber) -> None:
        super().__init__()
        self._scrubber = scrubber

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._scrubber.text(record.getMessage()), ()
        return True


def _scrub_logs(scrubber: Scrubber) -> None:
    """The client libraries log errors, and an error may quote a header: scrub what their loggers say."""
    names = [
        name
        for name in logging.root.manager.loggerDict
        if name.split(".")[0] in ("instructor", "openai", "httpx", "httpx2", "httpcore")
    ]
    for name in names:
        logging.getLogger(name).addFilter(_Scrubbing(scrubber))
