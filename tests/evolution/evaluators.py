"""Evaluators for tests, importable by worker processes: a cheap honest one, and some that misbehave."""

import os
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from autopoiesis_lib import Contract, Policy
from autopoiesis_lib.evolution.evaluator import Measurement, Window

Row = Mapping[str, int]


@dataclass(frozen=True)
class Cheap:
    """Costs a policy by how it ranks fixed requests against their sizes: deterministic, a millisecond, no simulator."""

    requests: int = 48

    def measure(self, policy: Policy, window: Window, *, samples: bool = False) -> Sequence[Measurement]:
        if window == "short":
            return []
        draw = Random(f"requests/{window}")
        rows = [self._row(draw) for _ in range(self.requests)]
        function = policy.native(None, tuple(rows[0]))
        order = sorted(range(len(rows)), key=lambda i: (-function(*rows[i].values()), i))
        clock, waits = 0.0, np.zeros(len(rows))
        for i in order:
            clock += rows[i]["request.num_prompt_tokens"]
            waits[i] = clock
        return [Measurement({"ttft_mean_us": float(waits.mean()), "ttft_p99_us": float(waits.max())}, {"ttft": waits})]

    def probes(self, contract: Contract, decision: str) -> Sequence[Sequence[Row]]:
        draw = Random("probes")
        rows = [self._row(draw) for _ in range(64)]
        split: list[dict[str, dict[str, int]]] = [{part: {} for part in ("request", "engine")} for _ in rows]
        for row, target in zip(rows, split, strict=True):
            for name, value in row.items():
                view, _, field = name.partition(".")
                target[view][field] = value
        engine: Row = split[0]["engine"]
        return [[item["request"], engine] for item in split]

    def describe(self) -> Mapping[str, Any]:
        return {"name": type(self).__name__, "requests": self.requests}

    def _row(self, draw: Random) -> dict[str, int]:
        prompt = draw.randrange(1, 4_000)
        return {
            "request.waited_us": draw.randrange(10_000_000),
            "request.num_prompt_tokens": prompt,
            "request.num_cached_tokens": draw.randrange(prompt),
            "request.num_output_tokens": 0,
            "request.max_tokens": 512,
            "request.priority": 8,
            "request.num_preemptions": 0,
            "engine.num_waiting": 48,
            "engine.num_running": 3,
            "engine.free_blocks": 1_000,
            "engine.total_blocks": 2_000,
            "engine.block_size": 16,
            "engine.max_num_seqs": 64,
            "engine.oldest_waited_us": 10_000_000,
        }


@dataclass(frozen=True)
class Misbehaving(Cheap):
    """Does something terrible on every third candidate that is not a baseline (told by what it returns)."""

    deed: str = "loop"

    def measure(self, policy: Policy, window: Window, *, samples: bool = False) -> Sequence[Measurement]:
        measured = super().measure(policy, window, samples=samples)
        if (
            window == "train"
            and "min(request.num_prompt_tokens, 8192) * 10000" not in policy.source.replace("_", "")
            and _unlucky(policy)
        ):
            DEEDS[self.deed]()
        return measured


def _unlucky(policy: Policy) -> bool:
    return (
        "score" in policy.source
        and policy.source not in policy.contract.baselines().values()
        and zlib.crc32(policy.source.encode()) % 3 == 0
    )


def _loop() -> None:
    while True:
        pass


def _sleep() -> None:
    time.sleep(3_600)


def _eat() -> None:
    held = []
    while True:
        held.append(bytearray(64 * 2**20))


def _crash() -> None:
    os.kill(os.getpid(), 11)


def _raise() -> None:
    raise ValueError("the evaluator does not like this one")


def _exit() -> None:
    os._exit(3)


def _fork_and_loop() -> None:
    if os.fork() == 0:
        while True:
            time.sleep(0.05)
    _sleep()


DEEDS = {
    "loop": _loop,
    "sleep": _sleep,
    "eat": _eat,
    "crash": _crash,
    "raise": _raise,
    "exit": _exit,
    "fork": _fork_and_loop,
}
