"""One text, five meanings: CPython on the text, CPython on the printed IR, the interpreter, Z3 and machine code agree."""

import pytest

from autopoiesis_lib import Contract
from autopoiesis_lib.language import LanguageError
from tests.language.meanings import Meanings
from tests.language.programs import Small, Wide, every_input, program, random_inputs


def compare(
    seeds: range, contract: Contract, inputs: int, solver_every: int, tame: bool = False
) -> tuple[int, int, int]:
    """Program-input pairs compared, those that ran without a fault, and those put to Z3."""
    pairs = clean = solved = 0
    for seed in seeds:
        text = program(seed, contract, tame=tame)
        try:
            meanings = Meanings(text, contract, with_ranges=seed % 2 == 0)
        except LanguageError as error:
            assert "operations" in str(error) or "deeper" in str(error), f"{error}\n{text}"
            continue
        for index, rows in enumerate(random_inputs(seed, contract, inputs)):
            solver = index % solver_every == 0
            clean += meanings.check(rows, solver=solver)
            pairs += 1
            solved += solver
    return pairs, clean, solved


def test_every_meaning_agrees_on_random_policies() -> None:
    pairs, clean, solved = compare(range(40), Wide(), inputs=24, solver_every=6)
    assert pairs >= 800 and clean >= pairs // 4 and solved >= 100


def test_every_meaning_agrees_on_every_input_of_a_small_domain() -> None:
    contract = Small()
    for seed in range(4):
        meanings = Meanings(program(seed, contract, tame=True), contract)
        for index, rows in enumerate(every_input(contract)):
            meanings.check(rows, solver=index % 64 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_every_meaning_agrees_on_a_hundred_thousand_pairs(part: int, capsys: pytest.CaptureFixture[str]) -> None:
    wild = compare(range(1_000 + part * 100, 1_100 + part * 100), Wide(), inputs=100, solver_every=1)
    tame = compare(range(5_000 + part * 100, 5_050 + part * 100), Wide(), inputs=100, solver_every=1, tame=True)
    pairs, clean, solved = (a + b for a, b in zip(wild, tame, strict=True))
    with capsys.disabled():
        print(f"\npart {part}: {pairs:,} program-input pairs, {clean:,} without a fault, {solved:,} also by Z3")
    assert pairs >= 12_500 and clean >= pairs // 4
