"""Of candidates that are as good as each other on the windows that make the fitness, the one that is best over all rates wins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Policy
from autopoiesis_lib.evolution.archive import Archive
from autopoiesis_lib.evolution.compare import BLOCKS, RESAMPLES, improvement
from autopoiesis_lib.evolution.errors import EvolutionError
from autopoiesis_lib.evolution.evaluator import Measurement, SimulationEvaluator, Window
from autopoiesis_lib.evolution.inline import Inline
from autopoiesis_lib.evolution.winner import answer, certified, steadiest_first
from autopoiesis_lib.evolution.work import Measure, Setup
from autopoiesis_lib.simulation.workload import default_workload
from autopoiesis_lib.store import CandidateRow, ProposalRow
from tests.evolution.evaluators import Cheap

CONTRACT = RequestOrdering()
OBJECTIVES = {"ttft_mean_us": 1.0}
FCFS, SHORTEST = BASELINES["fcfs"], BASELINES["shortest-prompt-aging"]
UNSAFE = SHORTEST.replace("request.waited_us - ", "0 - ")
"""No aging: no certificate for it."""


@dataclass(frozen=True)
class Told(Cheap):
    """Answers what it was told to for each policy, by digest; raises for those it was told nothing of."""

    table: Mapping[str, float] = ()  # type: ignore[assignment]
    fitted: str = ""
    """The digest of a policy that takes five times as long at other rates."""

    def measure(self, policy: Policy, window: Window, *, samples: bool = False) -> Sequence[Measurement]:
        factor = 5.0 if window == "other-rates" and policy.digest == self.fitted else 1.0
        return [Measurement({"ttft_mean_us": self.table[policy.digest] * factor})]


def elites(*candidates: tuple[str, float]) -> Archive:
    archive = Archive(1)
    for number, (source, fitness) in enumerate(candidates):
        digest = Policy.from_source(source, CONTRACT).digest
        proposal = ProposalRow(id=number, generation=0, source=source, move="tune", island=0)
        row = CandidateRow(id=number, verdict="PASSED", digest=digest, descriptor=str(number), fitness=fitness)
        archive.add(proposal, row)
    return archive


def executor(fitted: str = "", **table: float) -> Inline:
    """`fcfs` and others by baseline name, or text in place of it."""
    known = {**BASELINES, "tuned": tuned(), "unsafe": UNSAFE}
    digests = {Policy.from_source(known[name], CONTRACT).digest: value for name, value in table.items()}
    told = Told(table=digests, fitted=Policy.from_source(known[fitted], CONTRACT).digest if fitted else "")
    return Inline(Setup(contract=CONTRACT, evaluator=told, objectives=OBJECTIVES))


def tuned() -> str:
    return SHORTEST.replace("10_000", "9_000")


def order(archive: Archive, run: Inline, default: str | None = FCFS) -> list[int]:
    return [elite.id for elite in steadiest_first(archive, run, OBJECTIVES, default)]


MEANS = {"fcfs": 100.0, "shortest-prompt-aging": 50.0, "tuned": 50.5}


def test_of_two_within_two_percent_the_one_that_is_better_over_all_rates_leads() -> None:
    archive = elites((SHORTEST, 0.500), (tuned(), 0.505))
    assert order(archive, executor(**MEANS)) == [0, 1]
    assert order(archive, executor(fitted="shortest-prompt-aging", **MEANS)) == [1, 0]


def test_beyond_two_percent_fitness_decides() -> None:
    archive = elites((SHORTEST, 0.500), (tuned(), 0.511))
    assert order(archive, executor(fitted="shortest-prompt-aging", **MEANS)) == [0, 1]


def test_an_elite_that_cannot_be_measured_again_comes_last_and_ends_nothing() -> None:
    archive = elites((SHORTEST, 0.500), (tuned(), 0.505))
    assert order(archive, executor(fcfs=100.0, tuned=50.5)) == [1, 0]


def test_without_a_default_the_order_is_that_of_fitness() -> None:
    archive = elites((SHORTEST, 0.500), (tuned(), 0.505))
    assert order(archive, executor(), None) == [0, 1]


def test_a_metric_of_nothing_is_no_reason_to_fail() -> None:
    archive = elites((SHORTEST, 0.500), (tuned(), 0.505))
    assert order(archive, executor(**{**MEANS, "tuned": 0.0})) == [1, 0]


def test_what_cannot_be_certified_is_noted_and_the_next_one_wins() -> None:
    archive = elites((UNSAFE, 0.4), (SHORTEST, 0.5))
    notes: list[str] = []
    certificate, winner = certified(executor(), list(archive.runners_up(8)), notes)
    assert winner.id == 1 and certificate.policy_digest == winner.digest
    assert len(notes) == 1 and notes[0].startswith("candidate 0 could not be certified")
    with pytest.raises(EvolutionError, match="none of the best candidates could be certified"):
        certified(executor(), list(archive.runners_up(1)), notes)


def test_a_measurement_that_fails_says_what_it_was_for() -> None:
    with pytest.raises(EvolutionError, match="the default baseline: raised: KeyError"):
        answer(executor(), Measure(source=FCFS, window="train"), "the default baseline")


@pytest.mark.parametrize("size", [1, 7, 23, 24, 25, 480, 1_001])
def test_the_interval_of_a_mean_is_that_of_resampling_request_by_request(size: int) -> None:
    draw = np.random.default_rng(size)
    base, ours = draw.exponential(100.0, size), draw.exponential(60.0, size)
    found = improvement(
        "ttft_mean_us",
        "fcfs",
        [Measurement({"ttft_mean_us": float(base.mean())}, {"ttft": base})],
        [Measurement({"ttft_mean_us": float(ours.mean())}, {"ttft": ours})],
        seed=3,
    )
    again = np.random.default_rng(3)
    block = max(1, size // BLOCKS)
    reductions = []
    for _ in range(RESAMPLES):
        begins = again.integers(0, size, size=-(-size // block))
        picks = ((begins[:, None] + np.arange(block)) % size).ravel()[:size]
        reductions.append(1 - ours[picks].mean() / base[picks].mean())
    assert found.ci95 == pytest.approx(np.percentile(reductions, [2.5, 97.5]), rel=1e-9)


def test_of_two_that_a_window_hardly_tells_apart_the_simpler_one_ranks_first() -> None:
    padded = SHORTEST.replace("request.waited_us - ", "request.waited_us + min(request.num_preemptions, 9) * 7 - ")
    assert [elite.id for elite in elites((padded, 0.50000), (SHORTEST, 0.50005)).elites()] == [1, 0]
    assert [elite.id for elite in elites((padded, 0.50000), (SHORTEST, 0.50100)).elites()] == [0, 1]


def test_windows_at_other_rates_are_the_train_windows_and_a_multiple_of_one_leaves_the_busier_out() -> None:
    workload = default_workload()
    train = workload.train.select(np.arange(600))
    plain = SimulationEvaluator.of(CONTRACT, workload)
    evaluator = replace(plain, train=(train,), busier=2.0, other_rates=(0.5, 2.0))
    policy = Policy.from_source(SHORTEST, CONTRACT)
    (busier,) = evaluator.measure(policy, "busier")
    (as_train,) = replace(plain, train=(train.scaled(2.0),)).measure(policy, "train")
    assert busier.metrics == as_train.metrics != evaluator.measure(policy, "train")[0].metrics
    _, again = evaluator.measure(policy, "other-rates")
    assert again.metrics == busier.metrics
    assert replace(evaluator, busier=1.0).measure(policy, "busier") == []
