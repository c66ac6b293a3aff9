"""The loop end to end: equal seeds give equal runs, nothing is lost but what was in flight, and bad workers cost one
candidate."""

import contextlib
import html
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Policy, PolicyError
from autopoiesis_lib.evolution import (
    Budget,
    EvolutionError,
    EvolutionResult,
    Limits,
    Progress,
    evolve,
    work,
    write_report,
)
from autopoiesis_lib.evolution.inline import Inline
from autopoiesis_lib.evolution.result import REJECTIONS
from autopoiesis_lib.gates import GateResult
from autopoiesis_lib.language import LanguageError
from autopoiesis_lib.store import Store
from autopoiesis_lib.synthesis import Context, Draft, LLMProposer, SearchProposer, Slot
from tests.evolution.evaluators import Cheap, Misbehaving
from tests.synthesis.endpoint import fails, serving, writes

CONTRACT = RequestOrdering()
SLOW_DEEDS = ("loop", "eat", "raise", "exit", "sleep")
ROOT = Path(__file__).parents[2]


def run(store: Path, candidates: int = 60, **changes: Any) -> EvolutionResult:
    settings: dict[str, Any] = {"seed": 1, "executor": Inline, "store": store, "certify": False}
    budget = changes.pop("budget", None) or Budget(candidates=candidates, generation_size=16)
    return evolve(CONTRACT, changes.pop("workload", Cheap()), budget=budget, **{**settings, **changes})


def story(store: Path, run_id: str) -> list[tuple[object, ...]]:
    """What a run did, without times."""
    opened = Store.open(store)
    rows = zip(opened.proposals(run_id), opened.candidates(run_id), strict=True)
    return [
        (p.id, p.generation, p.source, p.move, p.parents, c.verdict, c.gate, c.fingerprint, c.fitness) for p, c in rows
    ]


def test_the_search_beats_every_baseline_and_the_record_adds_up(tmp_path: Path) -> None:
    heard: list[Progress] = []
    result = run(tmp_path / "s.db", 120, certify=True, progress=heard.append, executor="local", workers=2)
    record = result.to_json()
    counts = record["candidates"]
    assert list(record) == ["run", "contract", "seconds", "candidates", "best", "baselines", "improvement"]
    assert set(counts["rejected"]) == set(REJECTIONS)
    assert counts["proposed"] == 120 == counts["evaluated"] + sum(counts["rejected"].values())
    assert counts["rejected"]["duplicate"] > 0
    assert result.certificate is not None
    assert result.certificate.policy_digest == result.best.digest
    assert result.improvement is not None and result.improvement.over == "fcfs"
    assert result.improvement.reduction > 0.2
    assert result.improvement.ci95[0] <= result.improvement.reduction <= result.improvement.ci95[1]
    assert result.over_best_baseline is not None and result.over_best_baseline.over != "fcfs"
    assert json.loads(result.dumps()) == json.loads(json.dumps(record))
    assert [item.done for item in heard if item.phase == "search"][-1] == 120
    written = result.write(tmp_path / "out")
    assert written.path is not None and written.certificate_path is not None
    assert Policy.from_file(written.path, CONTRACT).digest == result.best.digest
    opened = Store.open(tmp_path / "s.db")
    assert opened.run(result.run).status == "done"
    assert opened.policy_source(result.best.digest) == result.best.source
    assert [digest for digest, _ in opened.certified(CONTRACT.digest)] == [result.best.digest]
    warm = run(tmp_path / "s.db", 20, warm_start=True)
    assert warm.fitness <= result.fitness


