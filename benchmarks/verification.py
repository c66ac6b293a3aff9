"""Cost of verification, and CrossHair's answers to the same questions.

Over the committed corpus: the time of the proof gate (invariants at the contract's limit), of the tightest bound, and
of the whole warm gate chain without simulation, in CPU seconds of this process. Then a sample of the corpus goes to
CrossHair, the symbolic executor for Python that uses the same solver, with the same property, the same domains and ten
seconds a policy.

    python benchmarks/verification.py [--crosshair N] [--json FILE]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from autopoiesis_contracts.request_ordering import RequestOrdering
from rich.console import Console
from rich.table import Table

from autopoiesis_lib import Policy, contract_named, contract_names
from autopoiesis_lib.gates import GATES, Verdict, check, proof
from autopoiesis_lib.gates.theorems import prove_theorem

CORPUS = Path(__file__).parents[1] / "tests" / "corpus" / "request_ordering.jsonl"
CROSSHAIR_SECONDS = 10
SAMPLE = (
    "fcfs",
    "shortest-prompt-aging",
    "priority-aging",
    "shortest-first",
    "product-of-sizes",
    "response-ratio",
    "zero-divisor-offset",
    "tiers",
    "loop-buckets",
    "modulo-jitter",
    "cliff",
    "chained-comparison",
)


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crosshair", type=int, default=len(SAMPLE), help="policies to give to CrossHair (0: none)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    contract = RequestOrdering()
    policies = {
        entry["name"]: Policy.from_source(entry["source"], contract)
        for entry in map(json.loads, CORPUS.read_text(encoding="utf-8").splitlines())
    }
    console = Console()
    figures: dict[str, Any] = {"corpus": len(policies), **ours(policies, contract)}
    table = Table(title=f"Verification of {len(policies)} policies, CPU milliseconds a policy, one core")
    for column in ("what", "p50", "p90", "p99", "max", "verdicts"):
        table.add_column(column, justify="left" if column in ("what", "verdicts") else "right")
    for what in ("invariants", "least bound", "gate chain"):
        row = figures[what]
        verdicts = ", ".join(f"{verdict} {count}" for verdict, count in row["verdicts"].items())
        table.add_row(what, *(f"{row[key]:.1f}" for key in ("p50", "p90", "p99", "max")), verdicts)
    console.print(table)
    figures["theorems"] = theorems()
    lemmas = sum(row["lemmas"] for row in figures["theorems"].values())
    seconds = sum(row["cpu_s"] for row in figures["theorems"].values())
    console.print(f"all {lemmas} lemmas of {len(figures['theorems'])} theorems, by both solvers: {seconds:.2f} CPU s")
    if options.crosshair:
        figures["crosshair"] = beside_crosshair({name: policies[name] for name in SAMPLE[: options.crosshair]}, console)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def theorems() -> dict[str, dict[str, float]]:
    """Return the lemmas of each built-in theorem, all of which must be proved, and the CPU seconds that both solvers take."""
    found: dict[str, dict[str, float]] = {}
    for name in contract_names():
        contract = contract_named(name)
        for theorem in contract.theorems():
            started = time.process_time()
            lemmas = prove_theorem(contract, theorem)
            assert all(lemma.verdict is Verdict.PROVED and len(lemma.solvers) == 2 for lemma in lemmas), lemmas
            found[theorem.__name__] = {"lemmas": len(lemmas), "cpu_s": time.process_time() - started}
    return found


def ours(policies: dict[str, Policy], contract: RequestOrdering) -> dict[str, object]:
    """Return percentiles of our own times, in CPU milliseconds."""
    for policy in list(policies.values())[:3]:
        check(policy.source, contract)
    without_replay = tuple(gate for gate in GATES if gate != "replay")
    work = {
        "invariants": lambda policy: proof.check(policy, least=False).verdict,
        "least bound": lambda policy: proof.check(policy).verdict,
        "gate chain": lambda policy: check(policy.source, contract, gates=without_replay).verdict,
    }
    found: dict[str, object] = {}
    for what, run in work.items():
        verdicts: Counter[str] = Counter()
        times = []
        for policy in policies.values():
            started = time.process_time()
            verdict = run(policy)
            times.append((time.process_time() - started) * 1e3)
            verdicts[str(verdict)] += 1
        p50, p90, p99 = np.percentile(times, [50, 90, 99])
        found[what] = {"p50": p50, "p90": p90, "p99": p99, "max": max(times), "verdicts": dict(verdicts)}
    return found


def beside_crosshair(policies: dict[str, Policy], console: Console) -> list[dict[str, object]]:
    """Return our and CrossHair's answers to the same property, policy by policy, in wall seconds."""
    rows: list[dict[str, object]] = []
    table = Table(title=f"The same property, CrossHair given {CROSSHAIR_SECONDS} s a policy (wall seconds)")
    for column in ("policy", "ours", "s", "CrossHair", "s "):
        table.add_column(column, justify="right" if column.strip() == "s" else "left")
    for name, policy in policies.items():
        started = time.perf_counter()
        verdict = proof.check(policy, least=False).verdict
        our_seconds = time.perf_counter() - started
        theirs, their_seconds = crosshair(policy)
        rows.append(
            {
                "policy": name,
                "ours": str(verdict),
                "seconds": our_seconds,
                "crosshair": theirs,
                "crosshair_seconds": their_seconds,
            }
        )
        table.add_row(name, str(verdict), f"{our_seconds:.3f}", theirs, f"{their_seconds:.1f}")
    console.print(table)
    agreed = sum(1 for row in rows if row["ours"] == row["crosshair"])
    console.print(f"CrossHair reached our verdict on {agreed} of {len(rows)}; a time includes its start (about 1 s).")
    return rows


