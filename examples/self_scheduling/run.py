"""A served model that writes its own scheduler.

A vLLM server on the CPU serves Gemma 3 270M through our adapter and takes traffic. The language-model proposer uses
this same server: the model whose requests wait in the queue is asked for the queue's order. The gates check its drafts,
the search continues from the drafts that pass, and the certified winner is signed and swapped into the same running
engine.

    python examples/self_scheduling/run.py [--models FOLDER] [--candidates 48] [--json]

The example takes about five minutes on two cores, of which one minute is the model's first download. It needs vLLM for
the CPU, no GPU and no key. The model is a small base model: most of its drafts are weak, and the output says so.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopoiesis_contracts.request_ordering import RequestOrdering
from cpu_server import Server, serving
from small_model import small_model

from autopoiesis_lib.certificate import sign
from autopoiesis_lib.evolution import Budget, EvolutionResult, evolve
from autopoiesis_lib.online.observer import Observer
from autopoiesis_lib.online.recalibration import recalibrate
from autopoiesis_lib.protocol.channel import Channel, Trust
from autopoiesis_lib.protocol.keys import load_key, new_key
from autopoiesis_lib.simulation import Calibration, EngineConfig, StepTimeModel
from autopoiesis_lib.simulation.workload import Workload
from autopoiesis_lib.store import Store
from autopoiesis_lib.synthesis import LLMProposer

SEQUENCES = 2
"""Requests that run at once: few, so that requests wait in a queue."""
LONG, SHORT = (160, 24), (10, 4)
"""(prompt words, output tokens) of the two kinds of request."""
BURST = (LONG, SHORT, SHORT, LONG, SHORT, SHORT, LONG, SHORT, SHORT, LONG, SHORT, SHORT, SHORT, SHORT)
PERIOD_S = 6.0
WINDOW_S = 30.0
"""Seconds of traffic that the evolution uses."""
GUESS = Calibration(
    name="cpu",
    step_time=StepTimeModel(c0=0.03, c1=0.001, c2=0.005, c3=0.0, c4=0.0),
    engine=EngineConfig(block_size=128, total_blocks=256, max_num_seqs=SEQUENCES, max_num_batched_tokens=2_048),
    source="a guess, replaced by what the engine's own telemetry says",
)


@dataclass
class Traffic:
    """A burst of requests every PERIOD_S seconds, sent from separate threads, until it is stopped."""

    server: Server
    latencies_s: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    sent: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Traffic":
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def mean_over_bursts(self, count: int) -> float:
        """Return the mean latency in seconds of the next bursts, sent one burst at a time."""
        with ThreadPoolExecutor(len(BURST)) as clients:
            found: list[float] = []
            for _ in range(count):
                found += clients.map(self._one, BURST)
        return statistics.mean(found)

    def _run(self) -> None:
        with ThreadPoolExecutor(4 * len(BURST)) as clients:
            while not self._stop.is_set():
                for kind in BURST:
                    clients.submit(self._one, kind)
                self._stop.wait(PERIOD_S)

    def _one(self, kind: tuple[int, int]) -> float:
        self.sent += 1
        body = {"model": self.server.name, "prompt": "word " * kind[0], "max_tokens": kind[1], "min_tokens": kind[1]}
        call = urllib.request.Request(
            f"{self.server.url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        began = time.monotonic()
        try:
            with urllib.request.urlopen(call, timeout=300) as answer:
                tokens = json.load(answer)["usage"]["completion_tokens"]
            if tokens != kind[1]:
                self.failed.append(f"{tokens} tokens instead of {kind[1]}")
        except OSError as error:
            self.failed.append(str(error))
        took = time.monotonic() - began
        self.latencies_s.append(took)
        return took


def observed(channel: Channel) -> Workload:
    """Return the workload that the engine has served lately, with step times fitted to the engine itself."""
    observer = Observer(channel.root, WINDOW_S)
    while True:
        observer.look()
        window = observer.settled()
        if window is not None:
            break
        time.sleep(1.0)
    fitted = recalibrate(window, GUESS)
    print(f"{len(window)} requests in the last {WINDOW_S:.0f} s of telemetry; {fitted}")
    return Workload.of(window.trace(), fitted.calibration)


def engine(channel: Channel) -> Mapping[str, Any]:
    """Return the last status that the engine reported."""
    return next(iter(channel.engines().values()), {})


def active(channel: Channel, digest: str) -> Mapping[str, Any]:
    """Return the engine's status once it runs this policy."""
    for _ in range(600):
        status = engine(channel)
        if status.get("digest") == digest:
            return status
        if status.get("refusal"):
            raise SystemExit(f"the engine refused the winner: {status['refusal']}")
        time.sleep(0.05)
    raise SystemExit(f"the engine did not take the winner up within 30 s; it says {status}")


