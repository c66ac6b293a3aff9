"""The online loop on a live server: a workload that shifts twice, served by one static policy or by the loop.

    python benchmarks/online.py [--reps 3] [--results DIR]      every arm, interleaved; prints the table
    python benchmarks/online.py --cells 1 --results DIR         one more cell of the same comparison, and the table so far

Arms: the unmodified engine; static policies, certified and signed, from the first request on; and the loop. The loop
begins with the engine's own order, while `autopoiesis watch` in a separate process (`--idle`) reads its telemetry,
evolves and publishes. The loop remembers the previous day: its store of policies, and the windows of telemetry that it
evolved on. That day is the same kind of traffic drawn from another seed, and is served once, beforehand; `loop-cold`
begins with nothing. No loop is given a policy. Every arm gets a fresh server and the same arrivals. Latency is from a
request's planned arrival to its whole answer, at the client. Answers are compared token by token with the unmodified
engine's. The table includes results that miss our targets.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering
from online_prepare import prepare, stretched
from online_server import LIMITS, replay, served_by_engine, serving, warm_up
from online_workload import Job, digest, workload
from rich.console import Console
from rich.table import Table

from autopoiesis_lib import Policy
from autopoiesis_lib.certificate import sign, verify
from autopoiesis_lib.evolution import Measurement
from autopoiesis_lib.evolution.compare import Improvement, improvement
from autopoiesis_lib.online.memory import WINDOWS
from autopoiesis_lib.protocol.channel import Channel, Trust
from autopoiesis_lib.protocol.keys import load_key, new_key
from autopoiesis_lib.store import Store

SEED, PHASE_S = 20_261_125, 100.0
DIGESTS: Mapping[tuple[int, float], str] = {(SEED, PHASE_S): "c46f18f0193df547"}
"""Digests of the published workloads: a generator that drew other numbers would be another comparison."""

TYPICAL = '''"""Prompts of about a hundred tokens first."""

from autopoiesis_contracts.request_ordering import Engine, Waiting


def score(request: Waiting, engine: Engine) -> int:
    """Each token that a prompt is away from a hundred weighs as much as 300 ms of waiting."""
    return request.waited_us - min(max(request.num_prompt_tokens - 100, 100 - request.num_prompt_tokens), 1_000) * 300_000
'''
HINDSIGHT = "hindsight"
STATIC: Mapping[str, str] = {
    "shortest-prompt-aging": BASELINES["shortest-prompt-aging"],
    "typical-prompt": TYPICAL,
    HINDSIGHT: "",
}
"""Static policies. The other shipped orders equal FCFS here: all priorities are equal, and nothing is cached.

The second is written by hand for the third phase. The last is found by a search on the whole workload
(`online_prepare`).
"""
UNMODIFIED, COLD, LOOP = "unmodified", "loop-cold", "loop"
LOOPS = (COLD, LOOP)
ARMS = (UNMODIFIED, *STATIC, *LOOPS)
WATCH = (
    "--objective", "e2e_mean_us=1", "--evolve-first", "--candidates", "256", "--seconds", "20", "--min-requests", "20",
    "--workers", "1", "--idle",
)  # fmt: skip
WATCH_S = {"--window": 10.0, "--evolve-window": 20.0, "--canary": 10.0}
"""Durations in seconds; a window holds one burst. They are stretched as the arrivals are."""
WARM_UP = 8
ENGINE = "engine-0"


@dataclass(frozen=True)
class Cell:
    """One run of one arm."""

    arm: str
    rep: int
    latency_s: Sequence[float]
    tokens: Sequence[Sequence[int]]
    lost: int
    duplicated: int
    """Requests that the engine finished beyond those sent, and answers with a repeated name."""
    swaps: int
    fallbacks: int
    refusal: str
    late_s: float
    """The client's greatest delay in sending."""
    diary: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    """The loop's log: its actions and their times (seconds since the first arrival)."""

    @property
    def mean(self) -> float:
        """The mean latency in seconds."""
        return float(np.mean(self.latency_s))

    def measurement(self) -> Measurement:
        """Return the latencies for `evolution.compare`."""
        micros = np.asarray(self.latency_s) * 1e6
        metrics = {"e2e_mean_us": float(micros.mean()), "e2e_p99_us": float(np.percentile(micros, 99))}
        return Measurement(metrics, {"e2e": micros})


