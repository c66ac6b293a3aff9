"""Cost of the vLLM adapter: nanoseconds inside our code per step, and steps per second beside the plain scheduler.

No model runs. vLLM's real scheduler gets its tokens from a stand-in for the GPU whose time is not counted. Both
schedulers hold the same load (the same numbers running and waiting, one request finishing every four steps on average).
They run in interleaved blocks, so that other load on the machine affects both alike. Two identical schedulers differ by
a percent or two for their whole life, because of the memory layout of their requests. Every pair of schedulers is
therefore made anew, and the interval is over pairs. A pair counts by the median of its blocks, some of which other
processes may disturb.

In the comparison for the bar, all prompts have one length. The policy then serves requests in the order of arrival, as
the unmodified scheduler does, so the difference is the adapter. With mixed prompts vLLM's own work changes too, because
requests that are served together are then scattered in memory. That case is measured as well. A control measures the
same order in vLLM's own priority queue without an adapter. Steps are timed in CPU time of the engine's thread. Time
inside our code is timed by the wall clock (reading CPU time would cost as much as the measured code). It is the mean
over steps, without those in which the kernel gave the processor to another process, by its own count.

    python benchmarks/adapter.py [--json]

Swaps are measured on the same scheduler under load (its thread never rests, so other threads compete for the GIL).
Certified policies are published on a channel in turn, each once the previous one decides. Request-to-active is the time
from the moment the adapter sees the notice to the first step in which the policy decides. Published-to-active adds the
wait for the next check of the channel.

Bars: mean time inside our code at most 20 us a step at 1,000 waiting and 40 us at 5,000; steps/s within 2% of the
unmodified scheduler in the same order, upper end of the 95% interval over at least 10 pairs of blocks;
request-to-active at most 50 ms in every swap.
"""

import argparse
import gc
import json
import logging
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from autopoiesis_adapters.loading import compile_ordering
from autopoiesis_adapters.vllm.settings import Settings
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering
from scipy import stats

from autopoiesis_lib import Policy
from autopoiesis_lib.certificate import verify

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.adapters.tiny_llama import write_tiny_llama
from tests.adapters.vllm_bench import Bench, plain_bench, policy_bench, request, vllm_config
from tests.support.fleet import Fleet

BARS_US = {1_000: 20.0, 5_000: 40.0}
BAR_SLOWDOWN, BAR_CASE = 0.02, "same order"
BAR_ACTIVE_MS = 50.0
SWAPS = 24
LEAST_PAIRS = 2
BLOCKS = 6
"""Number of interleaved blocks of each scheduler of a pair that count."""

Priority = Callable[[int, int], int]
"""Function from the number of a request and its prompt tokens to vLLM's priority (low is served first)."""


@dataclass(frozen=True)
class Arm:
    """One of two schedulers that are compared."""

    make: Callable[..., Bench]
    mixed: bool
    """True when prompts differ in length."""
    priority: Priority | None = None
    """Order in vLLM's own priority queue; None for first come, first served."""


CASES: Mapping[str, tuple[Arm, Arm]] = {
    "same order": (Arm(policy_bench, mixed=False), Arm(plain_bench, mixed=False)),
    "the policy's order": (Arm(policy_bench, mixed=True), Arm(plain_bench, mixed=True)),
    "that order in vLLM's own queue": (
        Arm(plain_bench, mixed=True, priority=lambda number, prompt: 6 * number + 1_000 * prompt),
        Arm(plain_bench, mixed=True, priority=lambda number, prompt: 6 * number),
    ),
}
"""Pairs of arms: the first of each is compared with the second."""