def test_a_run_does_not_depend_on_the_words_of_any_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs decide on reasons; every text for people is replaced by nonsense here."""
    usual = run(tmp_path / "usual.db", 160)
    rejection, lists = work._rejection, iter(range(10**6))

    def nonsense(result: GateResult) -> dict[str, Any]:
        found = rejection(result)
        example = found["counterexample"]
        said = f"range overflow zero int64 `none` {next(lists)}"
        shown = None if example is None else {**example, "explanation": said, "pytest": said}
        return {**found, "detail": said, "counterexample": shown}

    monkeypatch.setattr(work, "_rejection", nonsense)
    monkeypatch.setattr(LanguageError, "__str__", lambda error: f"time: raised: EncoderBug {next(lists)}")
    other = run(tmp_path / "other.db", 160)
    assert story(tmp_path / "other.db", other.run) == story(tmp_path / "usual.db", usual.run)
    assert other.notes == usual.notes
    first = Store.open(tmp_path / "usual.db").candidates(usual.run)
    pairs = list(zip(first, Store.open(tmp_path / "other.db").candidates(other.run), strict=True))
    assert all(one.reason == two.reason for one, two in pairs)
    assert {one.reason for one, _ in pairs} >= {"invariant", "duplicate", None}
    assert sum(one.detail != two.detail for one, two in pairs) > 3


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_whatever_the_workers_and_another_seed_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stories = []
    for name, workers, seed in (("a", 3, 1), ("b", 0, 1), ("c", 0, 2)):
        monkeypatch.setenv("AUTOPOIESIS_CACHE", str(tmp_path / f"cache-{name}"))  # every proof is made anew
        where: dict[str, Any] = {"executor": "local", "workers": workers} if workers else {}
        result = run(tmp_path / name, seed=seed, **where)
        stories.append(story(tmp_path / name, result.run))
    assert stories[0] == stories[1]
    assert stories[0] != stories[2]


CHILD = """
import json, sys
from pathlib import Path
from tests.evolution.test_loop import run
if __name__ == "__main__":
    store, resume, candidates = Path(sys.argv[1]), sys.argv[2] or None, int(sys.argv[3])
    tell = lambda item: print(item.run, item.done, flush=True)
    result = run(store, candidates, resume=resume, executor="local", workers=2, progress=tell)
    print("RESULT", result.run, result.best.digest, flush=True)
"""


def child(tmp_path: Path, store: Path, resume: str, candidates: int, hash_seed: int) -> "subprocess.Popen[str]":
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(store), resume, str(candidates)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_under_any_hash_seed(tmp_path: Path) -> None:
    stories = []
    for hash_seed in (0, 1, 4_242):
        store = tmp_path / f"{hash_seed}.db"
        out, _ = child(tmp_path, store, "", 60, hash_seed).communicate(timeout=120)
        stories.append(story(store, out.split("RESULT ")[1].split()[0]))
    assert stories[0] == stories[1] == stories[2]


def kill_and_resume(tmp_path: Path, kills: int, candidates: int, seed: int) -> None:
    """Kill a run at `kills` moments, resume it each time, and compare with one that nobody disturbed."""
    import random

    draw, store, run_id, committed_before = random.Random(seed), tmp_path / "killed.db", "", 0
    for _ in range(kills):
        process = child(tmp_path, store, run_id, candidates, draw.randrange(100))
        assert process.stdout is not None
        wanted = draw.randrange(1, max(2, candidates // kills + 3))
        for _line, text in zip(range(wanted), process.stdout, strict=False):
            run_id = run_id or text.split()[0]
        time.sleep(draw.random() * 0.02)
        workers = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        psutil.wait_procs(workers, timeout=5)
        assert not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]
        opened = Store.open(store)
        committed = len(opened.candidates(run_id))
        assert committed >= committed_before, "a committed candidate was lost"
        committed_before = committed
        opened.close()
    process = child(tmp_path, store, run_id, candidates, 7)
    out, _ = process.communicate(timeout=300)
    resumed_id = out.split("RESULT ")[1].split()[0]
    assert resumed_id == run_id
    undisturbed = run(tmp_path / "whole.db", candidates)
    assert story(store, run_id) == story(tmp_path / "whole.db", undisturbed.run)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing_and_change_nothing(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, kills=20, candidates=150, seed=3)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_result_of_an_undisturbed_one(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, kills=1, candidates=40, seed=1)


@pytest.mark.parametrize("deed", ["crash", *(pytest.param(deed, marks=pytest.mark.slow) for deed in SLOW_DEEDS)])
def test_a_misbehaving_evaluation_costs_only_its_own_candidate(tmp_path: Path, deed: str) -> None:
    limits = Limits(wall_s=60.0, cpu_s=1.0 if deed == "loop" else 30.0, memory_mib=1_500)
    limits = Limits(wall_s=2.0) if deed == "sleep" else limits
    budget = Budget(candidates=20, generation_size=8, limits=limits)
    result = run(tmp_path / "s.db", workload=Misbehaving(deed=deed), budget=budget, executor="local", workers=2)
    rows = Store.open(tmp_path / "s.db").candidates(result.run)
    lost = [row for row in rows if row.verdict == "UNKNOWN"]
    assert 0 < len(lost) == result.rejected["replay"]
    kinds = {"loop": "cpu", "eat": "memory", "crash": "died", "raise": "raised", "exit": "died", "sleep": "time"}
    assert {row.reason for row in lost} == {kinds[deed]}
    assert len(rows) == 20
    assert result.evaluated > len(BASELINES) - 2


@pytest.mark.slow
def test_in_a_run_of_limited_time_a_stuck_candidate_is_told_by_how_long_others_take(tmp_path: Path) -> None:
    """One hung proof once held a generation up for half of a minute's run: the limit of a job is a minute."""
    budget = Budget(seconds=25.0, generation_size=8)
    result = run(tmp_path / "s.db", workload=Misbehaving(deed="loop"), budget=budget, executor="local", workers=2)
    lost = [row for row in Store.open(tmp_path / "s.db").candidates(result.run) if row.verdict == "UNKNOWN"]
    assert len(lost) >= 2
    assert {row.reason for row in lost} <= {"time", "cpu"}
    assert any("stopped by the clock" in note for note in result.notes)