def run(
    arm: str, rep: int, jobs: Sequence[Job], static: Mapping[str, str], logs: Path, *, before: Path, stretch: float,
    keep: bool = False,
) -> Cell:  # fmt: skip
    """Run the whole workload once on a new server, channel, key and store.

    The store of the warm loop is that in `before`, with its remembered windows.

    With `keep`, the store and the remembered windows are copied to `before`.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        new_key(root / "keys", "fleet")
        key = load_key(root / "keys", "fleet")
        channel = Channel(root / "channel", key, Trust(root / "keys"), root / "state")
        windows = channel.root / "controller" / WINDOWS
        if arm == LOOP:
            shutil.copy(before / "store.db", root)
            shutil.copytree(before / WINDOWS, windows)
        extra = {} if arm == UNMODIFIED else _environment(root, channel)
        policy = Policy.from_source(static[arm], RequestOrdering()) if arm in static else None
        if policy is not None:
            channel.publish(policy.digest, policy.source, sign(verify(policy), key).to_bytes())
        with serving(extra, ours=arm != UNMODIFIED, log=logs / f"{rep}-{arm}-server.log") as url:
            # an engine accepts a policy at a step, and there are none before the first request
            warm_up(url, jobs[:WARM_UP])
            if policy is not None:
                _wait_for(channel, policy.digest)
            with _watching(arm, rep, root, channel, logs, stretch):
                begin = time.time()
                answers = replay(url, jobs)
                time.sleep(1.5)  # the status file is written from time to time
                status = channel.engines().get(ENGINE, {})
            served = served_by_engine(url)
        diary = _diary(root, channel, begin) if arm in LOOPS else []
        if keep:
            shutil.copytree(windows, before / WINDOWS)
            shutil.copy(root / "store.db", before)
    names = [answer.id for answer in answers if answer.id]
    return Cell(
        arm, rep,
        latency_s=[round(answer.latency_s, 6) for answer in answers],
        tokens=[answer.tokens for answer in answers],
        lost=len(jobs) - len(names),
        duplicated=len(names) - len(set(names)) + max(0, served - len(jobs) - WARM_UP),
        swaps=int(dict(status.get("counters", {})).get("swaps", 0)),
        fallbacks=int(dict(status.get("counters", {})).get("fallbacks", 0)),
        refusal=str(status.get("refusal", "")),
        late_s=max(answer.late_s for answer in answers),
        diary=diary,
    )  # fmt: skip


def _environment(root: Path, channel: Channel) -> dict[str, str]:
    (root / "trusted").mkdir()
    (root / "trusted" / "fleet.pub").write_bytes((root / "keys" / "fleet.pub").read_bytes())
    return {
        "AUTOPOIESIS_CHANNEL": str(channel.root),
        "AUTOPOIESIS_KEYS": str(root / "trusted"),
        "AUTOPOIESIS_STATE": str(root / "engine-state"),
        "AUTOPOIESIS_ENGINE": ENGINE,
        "AUTOPOIESIS_SNAPSHOT_S": "1",
    }


def _wait_for(channel: Channel, digest: str) -> None:
    for _ in range(200):
        status = channel.engines().get(ENGINE, {})
        if status.get("digest") == digest:
            return
        time.sleep(0.1)
    raise SystemExit(f"the engine did not take {digest[:12]}: {status.get('refusal')}")


@contextmanager
def _watching(arm: str, rep: int, root: Path, channel: Channel, logs: Path, stretch: float) -> Iterator[None]:
    """Run the control plane beside the server, for the loop's arm; stop it by SIGTERM, as an operator would."""
    if arm not in LOOPS:
        yield
        return
    command = [sys.executable, "-m", "autopoiesis_cli", "watch", "--channel", str(channel.root)]
    command += [
        "--store",
        str(root / "store.db"),
        "--key",
        "fleet",
        "--keys",
        str(root / "keys"),
        "--seed",
        str(rep + 1),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "AUTOPOIESIS_STATE": str(root / "state")}
    with (logs / f"{rep}-{arm}-watch.log").open("wb") as out:
        times = [text for name, seconds in WATCH_S.items() for text in (name, f"{seconds * stretch:g}")]
        process = subprocess.Popen([*command, *WATCH, *times], env=environment, stdout=out, stderr=subprocess.STDOUT)
        try:
            time.sleep(10.0)  # it loads its solvers now, not during the run
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _diary(root: Path, channel: Channel, begin: float) -> list[dict[str, Any]]:
    with closing(Store.open(root / "store.db")) as store:
        return [
            {
                "at_s": round(datetime.fromisoformat(row.at).timestamp() - begin, 1),
                "action": row.action,
                "digest": (row.policy_digest or "")[:12],
                "source": store.policy_source(row.policy_digest)
                if row.action == "canary" and row.policy_digest
                else "",
                "detail": dict(row.detail),
            }
            for row in store.deployments(str(channel.root))
        ]


