"""The search proposer writes well-formed, various candidates, and its repairs make failed proofs go through."""

import re
from collections import Counter
from math import ceil
from random import Random

import pytest
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Policy
from autopoiesis_lib.gates import GateResult, Verdict, check, proof
from autopoiesis_lib.language import LanguageError, Module, parse
from autopoiesis_lib.language.python import to_source
from autopoiesis_lib.synthesis import Context, Parent, SearchProposer, Slot
from autopoiesis_lib.synthesis.aging import bound, within_limit
from autopoiesis_lib.synthesis.moves import MOVES, Workbench, decision_palette, swap_field, trade
from autopoiesis_lib.synthesis.palette import Palette
from autopoiesis_lib.synthesis.repair import repair
from autopoiesis_lib.synthesis.search import fresh_module, simplified

CONTRACT = RequestOrdering()
PARENTS = [Parent(id=i, source=text, fitness=1.0) for i, text in enumerate(BASELINES.values())]
HEADER = "from autopoiesis_contracts.request_ordering import Engine, Waiting\n\n\n"


def context(generation: int = 1, seed: int = 1) -> Context:
    return Context(contract=CONTRACT, seed=seed, generation=generation)


def slots(count: int) -> list[Slot]:
    rng = Random(0)
    return [Slot(id=i, island=i % 4, parents=tuple(rng.sample(PARENTS, 2))) for i in range(count)]


def test_every_draft_is_in_the_language_and_nearly_all_say_something_new() -> None:
    drafts = SearchProposer().propose(context(), slots(300))
    digests = [Policy.from_source(draft.source, CONTRACT).digest for draft in drafts]
    assert len(set(digests)) > 250
    assert (
        set(Counter(draft.move for draft in drafts)) == set(MOVES) - {"change-guard"}
        or len(Counter(draft.move for draft in drafts)) >= len(MOVES) - 2
    )


def test_equal_seeds_write_equal_drafts_and_other_seeds_others() -> None:
    first, again, other = (SearchProposer().propose(context(seed=seed), slots(40)) for seed in (1, 1, 2))
    assert first == again
    assert sum(a.source == b.source for a, b in zip(first, other, strict=True)) < 5


def test_a_draft_depends_on_its_slot_alone_not_on_its_neighbours() -> None:
    many = SearchProposer().propose(context(), slots(40))
    assert SearchProposer().propose(context(), slots(40)[17:18])[0] == many[17]


def test_most_fresh_policies_of_the_grammar_pass_the_cheap_gates() -> None:
    passed = 0
    for seed in range(60):
        text = to_source(fresh_module(CONTRACT, Random(seed)), CONTRACT.interface)
        passed += check(text, CONTRACT, gates=("grammar", "types", "ranges")).verdict is Verdict.PASSED
    assert passed >= 50


def test_the_search_knows_which_field_must_win_in_the_end() -> None:
    aging = Palette(CONTRACT, "score").aging
    assert aging is not None
    assert (aging.feature.view, aging.feature.name, aging.limit) == ("request", "waited_us", 600_000_000)


@pytest.mark.parametrize(
    "body",
    [
        "-request.num_prompt_tokens",
        "-request.num_prompt_tokens * 1_000_000 + request.waited_us",
        "request.priority if engine.num_running > 3 else -request.max_tokens",
        "request.waited_us * 1_000 // (request.num_prompt_tokens + 1)",
    ],
)
def test_a_policy_refuted_for_starvation_is_proved_after_one_repair(body: str) -> None:
    text = f"{HEADER}def score(request: Waiting, engine: Engine) -> int:\n    return {body}\n"
    policy = Policy.from_source(text, CONTRACT)
    result = proof.check(policy, least=False)
    assert result.verdict is Verdict.REFUTED
    for seed in range(8):
        fixed = repair(CONTRACT, policy.module, Random(seed), rejected(result))
        assert fixed is not None
        assert fixed[1] == "repair-aging"
        repaired = Policy.from_source(to_source(simplified(fixed[0]), CONTRACT.interface), CONTRACT)
        assert proof.check(repaired, least=False).verdict is Verdict.PROVED


def rejected(result: GateResult) -> Parent:
    return Parent(id=0, source="", gate=result.name, reason=result.reason, obligation=result.obligation)


