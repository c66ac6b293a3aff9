"""Cost of evolution itself, and a comparison of the search with simpler ones.

    python benchmarks/evolution.py overhead [--candidates 1000]     seconds a candidate beside the gates and the evaluator
    python benchmarks/evolution.py openevolve [--candidates 100]    ours beside OpenEvolve, if installed, on one endpoint
    python benchmarks/evolution.py search [--seeds 10] [--candidates 500] [--workload ...] [--jobs 1]
                                                                    search against random sampling and constant tuning

The tables include results that miss our targets.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from random import Random
from typing import Any, Literal

import numpy as np
import same_endpoint
from autopoiesis_contracts.request_ordering import RequestOrdering

from autopoiesis_lib import Contract, Policy
from autopoiesis_lib.evolution import Budget, Measurement, Progress, SimulationEvaluator, evolve
from autopoiesis_lib.simulation.generators import Lengths, conversations
from autopoiesis_lib.simulation.trace import Trace
from autopoiesis_lib.simulation.workload import default_workload, overload_factor
from autopoiesis_lib.store import Store
from autopoiesis_lib.synthesis import SearchProposer

NOT_OURS = ("proof", "replay")
"""Stages of a candidate that are not overhead: the proof and the simulation."""


@dataclass(frozen=True)
class Trivial:
    """An evaluator without cost: a number computed from the policy's digest."""

    def measure(self, policy: Policy, window: str, *, samples: bool = False) -> Sequence[Measurement]:
        if window in ("short", "busier"):
            return []
        return [Measurement({"ttft_mean_us": 1.0 + int(policy.digest[:8], 16) / 2**32})]

    def probes(self, contract: Contract, decision: str) -> Sequence[Sequence[Mapping[str, int]]]:
        draw = Random("probes")
        views = [contract.views[param.type] for param in contract.decisions[decision].params]
        rows = [
            [{s.name: s.domain.lo + draw.randrange(min(s.domain.size, 100_000)) for s in v.fields()} for v in views]
            for _ in range(256)
        ]
        return [[row[0], *rows[0][1:]] for row in rows]

    def describe(self) -> Mapping[str, Any]:
        return {"name": "trivial"}


def overhead(candidates: int, workers: int) -> None:
    """Print the overhead per candidate by stretch of the run, with process isolation on.

    The overhead is all CPU time of the main process (proposals, store, archive, messages) and of the workers, minus the
    workers' time for the proof and the evaluation.
    """
    import psutil  # type: ignore[import-untyped]

    contract = RequestOrdering()
    stretches = (4, 100, 1_000, 2_000, 4_000, 6_000, 8_000, 10_000)
    edges = [edge for edge in stretches if edge < candidates] + [candidates]
    marks: dict[int, tuple[float, float, float]] = {}

    def tell(item: Progress) -> None:
        if item.phase == "search" and item.done in edges:
            theirs = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
            marks[item.done] = (time.perf_counter(), time.process_time(), sum(cpu.user + cpu.system for cpu in theirs))

    with tempfile.TemporaryDirectory() as folder:
        budget = Budget(candidates=candidates)
        result = evolve(
            contract, Trivial(), budget=budget, workers=workers, store=f"{folder}/s.db", certify=False, progress=tell
        )
        store = Store.open(f"{folder}/s.db")
        rows = {row.id: row for row in store.candidates(result.run)}
        store.close()
    print(f"{candidates} candidates, {workers} worker process(es), trivial evaluator, search proposer, SQLite store")
    for low, high in pairwise(edges):
        each = 1e3 / (high - low)
        wall, main_cpu, workers_cpu = (last - first for first, last in zip(marks[low], marks[high], strict=True))
        stages: dict[str, float] = {}
        for i in range(low, high):
            for stage, seconds in rows[i].seconds.items():
                stages[stage] = stages.get(stage, 0.0) + seconds
        ours = main_cpu + workers_cpu - sum(stages.get(stage, 0.0) for stage in NOT_OURS)
        parts = ", ".join(f"{stage} {seconds * each:.2f}" for stage, seconds in stages.items())
        print(
            f"  candidates {low:>5}-{high:<5} own {ours * each:5.2f} ms each; wall with everything {wall * each:5.2f}; "
            f"main process {main_cpu * each:.2f}, workers {workers_cpu * each:.2f} of which {parts}"
        )


WINDOWS: Mapping[str, int] = {"azure-conv": 4, "azure-code": 4, "mooncake": 4, "phase-shift": 12}
"""Number of consecutive windows of equal numbers of requests per trace: the odd ones train, the even ones judge.

The two halves of a trace have different traffic (Mooncake's second is nine times as congested as its first). With
halves, overfitting by chance would decide which search is better. The live comparison tests how a policy handles a
change. In the generated trace each phase is a window, so that two phases of each kind train and two judge.
"""


def evaluator_named(name: str, contract: Contract) -> SimulationEvaluator:
    """Return one of the four workloads of the comparison, at the rate that just overloads first come, first served."""
    default = default_workload()
    trace, factor = (phase_shift(), 1.0) if name == "phase-shift" else (Trace.shipped(name), default.rate_factor)
    if name in ("azure-code", "mooncake"):
        factor = overload_factor(trace, default.calibration, default.engine)
    windows = trace.scaled(factor).windows(WINDOWS[name])
    return SimulationEvaluator(
        train=windows[::2], held_out=windows[1::2], engine=default.engine, step_time=default.calibration.step_time,
        slo=default.slo, slots=dict(contract.slots), name=name,
    )  # fmt: skip


