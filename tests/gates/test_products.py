"""Products of fields: proved by their bounds where these suffice, exactly where they do not, and never when it is not true."""

import gc
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import z3
from autopoiesis_contracts.request_ordering import RequestOrdering

from autopoiesis_lib import Policy, verify
from autopoiesis_lib.gates import Verdict, proof
from autopoiesis_lib.gates.counterexample import Arguments, Evaluator
from autopoiesis_lib.gates.samples import draw_arguments, pool_of
from autopoiesis_lib.gates.search import Search
from autopoiesis_lib.gates.solving import DEFAULT_RLIMIT, IncrementalSolver
from autopoiesis_lib.gates.verdict import ObligationResult
from autopoiesis_lib.language.errors import LanguageError
from autopoiesis_lib.language.ir import Binary, walk
from autopoiesis_lib.language.products import PRODUCT
from autopoiesis_lib.language.ranges import Interval
from tests.language.programs import program
from tests.language.test_verdicts_equal_enumeration import Claimed, truth

Text = Callable[[str], str]

HARD = {
    "guarded": (
        "request.waited_us - min(request.num_prompt_tokens + request.num_cached_tokens, 4890) "
        "* min(request.num_prompt_tokens, 4890) // 113 * min(request.num_prompt_tokens, 5538) // 25 * 150 // 16 "
        "if engine.num_waiting > 54 else request.waited_us - min(request.num_prompt_tokens, 4890) "
        "* min(request.num_prompt_tokens, 4890) // 113 * min(request.num_prompt_tokens, 5538) // 19 "
        "* 150 // 16 + min(request.num_output_tokens, 14) * min(request.num_output_tokens, 14) // 24 * 120285"
    ),
    "bent": (
        "request.waited_us - min(request.num_prompt_tokens, 4890) * (min(request.num_prompt_tokens, 4890) "
        "+ min(max(request.num_prompt_tokens - 190, 0), 5232) * 4) // 16 * (min(request.num_prompt_tokens, 6967) "
        "* min(request.num_prompt_tokens, 6967) // 1382) // 10 * 193 // 8915 - min(request.waited_us, 163) * 51 // 8915"
    ),
    "nested": (
        "request.waited_us - min(request.num_prompt_tokens, 4890) * (min(request.num_prompt_tokens, 4890) "
        "* min(request.num_prompt_tokens, 4890) // 7564 + min(max(request.num_prompt_tokens - 4376, 0), 514)) // 93 "
        "* min(request.num_prompt_tokens, 5538) // 25 * 150 // 16"
    ),
    "waiting multiplied": (
        "request.waited_us - min(request.num_prompt_tokens, 4890) * min(request.waited_us, 4890) // 16 "
        "* min(request.num_prompt_tokens, 6967) // 11 * 193 // 2255 if request.waited_us < 19200 else request.waited_us "
        "- min(max(request.num_prompt_tokens - request.num_output_tokens, 0), 4890) * min(request.num_prompt_tokens, 4890) // 16 "
        "* min(request.num_prompt_tokens, 6967) // 11 * 1429 // 2255"
    ),
    "fourfold": (
        "request.waited_us - min(request.num_prompt_tokens, 4890) * min(request.num_prompt_tokens, 3136) // 13586 "
        "* min(request.num_prompt_tokens, 22168) // 12 * min(request.num_prompt_tokens, 6741) // 6 * 245 // 956"
    ),
    "power, quotient and remainder": (
        "request.waited_us - min(request.num_prompt_tokens, 80) ** 4 - 10_000_000 // request.max_tokens "
        "- request.num_output_tokens % engine.block_size * 400"
    ),
}
"""The search of an evolution found most of these. Exactly, Z3 gave up on them or hung for a minute."""

CORRELATED = "request.waited_us + (x - y) * (x + y) * 15 - x * x * 15 + y * y * 15"
"""Just the waiting time; to the bounds of its products it may be anything."""

TOO_MUCH = "request.waited_us - min(request.num_prompt_tokens, 48_900) * min(request.num_prompt_tokens, 48_900)"


def correlated(ordering: Text) -> str:
    return ordering(
        "    x = min(request.num_prompt_tokens, 4890)\n"
        "    y = min(request.num_output_tokens, 5601)\n"
        f"    return {CORRELATED}\n"
    )


def ages(policy: Policy, *, least: bool = False, certify: bool = False) -> ObligationResult:
    return proof.check(policy, least=least, certify=certify).obligations[-1]


@pytest.mark.parametrize("name", HARD)
def test_what_bounds_of_products_settle_is_proved_by_them(contract: RequestOrdering, ordering: Text, name: str) -> None:
    result = ages(Policy.from_source(ordering(HARD[name]), contract))
    assert result.verdict is Verdict.PROVED
    assert "by intervals of" in result.detail