def crosshair(policy: Policy) -> tuple[str, float]:
    """Return CrossHair's answer on a policy's aging invariant and safety (PROVED, REFUTED, UNKNOWN) and its time."""
    contract = policy.contract
    views = contract.views
    scope = {"older": views["Waiting"], "newer": views["Waiting"], "engine": views["Engine"]}
    parameters, domains = [], []
    for owner, view in scope.items():
        for spec in view.fields():
            parameters.append(f"{owner}_{spec.name}: int")
            domains.append(f"{spec.domain.lo} <= {owner}_{spec.name} <= {spec.domain.hi}")
    for owner in ("older", "newer"):
        domains.append(f"{owner}_num_cached_tokens <= {owner}_num_prompt_tokens")
        domains.append(f"{owner}_waited_us <= engine_oldest_waited_us")
    domains += ["engine_free_blocks <= engine_total_blocks", "engine_num_running <= engine_max_num_seqs"]
    domains.append(f"older_waited_us >= newer_waited_us + {contract.max_aging_us}")
    build = {
        owner: f"{view.__name__}({', '.join(f'{owner}_{spec.name}' for spec in view.fields())})"
        for owner, view in scope.items()
    }
    classes = [
        f"class {view.__name__}(NamedTuple):\n" + "".join(f"    {spec.name}: int\n" for spec in view.fields())
        for view in views.values()
    ]
    body = "\n".join(line for line in policy.source.splitlines() if not line.startswith("from "))
    text = (
        "from typing import NamedTuple\n\n\n"
        + "\n\n".join(classes)
        + f"\n\n{body}\n\n\ndef ages({', '.join(parameters)}) -> bool:\n"
        + '    """\n'
        + "".join(f"    pre: {domain}\n" for domain in domains)
        + '    post: _\n    """\n'
        + f"    return score({build['older']}, {build['engine']}) >= score({build['newer']}, {build['engine']})\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.py"
        path.write_text(text, encoding="utf-8")
        started = time.perf_counter()
        run = subprocess.run(
            [
                sys.executable,
                "-m",
                "crosshair",
                "check",
                "--report_all",
                f"--per_condition_timeout={CROSSHAIR_SECONDS}",
                str(path),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=20 * CROSSHAIR_SECONDS,
        )
        seconds = time.perf_counter() - started
    if "Confirmed over all paths" in run.stdout:
        return "PROVED", seconds
    if "error:" in run.stdout:
        return "REFUTED", seconds
    if "Not confirmed" in run.stdout:
        return "UNKNOWN", seconds
    return f"no answer ({(run.stderr or run.stdout).strip().splitlines()[-1:]})", seconds


if __name__ == "__main__":
    main()
