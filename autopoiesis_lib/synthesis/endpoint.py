"""A language model behind an endpoint: one structured answer, with back-off, usage, and errors told apart.

instructor asks again when an answer does not validate; this module asks again when the endpoint fails for a moment, fits the
request to what the server takes, and gives up in a way the proposer can count on: every failure is an `EndpointError` that says
whether trying later may help, and what was spent on it all the same.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import instructor
import openai
from instructor.core.exceptions import IncompleteOutputException, InstructorError
from instructor.core.hooks import Hooks
from pydantic import BaseModel, ValidationError
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_exponential, wait_random
from tenacity.wait import wait_base

from .fitting import Messages, Request, context_limit
from .proposer import ProposerError
from .record import Scrubber

__all__ = ["Answer", "Endpoint", "EndpointError", "Price", "Spent"]

KEYS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
"""Where the providers whose clients come with this library look for their key. Others say themselves what they miss."""

FITTINGS = 4
"""How often a request is changed because the server cannot take it."""

Draft = TypeVar("Draft", bound=BaseModel)


@dataclass(frozen=True)
class Spent:
    """What a call took, whatever came of it. Tokens are the server's own count, over all tries."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    replies: Sequence[Any] = ()
    """Every raw reply, those that did not validate too."""
    refused: Sequence[str] = ()
    """Why each reply that did not validate was refused, in order: one line each."""

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens


class EndpointError(ProposerError):
    """A model gave no usable answer.

    `permanent`: asking again cannot help (a refused key, an unknown model). `answered`: the endpoint works, and it was the
    model's text that the gates refused or that was cut off.
    """

    def __init__(self, message: str, *, permanent: bool, answered: bool, spent: Spent) -> None:
        super().__init__(message)
        self.permanent, self.answered, self.spent = permanent, answered, spent


@dataclass(frozen=True)
class Price:
    """Dollars for a million tokens."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Dollars for one call."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclass(frozen=True)
class Answer:
    """A validated answer and what it took."""

    draft: BaseModel
    spent: Spent


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
        context_tokens: int | None,
        temperature: float,
        repairs: int,
        attempts: int,
        mode: str | None,
        scrubber: Scrubber,
    ) -> None:
        self.model = model
        self.timeout_s, self.repairs, self.attempts = timeout_s, repairs, attempts
        self._request = Request(max_output_tokens, temperature, context_tokens)
        """Learned from the server's refusals; replaced whole, so that threads may share it."""
        self._scrubber = scrubber
        _quiet(scrubber)
        try:
            self._client = _client(model, base_url, api_key, timeout_s, mode)
        except (InstructorError, openai.OpenAIError, ImportError, ValueError, KeyError) as error:
            raise ProposerError(f"the model {model!r} cannot be used: {scrubber.text(_line(error))}") from None
        _quiet(scrubber)  # again: the client libraries were imported meanwhile, and made their loggers
        self._name = model.partition("/")[2] if base_url is not None and "/" in model else None
        if base_url is not None and "/" not in model:
            self._name = model

    def ask(self, prompts: Sequence[Messages], response_model: type[Draft], deadline_s: float | None) -> Answer:
        """A validated answer. `prompts` are versions of one prompt, the longest first: the first that fits is sent.

        Raises:
            EndpointError: none came within the attempts, the time-out and the deadline.
        """
        started = time.monotonic()
        budget_s = (
            self.timeout_s * self.attempts if deadline_s is None else min(deadline_s, self.timeout_s * self.attempts)
        )
        seen = _Seen()
        hooks = Hooks()
        hooks.on("completion:response", seen.note)
        hooks.on("parse:error", seen.refuse)
        retrying = Retrying(
            stop=stop_after_attempt(self.attempts) | stop_after_delay(budget_s),
            wait=_WaitAsTold(wait_exponential(multiplier=0.2, max=20.0) + wait_random(0.0, 0.3)),
            retry=retry_if_exception(_passing),
            reraise=True,
        )
        try:
            draft = retrying(self._fitted, prompts, response_model, hooks, min(self.timeout_s, budget_s))
        except Exception as error:
            answered = bool(seen.replies) and _about_the_text(error)
            if len(seen.refused) < len(seen.replies):
                seen.refuse(error)  # a reply that was cut off: instructor does not try to parse it
            spent = seen.spent(time.monotonic() - started, self._scrubber)
            what = f"no usable answer ({spent.refused[-1]})" if answered and spent.refused else _describe(error)
            permanent = not answered and _permanent(error)
            raise EndpointError(
                self._scrubber.text(what)[:300], permanent=permanent, answered=answered, spent=spent
            ) from None
        return Answer(draft, seen.spent(time.monotonic() - started, self._scrubber))

    def _fitted(
        self, prompts: Sequence[Messages], response_model: type[Draft], hooks: Hooks, timeout_s: float
    ) -> Draft:
        """One call, again with a smaller or otherwise changed request as long as the server says what it cannot take."""
        for _ in range(FITTINGS):
            request = self._request
            prompt, max_tokens = request.fit(prompts)
            try:
                return self._once(prompt, request.arguments(max_tokens), response_model, hooks, timeout_s)
            except Exception as error:
                root = _root(error)
                changed = request.after(str(root), prompt) if _refuses_request(root) else None
                if changed is None:
                    raise
                self._request = changed
        prompt, max_tokens = self._request.fit(prompts)
        return self._once(prompt, self._request.arguments(max_tokens), response_model, hooks, timeout_s)

    def _once(
        self,
        messages: Messages,
        arguments: Mapping[str, Any],
        response_model: type[Draft],
        hooks: Hooks,
        timeout_s: float,
    ) -> Draft:
        named = {"model": self._name} if self._name is not None else {}
        answer = self._client.create(
            messages=[dict(message) for message in messages],
            response_model=response_model,
            max_retries=self.repairs,
            hooks=hooks,
            timeout=timeout_s,
            **arguments,
            **named,
        )
        return answer  # type: ignore[no-any-return]


