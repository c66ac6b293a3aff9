"""Claims about machine code: C layout, numba, threads, lifetime, and that nothing can stop the process."""

import ctypes
import gc
import pickle
import threading

import numba
import numpy as np
import pytest
from numba import types

from autopoiesis_lib import Policy
from autopoiesis_lib.language.builtin import builtin, entry
from autopoiesis_lib.language.llvm import DECLARATIONS
from autopoiesis_lib.language.native import MachineCode, NativeError, NativeFunction
from autopoiesis_lib.language.scorer import ARGMAX, BLOCK, Scorer
from tests.language.programs import Kind, Wide, program

HEAD = "from tests.language.programs import Crate, Kind, Yard\ndef score(crate: Crate, yard: Yard) -> int:\n"
LOWEST, HIGHEST = -(2**63), 2**63 - 1


def policy(body: str) -> Policy:
    return Policy.from_source(HEAD + "".join(f"    {line}\n" for line in body.splitlines()), Wide())


def test_the_layout_is_in_the_contracts_names_whatever_the_policy_calls_its_parameters() -> None:
    made = policy("return 100 * crate.near + yard.room")
    assert made.native().layout == (
        "item.near", "item.far", "item.fragile", "item.kind", "place.room", "place.open"
    )  # fmt: skip
    assert made.native()(3, 0, 0, 0, 7, 0) == 307
    swapped = made.native(layout=["place.room", "place.open", "item.near"])
    assert swapped.layout == ("place.room", "place.open", "item.near")
    assert swapped(7, 1, 3) == 307


def test_a_layout_that_cannot_work_is_refused_by_name() -> None:
    made = policy("return crate.near + yard.room")
    with pytest.raises(NativeError, match=r"reads `place\.room`"):
        made.native(layout=["item.near"])
    with pytest.raises(NativeError, match=r"no `item\.size`"):
        made.native(layout=["item.size"])
    with pytest.raises(NativeError, match=r"`item\.near` twice"):
        made.native(layout=["item.near", "item.near", "place.room"])


def test_a_field_read_only_by_a_helper_must_be_laid_out() -> None:
    text = (
        "from tests.language.programs import Crate, Kind, Yard\n"
        "def inner(k: int, y: Yard) -> int:\n    return k + y.room\n"
        "def score(c: Crate, y: Yard) -> int:\n    return inner(c.near, y)\n"
    )
    made = Policy.from_source(text, Wide())
    assert made.native(layout=["place.room", "item.near"])(40, 2) == 42
    with pytest.raises(NativeError, match=r"reads `place\.room`"):
        made.native(layout=["item.near"])


@pytest.mark.parametrize("divisor", [0, -1, 1, -3, 3, LOWEST, HIGHEST])
@pytest.mark.parametrize("dividend", [0, 7, -7, LOWEST, HIGHEST])
def test_division_floors_and_never_traps(dividend: int, divisor: int) -> None:
    quotient, remainder = policy("return crate.far // yard.room"), policy("return crate.far % yard.room")
    found = quotient.native()(0, dividend, 0, 0, divisor, 0), remainder.native()(0, dividend, 0, 0, divisor, 0)
    if divisor == 0:
        assert found == (0, 0)
    elif (dividend, divisor) == (LOWEST, -1):
        assert found == (LOWEST, 0)  # the quotient wraps, as in C; the remainder is right
    else:
        assert found == divmod(dividend, divisor)


def test_arithmetic_wraps_where_python_would_grow() -> None:
    assert policy("return crate.far + 1").native()(0, HIGHEST, 0, 0, 0, 0) == LOWEST
    assert policy("return abs(crate.far)").native()(0, LOWEST, 0, 0, 0, 0) == LOWEST
    assert policy("return -crate.far").native()(0, LOWEST, 0, 0, 0, 0) == LOWEST
    assert policy("return crate.far ** 3").native()(0, 2**40 + 1, 0, 0, 0, 0) == (3 * 2**40 + 1)


def test_the_absolute_value_of_the_lowest_integer_is_not_left_to_llvm() -> None:
    assert policy("return 1 if abs(crate.far) < 0 else 2").native()(0, LOWEST, 0, 0, 0, 0) == 1


