"""A language model behind an endpoint: one structured answer, with back-off, usage counts and typed errors.

instructor repeats a request if an answer does not validate. This module repeats it if the endpoint fails temporarily,
and changes the request to fit the server's limits. Every failure is an `EndpointError`, which states if a later attempt
may help and what the call used. No statement of an endpoint is trusted. `exchange` bounds its time and its replies, and
its token count is limited to what the request could have used.
"""

import base64
import json
import logging
import os
import re
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import instructor
import openai
from instructor.core.exceptions import IncompleteOutputException, InstructorError
from instructor.core.hooks import Hooks
from pydantic import BaseModel, SecretStr, ValidationError
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_before_delay, wait_exponential, wait_random
from tenacity.wait import wait_base

from ..protocol.text import printable
from ..redaction import HIDDEN, redacted_url
from .exchange import Exchange, ReplyProblem, ReplyRefusedError, bound, nested_too_deeply, within
from .fitting import CHARS_PER_TOKEN, Messages, Request, context_limit
from .proposer import ProposerError
from .record import Scrubber

__all__ = ["Answer", "Endpoint", "EndpointError", "Price", "Spent"]

KEYS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
"""Environment variables with the keys of the providers whose clients are installed with this library.

Other clients report a missing key themselves.
"""

FITTINGS = 4
"""Maximum number of times that a request is changed because the server refuses it."""
NO_BASE_URL = "the base URL is not of the form http(s)://HOST[:PORT]/PATH"
LONGEST_WAIT_S = 60.0
"""Longest wait in seconds that a rate-limiting server can impose."""
MAX_RECORDED = 4_096
"""Number of characters kept of a reply that is not a plain JSON value, and of a line that a client library logs."""
TEMPLATE_TOKENS = 512
"""Tokens that a server's chat template may add to a prompt."""

Draft = TypeVar("Draft", bound=BaseModel)


@dataclass(frozen=True)
class Spent:
    """The resources that a call used, with or without success.

    Tokens are the server's own count over all attempts, limited to what the requests could have used, or an estimate.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    replies: Sequence[Any] = ()
    """Every raw reply, including those that did not validate."""
    refused: Sequence[str] = ()
    """The reason for each refusal of a reply, in order, one line each."""

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens


class EndpointError(ProposerError):
    """A call of a model without a usable answer.

    `permanent` means that another request cannot help, as for a refused key or an unknown model. `answered` means that
    the endpoint works, but that the gates refused the model's text or that it was cut off.
    """

    def __init__(self, message: str, *, permanent: bool, answered: bool, spent: Spent) -> None:
        super().__init__(message)
        self.permanent, self.answered, self.spent = permanent, answered, spent


@dataclass(frozen=True)
class Price:
    """Prices in dollars per million tokens."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the dollars for one call."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclass(frozen=True)
class Answer:
    """A validated answer and the resources that it used."""

    draft: BaseModel
    spent: Spent