def table(cells: Sequence[Cell], jobs: Sequence[Job], console: Console) -> None:
    """Print the comparison over the repetitions that every arm has finished."""
    arms = [arm for arm in ARMS if any(cell.arm == arm for cell in cells)]
    ran = [{cell.rep for cell in cells if cell.arm == arm} for arm in arms]
    reps = sorted(set.intersection(*ran)) if ran else []
    if not reps or UNMODIFIED not in arms:
        console.print("no repetition has the unmodified engine and all other arms yet")
        return
    of = {(cell.arm, cell.rep): cell for cell in cells}
    phase = np.array([job.phase for job in jobs])
    shown = Table(
        "arm", "mean s", "of each rep", "short-heavy", "long-heavy", "bursty", "p99 s", "under FCFS [95%]", "swaps",
        "lost/dup/changed",
        title=f"{len(jobs)} requests, {len(reps)} repetitions of each arm",
    )  # fmt: skip
    over = [of[UNMODIFIED, rep].measurement() for rep in reps]
    for arm in arms:
        mine = [of[arm, rep] for rep in reps]
        pooled = np.stack([cell.latency_s for cell in mine])
        found = improvement("e2e_mean_us", UNMODIFIED, over, [cell.measurement() for cell in mine])
        changed = sum(
            len(tokens) > 0 and list(tokens) != list(right)
            for cell in mine
            for tokens, right in zip(cell.tokens, of[UNMODIFIED, reps[0]].tokens, strict=True)
        )
        shown.add_row(
            arm, f"{pooled.mean():.3f}", " ".join(f"{cell.mean:.3f}" for cell in mine),
            *(f"{pooled[:, phase == k].mean():.3f}" for k in range(3)), f"{np.percentile(pooled, 99):.2f}",
            _interval(found) if arm != UNMODIFIED else "", " ".join(str(cell.swaps) for cell in mine),
            f"{sum(cell.lost for cell in mine)}/{sum(cell.duplicated for cell in mine)}/{changed}",
        )  # fmt: skip
    console.print(shown)
    static = [arm for arm in arms if arm in STATIC]
    for loop in (arm for arm in arms if arm in LOOPS and static):
        best = min(static, key=lambda arm: sum(of[arm, rep].mean for rep in reps))
        theirs, ours = ([of[arm, rep].measurement() for rep in reps] for arm in (best, loop))
        found = improvement("e2e_mean_us", best, theirs, ours)
        console.print(f"{loop} under the best static policy in hindsight ({best}): {_interval(found)}")
        for rep in reps:
            console.print(f"{loop}, repetition {rep}: " + "; ".join(_entry(row) for row in of[loop, rep].diary))
    console.print(
        f"client's greatest delay in sending: {max(cell.late_s for cell in cells) * 1e3:.0f} ms; " + _faults(cells)
    )