def ancestry(store: Store, result: EvolutionResult, model: str) -> str:
    """Return in words the origin of the winner: the served model, or the search with or without its policies."""
    proposals = {row.id: row for row in store.proposals(result.run)}
    if proposals[result.best_id].details.get("model") == model:
        return "written by the served model"
    waiting, seen = [result.best_id], set()
    while waiting:
        row = proposals[waiting.pop()]
        if row.details.get("model") == model:
            return f"made by the search ({result.best_origin}), from a policy that the served model wrote"
        seen.add(row.id)
        waiting += [parent for parent in row.parents if parent not in seen]
    return f"made by the search ({result.best_origin}), with nothing of the model's in it"


def told(store: Store, result: EvolutionResult, record: Path) -> list[dict[str, Any]]:
    """Return the drafts that the model wrote, each with its outcome."""
    found = []
    for line in record.read_text(encoding="utf-8").splitlines():
        exchange = json.loads(line)
        for why in exchange["refused"]:
            found.append({"wrote": "(no policy)", "fate": f"refused: {why}"})
    fates = {row.id: row for row in store.candidates(result.run)}
    for row in store.proposals(result.run):
        if "model" in row.details and row.id in fates:
            fate = fates[row.id]
            became = f"rejected by {fate.gate}: {fate.detail}" if fate.gate else f"passed, fitness {fate.fitness:.3f}"
            found.append({"wrote": row.source.strip().splitlines()[-1].rpartition("return ")[2], "fate": became})
    return found


def run(models: Path, folder: Path, candidates: int) -> dict[str, Any]:
    """Run the example from server start to swap, print each step and return the results."""
    keys, record = folder / "keys", folder / "exchanges.jsonl"
    new_key(keys, "writer")
    channel = Channel(folder / "channel", load_key(keys, "writer"), Trust(keys), folder / "state")
    settings = {
        "AUTOPOIESIS_CHANNEL": str(channel.root),
        "AUTOPOIESIS_CHANNEL_ID": channel.prepare(),
        "AUTOPOIESIS_KEYS": str(keys),
        "AUTOPOIESIS_STATE": str(folder / "engine-state"),
        "AUTOPOIESIS_SNAPSHOT_S": "2",
    }
    options = ["--scheduler-cls", "autopoiesis_adapters.vllm.make_scheduler", "--no-enable-prefix-caching"]
    print("fetching the model ...", flush=True)
    model = small_model(models)
    print("starting vLLM ...", flush=True)
    with serving(model, folder / "server.log", max_num_seqs=SEQUENCES, options=options, environment=settings) as server:
        writer = f"vllm/{server.name}"
        traffic = Traffic(server)
        traffic.mean_over_bursts(1)  # a warm-up
        before_s = traffic.mean_over_bursts(3)
        print(f"the engine's built-in order: mean latency {before_s:.2f} s", flush=True)
        with traffic:
            workload = observed(channel)
            proposer = LLMProposer(
                writer, base_url=server.url, share=0.5, shape="linear", temperature=1.0, max_output_tokens=400,
                repairs=0, timeout_s=240.0, parallel=4, record=record,
            )  # fmt: skip
            print("the model writes while it serves ...", flush=True)
            store = Store.open(folder / "store.db")
            result = evolve(
                RequestOrdering(), workload, proposer, Budget(candidates=candidates, generation_size=12, islands=2),
                seed=1, workers=1, store=store, objectives={"e2e_mean_us": 1.0},
            )  # fmt: skip
            wrote, maker = told(store, result, record), ancestry(store, result, writer)
            store.close()
            assert result.certificate is not None
            assert channel.key is not None
            signed = sign(result.certificate, channel.key).to_bytes()
            channel.publish(result.best.digest, result.best.source, signed, note=maker)
            status = active(channel, result.best.digest)
        after_s = traffic.mean_over_bursts(3)
        for item in wrote:
            print(f"  {item['wrote']}\n      {item['fate'][:110]}")
        passed = sum(item["fate"].startswith("passed") for item in wrote)
        print(f"of {len(wrote)} texts the model wrote, {passed} passed every gate")
        print(f"active now: {result.best.digest[:12]}, {maker}; signed, swapped in after {status['swap_step_ns']} ns")
        print(result.best.source)
        for claim in result.certificate.claims:
            print(f"  proved: {claim}")
        print(
            f"mean latency {before_s:.2f} s before, {after_s:.2f} s after; {traffic.sent} requests, {len(traffic.failed)} failed"
        )
        return {
            "wrote": wrote, "passed": passed, "maker": maker, "active": status["digest"], "winner": result.best.digest,
            "before_s": before_s, "after_s": after_s, "sent": traffic.sent, "answered": len(traffic.latencies_s),
            "failed": traffic.failed, "fallbacks": engine(channel)["counters"].get("fallbacks", 0),
            "fitness": result.fitness,
        }  # fmt: skip


def main() -> None:
    """Run the example and print its results."""
    kept = os.environ.get("AUTOPOIESIS_MODELS") or Path.home() / ".cache" / "autopoiesis" / "models"
    parser = argparse.ArgumentParser(description="The served model writes its own scheduler.")
    parser.add_argument("--models", type=Path, default=Path(kept), help="where the model is kept")
    parser.add_argument("--candidates", type=int, default=48)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(args.models, Path(folder), args.candidates)
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":  # the evolution's worker processes import this file
    main()