def test_a_division_by_zero_is_repaired() -> None:
    text = f"{HEADER}def score(request: Waiting, engine: Engine) -> int:\n    return request.waited_us // engine.num_running\n"
    report = check(text, CONTRACT, gates=("grammar", "types", "ranges"))
    assert report.failed is not None
    fixed = repair(CONTRACT, parse(text, CONTRACT.interface), Random(0), rejected(report.failed))
    assert fixed is not None
    assert fixed[1] == "repair-division"
    again = check(to_source(fixed[0], CONTRACT.interface), CONTRACT, gates=("grammar", "types", "ranges"))
    assert again.verdict is Verdict.PASSED


def test_an_overflow_is_repaired() -> None:
    body = "request.waited_us ** 2 * request.num_prompt_tokens"
    text = f"{HEADER}def score(request: Waiting, engine: Engine) -> int:\n    return {body}\n"
    report = check(text, CONTRACT, gates=("grammar", "types", "ranges"))
    assert report.failed is not None
    fixed = repair(CONTRACT, parse(text, CONTRACT.interface), Random(0), rejected(report.failed))
    assert fixed is not None
    again = check(to_source(fixed[0], CONTRACT.interface), CONTRACT, gates=("grammar", "types", "ranges"))
    assert again.verdict is Verdict.PASSED, again.failed


def test_simplifying_never_changes_what_a_policy_does() -> None:
    row = {
        "waited_us": 5_000_000,
        "num_prompt_tokens": 900,
        "num_cached_tokens": 100,
        "num_output_tokens": 3,
        "max_tokens": 70,
    }
    request = type("R", (), {**row, "priority": 8, "num_preemptions": 1})()
    engine = type("E", (), {name: 7 + i for i, name in enumerate(CONTRACT.views["Engine"].model_fields)})()
    compared = 0
    for seed in range(120):
        parents = [Slot(id=seed, island=0, parents=tuple(Random(seed).sample(PARENTS, 2)))]
        text = SearchProposer().propose(context(generation=seed), parents)[0].source
        module = parse(text, CONTRACT.interface)
        try:
            before = Policy(text, CONTRACT, module)(request, engine)
        except (ArithmeticError, LanguageError):
            continue
        simple = simplified(module)
        assert Policy(to_source(simple), CONTRACT, simple)(request, engine) == before
        compared += 1
    assert compared > 80


def test_the_controls_do_only_what_their_names_say() -> None:
    tuned = SearchProposer(mode="tune").propose(context(), slots(30))
    assert {draft.move for draft in tuned} == {"tune"}
    random = SearchProposer(mode="random").propose(context(), slots(30))
    assert {draft.move for draft in random} == {"renew"}
    assert all(not draft.parents for draft in random)


def test_a_fresh_policy_reads_no_field_that_the_workload_never_varies() -> None:
    constant = ("max_tokens", "priority", "num_output_tokens")
    typical = {"score": {f"request.{name}": (7, 7) for name in constant}}
    written = [to_source(fresh_module(CONTRACT, Random(seed), typical)) for seed in range(200)]
    assert not [text for text in written if any(f"request.{name}" in text for name in constant)]
    assert [
        text for seed in range(200) for text in [to_source(fresh_module(CONTRACT, Random(seed)))] if "priority" in text
    ]


def test_a_trade_never_loosens_the_product_of_slope_and_length_and_keeps_signs() -> None:
    body = "def score(request: Waiting, engine: Engine) -> int:\n"
    for length, slope in ((8_192, 72_000), (4, -3)):
        text = HEADER + body + f"    return request.waited_us - min(request.num_prompt_tokens, {length}) * {slope}\n"
        module = parse(text, CONTRACT.interface)
        for seed in range(200):
            changed = trade(Workbench(CONTRACT, module, Random(seed), sigma=0.5))
            assert changed is not None
            found = re.search(r"num_prompt_tokens, (\d+)\) \* \(?(-?\d+)", to_source(changed))
            assert found is not None
            assert (int(found[2]) > 0) == (slope > 0)
            assert length < 100 or int(found[1]) * int(found[2]) <= length * slope


def returning(body: str) -> Module:
    return parse(
        f"{HEADER}def score(request: Waiting, engine: Engine) -> int:\n    return {body}\n", CONTRACT.interface
    )


