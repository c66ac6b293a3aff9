"""A language model behind an endpoint: one structured answer, with back-off, usage, and errors told apart.

instructor asks again when an answer does not validate; this module asks again when the endpoint fails for a moment, fits the
request to what the server takes, and gives up in a way the proposer can count on: every failure is an `EndpointError` that says
whether trying later may help, and what was spent on it all the same. Nothing that an endpoint says is believed: `exchange`
bounds its time and its replies, and its count of tokens is held to what the request could have used.
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
"""Where the providers whose clients come with this library look for their key. Others say themselves what they miss."""

FITTINGS = 4
"""How often a request is changed because the server cannot take it."""
NO_BASE_URL = "the base URL is not of the form http(s)://HOST[:PORT]/PATH"
LONGEST_WAIT_S = 60.0
"""Longest wait that a rate-limiting server is granted."""
MAX_RECORDED = 4_096
"""Characters kept of a reply that is no plain JSON value, and of a line that a client library logs."""
TEMPLATE_TOKENS = 512
"""Tokens that a server's chat template may add to a prompt."""

Draft = TypeVar("Draft", bound=BaseModel)


@dataclass(frozen=True)
class Spent:
    """What a call took, whatever came of it.

    Tokens are the server's own count over all tries, held to what the requests could have used, or estimated.
    """

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
        """Learned from the server's refusals; replaced whole, so that threads may share it."""
        self._scrubber = scrubber
        _quiet(scrubber)
        try:
            self._client = _client(model, base_url, api_key, timeout_s, mode)
        except (InstructorError, openai.OpenAIError, ImportError, ValueError, KeyError) as error:
            raise ProposerError(f"the model {model!r} cannot be used: {_shown(scrubber.text(_line(error)))}") from None
        _quiet(scrubber)  # again: the client libraries were imported meanwhile, and made their loggers
        self._name = model.partition("/")[2] if base_url is not None and "/" in model else None
        if base_url is not None and "/" not in model:
            self._name = model

    def ask(self, prompts: Sequence[Messages], response_model: type[Draft], deadline_s: float | None) -> Answer:
        """Return a validated answer. `prompts` are versions of one prompt, the longest first: the first that fits is sent.

        Raises:
            EndpointError: none came within the attempts, the time-out and the deadline.
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
                seen.refuse(error)  # a reply that was cut off: instructor does not try to parse it
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
    _asked_bytes: int = 0
    _most_tokens: int = 0

    def ask(self, **arguments: Any) -> None:
        """Note a request."""
        told = {name: arguments.get(name) for name in ("messages", "system", "response_format", "tools")}
        self._asked_bytes = len(json.dumps(told, default=str))
        limits = (arguments.get("max_tokens"), arguments.get("max_completion_tokens"))
        self._most_tokens = max((limit for limit in limits if isinstance(limit, int)), default=0)

    def note(self, response: Any) -> None:
        """Note a reply, with tokens that the request and the reply may have used: a server's count is only a claim.

        Of a prompt a token is at least one byte; an answer ends at the limit that was asked for. A count that is missing or is
        no positive integer is estimated from the bytes.
        """
        reply, size = _plain(response)  # now: instructor later writes the running total into `usage`
        self.replies.append(reply)
        counts = getattr(response, "usage", None)
        asked, most = self._asked_bytes, self._most_tokens or size
        self.prompt_tokens += _tokens(counts, ("prompt_tokens", "input_tokens"), asked, asked + TEMPLATE_TOKENS)
        self.completion_tokens += _tokens(counts, ("completion_tokens", "output_tokens"), size, most)

    def refuse(self, error: Exception, **_: Any) -> None:
        """Note why the last reply did not validate."""
        self.refused.append(_why_refused(error))

    def spent(self, seconds: float, scrubber: Scrubber) -> Spent:
        """Return all of it, as a value."""
        replies = [scrubber.value(reply) for reply in self.replies]
        refused = [_shown(scrubber.text(line), 500) for line in self.refused]
        return Spent(self.prompt_tokens, self.completion_tokens, seconds, replies, refused)


def _tokens(counts: Any, names: Sequence[str], size: int, most: int) -> int:
    """Return a server's count of tokens held to `most`, or an estimate from the size in bytes."""
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
        except Exception:  # each HTTP library has an error of its own for a URL, and says it in full
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
        inner.max_retries = 0  # this module backs off; twice would multiply
    return client


def _address(url: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """Return a base URL without its secrets, and these as query parameters and headers of every request.

    Raises:
        ValueError: it is no HTTP URL; the message shows none of it.
    """
    parts = urlsplit(url) if redacted_url(url) != HIDDEN else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(NO_BASE_URL)
    user, at, host = parts.netloc.rpartition("@")
    headers = {"Authorization": f"Basic {basic_credentials(user)}"} if at else {}
    return f"{parts.scheme}://{host}{parts.path}", dict(parse_qsl(parts.query, keep_blank_values=True)), headers


def basic_credentials(user: str) -> str:
    """Return the `USER:PASSWORD` part of a URL as HTTP's basic authentication sends it."""
    name, _, password = user.partition(":")
    return base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode("ascii")


def _mode(name: str) -> instructor.Mode:
    try:
        return instructor.Mode[name.upper()]
    except KeyError:
        raise ValueError(f"instructor has no mode {name!r}; JSON_SCHEMA, TOOLS and JSON are the common ones") from None


class _WaitAsTold(wait_base):
    """Waits as long as a rate-limiting server asks for, up to a minute, otherwise as usual."""

    def __init__(self, usual: wait_base) -> None:
        self._usual = usual

    def __call__(self, retry_state: Any) -> float:
        error = _root(retry_state.outcome.exception())
        response = getattr(error, "response", None)
        told = None if response is None else retry_after(response.headers.get("retry-after"))
        return self._usual(retry_state) if told is None else told


def retry_after(told: str | None) -> float | None:
    """Return the seconds that a `Retry-After` header asks for, 0 to `LONGEST_WAIT_S`; None when it says nothing usable."""
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
    """Return the cause below instructor's wrapping: a bound that was broken, or else the client library's error."""
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
    """Was it refused as it is, by the server or by the provider's client (some take no temperature)?"""
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


def _shown(text: str, limit: int = 300) -> str:
    """Return a text of an endpoint's as people may see it, on one line."""
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
        """Is it this very scrubber's?"""
        return self._scrubber is scrubber

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()[:MAX_RECORDED]
        record.msg, record.args = printable(self._scrubber.text(said), allowed="\n"), ()
        if record.exc_info:
            told = "".join(traceback.format_exception(*record.exc_info)).rstrip()
            record.exc_text, record.exc_info = printable(self._scrubber.text(told), allowed="\n"), None
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