@pytest.mark.parametrize("name", ["guarded", "waiting multiplied", "power, quotient and remainder"])
def test_their_certificates_prove_the_bounds_too_and_again_with_both_solvers(
    contract: RequestOrdering, ordering: Text, name: str
) -> None:
    certificate = verify(Policy.from_source(ordering(HARD[name]), contract))
    assert "ages: products" in {item.name for item in certificate.obligations}
    assert certificate.single_solver == ()
    assert any("T = " in claim and "and less is refuted" in claim for claim in certificate.claims)
    assert all(item.verdict is Verdict.PROVED and len(item.solvers) == 2 for item in certificate.recheck())

    stripped = tuple(item for item in certificate.obligations if item.name != "ages: products")
    again = certificate.model_copy(update={"obligations": stripped}).recheck()
    assert [item.name for item in again if not item.verdict.green] == ["ages"]


def test_the_least_bound_is_where_the_products_are_largest(contract: RequestOrdering, ordering: Text) -> None:
    text = ordering("request.waited_us - min(request.num_prompt_tokens, 4_890) * min(request.max_tokens, 5_000)")
    found = ages(Policy.from_source(text, contract), least=True).least
    assert found is not None and found.tight and found.refuted_below is not None
    assert found.value == 4_890 * 5_000 - 1


def test_products_that_break_the_bound_are_refuted_by_a_pair_that_replays(
    contract: RequestOrdering, ordering: Text
) -> None:
    policy = Policy.from_source(ordering(TOO_MUCH), contract)
    result = ages(policy)
    assert result.verdict is Verdict.REFUTED and result.counterexample is not None
    arguments: Arguments = {
        name: dict(value) if isinstance(value, dict) else value
        for name, value in result.counterexample.arguments.items()
    }
    assert not Evaluator(policy).holds(contract.invariants[0], arguments)


def test_what_is_true_only_because_factors_go_together_is_proved_exactly(
    contract: RequestOrdering, ordering: Text
) -> None:
    policy = Policy.from_source(correlated(ordering), contract)
    result = ages(policy, least=True, certify=True)
    assert result.verdict is Verdict.PROVED and "intervals" not in result.detail
    assert result.least is not None and (result.least.value, result.least.tight) == (0, True)
    assert result.smtlib is not None and PRODUCT not in result.smtlib


def test_one_product_in_two_branches_is_bounded_in_each_as_that_branch_has_it(
    contract: RequestOrdering, ordering: Text
) -> None:
    body = """\
    tokens = request.num_prompt_tokens
    if tokens < 10:
        return request.waited_us - tokens * tokens
    return request.waited_us - {most}
"""
    harmless = ordering(body.format(most="min(tokens * tokens, 1_000)"))
    assert ages(Policy.from_source(harmless, contract)).verdict is Verdict.PROVED
    too_much = ordering(body.format(most="tokens * tokens"))
    assert ages(Policy.from_source(too_much, contract)).verdict is Verdict.REFUTED


def test_an_interval_that_is_too_narrow_convinces_no_certificate(contract: RequestOrdering, ordering: Text) -> None:
    policy = Policy.from_source(ordering(TOO_MUCH), contract)
    ranges = policy.ranges["score"]
    for node in walk(policy.module.functions["score"]):
        if isinstance(node, Binary) and node.op == "*":
            ranges.intervals[id(node)] = Interval(0, 10)
    assert ages(policy).verdict is Verdict.PROVED  # screening trusts the analysis
    assert ages(policy, certify=True).verdict is Verdict.REFUTED


def test_a_certified_proof_has_the_same_texts_every_time(contract: RequestOrdering, ordering: Text) -> None:
    once, again = (
        [
            (item.name, item.smtlib)
            for item in proof.check(Policy.from_source(ordering(HARD["bent"]), contract), certify=True).obligations
        ]
        for _ in range(2)
    )
    assert once == again


FACTORS = (
    "min(request.num_prompt_tokens, {})",
    "min(request.max_tokens, {})",
    "min(request.num_output_tokens, {})",
    "min(max(request.num_prompt_tokens - request.num_cached_tokens, 0), {})",
    "min(request.waited_us // {}, 9_000)",
    "(request.num_output_tokens % {} - 70)",
    "(3 if request.priority > 8 else {})",
)


def product_policy(draw: Random) -> str:
    """Waiting, less or more some products of factors; half of them break the bound."""
    terms = ["request.waited_us"]
    for _ in range(draw.randint(1, 3)):
        factors = [draw.choice(FACTORS).format(draw.randint(2, 9_000)) for _ in range(draw.randint(2, 3))]
        operation = draw.choice(["*", "*", "*", f"// {draw.randint(1, 2_000)} *"])
        terms.append(f"{draw.choice('-+')} " + f" {operation} ".join(factors) + f" // {10 ** draw.randint(0, 5)}")
    return " ".join(terms)


