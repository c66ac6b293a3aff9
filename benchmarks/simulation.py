"""How fast the simulator is: requests and engine steps per wall second, one core, and how it grows.

    python benchmarks/simulation.py [--largest 10000000]

Every figure is the best of several runs, with the arrays' set-up inside; compiling is reported apart.
"""

import argparse
import resource
import time
from collections.abc import Callable

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
    console = Console()
    console.print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    console.print(f"peak memory {peak:.2f} GB; numpy {np.__version__}")


if __name__ == "__main__":
    main()