@pytest.mark.slow
def test_what_a_killed_worker_started_dies_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPOIESIS_TEST_MARK", str(tmp_path))  # inherited by workers and by whatever they start

    def marked() -> list[int]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("AUTOPOIESIS_TEST_MARK") == str(tmp_path):
                    found.append(process.pid)
        return found

    seen: list[int] = []
    budget = Budget(candidates=20, generation_size=8, limits=Limits(wall_s=4.0))
    workload = Misbehaving(deed="fork")
    result = run(
        tmp_path / "s.db",
        workload=workload,
        budget=budget,
        executor="local",
        workers=2,
        progress=lambda _: seen.extend(marked()),
    )
    assert result.rejected["replay"] > 0
    assert len(set(seen)) >= 2
    time.sleep(0.5)
    left = [process for process in map(psutil.Process, marked()) if process.status() != psutil.STATUS_ZOMBIE]
    # multiprocessing's own resource tracker serves the test process and stays as long as that does
    assert not [command for process in left if "resource_tracker" not in (command := " ".join(process.cmdline()))]


class Canned:
    """Proposes given texts, over and over."""

    name = "canned"

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def describe(self) -> dict[str, object]:
        return {"proposer": self.name}

    def propose(self, context: Context, slots: list[Slot]) -> list[Draft]:
        return [Draft(source=self.texts[slot.id % len(self.texts)], move="canned") for slot in slots]


IMPORTS = "from autopoiesis_contracts.request_ordering import Engine, Waiting\n\n\n"
HEADER = IMPORTS + "def score(request: Waiting, engine: Engine) -> int:\n"
HACKS = {
    "mutating its input": "    request.waited_us = 0\n    return 1\n",
    "mutating through object": "    object.__setattr__(request, 'waited_us', 0)\n    return 1\n",
    "reading the evaluator's frame": "    import sys\n    return sys._getframe(1).f_locals['best']\n",
    "reading the frame by attribute": "    return score.__globals__['x']\n",
    "monkeypatching the workload": "    import autopoiesis_lib.simulation.engine as e\n    e.simulate = None\n    return 1\n",
    "dropping work": "    return None\n",
    "raising to skip a request": "    raise ValueError\n",
    "an endless loop": "    while True:\n        pass\n",
    "a long loop": "    x = 0\n    for i in range(4096):\n        for j in range(4096):\n            x += 1\n    return x\n",
    "recursion": "    return score(request, engine)\n",
    "eval": "    return eval('1')\n",
    "a default argument as state": ("    return 1\n\n\ndef helper(x: int, seen: int = 0) -> int:\n    return seen\n"),
}


