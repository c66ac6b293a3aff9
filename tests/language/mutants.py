"""Mutation testing of the translators: break one thing in one of them, and see that the tests of this folder notice.

    python -m tests.language.mutants [--module smt] [--every 1] [--jobs 2]

Each mutant runs in a forked process of its own whose `autopoiesis_lib` is imported through a loader that serves the mutated
source; nothing on disk changes. A mutant is killed when a check fails, raises, or runs out of time. Survivors are printed.
"""

import argparse
import ast
import importlib.abc
import importlib.machinery
import importlib.util
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite.binding  # noqa: F401  (imported once here, not once a mutant)
import mypy.api  # noqa: F401
import numba  # noqa: F401
import numpy  # noqa: F401
import pydantic  # noqa: F401
import pytest  # noqa: F401
import z3  # noqa: F401

MODULES = ("interpreter", "ranges", "smt", "llvm")
LANGUAGE = Path(__file__).parents[2] / "autopoiesis_lib" / "language"
SECONDS = 60

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.Div: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip
WORDS = {
    "slt": "sle", "sle": "slt", "sgt": "sge", "sge": "sgt", "ult": "ule", "eq": "ne", "ne": "eq", "add": "sub", "sub": "add",
    "mul": "add", "sdiv": "udiv", "srem": "urem", "and": "or", "or": "and", "xor": "and", "sext": "zext", "zext": "sext",
    "min": "max", "max": "min", "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "//": "%", "%": "//",
    "+": "-", "-": "+", "*": "+", "true": "false", "false": "true",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change to one module."""

    module: str
    line: int
    change: str
    source: str


def mutants(module: str, every: int = 1) -> Iterator[Mutant]:
    """Every n-th mutant of a module."""
    tree = ast.parse((LANGUAGE / f"{module}.py").read_text())
    skipped = set(_skipped(tree))
    count = 0
    for index, node in enumerate(list(ast.walk(tree))):
        if index in skipped:
            continue
        for variant in range(8):
            whole = {name: list(value) if isinstance(value, list) else value for name, value in vars(node).items()}
            before = ast.unparse(node) if isinstance(node, (ast.expr, ast.stmt)) else ""
            if not _mutate(node, variant):
                break
            count += 1
            if count % every == 0:
                text = f"{before.splitlines()[0]}  ->  {ast.unparse(node).splitlines()[0]}"
                source = ast.unparse(ast.fix_missing_locations(tree))
                yield Mutant(module, getattr(node, "lineno", 0), text[:160], source)
            vars(node).update(whole)


def _skipped(tree: ast.Module) -> Iterator[int]:
    """Positions that mean nothing at run time: docstrings, annotations, imports, `__all__`, messages of errors."""
    dead: set[int] = set()
    for node in ast.walk(tree):
        below: list[ast.AST] = []
        if (
            isinstance(node, (ast.Import, ast.ImportFrom, ast.Raise, ast.Assert))
            or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
            or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
        ):
            below = [node]
        elif isinstance(node, (ast.AnnAssign, ast.arg)) and node.annotation is not None:
            below = [node.annotation]
        elif isinstance(node, ast.FunctionDef):
            below = [*node.decorator_list, *([node.returns] if node.returns else [])]
        elif isinstance(node, ast.ClassDef):
            below = list(node.decorator_list)
        for item in below:
            dead.update(id(inner) for inner in ast.walk(item))
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in dead:
            yield index


def _mutate(node: ast.AST, variant: int) -> bool:
    match node:
        case ast.Compare(ops=ops) if variant < len(ops) and type(ops[variant]) in COMPARISONS:
            ops[variant] = COMPARISONS[type(ops[variant])]()
        case ast.BinOp(op=operator) | ast.AugAssign(op=operator) if variant == 0 and type(operator) in ARITHMETIC:
            node.op = ARITHMETIC[type(operator)]()
        case ast.BoolOp(op=operator) if variant == 0:
            node.op = ast.Or() if isinstance(operator, ast.And) else ast.And()
        case ast.UnaryOp(op=ast.Not(), operand=operand) if variant == 0:
            node.operand = ast.UnaryOp(ast.Not(), operand)
        case ast.UnaryOp(op=ast.USub()) if variant == 0:
            node.op = ast.UAdd()
        case ast.IfExp(body=body, orelse=orelse) if variant == 0:
            node.body, node.orelse = orelse, body
        case ast.If(test=test) | ast.While(test=test) if variant == 0:
            node.test = ast.UnaryOp(ast.Not(), test)
        case ast.Constant(value=bool() as value) if variant == 0:
            node.value = not value
        case ast.Constant(value=int() as value) if variant == 0:
            node.value = value + 1
        case ast.Constant(value=str() as value):
            hits = [hit for hit in re.finditer(r"[a-z]+|[<>=!]=?|//|[%+*-]", value) if hit.group() in WORDS]
            if variant >= len(hits):
                return False
            start, end = hits[variant].span()
            node.value = value[:start] + WORDS[value[start:end]] + value[end:]
        case _:
            return False
    return True


class _Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves one mutated module."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.name = f"autopoiesis_lib.language.{mutant.module}"

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def exec_module(self, module: Any) -> None:
        exec(compile(self.mutant.source, self.name, "exec"), module.__dict__)


def checks() -> None:
    """What a mutant has to survive: a sample of every suite of this folder, the quickest first."""
    from tests.language import test_native, test_ranges, test_traps
    from tests.language.programs import Wide
    from tests.language.test_meanings_agree import compare
    from tests.language.test_verdicts_equal_enumeration import compare as enumerate_verdicts

    for divisor in (0, -1, 3, -(2**63)):
        test_native.test_division_floors_and_never_traps(-(2**63), divisor)
    test_native.test_arithmetic_wraps_where_python_would_grow()
    for expression, low, high in test_ranges.EXACT:
        test_ranges.test_an_interval_is_no_wider_than_it_need_be(expression, low, high)
    compare(range(20), Wide(), inputs=16, solver_every=4)
    for name in (*test_traps.TRAPS, *test_traps.LEAKS):
        test_traps.test_a_trap_is_refuted(name)
    for name in (*test_traps.TRUE, *test_traps.SCOPES):
        test_traps.test_its_twin_is_proved(name)
    compare(range(20, 50), Wide(), inputs=16, solver_every=4)
    enumerate_verdicts(range(25))


def survives(mutant: Mutant | None) -> bool:
    """Whether the checks pass with a mutant in place (None: with nothing changed), in a forked process."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        signal.alarm(SECONDS)
        try:
            if mutant is not None:
                sys.meta_path.insert(0, _Loader(mutant))
            checks()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def main() -> None:
    parser = argparse.ArgumentParser(description="mutation testing of the translators")
    parser.add_argument("--module", choices=MODULES, action="append")
    parser.add_argument("--every", type=int, default=1, help="take every n-th mutant")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    assert survives(None), "the checks fail with nothing changed"
    for module in options.module or MODULES:
        chosen = list(mutants(module, options.every))
        with multiprocessing.get_context("fork").Pool(options.jobs, maxtasksperchild=None) as pool:
            alive = [mutant for mutant, lives in zip(chosen, pool.imap(survives, chosen), strict=True) if lives]
        print(f"{module}: {len(chosen)} mutants, {len(chosen) - len(alive)} killed, {len(alive)} survived", flush=True)
        for mutant in alive:
            print(f"  {module}.py:{mutant.line}: {mutant.change}", flush=True)


if __name__ == "__main__":
    main()