@pytest.mark.parametrize(
    "body",
    [
        "request.waited_us * 3 - min(request.num_prompt_tokens, 8_192) * 10_000",
        "request.waited_us - min(request.num_prompt_tokens - request.num_cached_tokens, 8_192) * 10_000",
        "request.waited_us + (request.priority * 10_000_000 if engine.num_running > 3 else -request.priority)",
        "request.waited_us - min(request.max_tokens, 2_000) * request.num_prompt_tokens // 100",
        "request.waited_us + 50_000_000 if request.priority > 3 else request.waited_us",
        "request.waited_us + min(engine.num_running, 9) * 1_000_000 if request.priority > 3 else request.waited_us",
        "engine.oldest_waited_us + (request.waited_us - request.priority * 1_000_000 + engine.num_running) // 3",
    ],
)
def test_the_bound_on_aging_found_without_a_solver_is_never_below_the_least_that_is_proved(body: str) -> None:
    module = returning(body)
    palette = decision_palette(CONTRACT, module, "score")
    assert palette.aging is not None
    found = bound(module, palette, palette.aging)
    result = proof.check(Policy.from_source(to_source(module, CONTRACT.interface), CONTRACT))
    proved = next(item.least for item in result.obligations if item.least is not None)
    assert found is not None
    assert ceil(found) >= proved.value


@pytest.mark.parametrize("seed", range(40))
def test_a_policy_that_weighs_too_much_against_waiting_is_proved_once_its_weights_are_scaled(seed: int) -> None:
    module = fresh_module(CONTRACT, Random(seed))
    palette = decision_palette(CONTRACT, module, "score")
    assert palette.aging is not None
    before = bound(module, palette, palette.aging)
    assert before is not None
    scaled = simplified(within_limit(module, palette))
    if before <= palette.aging.limit:
        assert to_source(scaled) == to_source(module)
        return
    after = bound(scaled, palette, palette.aging)
    assert after is not None
    assert after <= palette.aging.limit
    policy = Policy.from_source(to_source(scaled, CONTRACT.interface), CONTRACT)
    assert proof.check(policy, least=False).verdict is Verdict.PROVED


def test_scaling_a_weight_to_the_limit_leaves_nearly_all_of_it() -> None:
    module = returning("request.waited_us - min(request.num_prompt_tokens - request.num_cached_tokens, 9_000) * 90_000")
    text = to_source(within_limit(module, decision_palette(CONTRACT, module, "score")))
    assert "num_cached_tokens, 9000) * 66666" in text  # 9,000 * 66,666 <= 600 s < 9,000 * 66,667


def test_a_field_without_a_ceiling_is_clamped_to_what_the_workload_shows_before_its_weight_is_taken() -> None:
    module = returning("request.waited_us - request.num_prompt_tokens * 70_000")
    typical = {"score": {"request.num_prompt_tokens": (1, 4_000)}}
    text = to_source(within_limit(module, decision_palette(CONTRACT, module, "score", typical)))
    assert "min(request.num_prompt_tokens, 4000) * 70000" in text


def test_most_variations_of_the_baselines_keep_the_aging_bound() -> None:
    drafts = [draft for draft in SearchProposer().propose(context(), slots(200)) if draft.move != "renew"]
    kept = 0
    for draft in drafts:
        module = parse(draft.source, CONTRACT.interface)
        palette = decision_palette(CONTRACT, module, "score")
        assert palette.aging is not None
        found = bound(module, palette, palette.aging)
        kept += found is not None and found <= palette.aging.limit
    assert kept > 0.95 * len(drafts)


def test_a_field_is_exchanged_for_or_joined_with_one_of_its_unit_and_the_constants_stay() -> None:
    module = returning("request.waited_us - min(request.num_prompt_tokens, 8_192) * 10_000")
    written: Counter[str] = Counter()
    for seed in range(300):
        changed = swap_field(Workbench(CONTRACT, module, Random(seed)))
        if changed is not None:
            text = to_source(changed).split("return ")[1].strip()
            assert text.count("8192") == text.count("10000") == 1
            written[text] += 1
    for tokens in (
        "request.num_cached_tokens",
        "max(request.num_prompt_tokens - request.num_cached_tokens, 0)",
        "request.num_prompt_tokens + request.max_tokens",
    ):
        assert written[f"request.waited_us - min({tokens}, 8192) * 10000"] > 0