PHASES = 12


def phase_shift() -> Trace:
    """Return a generated trace whose mix changes every few minutes: chat, long writing, code, and again.

    Requests are in conversations that share prefixes. Clients ask for at most the next power of two above the answer's
    length. Each kind arrives at the rate that just overloads first come, first served: at one rate for all, only the
    writing would queue.
    """
    default = default_workload()
    kinds = (
        Lengths.like(Trace.shipped("azure-conv")),
        Lengths.lognormal(prompt_p50=300, prompt_p99=3_000, output_p50=500, output_p99=4_000, seed=7),
        Lengths.like(Trace.shipped("azure-code")),
    )
    make = partial(conversations, 400, 1.5, turns=3.0, think_s=20.0, block_tokens=128)
    parts = [make(kinds[i % 3], seed=100 + i) for i in range(PHASES)]
    for kind in range(3):
        first, *others = parts[kind::3]
        factor = overload_factor(first.spliced(*others), default.calibration, default.engine)
        parts[kind::3] = [part.scaled(factor) for part in parts[kind::3]]
    trace = parts[0].spliced(*parts[1:])
    limits = (2 ** np.ceil(np.log2(np.maximum(trace.num_output_tokens, 16)))).astype(np.int64)
    return Trace.from_columns(
        arrival_us=trace.arrival_us,
        num_prompt_tokens=trace.num_prompt_tokens,
        num_output_tokens=trace.num_output_tokens,
        max_tokens=limits,
        prefixes=trace.prefixes,
        name="phase-shift",
        source="synthetic",
    )


MODES: tuple[Literal["full", "random", "tune"], ...] = ("full", "random", "tune")


def one_run(
    name: str, mode: Literal["full", "random", "tune"], seed: int, candidates: int, workers: int
) -> dict[str, float]:
    """Return the held-out mean TTFT in seconds: under "" that of one run's winner, and that of each baseline."""
    contract = RequestOrdering()
    evaluator = evaluator_named(name, contract)
    with tempfile.TemporaryDirectory() as folder:
        result = evolve(
            contract, evaluator, SearchProposer(mode=mode), Budget(candidates=candidates), seed=seed, workers=workers,
            store=f"{folder}/s.db", certify=False,
        )  # fmt: skip
    metrics = {"": result.held_out, **result.baselines}
    return {key: values["ttft_mean_us"] / 1e6 for key, values in metrics.items()}


def search(names: Sequence[str], seeds: range, candidates: int, workers: int, jobs: int) -> None:
    """Print the held-out objective after equal candidate budgets.

    It compares the search, random sampling, and tuning the baselines' constants.
    """
    wins = 0
    print(
        f"{candidates} candidates, seeds {seeds.start} to {seeds.stop - 1}; held-out mean TTFT in seconds, median over seeds"
    )
    headings = f"{'workload':<14}{'fcfs':>8}{'best baseline':>15}{'random':>9}{'tuning':>9}{'search':>9}"
    print(f"{headings}  vs random (95%)      vs tuning (95%)")
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        runs = {
            (name, mode, seed): pool.submit(one_run, name, mode, seed, candidates, workers)
            for name in names
            for mode in MODES
            for seed in seeds
        }
        for name in names:
            wins += _row(name, {mode: [runs[name, mode, seed].result() for seed in seeds] for mode in MODES})
    print(f"the search beats both beyond noise on {wins} of {len(names)}")


def _row(name: str, results: Mapping[str, Sequence[Mapping[str, float]]]) -> bool:
    """Print a workload's line; return true if the search beats both controls beyond noise."""
    found = {mode: [run[""] for run in runs] for mode, runs in results.items()}
    baselines = {key: value for key, value in results["full"][0].items() if key}
    ours = np.array(found["full"])
    intervals = [_interval(1 - ours / np.array(found[other])) for other in ("random", "tune")]
    middle = {mode: float(np.median(values)) for mode, values in found.items()}
    print(
        f"{name:<14}{baselines['fcfs']:>8.3f}{min(baselines.values()):>15.3f}{middle['random']:>9.3f}{middle['tune']:>9.3f}"
        f"{middle['full']:>9.3f}  " + "  ".join(f"{low:+7.2%} to {high:+7.2%}" for low, high in intervals),
        flush=True,
    )
    return all(low > 0 for low, _ in intervals)


def _interval(gains: "np.ndarray[Any, np.dtype[np.float64]]") -> tuple[float, float]:
    """Return the 95% paired bootstrap interval of the mean gain over seeds."""
    draw = np.random.default_rng(0)
    means = [draw.choice(gains, len(gains)).mean() for _ in range(4_000)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


WORKLOADS = ("azure-conv", "azure-code", "mooncake", "phase-shift")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "openevolve", "search"))
    parser.add_argument("--candidates", type=int)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--first-seed", type=int, default=0, help="0 for what is published; 100 and up for work on the search"
    )
    parser.add_argument("--workers", type=int)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--workload", action="append", choices=WORKLOADS)
    arguments = parser.parse_args()
    if arguments.what == "overhead":
        overhead(arguments.candidates or 1_000, arguments.workers or 1)
    elif arguments.what == "openevolve":
        same_endpoint.compare(arguments.candidates or 100, Trivial())
    else:
        search(
            arguments.workload or WORKLOADS,
            range(arguments.first_seed, arguments.first_seed + arguments.seeds),
            arguments.candidates or 500,
            arguments.workers or 2,
            arguments.jobs,
        )


if __name__ == "__main__":
    main()