def test_known_reward_hacks_are_all_refused_before_they_run(tmp_path: Path) -> None:
    hacks = Canned(*(HEADER + body for body in HACKS.values()))
    result = run(
        tmp_path / "s.db", proposer=hacks, budget=Budget(candidates=4 + 2 * len(HACKS), generation_size=len(HACKS))
    )
    rows = [row for row in Store.open(tmp_path / "s.db").candidates(result.run) if row.id >= 4]
    assert len(rows) == 2 * len(HACKS)
    for row in rows:
        assert row.verdict in ("UNSUPPORTED", "INVALID") and row.gate == "grammar", (row.detail, row.verdict)
        assert row.scores is None
    assert result.best.source in BASELINES.values()
    for text in hacks.texts:
        with pytest.raises(PolicyError):
            Policy.from_source(text, CONTRACT)


def test_a_refuted_idea_is_tried_first_ever_after(tmp_path: Path) -> None:
    starving = HEADER + "    return -request.num_prompt_tokens\n"
    other = HEADER + "    return -request.num_prompt_tokens * 3 - 1\n"
    run(tmp_path / "s.db", proposer=Canned(starving), budget=Budget(candidates=6, generation_size=2))
    kept = Store.open(tmp_path / "s.db").counterexamples(CONTRACT.digest)
    assert kept and kept[0]["obligation"] == "ages"
    result = run(tmp_path / "s.db", proposer=Canned(other), budget=Budget(candidates=5, generation_size=1))
    assert result.rejected["fuzz"] == 1
    assert result.counterexample is not None and "pytest" in result.counterexample


def test_a_language_model_and_the_search_share_a_run_and_a_dead_model_does_not_stop_it(tmp_path: Path) -> None:
    idea = BASELINES["shortest-prompt-aging"].replace("10_000", "40_000")
    record = tmp_path / "said.jsonl"
    with serving(writes(idea), writes(idea.replace("40_000", "45_000")), fails(500)) as server:
        model = LLMProposer(
            "local/tiny", base_url=server.url, api_key="sk-123456", attempts=1, parallel=1, record=record
        )
        first = run(
            tmp_path / "a.db", 24, proposer=model, budget=Budget(candidates=24, generation_size=10, tokens=10**6)
        )
    moves = [row.move for row in Store.open(tmp_path / "a.db").proposals(first.run)]
    assert moves.count("llm") == 2 and len(moves) == 24
    again = run(
        tmp_path / "b.db",
        proposer=LLMProposer("local/tiny", replay=record),
        budget=Budget(candidates=24, generation_size=10),
    )
    assert story(tmp_path / "a.db", first.run) == story(tmp_path / "b.db", again.run)
    assert "sk-123456" not in (tmp_path / "a.db").read_bytes().decode("latin-1") + record.read_text()


def test_a_time_budget_ends_a_run_and_patience_ends_it_early(tmp_path: Path) -> None:
    timed = run(tmp_path / "s.db", budget=Budget(seconds=2.0))
    assert timed.proposed > timed.evaluated > 0
    patient = run(tmp_path / "s.db", budget=Budget(candidates=10_000, patience=2), proposer=Canned(BASELINES["fcfs"]))
    assert patient.proposed < 200
    assert "stopped early" in patient.notes[-1]


def test_what_cannot_be_resumed_says_why(tmp_path: Path) -> None:
    done = run(tmp_path / "s.db", 20)
    with pytest.raises(EvolutionError, match="another workload"):
        run(tmp_path / "s.db", 20, workload=Cheap(requests=50), resume=done.run)
    with pytest.raises(EvolutionError, match="another contract"):
        evolve(RequestOrdering(max_aging_us=1), Cheap(), store=tmp_path / "s.db", resume=done.run)
    more = run(tmp_path / "s.db", 40, resume=done.run)
    assert more.run == done.run and more.proposed == 40