def test_a_loop_is_a_loop_in_machine_code_and_its_variable_may_be_assigned() -> None:
    made = policy("total = 0\nfor i in range(1_600, 0, -2):\n    total += i\n    i = 7\nreturn total + i")
    assert made.native()(0, 0, 0, 0, 0, 0) == sum(range(1_600, 0, -2)) + 7


def test_enum_members_and_booleans_are_integers() -> None:
    made = policy("return (crate.kind == Kind.HIGH) + 10 * (crate.fragile + True) + 100 * Kind.LOW")
    assert made.native()(0, 0, 1, int(Kind.HIGH), 0, 0) == 1 + 20 - 100


def test_c_code_can_call_the_address() -> None:
    made = policy("return crate.near * 2").native()
    call = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 6)(made.address)
    assert call(21, 0, 0, 0, 0, 0) == 42


def test_a_numba_kernel_takes_it_as_a_first_class_function() -> None:
    made = policy("return crate.near - yard.room if yard.open else crate.far")
    function = types.FunctionType(types.int64(*[types.int64] * 6))

    @numba.njit(types.int64(function, types.int64[::1]))  # type: ignore[untyped-decorator]
    def total(score: NativeFunction, near: np.ndarray) -> int:
        found = 0
        for value in near:
            found += score(value, 100, 0, 0, 1, value % 2)
        return found

    near = np.arange(10)
    assert total(made.native(), near) == sum(int(value) - 1 if value % 2 else 100 for value in near)
    other = policy("return 1")
    assert total(other.native(), near) == 10  # the kernel is compiled for the type, not for the policy