def test_whatever_bounds_prove_of_random_products_no_arguments_break(contract: RequestOrdering, ordering: Text) -> None:
    draw = Random(20_261_126)
    [formula] = contract.invariants
    limit = contract.max_aging_us
    proved = refuted = 0
    for _ in range(60):
        policy = Policy.from_source(ordering(product_policy(draw)), contract)
        evaluator = Evaluator(policy)
        if not policy.settled:
            continue
        answer, values = Search(policy, formula, evaluator, DEFAULT_RLIMIT).ask_cut(limit, limit)
        proved, refuted = proved + (answer == "unsat"), refuted + (values is not None)
        if answer != "unsat":
            continue
        drawn = [draw_arguments(contract, formula.params, draw) for _ in range(100)]
        for arguments in (*pool_of(contract).invariants["ages"], *drawn):
            arguments = {**arguments, "aging": limit}
            assert evaluator.holds(formula, arguments) or not evaluator.admissible(formula.params, arguments), (
                policy.source
            )
    assert proved > 10 and refuted > 10


@pytest.mark.slow
def test_certified_verdicts_on_random_policies_are_the_true_ones() -> None:
    claimed = Claimed()
    by_intervals = 0
    for seed in range(20):
        try:
            policy = Policy.from_source(program(seed, claimed, tame=True), claimed)
        except LanguageError:
            continue
        expected = truth(policy)
        for result in proof.check(policy, certify=True).obligations:
            by_intervals += result.smtlib is not None and PRODUCT in result.smtlib
            if result.name in expected and result.verdict is not Verdict.UNKNOWN:
                assert (result.verdict is Verdict.PROVED) is expected[result.name], f"{seed}: {result}\n{policy.source}"
    assert by_intervals > 10


def test_a_least_bound_is_not_waited_for_in_nlsat(contract: RequestOrdering, ordering: Text) -> None:
    """One query for it once took half a minute of a live engine's time, which Z3's own limit counted as nothing."""
    text = ordering(
        "request.waited_us + min(request.num_prompt_tokens, 184) * 732961 - min(min(request.num_prompt_tokens, 740)"
        " * min(request.num_prompt_tokens, 740) // 792 * request.waited_us, 13230521)"
        " - (max(min(request.num_output_tokens, 504) - 4, 0) * 593000 if engine.num_running > 2 else 0)"
    )
    found = ages(Policy.from_source(text, contract), least=True)
    assert found.verdict is Verdict.PROVED and found.least is not None
    assert 430_631_863 <= found.least.value < 600_000_000


def test_where_a_small_bound_cannot_be_told_a_larger_one_is_still_brought_down(
    contract: RequestOrdering, ordering: Text
) -> None:
    """It stayed at the contract's limit, which is six hundred seconds, once the first question had no answer."""
    text = ordering("(request.waited_us // 1_000_000) * (request.waited_us // 1_000_000)")
    found = ages(Policy.from_source(text, contract), least=True)
    assert found.verdict is Verdict.PROVED and found.least is not None and found.least.value < 20_000_000


@pytest.mark.parametrize(
    ("score", "bound"),
    [
        ("request.waited_us - request.num_prompt_tokens * engine.free_blocks // engine.total_blocks", 1_048_575),
        ("request.waited_us + ((request.num_prompt_tokens * 1103515245 + 12345) % 2147483648) % 1000", 999),
    ],
)
@pytest.mark.slow
def test_a_finer_bound_is_sought_within_a_small_part_of_the_limit(
    contract: RequestOrdering, ordering: Text, monkeypatch: pytest.MonkeyPatch, score: str, bound: int
) -> None:
    """A minute and a quarter of one went by after these were proved, for a bound that was no better."""
    used: list[int] = []
    real = IncrementalSolver._check

    def check(self: IncrementalSolver, *arguments: Any) -> Any:
        before = self._budget
        answer = real(self, *arguments)
        used.append(before - self._budget)
        return answer

    monkeypatch.setattr(IncrementalSolver, "_check", check)
    found = ages(Policy.from_source(ordering(score), contract), least=True)
    assert found.verdict is Verdict.PROVED and found.least is not None and found.least.value == bound
    assert sum(used) < 2 * DEFAULT_RLIMIT


@pytest.mark.parametrize("certify", [False, True])
def test_a_proof_leaves_no_solver_memory_to_the_garbage_collector(
    contract: RequestOrdering, ordering: Text, certify: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cycle of references once kept every Z3 context of a worker, until Z3 had no more memory and the worker died."""
    alive = 0
    begin, end = z3.Context.__init__, z3.Context.__del__

    def begun(self: z3.Context, *arguments: Any) -> None:
        nonlocal alive
        alive += 1
        begin(self, *arguments)

    def ended(self: z3.Context) -> None:
        nonlocal alive
        alive -= 1
        end(self)

    monkeypatch.setattr(z3.Context, "__init__", begun)
    monkeypatch.setattr(z3.Context, "__del__", ended)
    tiers = (
        "request.waited_us - (5 if request.num_prompt_tokens > 900 else 1) * min(request.num_output_tokens, 700) * 3"
    )
    gc.collect()
    gc.disable()
    try:
        for text in (ordering(tiers), ordering(HARD["nested"]), correlated(ordering)):
            assert proof.check(Policy.from_source(text, contract), certify=certify).verdict is Verdict.PROVED
        assert alive == 0
    finally:
        gc.enable()
