"""vLLM's OpenAI server on the CPU, in separate processes, for the duration of a `with` block."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Server", "ServerFailed", "serving"]

STARTUP_S = 400
GUIDED = '{"backend": "xgrammar", "disable_any_whitespace": true}'
"""Guided decoding without free whitespace: a weak model would spend its whole token budget on blanks between two keys.
"""


class ServerFailed(Exception):
    """Error for a server that did not start; the message holds the end of its log."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    root: str
    name: str
    """The model's name in requests."""
    log: Path

    @property
    def url(self) -> str:
        """Return the base URL of the server's OpenAI API."""
        return f"{self.root}/v1"

    def counter(self, name: str) -> float:
        """Return a Prometheus counter of the server, summed over its labels."""
        with urllib.request.urlopen(f"{self.root}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.partition("{")[0] == name)


@contextmanager
def serving(
    model: Path,
    log: Path,
    *,
    name: str = "gemma",
    context_tokens: int = 4_096,
    max_num_seqs: int = 4,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Serve a model's folder on a free local port.

    Args:
        model: the folder.
        log: the file that the server's output goes to.
        name: the model's name in requests.
        context_tokens: the most tokens of prompt and answer together.
        max_num_seqs: the most requests that run at once.
        options: other options of vLLM.
        environment: added to this process's.

    Raises:
        ServerFailed: the server ended, or did not answer for STARTUP_S seconds.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", name, "--port", str(port), "--dtype", "bfloat16", "--enforce-eager"]
    command += ["--max-model-len", str(context_tokens), "--max-num-seqs", str(max_num_seqs)]
    command += ["--structured-outputs-config", GUIDED, *options]
    # One thread: more threads compete for the few cores of a small machine.
    settings = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **settings, **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            server = Server(f"http://127.0.0.1:{port}", name, log)
            _wait_for(server, process)
            yield server
        finally:
            _end(process)


def _wait_for(server: Server, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + STARTUP_S
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{server.root}/health", timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)
    raise ServerFailed(f"vLLM did not start; the end of its log:\n{server.log.read_text(errors='replace')[-3_000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # ends its session: the engine's too
        process.wait(30)
