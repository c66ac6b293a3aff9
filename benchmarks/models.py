"""Distribution of an `LLMProposer`'s calls to two models, with the weights as given and with `adapt=True`.

    python benchmarks/models.py [--generations 20] [--size 32]

Two real HTTP servers stand for the models. Each answers with a new policy in a given share of its answers, and with one
that the gates refuse in the others, at a given number of tokens per call. The output is the share of calls to each
model, and the number of new policies that passed the cheap gates per 1,000 tokens. The good answers are drawn from a
seed, so the table is the same every time.
"""

import argparse
import json
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from random import Random

from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering
from canned import serving
from rich.console import Console
from rich.table import Table

from autopoiesis_lib.synthesis import Context, LLMProposer, Slot

GOOD = BASELINES["shortest-prompt-aging"]
SCENARIOS: Mapping[str, Mapping[str, tuple[float, int]]] = {
    "one good, one rubbish": {"x/good": (0.9, 1_000), "x/rubbish": (0.02, 1_000)},
    "equally good, one wordy": {"x/terse": (0.7, 1_000), "x/wordy": (0.7, 4_000)},
    "better but dearer": {"x/small": (0.4, 1_000), "x/large": (0.8, 3_000)},
    "no difference": {"x/one": (0.6, 1_000), "x/two": (0.6, 1_000)},
}
"""Map from a scenario's name to a map from a model to (share of usable answers, tokens per call)."""


def canned(quality: float, tokens: int, seed: str, limit: int) -> AbstractContextManager[str]:
    """Serve a model while the block runs, and give its base URL.

    `limit` makes its policies differ from other models'.
    """
    chance, lock, numbers = Random(seed), threading.Lock(), iter(range(10_000, 10_000_000))

    def write() -> str:
        with lock:
            good, number = chance.random() < quality, next(numbers)
        text = GOOD.replace("10_000", f"{number}").replace("8_192", f"{limit}") if good else "import os"
        return json.dumps({"rationale": "-", "expected_effect": "-", "source": text})

    return serving(write, prompt_tokens=tokens - 100, completion_tokens=100)


def measure(
    models: Mapping[str, tuple[float, int]], adapt: bool, generations: int, size: int
) -> tuple[list[float], float]:
    """Return (share of calls by model, new policies accepted per 1,000 tokens)."""
    (one, first), (two, second) = models.items()
    calls, taken, tokens = dict.fromkeys(models, 0), 0, 0
    with canned(*first, seed=one, limit=4_096) as first_url, canned(*second, seed=two, limit=8_192) as second_url:
        ours = LLMProposer(
            dict.fromkeys(models, 1.0), base_url={one: first_url, two: second_url}, api_key="none", repairs=0,
            parallel=1, adapt=adapt,
        )  # fmt: skip
        for generation in range(generations):
            slots = [Slot(id=size * generation + i, island=0) for i in range(size)]
            for draft in ours.propose(Context(contract=RequestOrdering(), seed=1, generation=generation), slots):
                calls[str(draft.details.get("model") or draft.details["llm_tried"])] += 1
                taken += draft.move == "llm"
                tokens += int(draft.details["tokens"])
    return [count / sum(calls.values()) for count in calls.values()], 1_000 * taken / tokens


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=20)
    parser.add_argument("--size", type=int, default=32)
    args = parser.parse_args()
    table = Table(
        "two models, equal weights", "calls, as given", "calls, adapted", "taken / 1k tokens", "adapted", "gain"
    )
    for name, models in SCENARIOS.items():
        given, before = measure(models, False, args.generations, args.size)
        adapted, after = measure(models, True, args.generations, args.size)
        shares = [" / ".join(f"{share:.0%}" for share in shares) for shares in (given, adapted)]
        table.add_row(name, *shares, f"{before:.3f}", f"{after:.3f}", f"{after / before:.2f}x")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
