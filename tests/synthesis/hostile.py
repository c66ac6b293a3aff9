"""A server that speaks to its clients byte by byte, for endpoints that break the rules of HTTP and JSON."""

import gzip
import itertools
import json
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from autopoiesis_contracts.request_ordering import BASELINES

GOOD = BASELINES["shortest-prompt-aging"]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

Talk = Callable[["Hostile"], Iterator[bytes]]
"""What is sent on one connection, piece by piece."""


@dataclass
class Hostile:
    """What a server has seen, and whether it has said all it had to say."""

    url: str = ""
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    finished: threading.Event = field(default_factory=threading.Event)
    stopped: threading.Event = field(default_factory=threading.Event)

    def rest(self, seconds: float) -> None:
        """Wait, but not longer than the server is needed."""
        self.stopped.wait(seconds)


@contextmanager
def hostile(talk: Talk) -> Iterator[Hostile]:
    """Serve `talk` to every connection for as long as the block runs."""
    server = Hostile()
    listener = socket.create_server(("127.0.0.1", 0))
    server.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

    def attend(client: socket.socket) -> None:
        with client, suppress(OSError):
            server.requests.append(_request(client))
            for part in talk(server):
                if server.stopped.is_set():
                    return
                client.sendall(part)
            server.finished.set()

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server.connections += 1
                threading.Thread(target=attend, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server
    finally:
        server.stopped.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _request(client: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(65_536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
    )
    while len(body) < length:
        body += client.recv(65_536)
    return head + b"\r\n\r\n" + body


def completion(content: Any = None, usage: Any = None, **changes: Any) -> bytes:
    """The body of a chat completion."""
    if content is None:
        content = json.dumps({"rationale": "because", "expected_effect": "lower TTFT", "source": GOOD})
    message = {"role": "assistant", "content": content}
    document = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": usage,
    }
    return json.dumps({**document, **changes}).encode()


def says(
    body: bytes, headers: bytes = b"", status: bytes = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
) -> Talk:
    """A whole reply with a length."""
    return lambda server: iter(
        [status + headers + f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body]
    )


def dribbles(whole: bytes, seconds: float = 0.05) -> Talk:
    """A reply a byte at a time."""

    def talk(server: Hostile) -> Iterator[bytes]:
        for byte in whole:
            yield bytes([byte])
            server.rest(seconds)

    return talk


def silent(server: Hostile) -> Iterator[bytes]:
    """Nothing at all."""
    server.rest(600)
    yield b""


def interim_for_ever(server: Hostile) -> Iterator[bytes]:
    """Interim replies without end."""
    yield from itertools.repeat(b"HTTP/1.1 102 Processing\r\n\r\n" * 64)


def chunks_for_ever(server: Hostile) -> Iterator[bytes]:
    """A body without end."""
    yield OK + b"Transfer-Encoding: chunked\r\n\r\n"
    yield from itertools.repeat(b"10000\r\n" + b" " * 65_536 + b"\r\n")


def headers_for_ever(server: Hostile) -> Iterator[bytes]:
    """Headers without end."""
    yield OK
    yield from (b"X-%d: %s\r\n" % (number, b"x" * 1_000) for number in itertools.count())


def redirects(server: Hostile) -> Iterator[bytes]:
    """A redirection to itself."""
    yield b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /v1/again\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def bomb(wbits: int, megabytes: int, layers: int = 1) -> bytes:
    """Blanks, compressed."""
    parts = [b" " * 2**20] * megabytes
    for _ in range(layers):
        packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
        parts = [b"".join([*map(packer.compress, parts), packer.flush()])]
    return parts[0]


def packed(body: bytes) -> bytes:
    """A body as a well-meaning proxy compresses it."""
    return gzip.compress(body)
