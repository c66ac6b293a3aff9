"""Of candidates that are as good as each other on train windows, the one whose gain is surest wins; and what "surest" is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Policy
from autopoiesis_lib.evolution.archive import Archive
from autopoiesis_lib.evolution.compare import BLOCKS, RESAMPLES, improvement
from autopoiesis_lib.evolution.errors import EvolutionError
from autopoiesis_lib.evolution.evaluator import Measurement, SimulationEvaluator, Window
from autopoiesis_lib.evolution.inline import Inline
from autopoiesis_lib.evolution.winner import answer, certified, surest_first
from autopoiesis_lib.evolution.work import Measure, Setup
from autopoiesis_lib.simulation.workload import default_workload
from autopoiesis_lib.store import CandidateRow, ProposalRow
from tests.evolution.evaluators import Cheap

CONTRACT = RequestOrdering()
FCFS, SHORTEST = BASELINES["fcfs"], BASELINES["shortest-prompt-aging"]
UNSAFE = SHORTEST.replace("request.waited_us - ", "0 - ")
"""No aging: no certificate for it."""
N = 480


def waits(spikes: int, mean: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Waits with a given mean, of which so many in a row at the end hold half of the sum."""
    values = np.full(N, mean / 2 if spikes else mean)
    if spikes:
        values[-spikes:] += mean * N / 2 / spikes
    return values


@dataclass(frozen=True)
class Told(Cheap):
    """Answers what it was told to for each policy, by digest; raises for those it was told nothing of."""

    table: Mapping[str, tuple[int, float]] = ()  # type: ignore[assignment]

    def measure(self, policy: Policy, window: Window, *, samples: bool = False) -> Sequence[Measurement]:
        values = waits(*self.table[policy.digest])
        return [Measurement({"ttft_mean_us": float(values.mean())}, {"ttft": values} if samples else {})]


def elites(*candidates: tuple[str, float]) -> Archive:
    archive = Archive(1)
    for number, (source, fitness) in enumerate(candidates):
        digest = Policy.from_source(source, CONTRACT).digest
        proposal = ProposalRow(id=number, generation=0, source=source, move="tune", island=0)
        row = CandidateRow(id=number, verdict="PASSED", digest=digest, descriptor=str(number), fitness=fitness)
        archive.add(proposal, row)
    return archive


@dataclass(frozen=True)
class Busier(Told):
    """Fivefold waits in busier windows for the policy with this digest."""

    fitted: str = ""

    def measure(self, policy: Policy, window: Window, *, samples: bool = False) -> Sequence[Measurement]:
        (told,) = super().measure(policy, window, samples=samples)
        factor = 5.0 if window == "busier" and policy.digest == self.fitted else 1.0
        metrics = {name: value * factor for name, value in told.metrics.items()}
        return [Measurement(metrics, {name: values * factor for name, values in told.samples.items()})]


def executor(**table: tuple[int, float]) -> Inline:
    """`fcfs` and others by baseline name, or text in place of it."""
    known = {**BASELINES, "tuned": tuned(), "unsafe": UNSAFE}
    digests = {Policy.from_source(known[name], CONTRACT).digest: value for name, value in table.items()}
    return Inline(Setup(contract=CONTRACT, evaluator=Told(table=digests), objectives={"ttft_mean_us": 1.0}))


def tuned() -> str:
    return SHORTEST.replace("10_000", "9_000")


def test_of_two_within_two_percent_the_one_without_a_few_enormous_waits_leads() -> None:
    archive = elites((SHORTEST, 0.500), (tuned(), 0.505))
    run = executor(fcfs=(0, 100.0), **{"shortest-prompt-aging": (4, 50.0)}, tuned=(0, 50.5))
    assert [elite.id for elite in surest_first(archive, run, "ttft_mean_us", FCFS)] == [1, 0]


def test_of_two_within_two_percent_the_one_whose_gain_holds_at_a_higher_rate_leads() -> None:
    archive = elites((SHORTEST, 0.500), (tuned(), 0.505))
    shortest, other, default = (Policy.from_source(text, CONTRACT).digest for text in (SHORTEST, tuned(), FCFS))
    told = Busier(table={default: (0, 100.0), shortest: (0, 50.0), other: (0, 50.5)}, fitted=shortest)
    run = Inline(Setup(contract=CONTRACT, evaluator=told, objectives={"ttft_mean_us": 1.0}))
    assert [elite.id for elite in surest_first(archive, run, "ttft_mean_us", FCFS)] == [1, 0]
    steady = Inline(Setup(contract=CONTRACT, evaluator=replace(told, fitted=""), objectives={"ttft_mean_us": 1.0}))
    assert [elite.id for elite in surest_first(archive, steady, "ttft_mean_us", FCFS)] == [0, 1]


def test_beyond_two_percent_fitness_decides() -> None:
    archive = elites((SHORTEST, 0.500), (tuned(), 0.511))
    run = executor(fcfs=(0, 100.0), **{"shortest-prompt-aging": (4, 50.0)}, tuned=(0, 51.1))
    assert [elite.id for elite in surest_first(archive, run, "ttft_mean_us", FCFS)] == [0, 1]


def test_an_elite_that_cannot_be_measured_again_comes_last_and_ends_nothing() -> None:
    archive = elites((SHORTEST, 0.500), (tuned(), 0.505))
    run = executor(fcfs=(0, 100.0), tuned=(4, 50.5))
    assert [elite.id for elite in surest_first(archive, run, "ttft_mean_us", FCFS)] == [1, 0]


def test_without_a_default_the_order_is_that_of_fitness() -> None:
    archive = elites((SHORTEST, 0.500), (tuned(), 0.505))
    assert [elite.id for elite in surest_first(archive, executor(), "ttft_mean_us", None)] == [0, 1]


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


def test_busier_windows_are_the_train_windows_at_a_higher_rate_and_a_multiple_of_one_leaves_them_out() -> None:
    workload = default_workload()
    train = workload.train.select(np.arange(600))
    plain = SimulationEvaluator.of(CONTRACT, workload)
    evaluator = replace(plain, train=(train,), busier=2.0)
    policy = Policy.from_source(SHORTEST, CONTRACT)
    (busier,) = evaluator.measure(policy, "busier")
    (as_train,) = replace(plain, train=(train.scaled(2.0),)).measure(policy, "train")
    assert busier.metrics == as_train.metrics != evaluator.measure(policy, "train")[0].metrics
    assert replace(evaluator, busier=1.0).measure(policy, "busier") == []
