"""Claims about what the control plane remembers of past work."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from autopoiesis_lib.online.memory import REMEMBERED, Memory
from autopoiesis_lib.online.recall import MOST, alike
from autopoiesis_lib.online.window import Window
from tests.online.streams import drawn_window


def window(seed: int, prompt: float, start_us: int) -> Window:
    """Sixty seconds of one kind of work."""
    drawn = drawn_window(np.random.default_rng(seed), seconds=60.0, prompt=prompt)
    return replace(drawn, start_us=start_us, end_us=start_us + 60_000_000)


def test_windows_with_like_prompts_are_recalled_and_others_are_not() -> None:
    days = {number: window(number, (600.0, 2_400.0)[number % 2], number * 10**9) for number in range(8)}
    for kind, prompt in ((0, 600.0), (1, 2_400.0)):
        now = window(100 + kind, prompt, 10**12)
        assert list(alike(now, days, 0.10)) == [number for number in (7, 6, 5, 4, 3, 2, 1, 0) if number % 2 == kind]


def test_a_window_does_not_recall_itself_and_only_the_newest_are_recalled() -> None:
    days = {number: window(number, 600.0, number * 10**9) for number in range(2 * MOST)}
    last = max(days)
    assert list(alike(days[last], days, 0.10)) == list(range(last - 1, last - 1 - MOST, -1))


def test_memory_keeps_the_newest_windows_and_leaves_out_a_damaged_one(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    assert memory.remembered() == {}
    for seed in range(REMEMBERED + 3):
        memory.remember(window(seed, 600.0, seed * 10**9))
    kept = memory.remembered()
    assert list(kept) == list(range(3, REMEMBERED + 3))
    assert kept[5].start_us == 5 * 10**9
    (tmp_path / "windows" / "000005.npz").write_bytes(b"rubbish")
    assert list(memory.remembered()) == [number for number in kept if number != 5]
