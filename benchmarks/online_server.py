"""A vLLM OpenAI server on the CPU for `online.py`, and an open-loop client that replays a workload to it."""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
from online_workload import MAX_TOKENS, Job

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.adapters.tiny_llama import write_tiny_llama

__all__ = ["LIMITS", "Answer", "replay", "served_by_engine", "serving", "warm_up"]

LIMITS = {"max-num-seqs": 4, "max-num-batched-tokens": 256, "max-model-len": 1_024}
FACTORY = "autopoiesis_adapters.vllm.make_scheduler"
START_S = 240.0
END_TOKEN = 2
"""Token that ends an answer: random weights would run to the limit, so the clients' own parameters set the end."""


@dataclass(frozen=True)
class Answer:
    """The answer that a client got for one request."""

    latency_s: float
    tokens: tuple[int, ...]
    id: str
    """The server's name for it; empty when the request was lost."""
    late_s: float
    """Delay of the client in sending it, against the plan."""


@contextmanager
def serving(extra: Mapping[str, str], *, ours: bool, log: Path) -> Iterator[str]:
    """Run a separate server on a tiny random Llama and yield its URL.

    `ours` adds the adapter; `extra` is environment.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe, log.open("wb") as out:
        write_tiny_llama(Path(folder))
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
        probe.close()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AUTOPOIESIS_")}
        environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "VLLM_CPU_KVCACHE_SPACE": "1"}
        # One process for scheduler and model: otherwise the scheduler spins on a core while it waits for the model's
        # process, and on two cores nothing is left for clients and control plane.
        environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **extra}
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--port", str(port)]
        command += ["--served-model-name", "tiny", "--load-format", "dummy", "--skip-tokenizer-init", "--seed", "0"]
        command += ["--dtype", "float32", "--enforce-eager", "--no-enable-prefix-caching"]
        command += ["--uvicorn-log-level", "warning", "--distributed-executor-backend", "uni"]
        command += [text for name, value in LIMITS.items() for text in (f"--{name}", str(value))]
        command += ["--scheduler-cls", FACTORY] if ours else []
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(process, url, log)
            yield url
        finally:
            process.terminate()
            process.wait(60)


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1).close()
            return
        except OSError:
            time.sleep(0.25)
    raise SystemExit(f"the server did not start:\n{log.read_text(errors='replace')[-3_000:]}")


def warm_up(url: str, jobs: Sequence[Job]) -> None:
    """Send some jobs as soon as possible: kernels are warm after that, and the engine has taken its first steps."""
    asyncio.run(_replay(url, [replace(job, at_s=0.0) for job in jobs]))


def replay(url: str, jobs: Sequence[Job]) -> list[Answer]:
    """Send every job at its own time, independent of the others; return one answer per job, in the jobs' order."""
    return asyncio.run(_replay(url, jobs))


async def _replay(url: str, jobs: Sequence[Job]) -> list[Answer]:
    # A connection each: if the server closed one just as it is used again, a request would be lost that no engine ever
    # saw.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=300.0, limits=limits) as client:
        begin = time.monotonic() + 0.5
        return await asyncio.gather(*(_ask(client, job, begin + job.at_s) for job in jobs))


async def _ask(client: httpx.AsyncClient, job: Job, at: float) -> Answer:
    body = {
        "model": "tiny",
        "prompt": job.prompt(),
        "max_tokens": MAX_TOKENS,
        "min_tokens": job.num_output_tokens - 1,
        "stop_token_ids": [END_TOKEN],
        "logit_bias": {str(END_TOKEN): 100.0},
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "detokenize": False,
    }
    await asyncio.sleep(max(0.0, at - time.monotonic()))
    sent = time.monotonic()
    try:
        reply = await client.post("/v1/completions", json=body)
        found = reply.raise_for_status().json()
        tokens, name = tuple(found["choices"][0]["token_ids"]), str(found["id"])
    except (httpx.HTTPError, KeyError, ValueError):
        tokens, name = (), ""
    done = time.monotonic()
    # Latency counts from the planned arrival, so that a slow client cannot hide a queue.
    return Answer(done - at, tokens, name, sent - at)


def served_by_engine(url: str) -> int:
    """Return the number of requests that the engine reports as finished, for any reason, since it started."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    counts = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:request_success_total")]
    return int(np.sum(counts))
