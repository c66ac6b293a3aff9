"""Speed of the simulator: requests and engine steps per wall second on one core, and its growth with the load.

    python benchmarks/simulation.py [--largest 10000000] [--rivals-python PATH]

Every figure is the best of several runs, with the arrays' set-up included; compiling is reported separately.

Other simulators run in a separate interpreter that has them (`ai-dynamo` with its runtime, `vidur`). Simulators that it
does not have, and those that no package index holds, are in the table with the number that was once reported, marked
so. A rival is timed once, without its set-up and its reading of the trace, which favours it. Its figure is its speed on
the same requests and limits, not on the same step times. DynoSim uses its own. Vidur's need profiles that its package
does not hold, so it gets ours in place of its regression, which is cheaper for it.
"""

import argparse
import inspect
import json
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numba import cfunc, types
from rich.console import Console
from rich.table import Table

from autopoiesis_lib import simulation as sim
from autopoiesis_lib.simulation.generators import Lengths, poisson


@cfunc(types.int64(*[types.int64] * len(sim.ORDERING_LAYOUT)))  # type: ignore[untyped-decorator]
def shortest_prompt_with_aging(
    waited_us: int,
    num_prompt_tokens: int,
    cached: int,
    output: int,
    limit: int,
    priority: int,
    preemptions: int,
    waiting: int,
    running: int,
    free: int,
    total: int,
    block: int,
    seqs: int,
    oldest: int,
) -> int:
    return waited_us - 20_000 * min(num_prompt_tokens, 8_192)


@cfunc(types.int64(*[types.int64] * len(sim.ROUTING_LAYOUT)))  # type: ignore[untyped-decorator]
def prefix_aware(
    prompt: int,
    limit: int,
    priority: int,
    index: int,
    waiting: int,
    running: int,
    free: int,
    total: int,
    seqs: int,
    queued_tokens: int,
    cached_tokens: int,
) -> int:
    return 2 * cached_tokens - queued_tokens - 200 * running


REPORTED: Final = (
    ("DynoSim 1.3.1", "Azure conv, 1 worker", 5_000),
    ("DynoSim 1.3.1", "Mooncake, 4 workers", 951),
    ("Vidur", "Azure conv lengths, metrics off", 1_175),
    ("BLIS", "Go, no Python package; default", 557),
    ("BLIS", "Go, no Python package; without stale-cache snapshots", 3_540),
    ("splitwise-sim", "no Python package known; 4 replicas", 843),
)
"""Requests per wall second, measured before this script existed; settings beyond these are unknown."""


def run_dynosim(job: dict[str, Any]) -> dict[str, Any]:
    """Run DynoSim in the rivals' interpreter from this function's source: this file's imports do not exist there."""
    from importlib.metadata import version

    from dynamo.mocker import MockEngineArgs  # type: ignore[import-not-found]
    from dynamo.replay import run_trace_replay  # type: ignore[import-not-found]

    engine = MockEngineArgs(
        engine_type="vllm",
        num_gpu_blocks=job["kv_tokens"] // job["block_size"],
        block_size=job["block_size"],
        max_num_seqs=job["max_num_seqs"],
        max_num_batched_tokens=job["max_num_batched_tokens"],
    )
    report = run_trace_replay(
        job["trace"],
        extra_engine_args=engine,
        num_workers=job["replicas"],
        router_mode="kv_router" if job["replicas"] > 1 else "round_robin",
        trace_block_size=512,
    )
    return {
        "version": version("ai-dynamo"),
        "requests": report["completed_requests"],
        "seconds": report["wall_time_ms"] / 1e3,
        "ttft_s": report["mean_ttft_ms"] / 1e3,
    }


