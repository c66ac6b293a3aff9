"""A real HTTP server that speaks the OpenAI chat API, well or badly, for tests of language-model proposers."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[["Server", dict[str, Any], BaseHTTPRequestHandler], None]


@dataclass
class Server:
    """What the server was asked, and how it answers: `replies[i]` to the i-th request, the last one ever after."""

    replies: list[Reply]
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""


def says(content: str, prompt_tokens: int = 100, completion_tokens: int = 20) -> Reply:
    """A well-formed completion with this content."""

    def reply(server: Server, request: dict[str, Any], handler: BaseHTTPRequestHandler) -> None:
        body = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": request["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
        }
        send(handler, 200, json.dumps(body).encode())

    return reply


def writes(source: str) -> Reply:
    """A policy as the answer."""
    return says(json.dumps({"rationale": "because", "expected_effect": "lower TTFT", "source": source}))


def fails(status: int, body: str = "{}", headers: dict[str, str] | None = None) -> Reply:
    """An HTTP error."""
    return lambda server, request, handler: send(handler, status, body.encode(), headers)


def hangs(seconds: float) -> Reply:
    """Says nothing for a while."""

    def reply(server: Server, request: dict[str, Any], handler: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return reply


def breaks_off(server: Server, request: dict[str, Any], handler: BaseHTTPRequestHandler) -> None:
    """Closes the connection in the middle of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"id": ')
    handler.close_connection = True


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def serving(*replies: Reply) -> Iterator[Server]:
    """A server on a free local port for as long as the block runs."""
    server = Server(list(replies))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body are two writes: 40 ms each otherwise

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                index = len(server.requests)
                server.requests.append(request)
                server.keys.append(self.headers.get("Authorization", ""))
            server.replies[min(index, len(server.replies) - 1)](server, request, self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