def _interval(found: Improvement) -> str:
    return f"{found.reduction:+.1%} [{found.ci95[0]:+.1%}, {found.ci95[1]:+.1%}]"


def _faults(cells: Sequence[Cell]) -> str:
    refused = sum(bool(cell.refusal) for cell in cells)
    return (
        f"steps on the built-in order by a fault: {sum(cell.fallbacks for cell in cells)}; policies refused: {refused}"
    )


def _entry(row: Mapping[str, Any]) -> str:
    detail = row["detail"]
    more = str(detail.get("reason", "")) if row["action"] in ("evolve", "no-candidate", "rollback", "reject") else ""
    return f"{row['at_s']:.0f} s {row['action']} {row['digest'][:6]} {more}".strip()


def read(path: Path) -> Cell:
    """Read a cell that was kept."""
    return Cell(**json.loads(path.read_text()))


def main() -> None:
    """Run the missing cells, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--phase", type=float, default=PHASE_S, help="seconds a phase lasts")
    parser.add_argument("--cells", type=int, help="run at most this many cells that are missing")
    parser.add_argument("--results", type=Path, help="where cells are kept; a run goes on with what is there")
    args = parser.parse_args()
    console = Console(width=200)
    drawn = workload(args.seed, args.phase)
    found = digest(drawn)
    if DIGESTS.get((args.seed, args.phase), found) != found:
        raise SystemExit(f"the published workload is not what was drawn here ({found}): another numpy?")
    limits = ", ".join(f"{name} {value}" for name, value in LIMITS.items())
    console.print(f"workload {found} (seed {args.seed}, three phases of {args.phase:g} s); engine: {limits}")
    with tempfile.TemporaryDirectory() as scratch:
        results: Path = args.results or Path(scratch)
        results.mkdir(parents=True, exist_ok=True)
        prepared = prepare(drawn, results)
        jobs = stretched(drawn, prepared.stretch)
        static = {**STATIC, HINDSIGHT: prepared.hindsight}
        console.print(f"arrivals stretched by {prepared.stretch:g} for this machine's speed")
        before = results / "day-before"
        if LOOP in args.arms and not (before / "store.db").is_file():
            other = stretched(workload(args.seed - 1, args.phase), prepared.stretch)
            cell = run(COLD, -1, other, static, results, before=before, stretch=prepared.stretch, keep=True)
            console.print(f"the day before: mean {cell.mean:.3f} s, {cell.swaps} swaps")
        paths = [(arm, rep, results / f"{rep}-{arm}.json") for rep in range(args.reps) for arm in _turn(args.arms, rep)]
        missing = [(arm, rep, path) for arm, rep, path in paths if not path.is_file()]
        for arm, rep, path in missing[: args.cells]:
            cell = run(arm, rep, jobs, static, results, before=before, stretch=prepared.stretch)
            path.write_text(json.dumps(asdict(cell)))
            console.print(f"{rep} {arm}: mean {cell.mean:.3f} s, {cell.lost} lost, {cell.swaps} swaps {cell.refusal}")
        table([read(path) for _, _, path in paths if path.is_file()], jobs, console)


def _turn(arms: Sequence[str], rep: int) -> list[str]:
    """Return the arms of a repetition.

    Each begins with another arm, so that no arm always meets the same state of the machine.
    """
    at = rep % len(arms)
    return [*arms[at:], *arms[:at]]


if __name__ == "__main__":
    main()
