"""The mutants' room of the translators: which modules, a sample of every suite of this folder, and what survives."""

from collections.abc import Iterator
from itertools import product
from types import ModuleType
from typing import Any

from tests.support.mutants import Check

__all__ = ["DOCUMENTED", "MODULES", "SOUNDNESS", "argued", "checks"]

MODULES = ("language.interpreter", "language.ranges", "language.smt", "language.llvm")
SOUNDNESS = False
DOCUMENTED = {"language.interpreter": 3, "language.ranges": 13, "language.smt": 29, "language.llvm": 10}


def argued() -> dict[str, str]:
    """Return nothing: `docs/mutants.md` argues the survivors in tables for people."""
    return {}


def checks(module: str) -> Iterator[Check]:
    """Yield a sample of every suite of this folder, the quickest first."""
    from tests.language import test_native, test_ranges, test_smt, test_traps
    from tests.language.programs import Wide
    from tests.language.test_meanings_agree import compare
    from tests.language.test_verdicts_equal_enumeration import compare as enumerate_verdicts

    def native() -> None:
        for divisor in (0, -1, 3, -(2**63)):
            test_native.test_division_floors_and_never_traps(-(2**63), divisor)
        test_native.test_arithmetic_wraps_where_python_would_grow()
        test_native.test_the_absolute_value_of_the_lowest_integer_is_not_left_to_llvm()

    yield "native", native
    yield "programs", lambda: compare(range(20), Wide(), inputs=16, solver_every=4)
    yield "intervals", lambda: _run(test_ranges)
    yield "encoding", lambda: _run(test_smt)
    yield "traps", lambda: _run(test_traps)
    yield "more programs", lambda: compare(range(20, 50), Wide(), inputs=16, solver_every=4)
    yield "enumeration", lambda: enumerate_verdicts(range(25))


def _run(module: ModuleType) -> None:
    """Run every test of a module, with each of its parameters."""
    for name, test in vars(module).items():
        if not name.startswith("test_"):
            continue
        columns: list[list[dict[str, Any]]] = []
        for mark in getattr(test, "pytestmark", []):
            names, values = mark.args
            several = not isinstance(names, str)
            columns.append([dict(zip(names, row, strict=True)) if several else {names: row} for row in values])
        for row in product(*columns):
            test(**{name: value for part in row for name, value in part.items()})