def test_a_run_resumed_with_less_time_than_it_has_used_keeps_what_it_found(tmp_path: Path) -> None:
    """It went no further than the baselines, and wrote the best of those over the winner."""
    done = run(tmp_path / "s.db", 40)
    spent = run(tmp_path / "s.db", resume=done.run, budget=Budget(seconds=0.01))
    assert (spent.run, spent.best.digest, spent.proposed) == (done.run, done.best.digest, done.proposed)


def test_a_setup_that_cannot_work_is_one_clear_line(tmp_path: Path) -> None:
    for wrong in (
        lambda: Budget(),
        lambda: Budget(candidates=0),
        lambda: run(tmp_path / "s.db", workload=42),
        lambda: run(tmp_path / "s.db", objectives={"beauty": 1.0}),
        lambda: run(tmp_path / "s.db", executor="local", workers=0),
        lambda: run(tmp_path / "s.db", executor="cloud"),
    ):
        with pytest.raises(EvolutionError) as caught:
            wrong()
        assert "\n" not in str(caught.value)


def test_objectives_may_weigh_several_metrics(tmp_path: Path) -> None:
    result = run(tmp_path / "s.db", 30, objectives={"ttft_mean_us": 1.0, "ttft_p99_us": 3.0}, proposer=SearchProposer())
    assert result.objective == "ttft_p99_us"


def test_the_report_is_one_page_with_everything_in_it_and_nothing_beside_it(tmp_path: Path) -> None:
    result = run(tmp_path / "s.db", 40, certify=True)
    opened = Store.open(tmp_path / "s.db")
    page = write_report(opened, result.run, tmp_path / "out" / "report.html").read_text()
    assert "src=" not in page and "href=" not in page and "http" not in page.replace("http-equiv", "")
    for expected in (
        result.run,
        "best so far",
        "Pareto front",
        "evolved",
        "fcfs",
        "ttft, held out",
        "<polyline",
        "Claims",
    ):
        assert expected in page
    assert html.escape(result.best.source.splitlines()[-1].strip(), quote=False)[:20] in page
    for claim in result.certificate.claims if result.certificate else ():
        assert html.escape(claim)[:30] in page


def test_a_report_of_an_unfinished_run_says_how_to_finish_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "s.db", 40, progress=_interrupt)
    opened = Store.open(tmp_path / "s.db")
    (row,) = opened.runs()
    assert row.status == "interrupted"
    with pytest.raises(EvolutionError, match="--resume"):
        write_report(opened, row.id, tmp_path / "r.html")
    assert run(tmp_path / "s.db", resume=row.id, budget=Budget(candidates=40)).proposed == 40


def _interrupt(item: Progress) -> None:
    if item.done == 10:
        raise KeyboardInterrupt


class TestEndpointOfAResumedRun:
    def test_that_had_secrets_is_asked_for_again_in_one_line(self, tmp_path: Path) -> None:
        with serving(writes(BASELINES["fcfs"])) as server:
            whole = server.url.replace("http://", "http://wanda:hunter2@") + "?key=sesame99"
            first = run(tmp_path / "s.db", 12, proposer=LLMProposer("local/tiny", base_url=whole, parallel=1))
            kept = "".join(path.read_bytes().decode("latin-1") for path in tmp_path.iterdir())
            assert not [secret for secret in ("wanda", "hunter2", "sesame99") if secret in kept]
            notes = {}
            for url in (whole, server.url):
                again = run(
                    tmp_path / "s.db",
                    proposer=LLMProposer("local/tiny", base_url=url, parallel=1),
                    resume=first.run,
                    budget=Budget(candidates=16, generation_size=16),
                )
                notes[url] = [note for note in again.notes if "AUTOPOIESIS_BASE_URL" in note]
        assert notes[whole] == []
        assert len(notes[server.url]) == 1 and "hunter2" not in notes[server.url][0]
