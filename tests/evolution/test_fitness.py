"""What fitness is: both rates together, and the rest of the windows only for who has a chance."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Policy
from autopoiesis_lib.evolution import Budget, SimulationEvaluator, evolve
from autopoiesis_lib.evolution.archive import Archive
from autopoiesis_lib.evolution.evaluator import Measurement, Window
from autopoiesis_lib.evolution.inline import Inline
from autopoiesis_lib.evolution.work import Judge, Judged, Reference, Setup, Worker
from autopoiesis_lib.evolution.yardstick import HOPELESS, LEADERS, Yardstick
from autopoiesis_lib.simulation.workload import default_workload
from autopoiesis_lib.store import CandidateRow, ProposalRow, Store
from tests.evolution.evaluators import Cheap

CONTRACT = RequestOrdering()
FCFS, SHORTEST = BASELINES["fcfs"], BASELINES["shortest-prompt-aging"]
TTFT = {"ttft_mean_us": 1.0}


@dataclass(frozen=True)
class Seen(Cheap):
    """Notes which windows it was asked about, in this process; the busier ones take three times as long."""

    windows: list[Window] = field(default_factory=list)
    broken: str = ""
    """Digest of a policy that it cannot measure."""

    def measure(self, policy: Policy, window: Window, *, samples: bool = False) -> Sequence[Measurement]:
        self.windows.append(window)
        if policy.digest == self.broken:
            raise ValueError("not this one")
        factor = 3.0 if window == "busier" else 1.0
        parts = super().measure(policy, window, samples=samples)
        return [replace(part, metrics={name: factor * value for name, value in part.metrics.items()}) for part in parts]


def judged(evaluator: Seen, **cutoffs: float) -> Judged:
    setup = Setup(contract=CONTRACT, evaluator=evaluator, objectives=TTFT)
    reference = Yardstick(Inline(setup), setup).reference
    evaluator.windows.clear()
    return Worker(setup).judge(Judge(source=SHORTEST, reference=reference, cutoffs=cutoffs))  # type: ignore[arg-type]


def leaders(*sources: str) -> Archive:
    archive = Archive(1)
    for number, source in enumerate(sources):
        digest = Policy.from_source(source, CONTRACT).digest
        proposal = ProposalRow(id=number, generation=0, source=source, move="tune", island=0)
        archive.add(
            proposal, CandidateRow(id=number, verdict="PROVED", digest=digest, descriptor=str(number), fitness=number)
        )
    return archive


def variants(count: int) -> list[str]:
    return [SHORTEST.replace("10_000", str(1_000 + number)) for number in range(count)]


def test_fitness_is_about_the_train_windows_at_their_own_rate_and_at_the_higher_one_alike() -> None:
    workload = default_workload()
    evaluator = replace(SimulationEvaluator.of(CONTRACT, workload), train=(workload.train.select(np.arange(600)),))
    setup = Setup(contract=CONTRACT, evaluator=evaluator, objectives=TTFT)
    reference = Yardstick(Inline(setup), setup).reference
    answer = Worker(setup).judge(Judge(source=SHORTEST, reference=reference))
    ours, theirs = (
        [evaluator.measure(Policy.from_source(text, CONTRACT), window)[0].metrics["ttft_mean_us"] for window in windows]
        for text in (SHORTEST, FCFS)
        for windows in [("train", "busier")]
    )
    assert ours[0] < ours[1] and answer.fitness == pytest.approx(sum(ours) / sum(theirs))
    assert answer.scores is not None and answer.scores["ttft_mean_us"] == pytest.approx(sum(ours) / 2)


def test_a_hopeless_candidate_is_not_measured_beyond_the_window_that_shows_it() -> None:
    evaluator = Seen()
    stopped = judged(evaluator, busier=0.1)
    assert evaluator.windows == ["busier"]
    assert stopped.fitness is None and stopped.gate is None and stopped.reason == "hopeless"
    passed = judged(evaluator, busier=0.99)
    assert evaluator.windows == ["busier", "train"]
    assert passed.fitness is not None and passed.fitness < 1


def test_what_is_hopeless_on_a_window_is_told_by_how_the_last_leader_did_there() -> None:
    texts = variants(LEADERS)
    setup = Setup(contract=CONTRACT, evaluator=Seen(), objectives=TTFT)
    yardstick = Yardstick(Inline(setup), setup)
    assert yardstick.cutoffs(leaders(*texts[:-1])) == {}
    ours, theirs = (
        setup.evaluator.measure(Policy.from_source(text, CONTRACT), "busier")[0].metrics["ttft_mean_us"]
        for text in (texts[-1], FCFS)
    )
    assert yardstick.cutoffs(leaders(*texts)) == {"busier": pytest.approx(HOPELESS * ours / theirs)}


def test_a_leader_that_cannot_be_measured_again_stops_nobody() -> None:
    texts = variants(LEADERS)
    evaluator = Seen(broken=Policy.from_source(texts[-1], CONTRACT).digest)
    setup = Setup(contract=CONTRACT, evaluator=evaluator, objectives=TTFT)
    assert Yardstick(Inline(setup), setup).cutoffs(leaders(*texts)) == {"busier": float("inf")}


def test_a_contract_without_baselines_has_no_reference_and_stops_nobody() -> None:
    class Bare(RequestOrdering):
        def baselines(self) -> dict[str, str]:
            return {}

    setup = Setup(contract=Bare(), evaluator=Seen(), objectives=TTFT)
    yardstick = Yardstick(Inline(setup), setup)
    assert yardstick.reference == Reference() and yardstick.cutoffs(leaders(*variants(LEADERS))) == {}


def test_a_run_stops_many_candidates_early_and_none_of_them_is_an_elite(tmp_path: Path) -> None:
    budget = Budget(candidates=200, generation_size=20)
    result = evolve(CONTRACT, Seen(), budget=budget, seed=1, executor=Inline, store=tmp_path / "s.db", certify=False)
    opened = Store.open(tmp_path / "s.db")
    rows = opened.candidates(result.run)
    stopped = [row for row in rows if row.reason == "hopeless"]
    assert len(stopped) > 20 and all(row.fitness is None and row.gate is None for row in stopped)
    setup = Setup(contract=CONTRACT, evaluator=Cheap(), objectives=TTFT)
    texts = {row.id: row.source for row in opened.proposals(result.run)}
    unstopped = Worker(setup)
    reference = Yardstick(Inline(setup), setup).reference
    found = [unstopped.judge(Judge(source=texts[row.id], reference=reference)).fitness for row in stopped[:10]]
    assert all(fitness is not None and fitness > result.fitness for fitness in found)
