"""OpenEvolve and ours as language-model loops on the same canned endpoint, each with an evaluator without cost.

The endpoint answers every request at once with a new program in the form that the client expects. OpenEvolve gets a
Python file in a fence, ours a JSON object with a policy that passes the gates. Both use two workers and do all their
own work: OpenEvolve runs the program in its evaluator; ours parses, type-checks, tests and proves the policy. Time is
measured where both are seen alike, at the endpoint: from one request to the next, and from the start to the end of the
whole run.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from autopoiesis_contracts.request_ordering import RequestOrdering
from canned import serving

from autopoiesis_lib.evolution import Budget, Evaluator, evolve
from autopoiesis_lib.synthesis import LLMProposer

__all__ = ["compare"]

WORKERS = 2
PROGRAM = "def score(x):\n    return x + {}\n"
POLICY = """\
from autopoiesis_contracts.request_ordering import Engine, Waiting


def score(request: Waiting, engine: Engine) -> int:
    return request.waited_us - min(request.num_prompt_tokens, {cap}) * {weight}
"""


def compare(candidates: int, evaluator: Evaluator) -> None:
    """Print the wall milliseconds per candidate of both, OpenEvolve first.

    Exit with 2 when OpenEvolve is not installed.
    """
    try:
        import openevolve  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        print("OpenEvolve is not installed in this environment: pip install openevolve", file=sys.stderr)
        raise SystemExit(2) from None
    print(
        f"{candidates} candidates by a language model on a canned local endpoint, {WORKERS} workers, trivial evaluators"
    )
    theirs = _measured("OpenEvolve", candidates, _program, _openevolve)
    ours = _measured("ours", candidates, _policy, lambda url, number: _ours(url, number, evaluator))
    print(f"  ours takes {ours / theirs:.2f} of OpenEvolve's time for the whole run")


def _measured(name: str, candidates: int, write: Callable[[int], str], run: Callable[[str, int], None]) -> float:
    """Return the seconds of the whole run."""
    asked: list[float] = []

    def answer() -> str:
        asked.append(time.perf_counter())
        return write(len(asked))

    with serving(answer) as url:
        started = time.perf_counter()
        run(url, candidates)
        wall = time.perf_counter() - started
    tenth = max(2, len(asked) // 10)
    first, last = (1e3 * (part[-1] - part[0]) / (len(part) - 1) for part in (asked[:tenth], asked[-tenth:]))
    print(
        f"  {name:<11} {wall / candidates * 1e3:7.1f} ms each, start and end included; between requests "
        f"{first:.1f} in the first tenth, {last:.1f} in the last; {len(asked)} requests",
        flush=True,
    )
    return wall


def _program(number: int) -> str:
    return f"```python\n# EVOLVE-BLOCK-START\n{PROGRAM.format(number)}# EVOLVE-BLOCK-END\n```"


def _policy(number: int) -> str:
    draw = Random(number)
    source = POLICY.format(cap=draw.randrange(64, 8_192), weight=draw.randrange(1, 60_000))
    return json.dumps({"rationale": f"idea {number}", "expected_effect": "lower TTFT", "source": source})


def _openevolve(url: str, candidates: int) -> None:
    from openevolve import OpenEvolve
    from openevolve.config import Config  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "initial.py").write_text("# EVOLVE-BLOCK-START\n" + PROGRAM.format(0) + "# EVOLVE-BLOCK-END\n")
        (root / "evaluator.py").write_text(
            "import random\ndef evaluate(path):\n    return {'combined_score': random.random()}\n"
        )
        config = Config.from_dict(
            {
                "max_iterations": candidates, "checkpoint_interval": 10**9, "log_level": "ERROR", "diff_based_evolution": False,
                "llm": {"api_base": url, "api_key": "none", "models": [{"name": "canned", "weight": 1.0}]},
                "evaluator": {"parallel_evaluations": WORKERS, "cascade_evaluation": False},
            }
        )  # fmt: skip
        run = OpenEvolve(
            str(root / "initial.py"), str(root / "evaluator.py"), config=config, output_dir=str(root / "out")
        )
        asyncio.run(run.run(iterations=candidates))


def _ours(url: str, candidates: int, evaluator: Evaluator) -> None:
    contract = RequestOrdering()
    with tempfile.TemporaryDirectory() as folder:
        evolve(
            contract,
            evaluator,
            LLMProposer("openai/canned", base_url=url, api_key="none"),
            Budget(candidates=candidates + len(contract.baselines())),
            workers=WORKERS,
            store=f"{folder}/s.db",
            certify=False,
        )
