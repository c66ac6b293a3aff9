"""Writes `request_ordering.jsonl`: the corpus that verification is measured on. Run it again only to change the corpus on purpose.

One policy a line: `name`, `kind` (baseline, written, search) and `source`. Baselines and written policies are by hand, many of
them non-linear; the rest is seeded output of the search proposer, proved or not.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from autopoiesis_contracts.request_ordering import RequestOrdering
from autopoiesis_lib import Policy, PolicyError
from autopoiesis_lib.synthesis.proposer import Context, Parent, Slot
from autopoiesis_lib.synthesis.search import SearchProposer

CORPUS = Path(__file__).with_name("request_ordering.jsonl")
HEADER = "from autopoiesis_contracts.request_ordering import Engine, Waiting\n\n\n"
SIGNATURE = "def score(request: Waiting, engine: Engine) -> int:\n"

EXPRESSIONS = {
    "double-wait": "request.waited_us * 2",
    "shortest-first": "-request.num_prompt_tokens",
    "longest-first": "request.num_prompt_tokens",
    "newest-first": "-request.waited_us",
    "constant": "7",
    "bounded-size": "request.waited_us - min(request.num_prompt_tokens, 8_192) * 1_000",
    "uncached": "request.waited_us - (request.num_prompt_tokens - request.num_cached_tokens) * 500",
    "remaining": "request.waited_us - min(request.max_tokens, 2_048) * 20_000",
    "product-of-sizes": "request.waited_us * 3 - request.num_prompt_tokens * min(request.num_output_tokens + 1, 100)",
    "square-of-prompt": "request.waited_us - min(request.num_prompt_tokens, 16_384) ** 2",
    "cube-of-prompt": "request.waited_us - min(request.num_prompt_tokens, 512) ** 3",
    "square-of-wait": "(request.waited_us // 1_000) ** 2 - request.num_prompt_tokens",
    "wait-times-priority": "request.waited_us * (request.priority + 1)",
    "wait-times-load": "request.waited_us * (engine.num_running + 1) - request.num_prompt_tokens * 1_000",
    "response-ratio": "request.waited_us * 1_000 // request.num_prompt_tokens",
    "response-ratio-and-wait": "request.waited_us + request.waited_us // request.num_prompt_tokens",
    "ratio-capped": "request.waited_us + min(1_000_000_000 // request.num_prompt_tokens, 60_000_000)",
    "per-free-block": "request.waited_us - request.num_prompt_tokens * 1_000_000 // (engine.free_blocks + 1)",
    "zero-divisor": "request.waited_us // engine.num_running",
    "zero-divisor-offset": "request.waited_us // (engine.free_blocks - 17)",
    "negative-divisor": "-(request.num_prompt_tokens // -3) * 1_000 + request.waited_us",
    "modulo-jitter": "request.waited_us + request.num_prompt_tokens % 97 * 1_000",
    "modulo-wait": "request.waited_us % 60_000_000",
    "modulo-negative": "request.waited_us + request.num_prompt_tokens % -97",
    "overflow": "request.waited_us * request.waited_us * 1_000",
    "overflow-edge": "request.waited_us * 53_375_995",
    "overflow-shift": "request.waited_us * 2 ** 40",
    "range-edge": "request.waited_us * 53_000_000",
    "bool-arithmetic": "request.waited_us + (request.num_preemptions > 0) * 30_000_000",
    "chained-comparison": "request.waited_us + (5_000_000 if 0 < request.num_prompt_tokens <= 512 else 0)",
    "lazy-and": "request.waited_us + (engine.num_running and request.num_prompt_tokens // engine.num_running) * 10",
    "lazy-or": "request.waited_us - (request.num_cached_tokens or request.num_prompt_tokens)",
    "abs-distance": "-abs(request.waited_us - 50_000_000)",
    "abs-size": "request.waited_us - abs(request.num_prompt_tokens - 1_024) * 100",
    "oldest-gap": "request.waited_us - (engine.oldest_waited_us - request.waited_us)",
    "load-switch": "request.waited_us if engine.num_waiting < 16 else request.waited_us - request.num_prompt_tokens * 300",
    "memory-switch": (
        "request.waited_us - request.num_prompt_tokens * (200 if engine.free_blocks * 4 < engine.total_blocks else 50)"
    ),
    "load-times-size": "request.waited_us - min(request.num_prompt_tokens, 4_096) * min(engine.num_waiting, 1_000)",
    "three-factors": (
        "request.waited_us - min(request.num_prompt_tokens, 512) * min(engine.num_waiting, 64) * min(engine.num_running + 1, 64)"
    ),
    "min-of-max": "request.waited_us + max(min(request.priority * 4_000_000, 30_000_000), request.num_preemptions * 10)",
    "preempted-first": "request.waited_us + min(request.num_preemptions, 10) * 20_000_000",
    "not-flag": "request.waited_us + (not request.num_cached_tokens) * -2_000_000",
    "wait-in-seconds": "request.waited_us // 1_000_000",
    "wait-in-buckets": "request.waited_us // 10_000_000 * 1_000_000 - min(request.num_prompt_tokens, 500_000)",
    "blocks-needed": "request.waited_us - -(-request.num_prompt_tokens // engine.block_size) * 100",
    "share-of-memory": "request.waited_us - request.num_prompt_tokens * 1_000 // engine.block_size * 1_000 // engine.total_blocks",
}

BODIES = {
    "tiers": """    if request.waited_us > 30_000_000:
        return request.waited_us + 10**12
    if request.num_prompt_tokens < 512:
        return request.waited_us + 5_000_000
    return request.waited_us - request.num_prompt_tokens * 100 // (1 + engine.num_running)
