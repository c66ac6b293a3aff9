"""Bounds on an exchange with a language-model endpoint: one deadline, and limits on bytes and nesting.

The time-outs of an HTTP client count from the last byte, so a server that sends one byte per second is never late. The
size of a compressed reply does not show its decompressed size. Here every wait on the network ends at the deadline. A
reply is read, decompressed and checked before a client library sees it.
"""

import contextlib
import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from enum import StrEnum
from typing import Any, Final, TypeVar

from ..errors import AutopoiesisError

__all__ = [
    "MAX_DEPTH",
    "MAX_REPLY_BYTES",
    "Exchange",
    "ReplyProblem",
    "ReplyRefusedError",
    "bound",
    "nested_too_deeply",
    "within",
]

MAX_REPLY_BYTES: Final = 1_048_576
"""Maximum number of bytes of a reply's body after decompression. A policy and its reason have at most 40 KB."""
MAX_RAW_BYTES: Final = 8 * MAX_REPLY_BYTES
"""Maximum number of bytes from the network for one reply: headers, interim replies, and the body with its framing."""
MAX_DEPTH: Final = 32
"""Maximum nesting depth of arrays and objects in a reply."""
MAX_REDIRECTS: Final = 5
GRACE_S: Final = 1.0
"""Seconds after the deadline at which a call is abandoned whose waits have not ended.

Examples are a name that does not resolve, and a client library with waits of its own.
"""

ENCODINGS: Final = frozenset({"", "identity", "gzip", "x-gzip", "deflate"})
"""Content encodings that are read, each of which inflates in bounded steps. Requests ask for none of them."""
HEADERS: Final = frozenset({"location", "request-id", "retry-after", "x-request-id"})
"""Headers of a reply that client libraries see, in addition to a media type without parameters.

Parameters are removed because some "charsets" inflate, too.
"""

_MEDIA_TYPE = re.compile(r"[\w.+-]{1,64}/[\w.+-]{1,64}")

Result = TypeVar("Result")


class ReplyProblem(StrEnum):
    """The reason why an exchange was ended."""

    LATE = "late"
    TOO_LARGE = "too-large"
    ENCODED = "encoded"
    """A content encoding that was not requested and cannot be read in bounded steps."""
    NESTED = "nested"


class ReplyRefusedError(AutopoiesisError):
    """An endpoint's reply that violates a bound. `problem` names the bound."""

    def __init__(self, problem: ReplyProblem, message: str) -> None:
        super().__init__(message)
        self.problem = problem


class Exchange:
    """The time and the bytes that remain for a call over all its requests.

    Args:
        deadline: end of the whole call, in monotonic seconds.
        timeout_s: longest time for one request and its reply, in seconds.
    """

    def __init__(self, deadline: float, timeout_s: float) -> None:
        self.deadline, self._timeout_s = deadline, timeout_s
        self._until = min(deadline, time.monotonic() + timeout_s)
        self._received = 0

    def begin_request(self) -> None:
        """Start the clock of one request."""
        self._until = min(self.deadline, time.monotonic() + self._timeout_s)
        self._received = 0

    def left(self, timeout_s: float | None = None) -> float:
        """Return the seconds that one wait may take.

        Raises:
            ReplyRefusedError: no time is left.
        """
        left = self._until - time.monotonic()
        if left <= 0:
            raise ReplyRefusedError(ReplyProblem.LATE, "it did not answer in time")
        return left if timeout_s is None else min(left, timeout_s)

    @contextlib.contextmanager
    def waiting(self, timeout_s: float | None) -> Iterator[float]:
        """Yield the seconds that one wait may take.

        Raises:
            ReplyRefusedError: no time is left, before the wait or at a failure during it.
        """
        try:
            yield self.left(timeout_s)
        except Exception:
            self.left()
            raise

    def received(self, count: int) -> None:
        """Count bytes from the network.

        Raises:
            ReplyRefusedError: the reply is too large.
        """
        self._received += count
        if self._received > MAX_RAW_BYTES:
            raise ReplyRefusedError(ReplyProblem.TOO_LARGE, f"it sent more than {MAX_RAW_BYTES:,} bytes for one reply")


_current: ContextVar[Exchange | None] = ContextVar("autopoiesis_exchange", default=None)


def within(exchange: Exchange, work: Callable[[], Result]) -> Result:
    """Run `work`, whose requests keep the bounds of an exchange, in a thread.

    The thread is abandoned `GRACE_S` after the deadline.

    Raises:
        ReplyRefusedError: the deadline passed, or a reply violated another bound.
    """
    done: list[Callable[[], Result]] = []

    def run() -> None:
        _current.set(exchange)
        try:
            result = work()
        except BaseException as error:
            done.append(functools.partial(_raise, error))
        else:
            done.append(lambda: result)

    thread = threading.Thread(target=run, name="autopoiesis-endpoint", daemon=True)
    thread.start()
    thread.join(max(0.0, exchange.deadline - time.monotonic()) + GRACE_S)
    if not done:
        raise ReplyRefusedError(ReplyProblem.LATE, "it did not answer in time")
    return done[0]()


