"""Counterexamples replay, are small, and come as a test that fails for the policy and passes for a good one."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from autopoiesis_contracts.request_ordering import RequestOrdering

from autopoiesis_lib import Policy
from autopoiesis_lib.gates import EncoderBug, Verdict, check, proof
from autopoiesis_lib.gates.counterexample import Evaluator, view_instance
from autopoiesis_lib.gates.samples import draw_arguments

Text = Callable[[str], str]


def test_corpus_verdicts_agree_with_cpython_and_none_is_unknown(
    corpus: dict[str, Policy], contract: RequestOrdering
) -> None:
    """Every refutation replays on validated views; no proved policy breaks on random admissible values at its proved bound."""
    verdicts = dict.fromkeys(Verdict, 0)
    draw = Random(3)
    [ages] = contract.invariants
    for name, policy in list(corpus.items())[::4]:
        result = proof.check(policy)
        verdicts[result.verdict] += 1
        if result.verdict is Verdict.REFUTED:
            example = result.counterexample
            assert example is not None, name
            values = {
                key: view_instance(contract.views["Engine" if key == "engine" else "Waiting"], value)
                if isinstance(value, dict)
                else value
                for key, value in example.arguments.items()
            }
            assert not policy.holds("ages", **values) if "older" in values else policy.fault("score", **values), name
            continue
        evaluator = Evaluator(policy)
        least = result.obligations[-1].least
        assert least is not None and least.tight, name
        if least.refuted_below is not None:
            below = dict(least.refuted_below.arguments)
            assert below["aging"] == least.value - 1
            assert not evaluator.holds(ages, below)
        for _ in range(100):
            arguments = draw_arguments(contract, ages.params, draw)
            arguments["aging"] = least.value
            assert not evaluator.admissible(ages.params, arguments) or evaluator.holds(ages, arguments), name
    assert verdicts[Verdict.UNKNOWN] == 0
    assert verdicts[Verdict.PROVED] > 20 and verdicts[Verdict.REFUTED] > 10


def test_counterexamples_are_minimised(contract: RequestOrdering, ordering: Text) -> None:
    example = check(ordering("-request.num_prompt_tokens"), contract, explain=True).counterexample
    assert example is not None
    assert example.arguments["older"] == {
        "waited_us": contract.max_aging_us,
        "num_prompt_tokens": 2,
        "num_cached_tokens": 0,
        "num_output_tokens": 0,
        "max_tokens": 1,
        "priority": 0,
        "num_preemptions": 0,
    }


@pytest.mark.parametrize("body", ["-request.num_prompt_tokens", "request.waited_us // (engine.num_running - 3)"])
def test_the_printed_pytest_fails_for_the_policy_and_passes_for_fcfs(
    contract: RequestOrdering, ordering: Text, body: str, tmp_path: Path
) -> None:
    example = check(ordering(body), contract).counterexample
    assert example is not None
    (tmp_path / "test_counterexample.py").write_text(example.pytest, encoding="utf-8")
    for text, code in ((ordering(body), 1), (contract.baselines()["fcfs"], 0)):
        (tmp_path / "policy.py").write_text(text, encoding="utf-8")
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_counterexample.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == code, run.stdout


def test_values_that_do_not_break_are_an_encoder_bug_never_unknown(contract: RequestOrdering) -> None:
    policy = Policy.from_source(contract.baselines()["fcfs"], contract)
    [ages] = contract.invariants
    values = draw_arguments(contract, ages.params, Random(1))
    with pytest.raises(EncoderBug, match="does not replay"):
        Evaluator(policy).counterexample(ages, {**values, "aging": 600_000_000})