""",
    "lanes": """    lane = 0
    if request.priority >= 12:
        lane = 2
    elif request.priority >= 8:
        lane = 1
    return lane * 90_000_000 + request.waited_us - min(request.num_prompt_tokens, 4_096) * 1_000
""",
    "loop-buckets": """    bonus = 0
    for i in range(12):
        if request.num_prompt_tokens <= 256 * i:
            bonus += 1_000_000
    return request.waited_us + bonus
""",
    "loop-early-return": """    for i in range(8):
        if request.waited_us > 2**4 * 1_000_000 * (8 - i):
            return (8 - i) * 10_000_000_000 + request.waited_us
    return request.waited_us - min(request.num_prompt_tokens, 1_024)
""",
    "deadline": """    slack = 20_000_000 - request.waited_us
    if slack < 0:
        return 200_000_000 - slack
    return 100_000_000 - slack - min(request.num_prompt_tokens, 10_000) * 5_000
""",
    "unreachable": """    if request.priority > 15:
        return request.waited_us // 0
    return request.waited_us
""",
    "accumulate": """    total = request.waited_us
    total -= min(request.num_prompt_tokens, 4_096) * 700
    total += request.priority * 1_000_000
    total -= request.num_output_tokens // 2
    return total
""",
    "cliff": """    if request.num_prompt_tokens > 4_096:
        return request.waited_us - 700_000_000
    return request.waited_us
""",
    "cliff-within": """    if request.num_prompt_tokens > 4_096:
        return request.waited_us - 500_000_000
    return request.waited_us
""",
}


def entries() -> Iterator[tuple[str, str, str]]:
    """Name, kind and source of every policy."""
    for name, source in RequestOrdering.baselines().items():
        yield name, "baseline", source
    for name, expression in EXPRESSIONS.items():
        yield name, "written", f"{HEADER}{SIGNATURE}    return {expression}\n"
    for name, body in BODIES.items():
        yield name, "written", f"{HEADER}{SIGNATURE}{body}"
    yield from searched(160)


def searched(count: int) -> Iterator[tuple[str, str, str]]:
    """Seeded search output: fresh programs, and variations of earlier ones and of the baselines."""
    contract = RequestOrdering()
    proposer = SearchProposer()
    rng = Random(7)
    parents = [Parent(id=-1, source=source) for source in RequestOrdering.baselines().values()]
    seen: set[str] = set()
    number = 0
    while len(seen) < count:
        number += 1
        chosen = tuple(rng.sample(parents, 2)) if rng.random() < 0.7 else ()
        context = Context(contract=contract, seed=11, generation=number)
        draft = proposer.draft(context, Slot(id=number, island=0, parents=chosen))
        try:
            policy = Policy.from_source(draft.source, contract)
        except PolicyError:
            continue
        if policy.digest in seen:
            continue
        seen.add(policy.digest)
        parents.append(Parent(id=number, source=draft.source))
        yield f"search-{len(seen):03d}", "search", draft.source


if __name__ == "__main__":
    with CORPUS.open("w", encoding="utf-8") as file:
        for name, kind, source in entries():
            file.write(json.dumps({"name": name, "kind": kind, "source": source}) + "\n")
    print(f"{sum(1 for _ in CORPUS.open())} policies in {CORPUS.name}")