class Endpoint:
    """One model behind an endpoint.

    `model` is "provider/name". With a `base_url` the endpoint is any OpenAI-compatible server, and the provider is
    dropped.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: SecretStr | None,
        api_key: SecretStr | None,
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
        """The request parameters learned from the server's refusals.

        The value is replaced whole, so threads may share it.
        """
        self._scrubber = scrubber
        _quiet(scrubber)
        try:
            self._client = _client(model, base_url, api_key, timeout_s, mode)
        except (InstructorError, openai.OpenAIError, ImportError, ValueError, KeyError) as error:
            raise ProposerError(f"the model {model!r} cannot be used: {_shown(scrubber.text(_line(error)))}") from None
        _quiet(scrubber)  # again, because the client libraries have been imported since and have made their loggers
        self._name = model.partition("/")[2] if base_url is not None and "/" in model else None
        if base_url is not None and "/" not in model:
            self._name = model

    def ask(self, prompts: Sequence[Messages], response_model: type[Draft], deadline_s: float | None) -> Answer:
        """Return a validated answer.

        `prompts` are versions of one prompt, the longest first. The first version that fits is sent.

        Raises:
            EndpointError: no answer came within the attempts, the time-out and the deadline.
        """
        started = time.monotonic()
        longest = self.timeout_s * self.attempts
        budget_s = longest if deadline_s is None else max(0.0, min(deadline_s, longest))
        exchange = Exchange(started + budget_s, self.timeout_s)
        seen = _Seen()
        hooks = Hooks()
        hooks.on("completion:kwargs", seen.ask)
        hooks.on("completion:response", seen.note)
        hooks.on("parse:error", seen.refuse)
        retrying = Retrying(
            stop=stop_after_attempt(self.attempts) | stop_before_delay(budget_s),
            wait=_WaitAsTold(wait_exponential(multiplier=0.2, max=20.0) + wait_random(0.0, 0.3)),
            retry=retry_if_exception(_passing),
            reraise=True,
        )
        try:
            draft = within(
                exchange,
                lambda: retrying(self._fitted, prompts, response_model, hooks, min(self.timeout_s, budget_s)),
            )
        except Exception as error:
            answered = bool(seen.replies) and _about_the_text(error)
            if len(seen.refused) < len(seen.replies):
                seen.refuse(error)  # a reply that was cut off, which instructor does not parse
            spent = seen.spent(time.monotonic() - started, self._scrubber)
            what = f"no usable answer ({spent.refused[-1]})" if answered and spent.refused else _describe(error)
            permanent = not answered and _permanent(error)
            raise EndpointError(
                _shown(self._scrubber.text(what)), permanent=permanent, answered=answered, spent=spent
            ) from None
        return Answer(draft, seen.spent(time.monotonic() - started, self._scrubber))

    def _fitted(
        self, prompts: Sequence[Messages], response_model: type[Draft], hooks: Hooks, timeout_s: float
    ) -> Draft:
        """Make one call, and repeat it with a changed request while the server reports the limit that it exceeds."""
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
    """The replies and counts of one call, as instructor's hooks report them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    replies: list[Any] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    _asked_bytes: int = 0
    _most_tokens: int = 0

    def ask(self, **arguments: Any) -> None:
        """Record a request."""
        told = {name: arguments.get(name) for name in ("messages", "system", "response_format", "tools")}
        self._asked_bytes = len(json.dumps(told, default=str))
        limits = (arguments.get("max_tokens"), arguments.get("max_completion_tokens"))
        self._most_tokens = max((limit for limit in limits if isinstance(limit, int)), default=0)

    def note(self, response: Any) -> None:
        """Record a reply, with the tokens that the request and the reply may have used.

        A server's count is only a claim, so it is limited. A token of a prompt is at least one byte, and an answer ends
        at the requested limit. A count that is missing or is not a positive integer is estimated from the bytes.
        """
        reply, size = _plain(response)  # now, because instructor later writes the running total into `usage`
        self.replies.append(reply)
        counts = getattr(response, "usage", None)
        asked, most = self._asked_bytes, self._most_tokens or size
        self.prompt_tokens += _tokens(counts, ("prompt_tokens", "input_tokens"), asked, asked + TEMPLATE_TOKENS)
        self.completion_tokens += _tokens(counts, ("completion_tokens", "output_tokens"), size, most)

    def refuse(self, error: Exception, **_: Any) -> None:
        """Record why the last reply did not validate."""
        self.refused.append(_why_refused(error))

    def spent(self, seconds: float, scrubber: Scrubber) -> Spent:
        """Return the recorded data as a value."""
        replies = [scrubber.value(reply) for reply in self.replies]
        refused = [_shown(scrubber.text(line), 500) for line in self.refused]
        return Spent(self.prompt_tokens, self.completion_tokens, seconds, replies, refused)


def _tokens(counts: Any, names: Sequence[str], size: int, most: int) -> int:
    """Return a server's count of tokens limited to `most`, or an estimate from the size in bytes."""
    for name in names:
        value = getattr(counts, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return min(value, most)
    return min(most, int(size / CHARS_PER_TOKEN) + 1)


def _client(
    model: str, base_url: SecretStr | None, api_key: SecretStr | None, timeout_s: float, mode: str | None
) -> Any:
    chosen = None if mode is None else _mode(mode)
    key = None if api_key is None else api_key.get_secret_value()
    if base_url is not None:
        url, query, headers = _address(base_url.get_secret_value())
        settings: dict[str, Any] = {"default_query": query, "default_headers": headers, "timeout": timeout_s}
        try:
            sdk = openai.OpenAI(base_url=url, api_key=key or "none", max_retries=0, **settings)
        except openai.OpenAIError:
            raise
        except Exception:  # each HTTP library has its own error for a URL, and its message contains the whole URL
            raise ValueError(NO_BASE_URL) from None
        bound(sdk)
        return instructor.from_openai(sdk, mode=chosen or instructor.Mode.JSON_SCHEMA)
    provider, slash, name = model.partition("/")
    if not slash or not name:
        raise ValueError("name it as provider/model, such as openai/gpt-4o-mini, or give a base_url")
    variable = KEYS.get(provider)
    if variable is not None and key is None and not os.environ.get(variable):
        raise ValueError(f"there is no key; set {variable}, or give api_key")
    settings = {} if key is None else {"api_key": key}
    if chosen is not None:
        settings["mode"] = chosen
    client = instructor.from_provider(model, **settings)
    inner: Any = getattr(client, "client", None)
    bound(inner)
    if isinstance(getattr(inner, "max_retries", None), int):
        inner.max_retries = 0  # this module backs off; a second back-off would multiply the attempts
    return client


def _address(url: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """Return a base URL without its secrets, and the secrets as query parameters and headers of every request.

    Raises:
        ValueError: the URL is not an HTTP URL. The message contains no part of it.
    """
    parts = urlsplit(url) if redacted_url(url) != HIDDEN else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(NO_BASE_URL)
    user, at, host = parts.netloc.rpartition("@")
    headers = {"Authorization": f"Basic {basic_credentials(user)}"} if at else {}
    return f"{parts.scheme}://{host}{parts.path}", dict(parse_qsl(parts.query, keep_blank_values=True)), headers


def basic_credentials(user: str) -> str:
    """Return the `USER:PASSWORD` part of a URL in the form of HTTP's basic authentication."""
    name, _, password = user.partition(":")
    return base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode("ascii")


def _mode(name: str) -> instructor.Mode:
    try:
        return instructor.Mode[name.upper()]
    except KeyError:
        raise ValueError(f"instructor has no mode {name!r}; JSON_SCHEMA, TOOLS and JSON are the common ones") from None


class _WaitAsTold(wait_base):
    """A wait strategy that uses the wait of a rate-limiting server, up to a minute, or else the usual wait."""

    def __init__(self, usual: wait_base) -> None:
        self._usual = usual

    def __call__(self, retry_state: Any) -> float:
        error = _root(retry_state.outcome.exception())
        response = getattr(error, "response", None)
        told = None if response is None else retry_after(response.headers.get("retry-after"))
        return self._usual(retry_state) if told is None else told


def retry_after(told: str | None) -> float | None:
    """Return the seconds that a `Retry-After` header asks for, from 0 to `LONGEST_WAIT_S`.

    The result is None if the header has no usable value.
    """
    text = (told or "").strip()
    if re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})?", text, re.ASCII):
        return min(LONGEST_WAIT_S, float(text))
    try:
        until = parsedate_to_datetime(text[:64])
        seconds = (until if until.tzinfo is not None else until.replace(tzinfo=UTC)) - datetime.now(UTC)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return max(0.0, min(LONGEST_WAIT_S, seconds.total_seconds()))