@dataclass
class _Seen:
    """What went over the wire during one call, as instructor's hooks tell it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    replies: list[Any] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def note(self, response: Any) -> None:
        """A reply came."""
        self.replies.append(_plain(response))  # now: instructor later writes the running total into `usage`
        counts = getattr(response, "usage", None)
        for name, other in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
            value = getattr(counts, name, None)
            value = getattr(counts, other, 0) if value is None else value
            setattr(self, name, getattr(self, name) + int(value or 0))

    def refuse(self, error: Exception) -> None:
        """The last reply did not validate."""
        self.refused.append(_why_refused(error))

    def spent(self, seconds: float, scrubber: Scrubber) -> Spent:
        """All of it, as a value."""
        replies = [scrubber.value(reply) for reply in self.replies]
        refused = [scrubber.text(line) for line in self.refused]
        return Spent(self.prompt_tokens, self.completion_tokens, seconds, replies, refused)


def _client(model: str, base_url: str | None, api_key: str | None, timeout_s: float, mode: str | None) -> Any:
    chosen = None if mode is None else _mode(mode)
    if base_url is not None:
        client = openai.OpenAI(base_url=base_url, api_key=api_key or "none", timeout=timeout_s, max_retries=0)
        return instructor.from_openai(client, mode=chosen or instructor.Mode.JSON_SCHEMA)
    provider, slash, name = model.partition("/")
    if not slash or not name:
        raise ValueError("name it as provider/model, such as openai/gpt-4o-mini, or give a base_url")
    variable = KEYS.get(provider)
    if variable is not None and api_key is None and not os.environ.get(variable):
        raise ValueError(f"there is no key; set {variable}, or give api_key")
    settings: dict[str, Any] = {} if api_key is None else {"api_key": api_key}
    if chosen is not None:
        settings["mode"] = chosen
    client = instructor.from_provider(model, **settings)
    inner: Any = getattr(client, "client", None)
    if isinstance(getattr(inner, "max_retries", None), int):
        inner.max_retries = 0  # this module backs off; twice would multiply
    return client


def _mode(name: str) -> instructor.Mode:
    try:
        return instructor.Mode[name.upper()]
    except KeyError:
        raise ValueError(f"instructor has no mode {name!r}; JSON_SCHEMA, TOOLS and JSON are the common ones") from None


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


def _refuses_request(root: BaseException) -> bool:
    """Was it refused as it is, by the server or by the provider's client (some take no temperature)?"""
    return getattr(root, "status_code", None) == 400 or (
        isinstance(root, TypeError) and "unexpected keyword argument" in str(root)
    )


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


def _about_the_text(error: BaseException) -> bool:
    """Did the endpoint do its part? Then the text was refused by a gate or cut off, or the repairs outgrew the context."""
    root = _root(error)
    if isinstance(root, ValidationError):
        return any(item["type"] == "value_error" for item in root.errors())
    return isinstance(root, IncompleteOutputException) or (
        getattr(root, "status_code", None) == 400 and context_limit(str(root)) is not None
    )


def _why_refused(error: BaseException) -> str:
    root = _root(error)
    if isinstance(root, ValidationError):
        first = root.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'answer'}: {first['msg']}"[:500]
    if isinstance(root, IncompleteOutputException):
        return "it was cut off at the limit of output tokens"
    return f"{type(root).__name__}: {_line(root)}"[:500]


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _plain(reply: Any) -> Any:
    return reply.model_dump(mode="json") if isinstance(reply, BaseModel) else str(reply)


class _Scrubbing(logging.Filter):
    def __init__(self, scrubber: Scrubber) -> None:
        super().__init__()
        self._scrubber = scrubber

    def scrubs_as(self, scrubber: Scrubber) -> bool:
        """Is it this very scrubber's?"""
        return self._scrubber is scrubber

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._scrubber.text(record.getMessage()), ()
        return True


def _quiet(scrubber: Scrubber) -> None:
    """The client libraries log errors, and an error may quote a header: scrub what their loggers say. With no logging set up
    they would write to stderr what the proposer handles and reports itself."""
    packages = ("instructor", "openai", "anthropic", "httpx", "httpx2", "httpcore")
    for package in packages:
        logging.getLogger(package).addHandler(logging.NullHandler())
    for name in logging.root.manager.loggerDict:
        if name.split(".")[0] in packages:
            logger = logging.getLogger(name)
            if not any(isinstance(item, _Scrubbing) and item.scrubs_as(scrubber) for item in logger.filters):
                logger.addFilter(_Scrubbing(scrubber))
