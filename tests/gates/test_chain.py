"""The chain of gates: verdicts, their order, and what a report holds."""

from collections.abc import Callable

import pytest
from autopoiesis_contracts.request_ordering import RequestOrdering

from autopoiesis_lib.gates import GATES, Verdict, check
from autopoiesis_lib.gates.samples import pool_of
from autopoiesis_lib.gates.trials import trials_of

Text = Callable[[str], str]


def test_fcfs_is_proved_with_least_aging_zero_by_every_gate(contract: RequestOrdering) -> None:
    report = check(contract.baselines()["fcfs"], contract)
    assert report.verdict is Verdict.PROVED
    assert tuple(gate.name for gate in report.gates) == GATES
    assert report.least() == {"ages": 0}
    assert any("overflows int64" in claim or "overflows" in claim for claim in report.claims)


@pytest.mark.parametrize(
    ("name", "least_us"),
    [
        ("fcfs", 0),
        ("priority-aging", 150_000_000),
        ("shortest-prompt-aging", 81_910_000),
        ("longest-cached-prefix-aging", 81_920_000),
    ],
)
def test_baselines_are_proved_at_their_known_least_aging(contract: RequestOrdering, name: str, least_us: int) -> None:
    report = check(contract.baselines()[name], contract, gates=("grammar", "proof"))
    assert report.least() == {"ages": least_us}
    [aging] = [item for item in report.obligations if item.name == "ages"]
    assert aging.least is not None and aging.least.tight


def test_shortest_first_without_aging_is_refuted_with_a_replaying_pair_and_starves_for_a_day(
    contract: RequestOrdering, ordering: Text
) -> None:
    report = check(ordering("-request.num_prompt_tokens"), contract, explain=True)
    assert report.verdict is Verdict.REFUTED
    assert report.failed is not None and "86,400,000,000 us, the longest there is" in report.failed.detail
    example = report.counterexample
    assert example is not None
    older, newer = example.arguments["older"], example.arguments["newer"]
    assert isinstance(older, dict) and isinstance(newer, dict)
    assert older["waited_us"] >= newer["waited_us"] + contract.max_aging_us
    assert older["num_prompt_tokens"] > newer["num_prompt_tokens"]


def test_only_multiplicative_aging_is_refuted(contract: RequestOrdering, ordering: Text) -> None:
    assert (
        check(ordering("request.waited_us * 1_000 // request.num_prompt_tokens"), contract).verdict is Verdict.REFUTED
    )


@pytest.mark.parametrize(
    ("body", "gate", "said"),
    [
        ("request.waited_us // engine.num_running", "ranges", "division by zero on line 5"),
        ("request.waited_us + 1_000 // (engine.free_blocks - 12_345)", "proof", "division by zero on line 5"),
        (
            "request.waited_us + request.waited_us * request.waited_us * 1_000 // 10**18",
            "ranges",
            "int64 overflow on line 5",
        ),
        ("request.waited_us * 53_375_996", "ranges", "outside -4,611,686,018,427,387,904"),
        (
            "request.waited_us if request.num_prompt_tokens != 4_321 else 0",
            "proof",
            "not certified at aging <= 600,000,000 us",
        ),
    ],
)
def test_each_defect_is_refuted_by_the_cheapest_gate_that_sees_it(
    contract: RequestOrdering, ordering: Text, body: str, gate: str, said: str
) -> None:
    report = check(ordering(body), contract)
    assert report.verdict is Verdict.REFUTED
    assert report.failed is not None
    assert (report.failed.name, said in report.failed.detail) == (gate, True), report.failed.detail


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ("    import os\n    return 1\n", Verdict.UNSUPPORTED),
        ("request.waited_us * 0.5", Verdict.UNSUPPORTED),
        ("    while True:\n        pass\n", Verdict.UNSUPPORTED),
        ("    return 'high'\n", Verdict.INVALID),
        ("    return None\n", Verdict.INVALID),
        ("    x = 1\n", Verdict.INVALID),
        ("request.no_such_field", Verdict.INVALID),
        ("request.waited_us +", Verdict.INVALID),
    ],
)
def test_texts_outside_the_language_stop_at_the_grammar(
    contract: RequestOrdering, ordering: Text, body: str, verdict: Verdict
) -> None:
    report = check(ordering(body), contract)
    assert report.verdict is verdict
    assert [gate.name for gate in report.gates] == ["contract", "grammar"]
    assert report.gates[-1].detail.startswith("line ")
    assert report.policy_digest is None


def test_a_result_out_of_range_is_named_so_by_every_gate(contract: RequestOrdering, ordering: Text) -> None:
    report = check(ordering("request.waited_us * 53_375_996"), contract)
    assert [(item.name, item.verdict) for item in report.obligations] == [("score is in range", Verdict.REFUTED)]


def test_unreachable_faults_do_not_refute(contract: RequestOrdering, ordering: Text) -> None:
    body = "    if request.priority > 15:\n        return request.waited_us // 0\n    return request.waited_us\n"
    assert check(ordering(body), contract).verdict is Verdict.PROVED