def _raise(error: BaseException) -> Any:
    raise error


def bound(sdk: Any) -> None:
    """Apply the bounds of the current exchange to the HTTP client inside a provider's client object.

    Some providers' clients accept no HTTP client, and they use different libraries (`httpx`, `httpx2`). Therefore the
    existing client is changed in place, with its proxies and certificates. A client of another structure keeps only the
    deadline.
    """
    http = getattr(sdk, "_client", None)
    if http is None or not hasattr(http, "_transport"):
        return
    http.max_redirects = MAX_REDIRECTS
    for transport in (http._transport, *(item for item in http._mounts.values() if item is not None)):
        transport.handle_request = functools.partial(_bounded_request, transport.handle_request)
        pool: Any = getattr(transport, "_pool", None)
        if hasattr(pool, "_network_backend"):
            pool._network_backend = _Backend(pool._network_backend)


def _bounded_request(handle: Callable[[Any], Any], request: Any) -> Any:
    """Send a request and return its whole reply within the bounds."""
    exchange = _current.get()
    if exchange is None:
        return handle(request)
    exchange.begin_request()
    request.headers["Accept-Encoding"] = "identity"
    response = handle(request)
    with contextlib.closing(response):
        content = _content(response, exchange)
    if nested_too_deeply(content):
        raise ReplyRefusedError(ReplyProblem.NESTED, f"its reply is nested more than {MAX_DEPTH} levels deep")
    media = _MEDIA_TYPE.match(response.headers.get("content-type", ""))
    headers = {name: value for name, value in response.headers.items() if name.lower() in HEADERS}
    headers["content-type"] = media[0] if media is not None else "application/octet-stream"
    return type(response)(response.status_code, headers=headers, content=content, extensions=response.extensions)


def _content(response: Any, exchange: Exchange) -> bytes:
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ENCODINGS:
        raise ReplyRefusedError(ReplyProblem.ENCODED, "its reply has a content encoding that was not asked for")
    parts: list[bytes] = []
    size = 0
    for part in response.iter_bytes():
        exchange.left()
        size += len(part)
        if size > MAX_REPLY_BYTES:
            raise ReplyRefusedError(ReplyProblem.TOO_LARGE, f"its reply has more than {MAX_REPLY_BYTES:,} bytes")
        parts.append(part)
    return b"".join(parts)


def nested_too_deeply(content: bytes | str | list[Any] | dict[str, Any]) -> bool:
    """Return True if JSON text, or a value made from it, has more than `MAX_DEPTH` levels.

    Other text has no levels.
    """
    if isinstance(content, (bytes, str)):
        try:
            content = json.loads(content)
        except RecursionError:
            return True
        except ValueError:
            return False
    level = list(_children(content))
    for _ in range(MAX_DEPTH):
        if not level:
            return False
        level = [child for item in level for child in _children(item)]
    return bool(level)


def _children(value: Any) -> Iterator[Any]:
    """Yield the arrays and objects directly inside a value."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (child for child in inside if isinstance(child, (dict, list)))


class _Backend:
    """A network backend of `httpcore` whose connections keep the bounds of the current exchange."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def connect_tcp(self, *where: Any, **options: Any) -> "_Stream":
        """Connect within the time left."""
        return _Stream(self._inner.connect_tcp(*where, **_timed(options)))

    def connect_unix_socket(self, *where: Any, **options: Any) -> "_Stream":
        """Connect within the time left."""
        return _Stream(self._inner.connect_unix_socket(*where, **_timed(options)))

    def sleep(self, seconds: float) -> None:
        """Wait between two attempts to connect."""
        self._inner.sleep(seconds)


class _Stream:
    """A connection of `httpcore` whose every wait ends at the deadline, and whose bytes are counted."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read the available bytes within the time left."""
        exchange = _current.get()
        if exchange is None:
            return self._inner.read(max_bytes, timeout)  # type: ignore[no-any-return]
        with exchange.waiting(timeout) as left:
            data: bytes = self._inner.read(max_bytes, left)
        exchange.received(len(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all bytes within the time left."""
        exchange = _current.get()
        if exchange is None:
            return self._inner.write(buffer, timeout)  # type: ignore[no-any-return]
        with exchange.waiting(timeout) as left:
            self._inner.write(buffer, left)

    def start_tls(self, *how: Any, **options: Any) -> "_Stream":
        """Start TLS within the time left."""
        return _Stream(self._inner.start_tls(*how, **_timed(options)))

    def close(self) -> None:
        """Close the connection."""
        self._inner.close()

    def get_extra_info(self, info: str) -> Any:
        """Return the requested information about the connection."""
        return self._inner.get_extra_info(info)


def _timed(options: dict[str, Any]) -> dict[str, Any]:
    exchange = _current.get()
    return options if exchange is None else {**options, "timeout": exchange.left(options.get("timeout"))}