def run_vidur(job: dict[str, Any]) -> dict[str, Any]:
    """Run Vidur in the rivals' interpreter from this function's source: this file's imports do not exist there."""
    import logging
    import time
    from importlib.metadata import version

    logging.disable(logging.INFO)
    from vidur._native.entities import ExecutionTime  # type: ignore[import-not-found]
    from vidur.config import config  # type: ignore[import-not-found]
    from vidur.execution_time_predictor import (  # type: ignore[import-not-found]
        BaseExecutionTimePredictor,
        ExecutionTimePredictorRegistry,
    )
    from vidur.simulator import Simulator  # type: ignore[import-not-found]
    from vidur.types import ExecutionTimePredictorType  # type: ignore[import-not-found]

    per = job["step_time"]

    class Linear(BaseExecutionTimePredictor):  # type: ignore[misc]
        def get_execution_time(self, batch: Any, stage: int) -> Any:
            seconds, compute = per["c0"], 0.0
            for chunk, context in zip(batch.num_q_tokens, batch.num_kv_tokens, strict=True):
                if chunk == 1:
                    seconds += per["c2"] + per["c3"] * context
                else:
                    compute += per["c1"] * chunk + per["c4"] * chunk * (context - chunk / 2)
            seconds += max(per["floor"], compute) if compute else 0.0
            return ExecutionTime(1, 0, 0, 0, seconds * 1e3, *[0] * 10)  # one layer, all of it in one place, in ms

    Linear.__abstractmethods__ = frozenset()  # the parts are never requested: the whole is given
    kind = ExecutionTimePredictorType.RANDOM_FORREST
    ExecutionTimePredictorRegistry.unregister(kind)
    ExecutionTimePredictorRegistry.register(kind, Linear)
    simulator = Simulator(
        config.SimulationConfig(
            cluster_config=config.ClusterConfig(
                num_replicas=job["replicas"],
                replica_config=config.ReplicaConfig(num_pipeline_stages=1, tensor_parallel_size=1),
                cache_config=config.CacheConfig(
                    block_size=job["block_size"], num_blocks=job["kv_tokens"] // job["block_size"]
                ),
                replica_scheduler_config=config.SarathiSchedulerConfig(
                    batch_size_cap=job["max_num_seqs"], chunk_size=job["max_num_batched_tokens"]
                ),
            ),
            request_generator_config=config.TraceRequestGeneratorConfig(
                trace_file=job["trace"],
                date="all",
                prefill_scale_factor=1,
                decode_scale_factor=1,
                time_scale_factor=1,
                max_tokens=1 << 20,
            ),
            metrics_config=config.MetricsConfig(
                write_metrics=False, enable_chrome_trace=False, store_plots=False, output_dir=job["folder"]
            ),
        )
    )
    start = time.perf_counter()
    simulator.run()
    seconds = time.perf_counter() - start
    return {"version": version("vidur"), "requests": job["requests"], "seconds": seconds}