def test_a_guarded_division_is_safe_and_an_unguarded_one_is_not(contract: RequestOrdering, ordering: Text) -> None:
    guarded = ordering("request.waited_us + (engine.num_running and 100 // engine.num_running)")
    assert check(guarded, contract, gates=("proof",)).verdict is Verdict.PASSED
    swapped = ordering("request.waited_us + (100 // engine.num_running and engine.num_running)")
    assert check(swapped, contract, gates=("proof",)).verdict is Verdict.REFUTED


def test_some_of_the_gates_never_count_as_proved(contract: RequestOrdering) -> None:
    text = contract.baselines()["fcfs"]
    for gate in GATES:
        fewer = tuple(name for name in GATES if name != gate)
        if gate not in ("contract", "grammar"):
            report = check(text, contract, gates=fewer)
            assert report.verdict is Verdict.PASSED, gate
            assert report.claims == ()


def test_a_tighter_contract_refuses_what_the_default_one_proves(contract: RequestOrdering) -> None:
    text = contract.baselines()["shortest-prompt-aging"]
    assert check(text, RequestOrdering(max_aging_us=81_910_000), gates=("proof",)).verdict is Verdict.PASSED
    assert check(text, RequestOrdering(max_aging_us=81_909_999), gates=("proof",)).verdict is Verdict.REFUTED


def test_kept_counterexamples_are_tried_first(contract: RequestOrdering, ordering: Text) -> None:
    rare = ordering("request.waited_us if request.num_prompt_tokens != 4_321 else 0")
    found = check(rare, contract).counterexample
    assert found is not None
    again = check(rare, contract, regressions={"ages": [dict(found.arguments)]})
    assert again.failed is not None and again.failed.name == "quick-fuzz"


def test_a_fault_that_inputs_of_an_invariant_show_is_told_as_one(contract: RequestOrdering, ordering: Text) -> None:
    """It was told as a broken `ages`, which it breaks as well, with a test of that."""
    body = (
        "    d = request.num_output_tokens - request.num_prompt_tokens\n"
        "    if request.priority > 0 or engine.num_waiting <= request.num_preemptions:\n"
        "        d = 1\n"
        "    return request.waited_us + 0 * (3 // d)\n"
    )
    report = check(ordering(body), contract, gates=("grammar", "ranges", "quick-fuzz"))
    assert report.verdict is Verdict.REFUTED and report.failed is not None and report.failed.name == "quick-fuzz"
    assert [item.name for item in report.obligations] == ["score is safe"]
    assert report.counterexample is not None and "division by zero" in report.counterexample.explanation
    assert set(report.counterexample.arguments) == {"request", "engine"}


def test_verdicts_repeat_whatever_was_asked_before(contract: RequestOrdering, ordering: Text) -> None:
    """A query near the resource limit once depended on what the process had asked earlier."""
    text = ordering("request.waited_us * 1_000 // request.num_prompt_tokens")
    first = check(text, contract, gates=("proof",))
    for other in contract.baselines().values():
        check(other, contract, gates=("proof",))
    second = check(text, contract, gates=("proof",))
    assert (first.verdict, first.counterexample) == (second.verdict, second.counterexample)


@pytest.mark.parametrize(
    ("step", "verdict"),
    [
        ("x = x * x", Verdict.REFUTED),
        ("x = x * x % 1_000_003", Verdict.UNKNOWN),
        ("x = x * x // 3", Verdict.REFUTED),
    ],
)
def test_repeated_squaring_ends_with_a_verdict_and_without_hanging_the_solver(
    contract: RequestOrdering, ordering: Text, step: str, verdict: Verdict
) -> None:
    """Z3 once multiplied sixty squarings out: minutes and gigabytes before any limit applied."""
    body = f"    x = request.num_prompt_tokens\n    for i in range(60):\n        {step}\n    return x + request.waited_us\n"
    assert check(ordering(body), contract).verdict is verdict


@pytest.mark.slow
def test_squaring_what_is_0_or_1_ends_with_a_verdict_too(contract: RequestOrdering, ordering: Text) -> None:
    """Intervals do not see that it never grows, and Z3 was not back after 200 s, whatever its limits."""
    odd = "request.num_preemptions - request.num_preemptions // 2 * 2"
    body = f"    x = {odd}\n    for i in range(40):\n        x = x * x\n    return x + request.waited_us\n"
    assert check(ordering(body), contract).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("powers", [2, 9])
def test_an_overflow_that_only_a_pair_of_requests_shows_is_told_before_cpython_reckons_with_it(
    contract: RequestOrdering, ordering: Text, powers: int
) -> None:
    """Two powers were once more digits than Python prints; nine are more than any memory holds."""
    seen = {arguments["request"]["waited_us"] for arguments in pool_of(contract).decisions["score"]}  # type: ignore[index]
    waits = [arguments["older"]["waited_us"] for arguments in trials_of(contract)[0].arguments]  # type: ignore[index]
    rare = next(wait for wait in waits if wait > 1_000_000 and wait not in seen)
    power = "x" + " ** 64)" * powers
    body = f"    x = request.waited_us if request.waited_us == {rare} else 0\n    return {'(' * powers}{power}\n"
    report = check(ordering(body), contract, gates=("grammar", "ranges", "quick-fuzz"))
    assert report.verdict is Verdict.REFUTED and report.counterexample is not None
    assert "int64 overflow" in report.counterexample.explanation