def _root(error: BaseException) -> BaseException:
    """Return the root cause of an error that instructor wraps: a violated bound, or else the client library's error."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    broken = next((item for item in chain if isinstance(item, ReplyRefusedError)), None)
    told = next((item for item in chain if isinstance(item, openai.OpenAIError)), chain[-1])
    return told if broken is None else broken


def _passing(error: BaseException) -> bool:
    root = _root(error)
    if isinstance(root, ReplyRefusedError):
        return root.problem is ReplyProblem.LATE
    if isinstance(
        root, (openai.APIConnectionError, openai.APITimeoutError, openai.RateLimitError, openai.InternalServerError)
    ):
        return True
    status = getattr(root, "status_code", None)
    return isinstance(status, int) and (status >= 500 or status in (408, 409, 429))


def _refuses_request(root: BaseException) -> bool:
    """Return True if the server or the provider's client refused the request itself.

    Some clients accept no temperature, for example.
    """
    return getattr(root, "status_code", None) == 400 or (
        isinstance(root, TypeError) and "unexpected keyword argument" in str(root)
    )


def _permanent(error: BaseException) -> bool:
    return getattr(_root(error), "status_code", None) in (400, 401, 403, 404, 422)


def _describe(error: BaseException) -> str:
    root = _root(error)
    status = getattr(root, "status_code", None)
    if isinstance(root, ReplyRefusedError):
        return str(root)
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
    """Return True if the endpoint worked and the failure is about the text.

    A gate refused the text, the text was cut off, or the repairs exceeded the context length.
    """
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


def _shown(text: str, limit: int = 300) -> str:
    """Return a text of an endpoint in printable form on one line."""
    return printable(" ".join(text[: 4 * limit].split()))[:limit]


def _plain(reply: Any) -> tuple[Any, int]:
    """Return a reply as a JSON value that can be recorded, and its size in bytes."""
    try:
        value = reply.model_dump(mode="json", warnings=False) if isinstance(reply, BaseModel) else str(reply)
        size = len(json.dumps(value))
        if nested_too_deeply(value):
            raise ValueError("nested too deeply")
    except (ValueError, TypeError, RecursionError) as error:
        value, size = f"({type(error).__name__}) {reply!a}"[:MAX_RECORDED], MAX_RECORDED
    return value, size


class _Scrubbing(logging.Filter):
    def __init__(self, scrubber: Scrubber) -> None:
        super().__init__()
        self._scrubber = scrubber

    def scrubs_as(self, scrubber: Scrubber) -> bool:
        """Return True if the filter uses this very scrubber."""
        return self._scrubber is scrubber

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()[:MAX_RECORDED]
        record.msg, record.args = printable(self._scrubber.text(said), allowed="\n"), ()
        if record.exc_info:
            told = "".join(traceback.format_exception(*record.exc_info)).rstrip()
            record.exc_text, record.exc_info = printable(self._scrubber.text(told), allowed="\n"), None
        return True


def _quiet(scrubber: Scrubber) -> None:
    """Scrub the output of the client libraries' loggers, because an error that they log may quote a header.

    Without any logging set up, they would also write to stderr what the proposer handles and reports itself.
    """
    packages = ("instructor", "openai", "anthropic", "httpx", "httpx2", "httpcore")
    for package in packages:
        logging.getLogger(package).addHandler(logging.NullHandler())
    for name in logging.root.manager.loggerDict:
        if name.split(".")[0] in packages:
            logger = logging.getLogger(name)
            if not any(isinstance(item, _Scrubbing) and item.scrubs_as(scrubber) for item in logger.filters):
                logger.addFilter(_Scrubbing(scrubber))