def test_threads_compile_and_call_side_by_side_and_garbage_is_freed() -> None:
    contract = Wide()
    failures: list[str] = []

    def work(base: int) -> None:
        for index in range(6):
            value = base + index
            native = Policy.from_source(HEAD + f"    return crate.near + {value}\n", contract).native()
            if native(1, 0, 0, 0, 0, 0) != value + 1:
                failures.append(str(value))

    threads = [threading.Thread(target=work, args=(1_000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not failures


def test_a_policy_is_compiled_once_and_travels_without_its_machine_code() -> None:
    made = policy("return crate.near + 1")
    assert made.native() is made.native()
    assert made.native(layout=["item.near"]) is not made.native()
    arrived = pickle.loads(pickle.dumps(made))
    assert arrived.digest == made.digest
    assert arrived.native()(1, 0, 0, 0, 0, 0) == 2


def test_functions_caught_in_a_cycle_are_freed_without_a_crash() -> None:
    for value in range(8):
        native = policy(f"return {value}").native()
        cycle: list[object] = [native]
        cycle.append(cycle)
        del native, cycle
    gc.collect()


# The scorer.


def columns_of(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    columns = np.stack(
        [
            rng.integers(-9, 10, count),
            rng.integers(LOWEST, HIGHEST, count),
            rng.integers(0, 2, count),
            rng.choice([-1, 2, 5], count),
        ]
    ).astype(np.int64)
    return np.ascontiguousarray(columns), np.array([3, 1], np.int64), rng.permutation(count).astype(np.int64)


def first_of_the_best(scores: np.ndarray, tiebreak: np.ndarray, n: int) -> int:
    return min(range(n), key=lambda index: (-int(scores[index]), int(tiebreak[index]), index), default=-1)


@pytest.mark.parametrize("seed", range(12))
def test_a_scorer_equals_its_function_row_by_row(seed: int) -> None:
    made = Policy.from_source(program(seed, Wide()), Wide())
    scorer, native = made.scorer(), made.native()
    columns, place, tiebreak = columns_of(101, seed)
    scores = scorer(columns, place)
    assert scores.tolist() == [native(*map(int, columns[:, row]), *map(int, place)) for row in range(101)]
    assert scorer.argmax(columns, tiebreak, place) == first_of_the_best(scores, tiebreak, 101)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 5])
@pytest.mark.parametrize("body", ["return crate.near", "return 0", "return -9223372036854775808", "return crate.far"])
def test_argmax_is_the_first_of_the_best_at_every_block_boundary(n: int, body: str) -> None:
    scorer = policy(body).scorer()
    columns, place, tiebreak = columns_of(2 * BLOCK + 8)
    scores = scorer(columns, place, n=n)
    assert scores.shape == (n,)
    assert scorer.argmax(columns, tiebreak, place, n=n) == first_of_the_best(scores, tiebreak, n)
    level = np.full_like(tiebreak, HIGHEST)
    assert scorer.argmax(columns, level, place, n=n) == first_of_the_best(scores, level, n)
    elsewhere = MachineCode(DECLARATIONS + ARGMAX + entry("argmax", "pi"))
    bound = scorer.argmax_over(columns, tiebreak, place)
    picked = builtin(elsewhere, "argmax")(bound.address, n)
    assert picked == first_of_the_best(scores, tiebreak, n), "other machine code picks the same"


def test_a_scorer_sees_new_values_in_the_same_arrays() -> None:
    scorer: Scorer = policy("return crate.near * yard.room").scorer()
    columns, place, tiebreak = columns_of(5)
    columns[0] = [1, 2, 3, 4, 5]
    assert scorer.argmax(columns, tiebreak, place) == 4
    columns[0] = [1, 9, 3, 4, 5]
    assert scorer.argmax(columns, tiebreak, place) == 1
    place[0] = -1
    assert scorer.argmax(columns, tiebreak, place) == 0
    assert scorer.argmax(columns.copy(), tiebreak.copy(), place.copy(), n=2) == 0
    out = np.zeros(5, np.int64)
    for _ in range(2):
        assert scorer(columns, place, n=2, out=out).tolist() == [-1, -9]
    assert out.tolist() == [-1, -9, 0, 0, 0]


def test_wrong_arrays_are_refused_before_machine_code_sees_them() -> None:
    scorer = policy("return crate.near").scorer()
    columns, place, tiebreak = columns_of(6)
    with pytest.raises(TypeError, match="columns is int32"):
        scorer(columns.astype(np.int32), place)
    with pytest.raises(TypeError, match="columns is list"):
        scorer.argmax(columns.tolist(), tiebreak, place)
    with pytest.raises(TypeError, match="not C-contiguous"):
        scorer(np.asfortranarray(columns), place)
    with pytest.raises(ValueError, match=r"columns has shape \(3, 6\)"):
        scorer(columns[:3], place)
    with pytest.raises(ValueError, match="n = 7"):
        scorer(columns, place, n=7)
    with pytest.raises(ValueError, match="n = -1"):
        scorer.argmax(columns, tiebreak, place, n=-1)
    with pytest.raises(TypeError, match="n is float"):
        scorer.argmax(columns, tiebreak, place, n=2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`tiebreak` holds 2"):
        scorer.argmax(columns, tiebreak[:2].copy(), place)
    with pytest.raises(ValueError, match="0 context rows; pass 1: place"):
        scorer.argmax(columns, tiebreak)
    with pytest.raises(ValueError, match=r"place has shape \(1,\)"):
        scorer(columns, place[:1])
    with pytest.raises(ValueError, match="`out` holds 1"):
        scorer(columns, place, out=np.zeros(1, np.int64))
    frozen = np.zeros(6, np.int64)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        scorer(columns, place, out=frozen)
    assert scorer.argmax(columns, tiebreak, place, n=np.int64(6)) >= 0  # type: ignore[arg-type]


SUM = """\
define i64 @total(ptr %words, i64 %n) nounwind {
entry:
  %first = load i64, ptr %words
  %sum = add i64 %first, %n
  ret i64 %sum
}
"""


def test_machine_code_is_a_builtin_function_that_takes_only_ints_that_fit() -> None:
    code = MachineCode(SUM + entry("total", "pi"))
    total = builtin(code, "total")
    del code
    gc.collect()
    words = np.array([40], np.int64)
    at = words.ctypes.data
    assert total(at, 2) == 42 and total(at, -1) == 39 and total(at, LOWEST) == LOWEST + 40
    for wrong in ((at,), (at, 1, 2), ("x", 1), (at, 1.0), (None, None)):
        with pytest.raises(TypeError):
            total(*wrong)
    with pytest.raises(OverflowError):
        total(at, HIGHEST + 1)
    with pytest.raises(OverflowError):
        total(-(2**70), 1)