@dataclass
class Load:
    """A scheduler under steady load: whenever a request finishes, another arrives."""

    bench: Bench
    running: int
    output: int
    mixed: bool = True
    priority: Priority | None = None
    made: int = 0
    scheduler_ns: int = 0
    steps: int = 0
    _landed: int = field(default=0)

    def fill(self, waiting: int) -> None:
        """Build up the load: `running` requests at different stages of their output, `waiting` behind them."""
        for i in range(self.running):
            # These finish at evenly spread times; later requests all have the same length.
            self._arrive(1 + (i + 1) * self.output // self.running)
        while len(self.bench.scheduler.running) < self.running:
            self.step()
        for _ in range(waiting):
            self._arrive(self.output)

    def step(self) -> None:
        """Run one step; only vLLM's and our code is timed."""
        scheduler = self.bench.scheduler
        clock = time.thread_time_ns
        started = clock()
        output = scheduler.schedule()
        spent = clock() - started
        answer = self.bench._model(output)
        started = clock()
        outputs = scheduler.update_from_output(output, answer)
        spent += clock() - started
        done = sum(one.finish_reason is not None for batch in outputs.values() for one in batch.outputs)
        for _ in range(done):
            self._arrive(self.output)
        self.scheduler_ns += spent
        self.steps += 1

    def _arrive(self, output: int) -> None:
        self.made += 1
        prompt = 33 + self.made * 7 % 16 if self.mixed else 40  # always three blocks
        more = {"priority": self.priority(self.made, prompt)} if self.priority is not None else {}
        new = request(f"r{self.made}", prompt=prompt, output=output, **more)
        started = time.thread_time_ns()
        self.bench.scheduler.add_request(new)
        self.scheduler_ns += time.thread_time_ns() - started


class OwnTime:
    """A timer of the nanoseconds inside the adapter's entry points, outermost calls only."""

    def __init__(self, bench: Bench) -> None:
        self.ns = 0
        self._inside = False
        side = bench.scheduler.autopoiesis
        for owner, names in (
            (side, ("stamp", "begin_step", "end_step", "finished")),
            (side.queue, ("peek_request", "pop_request", "add_request", "prepend_request", "remove_requests")),
        ):
            for name in names:
                setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        clock = time.perf_counter_ns

        def timed(*args: Any) -> Any:
            if self._inside:
                return method(*args)
            self._inside = True
            started = clock()
            try:
                return method(*args)
            finally:
                self.ns += clock() - started
                self._inside = False

        return timed


def loaded(arm: Arm, model: Path, waiting: int, running: int) -> Load:
    """Return a scheduler under load, with the ordering policy active if there is an adapter."""
    # Enough blocks for every running request to its end: this measures ordering, not preemption.
    queue = "fcfs" if arm.priority is None else "priority"
    config = vllm_config(
        model, max_num_seqs=running, num_blocks=running * 70, max_tokens_a_step=8_192, asynchronous=False, policy=queue
    )
    bench = arm.make(config)
    load = Load(bench, running, output=4 * running, mixed=arm.mixed, priority=arm.priority)
    side = getattr(bench.scheduler, "autopoiesis", None)
    if side is not None:
        policy = Policy.from_source(BASELINES["shortest-prompt-aging"], RequestOrdering())
        side.governor.offer(compile_ordering(policy, 600_000_000), 0)
    load.fill(waiting)
    return load


def own_time_us(model: Path, waiting: int, running: int, steps: int) -> dict[str, float]:
    """Return the mean microseconds inside our code per step, and the admissions per step during the measurement."""
    load = loaded(Arm(policy_bench, mixed=True), model, waiting, running)
    own = OwnTime(load.bench)
    side = load.bench.scheduler.autopoiesis
    for _ in range(200):
        load.step()
    made, decisions = load.made, side.governor.counters["decisions"]
    each: list[int] = []
    switches = involuntary_switches()
    for _ in range(steps):
        own.ns = 0
        load.step()
        before, switches = switches, involuntary_switches()
        if switches == before:
            each.append(own.ns)
    assert not side.governor.quarantined, side.governor.quarantined
    load.bench.scheduler.shutdown()
    return {
        "waiting": waiting,
        "us_per_step": statistics.fmean(each) / 1_000,
        "steps": len(each),
        "steps_interrupted": steps - len(each),
        "us_per_step_median": statistics.median(each) / 1_000,
        "admissions_per_step": (load.made - made) / steps,
        "decisions_per_step": (side.governor.counters["decisions"] - decisions) / steps,
    }


def involuntary_switches() -> int:
    """Return how often the kernel has taken the processor from this thread."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def slowdown(case: str, model: Path, waiting: int, running: int, pairs: int, steps: int) -> dict[str, Any]:
    """Return the relative increase of a step's time in the first arm of a case.

    It is the mean over new pairs of schedulers, with its 95% interval.
    """
    arms = CASES[case]
    measured = [pair_of_schedulers(arms, model, waiting, running, steps, first=pair % 2) for pair in range(pairs)]
    mean, low, high = interval([ratio for ratio, _ in measured])
    return {
        "case": case,
        "waiting": waiting,
        "running": running,
        "pairs": pairs,
        "blocks": pairs * BLOCKS,
        "plain_us_per_step": statistics.fmean(plain for _, plain in measured) / 1_000,
        "slowdown": mean - 1,
        "ci95_low": low - 1,
        "ci95_high": high - 1,
    }


def pair_of_schedulers(
    arms: tuple[Arm, Arm], model: Path, waiting: int, running: int, steps: int, first: int
) -> tuple[float, float]:
    """Return the median ratio of a block to its neighbour of the other arm, and nanoseconds per step of the second arm.

    The ratio is over `BLOCKS` interleaved pairs of blocks, after one pair to warm up.
    """
    made = [loaded(arm, model, waiting, running) for arm in (arms if first else arms[::-1])]
    loads = made if first else made[::-1]
    blocks: list[list[int]] = [[], []]
    gc.collect()
    gc.freeze()  # as vLLM's engine does after start-up
    for block in range(BLOCKS + 1):
        for which in (0, 1) if (block + first) % 2 else (1, 0):
            before = loads[which].scheduler_ns
            for _ in range(steps):
                loads[which].step()
            blocks[which].append(loads[which].scheduler_ns - before)
    gc.unfreeze()
    for load in loads:
        load.bench.scheduler.shutdown()
    ours, plain = (counted[1:] for counted in blocks)
    ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, plain, strict=True))
    return ratio, sum(plain) / (BLOCKS * steps)


def swaps(model: Path, waiting: int, running: int) -> dict[str, float]:
    """Return the milliseconds from request to active over `SWAPS` swaps under load, and the cost of the swaps."""
    policies = [Policy.from_source(source, RequestOrdering()) for source in BASELINES.values()]
    fleet = Fleet(model / "fleet")
    certificates = [fleet.certificate(verify(policy)) for policy in policies]
    channel = fleet.publisher(model / "channel")
    state = fleet.folder / "state" / "engine"
    settings = Settings(channel=channel.root, keys=fleet.keys, state=state, allow_single_solver=True)
    load = loaded(Arm(lambda config: policy_bench(config, None, settings), mixed=True), model, waiting, running)
    side = load.bench.scheduler.autopoiesis
    side.governor.swaps.clear()
    published: list[float] = []
    steps: list[float] = []
    for turn in range(SWAPS):
        policy, certificate = policies[turn % len(policies)], certificates[turn % len(policies)]
        for _ in range(20):
            load.step()
        started = time.perf_counter_ns()
        channel.publish(policy.digest, policy.source, certificate)
        while len(side.governor.swaps) <= turn:
            before = time.perf_counter_ns()
            load.step()
            steps.append((time.perf_counter_ns() - before) / 1e6)
        published.append((time.perf_counter_ns() - started) / 1e6)
    active = [(swap.at_us - swap.requested_us) / 1e3 for swap in side.governor.swaps]
    cpu = [cpu_ns / 1e6 for _, cpu_ns in side.watcher.loads]
    step_ns = [swap.step_ns / 1e3 for swap in side.governor.swaps]
    load.bench.scheduler.shutdown()
    return {
        "swaps": len(active),
        "request_to_active_ms_p50": statistics.median(active),
        "request_to_active_ms_max": max(active),
        "published_to_active_ms_p50": statistics.median(published),
        "load_cpu_ms_p50": statistics.median(cpu),
        "load_cpu_ms_max": max(cpu),
        "swap_step_us_p50": statistics.median(step_ns),
        "step_ms_p50": statistics.median(steps),
        "step_ms_max": max(steps),
    }


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return the mean and the 95% interval of the mean (Student's t)."""
    mean = statistics.fmean(values)
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def main() -> int:
    """Measure, print, and report whether the bars hold; return 1 when one does not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--running", type=int, default=256, help="requests running (vLLM's max_num_seqs)")
    parser.add_argument(
        "--pairs", type=int, default=64, help="fresh pairs of schedulers where the bar is; a quarter elsewhere"
    )
    parser.add_argument("--steps", type=int, default=60, help="steps a block")
    args = parser.parse_args()
    if args.pairs < LEAST_PAIRS:
        parser.error(f"--pairs {args.pairs}: an interval takes at least {LEAST_PAIRS}")
    # Print each figure as soon as it is measured: all of them take a quarter of an hour.
    say = partial(print, file=sys.stderr if args.json else sys.stdout, flush=True)
    logging.getLogger("vllm").setLevel(logging.ERROR)  # it warns anew for each of some hundred schedulers
    own, slow = [], []
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_llama(Path(folder))
        for waiting in BARS_US:
            own.append(row := own_time_us(model, waiting, args.running, 4_000))
            say(
                f"{waiting:>6,} waiting: {row['us_per_step']:.2f} us a step in our code (median "
                f"{row['us_per_step_median']:.2f}; bar {BARS_US[waiting]:.0f}) at {row['admissions_per_step']:.2f} "
                f"admissions a step, over {row['steps']} steps ({row['steps_interrupted']} more were interrupted)"
            )
        for case in CASES:
            pairs = args.pairs if case == BAR_CASE else max(args.pairs // 4, LEAST_PAIRS)
            for waiting in BARS_US:
                slow.append(compared := slowdown(case, model, waiting, args.running, pairs, args.steps))
                bounds = f"[{compared['ci95_low']:+.2%}, {compared['ci95_high']:+.2%}]"
                bar = f" (bar: upper end at most {BAR_SLOWDOWN:.0%})" if case == BAR_CASE else ""
                say(
                    f"{waiting:>6,} waiting, {case}: a step takes {compared['slowdown']:+.2%} {bounds} of "
                    f"{compared['plain_us_per_step']:.0f} us{bar}"
                )
        swapped = swaps(model, 1_000, args.running)
        say(
            f"{swapped['swaps']} swaps under load: request to active {swapped['request_to_active_ms_p50']:.1f} ms (median), "
            f"{swapped['request_to_active_ms_max']:.1f} ms (longest; bar {BAR_ACTIVE_MS:.0f}), published to active "
            f"{swapped['published_to_active_ms_p50']:.1f} ms; CPU time of a load {swapped['load_cpu_ms_p50']:.1f} ms (longest "
            f"{swapped['load_cpu_ms_max']:.1f}); the swap itself {swapped['swap_step_us_p50']:.1f} us of its step; steps "
            f"meanwhile {swapped['step_ms_p50']:.1f} ms (longest {swapped['step_ms_max']:.1f})"
        )
    held = (
        swapped["request_to_active_ms_max"] <= BAR_ACTIVE_MS
        and all(row["us_per_step"] <= BARS_US[int(row["waiting"])] for row in own)
        and all(row["ci95_high"] <= BAR_SLOWDOWN for row in slow if row["case"] == BAR_CASE)
    )
    say("bars held" if held else "a bar is NOT held")
    if args.json:
        print(json.dumps({"own_time": own, "slowdown": slow, "swaps": swapped, "bars_held": held}))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
