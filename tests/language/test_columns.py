"""Many inputs at once mean what one at a time means: numpy over columns against the reference interpreter."""

import numpy as np
import pytest

from autopoiesis_lib import Contract, Policy
from autopoiesis_lib.language import LanguageError
from autopoiesis_lib.language.columns import evaluate_columns
from autopoiesis_lib.language.interpreter import Fault, evaluate
from tests.language.programs import Small, Wide, every_input, program, random_inputs


def agreed(policy: Policy, inputs: list[list[dict[str, int]]]) -> int:
    """Inputs without a fault, on each of which the column holds what the interpreter says."""
    views = [{name: np.array([rows[i][name] for rows in inputs]) for name in inputs[0][i]} for i in range(2)]
    functions = policy.module.functions
    found = evaluate_columns(functions, functions["score"], views, len(inputs))
    clean = 0
    for rows, value in zip(inputs, found.tolist(), strict=True):
        try:
            expected = evaluate(policy.module, "score", rows)
        except Fault:
            assert not policy.settled, f"intervals discharged a fault\n{policy.source}\non {rows}"
            continue
        assert value == expected, f"columns {value}, interpreter {expected}\n{policy.source}\non {rows}"
        clean += 1
    return clean


@pytest.mark.parametrize(("contract", "tame"), [(Wide(), False), (Wide(), True), (Small(), False)])
def test_columns_and_the_interpreter_agree_on_random_policies(contract: Contract, tame: bool) -> None:
    clean = 0
    for seed in range(60):
        try:
            policy = Policy.from_source(program(seed, contract, tame=tame), contract)
        except LanguageError:
            continue
        clean += agreed(policy, [list(rows) for rows in random_inputs(seed, contract, 40)])
    assert clean >= 400


def test_columns_and_the_interpreter_agree_on_every_input_of_a_small_domain() -> None:
    contract = Small()
    inputs = every_input(contract)
    clean = sum(agreed(Policy.from_source(program(seed, contract, tame=True), contract), inputs) for seed in range(6))
    assert clean > 2 * len(inputs)


def test_what_an_input_does_not_take_cannot_hurt_it() -> None:
    contract = Small()
    text = program(0, contract, tame=True)
    head = text[: text.index("def ")]
    body = """\
def score(crate: {view}, yard: {context}) -> int:
    far = 7 // crate.near if crate.near != 0 else 1
    for i in range(3):
        if crate.near > i:
            return far * 2**62 % 5
        far = far + i
    if crate.near == 0 or 5 % crate.near == 0:
        far = -far
    return far
"""
    view, context = (param.type for param in contract.decisions["score"].params)
    policy = Policy.from_source(head + body.format(view=view, context=context), contract)
    inputs = every_input(contract)
    assert agreed(policy, inputs) > len(inputs) // 2