def write_mooncake(trace: sim.Trace, path: Path) -> None:
    """Write the trace in the Mooncake format; without prefixes, every 512-token block gets an id of its own."""
    fresh = 0
    with path.open("w") as file:
        for i in range(len(trace)):
            blocks = -(-int(trace.num_prompt_tokens[i]) // 512)
            if trace.prefixes is None:
                ids, fresh = list(range(fresh, fresh + blocks)), fresh + blocks
            else:
                ids = trace.prefixes.ids[trace.prefixes.ptr[i] : trace.prefixes.ptr[i + 1]].tolist()
            row = {
                "timestamp": int(trace.arrival_us[i]) // 1_000,
                "input_length": int(trace.num_prompt_tokens[i]),
                "output_length": int(trace.num_output_tokens[i]),
                "hash_ids": ids,
            }
            file.write(json.dumps(row) + "\n")


def write_vidur(trace: sim.Trace, path: Path, count: int) -> None:
    with path.open("w") as file:
        file.write("Date,Time,PromptTokenCount,CompletionTokenCount\n")
        for i in range(count):
            prompt, output = int(trace.num_prompt_tokens[i]), int(trace.num_output_tokens[i])
            file.write(f"all,{int(trace.arrival_us[i]) / 1e6},{prompt},{output}\n")


def run_rival(python: str, function: Callable[[dict[str, Any]], dict[str, Any]], job: dict[str, Any]) -> dict[str, Any]:
    """Return the result of `function` in the other interpreter, or {"error": one line} when it cannot run there."""
    source = (
        "from typing import Any\nimport json, sys\n"
        + inspect.getsource(function)
        + f"\nprint('RESULT', json.dumps({function.__name__}(json.loads(sys.argv[1]))))\n"
    )
    try:
        # log lines per request would take much of a simulator's time
        done = subprocess.run(
            [python, "-c", source, json.dumps(job)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={"DYN_LOG": "error", "WANDB_MODE": "disabled"},
            cwd=job["folder"],
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": f"{type(error).__name__}: {error}"[:100]}
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return dict(json.loads(line.removeprefix("RESULT ")))
    return {"error": (done.stderr.strip().splitlines() or ["it printed nothing"])[-1][:100]}


def add_rivals(table: Table, python: str | None, engine: sim.EngineConfig, step_time: sim.StepTimeModel) -> list[str]:
    """Add a row for each rival run and for each reported number; return the rivals that could not be run, and why."""
    notes, ran = [], set[str]()
    table.add_section()
    with tempfile.TemporaryDirectory() as folder:
        conv, mooncake = sim.Trace.shipped("azure-conv"), sim.Trace.shipped("mooncake")
        write_mooncake(conv, Path(folder, "conv.jsonl"))
        write_mooncake(mooncake, Path(folder, "mooncake.jsonl"))
        few = 3_000
        write_vidur(conv, Path(folder, "conv.csv"), few)
        limits = {
            "folder": folder,
            "kv_tokens": engine.total_blocks * engine.block_size,
            "block_size": engine.block_size,
            "max_num_seqs": engine.max_num_seqs,
            "max_num_batched_tokens": engine.max_num_batched_tokens,
            "step_time": step_time.model_dump(),
        }
        one = {**limits, "trace": f"{folder}/conv.jsonl", "replicas": 1}
        four = {**limits, "trace": f"{folder}/mooncake.jsonl", "replicas": 4, "max_num_batched_tokens": 8_192}
        vidur = {**limits, "trace": f"{folder}/conv.csv", "replicas": 1, "requests": few}
        cases = [
            *(
                ("DynoSim", f"{name}, blocks of {block}", run_dynosim, {**job, "block_size": block})
                for name, job in (("Azure conv", one), ("Mooncake, 4 workers, KV router", four))
                # ours; DynoSim's own default; the trace's, which is coarse and by far the quickest for it
                for block in (engine.block_size, 64, 512)
            ),
            ("Vidur", f"Azure conv, first {few:,}, metrics off", run_vidur, vidur),
        ]
        for rival, name, function, job in cases:
            if python is None:
                continue
            answer = run_rival(python, function, job)
            if "error" in answer:
                notes.append(f"{rival}, {name}: not run: {answer['error']}")
                continue
            ran.add(rival)
            ttft = f"{answer['ttft_s']:.3f}" if "ttft_s" in answer else "-"
            rate = answer["requests"] / answer["seconds"]
            table.add_row(f"{rival} {answer['version']}: {name}", f"{answer['seconds']:.3f}", f"{rate:,.0f}", "-", ttft)
    for rival, name, reported in REPORTED:
        table.add_row(f"{rival}: {name} (reported, not run)", "-", f"{reported:,}", "-", "-")
        if rival.split()[0] not in ran:
            runnable = rival.split()[0] in {case[0] for case in cases}
            why = "cannot be installed as a Python package" if not runnable else "it did not run in --rivals-python"
            if runnable and python is None:
                why = "no --rivals-python given"
            notes.append(f"{rival}, {name}: {why}; the number is the reported one")
    return notes


def best(run: Callable[[], sim.SimulationResult], repeats: int) -> tuple[sim.SimulationResult, float]:
    seconds = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        seconds = min(seconds, time.perf_counter() - start)
    return result, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=1_000_000, help="requests in the longest growth run")
    parser.add_argument("--rivals-python", help="an interpreter that has ai-dynamo, ai-dynamo-runtime and vidur")
    options = parser.parse_args()

    workload = sim.default_workload()
    engine, step_time = workload.engine, workload.calibration.step_time
    conv, mooncake = sim.Trace.shipped("azure-conv"), sim.Trace.shipped("mooncake")
    start = time.perf_counter()
    sim.simulate(workload.train, engine, step_time)
    ready = time.perf_counter() - start

    ordering = {"ordering": shortest_prompt_with_aging}
    routed = {**ordering, "routing": prefix_aware}
    large_steps = engine.model_copy(update={"max_num_batched_tokens": 8_192})
    four = sim.Fleet(replicas=4)
    cases: list[tuple[str, Callable[[], sim.SimulationResult], int]] = [
        ("Azure conv, recorded rate, native ordering", lambda: sim.simulate(conv, engine, step_time, ordering), 9),
        (
            f"Azure conv, {workload.rate_factor:g}x (overload), native ordering",
            lambda: sim.simulate(conv.scaled(workload.rate_factor), engine, step_time, ordering),
            9,
        ),
        (
            "Mooncake, 4 replicas, prefix cache, prefix-aware routing",
            lambda: sim.simulate(mooncake, large_steps, step_time, routed, fleet=four),
            9,
        ),
    ]
    lengths = Lengths.like(conv)
    count = 10_000
    while count <= options.largest:
        trace = poisson(count, conv.rate, lengths, seed=1)
        cases.append(
            (f"Poisson, {count:,} requests", lambda t=trace: sim.simulate(t, engine, step_time, ordering), 3)  # type: ignore[misc]
        )
        count *= 10
    growth = poisson(100_000, conv.rate, lengths, seed=2)
    for replicas in (1, 2, 4, 8):
        fleet = sim.Fleet(replicas=replicas)
        cases.append(
            (
                f"Poisson, 100,000 requests, {replicas} replicas",
                lambda f=fleet, r=replicas: sim.simulate(growth.scaled(r), engine, step_time, ordering, fleet=f),  # type: ignore[misc]
                3,
            )
        )

    table = Table(title=f"simulator, one core (first run with compiling or loading: {ready:.1f} s)")
    for column in ("workload", "seconds", "requests/s", "engine steps/s", "mean TTFT s"):
        table.add_column(column, justify="left" if column == "workload" else "right")
    for name, run, repeats in cases:
        result, seconds = best(run, repeats)
        rate, steps = result.num_requests / seconds, result.steps / seconds
        table.add_row(name, f"{seconds:.3f}", f"{rate:,.0f}", f"{steps:,.0f}", f"{result.ttft.mean:.3f}")
    notes = add_rivals(table, options.rivals_python, engine, step_time)
    console = Console()
    console.print(table)
    for note in notes:
        console.print(note)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    console.print(f"peak memory {peak:.2f} GB; numpy {np.__version__}")


if __name__ == "__main__":
    main()
