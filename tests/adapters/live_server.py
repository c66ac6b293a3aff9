"""vLLM's OpenAI server on the CPU, in processes of its own, with the adapter: started, asked, scraped, killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from autopoiesis_lib.protocol.channel import Channel

SCHEDULER = "autopoiesis_adapters.vllm.make_scheduler"


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A server and how to talk to it; `start` it, or see `running`."""

    model: Path
    channel: Channel
    """The channel as its publisher has it."""
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """On top of this process's own and of what makes an engine small."""
    max_tokens: int = 6
    """Of each answer."""
    scheduler: str | None = SCHEDULER
    """None: vLLM as it comes, without the adapter."""
    name: str = "engine-0"
    """Of the engine."""
    port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start it."""
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "AUTOPOIESIS_CHANNEL": str(self.channel.root),
            "AUTOPOIESIS_METRICS_PORT": str(self.metrics_port),
            "AUTOPOIESIS_ENGINE": self.name,
            **self.environment,
        }
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        command += ["--load-format", "dummy", "--skip-tokenizer-init", "--dtype", "float32", "--max-model-len", "512"]
        command += ["--max-num-seqs", "2", "--enforce-eager", "--no-enable-prefix-caching", "--port", str(self.port)]
        if self.scheduler is not None:
            command += ["--scheduler-cls", self.scheduler]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self) -> None:
        """Until it answers; fails with the end of its log when it ends instead."""
        assert self.process is not None
        for _ in range(1_200):
            assert self.process.poll() is None, self.log.read_text()[-3_000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"the server never answered: {self.log.read_text()[-3_000:]}")

    def stop(self) -> None:
        """Ask it to end, and wait."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)

    def kill(self) -> None:
        """SIGKILL: front end and engine at once, with whatever they were doing."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)

    def complete(self, number: int) -> tuple[int, list[int]]:
        """One greedy completion; returns (number, tokens). Even numbers have long prompts, odd ones short."""
        with urllib.request.urlopen(self.call(number), timeout=120) as answer:
            return number, json.load(answer)["choices"][0]["token_ids"]

    def call(self, number: int, **more: Any) -> urllib.request.Request:
        """What a client sends for a completion; `more` goes into its body."""
        length = 200 + number if number % 2 == 0 else 8 + number
        body = {
            "model": str(self.model),
            "prompt": [(7 * number + 3 * k) % 31_000 + 3 for k in range(length)],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "detokenize": False,
            **more,
        }
        url = f"http://127.0.0.1:{self.port}/v1/completions"
        return urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def metrics(self) -> str:
        """What Prometheus would scrape from the engine."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def samples(self) -> dict[str, float]:
        """The same by name, with the labels other than the engine's in brackets: `autopoiesis_faults_total[late]`."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(self.metrics()):
            for sample in family.samples:
                labels = ",".join(value for name, value in sample.labels.items() if name != "engine")
                found[sample.name + (f"[{labels}]" if labels else "")] = sample.value
        return found

    def answered(self) -> int:
        """Requests that the front end says it answered in full."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return sum(
            int(sample.value)
            for family in families
            for sample in family.samples
            if sample.name == "vllm:request_success_total" and sample.labels["finished_reason"] == "length"
        )

    def status(self, wanted: str | None) -> dict[str, Any]:
        """The engine's own report, once it names the digest wanted."""
        for _ in range(200):
            found = self.channel.engines().get(self.name, {})
            if found.get("digest") == wanted and found:
                return found
            time.sleep(0.05)
        raise AssertionError(f"the engine never reported {wanted}: {found}")


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """The server, started, and stopped in the end; one that was launched before is waited for."""
    try:
        if server.process is None:
            server.launch()
        server.wait()
        yield server
    finally:
        server.stop()


def serve(
    server: Server, clients: int = 40, after: int = 10**9, then: Callable[[], object] = lambda: None
) -> tuple[list[int], dict[int, list[int]]]:
    """All clients at once; `then` runs when `after` of them have their answer. Returns (order of completion, tokens)."""
    order: list[int] = []
    tokens: dict[int, list[int]] = {}
    with ThreadPoolExecutor(clients) as pool:
        for future in as_completed([pool.submit(server.complete, number) for number in range(clients)]):
            number, answer = future.result()
            order.append(number)
            tokens[number] = answer
            if len(order) == after:
                then()
    return order, tokens


def go_away(server: Server, number: int) -> None:
    """A client asks for a long answer and hangs up."""
    request = server.call(number, max_tokens=200)
    assert isinstance(request.data, bytes)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(request.data)}\r\n"
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + request.data)
        time.sleep(0.3)
