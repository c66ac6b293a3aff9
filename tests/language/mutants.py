"""Mutation testing of the translators: break one thing in one of them, and see that the tests of this folder notice.

    python -m tests.language.mutants [--module smt] [--every 1] [--jobs 2] [--results FILE] [--again]

Each mutant runs in a forked process of its own whose `autopoiesis_lib` is imported through a loader that serves the mutated
source; nothing on disk changes. A mutant is killed when a check fails, raises, or runs out of time or memory. Each outcome is
appended to a file as it comes, and a later run skips what the file decides: killed stays killed while checks are only added,
and survivors are tried again with `--again`. A mutant is known by its module, its function and that function's mutated text, so
outcomes outlive changes elsewhere in the module.
"""

import argparse
import ast
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from types import ModuleType
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
RESULTS = Path(".autopoiesis") / "mutants.jsonl"
CPU_SECONDS = 60
"""Of one mutant; processor time, so that a busy machine kills nothing."""
WALL_SECONDS = 600
ADDRESS_SPACE = 8 * 2**30

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
    function: str
    """Qualified name of the innermost function or class around the change; empty at the top of the module."""
    line: int
    before: str
    after: str
    """The changed lines of the module, as `ast.unparse` prints them."""
    key: str
    source: str


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant."""

    key: str
    module: str
    function: str
    line: int
    before: str
    after: str
    survived: bool
    by: str
    """The check that killed it, and how."""
    seconds: float
    """Of processor time."""


def mutants(module: str, every: int = 1) -> Iterator[Mutant]:
    """Every n-th mutant of a module."""
    tree = ast.parse((LANGUAGE / f"{module}.py").read_text())
    original = ast.unparse(tree).splitlines()
    skipped = set(_skipped(tree))
    scopes = _scopes(tree)
    count = 0
    for index, node in enumerate(list(ast.walk(tree))):
        if index in skipped:
            continue
        for variant in range(8):
            whole = {name: list(value) if isinstance(value, list) else value for name, value in vars(node).items()}
            if not _mutate(node, variant):
                break
            count += 1
            if count % every == 0:
                source = ast.unparse(ast.fix_missing_locations(tree))
                changed = [
                    (old.strip(), new.strip())
                    for old, new in zip(original, source.splitlines(), strict=True)
                    if old != new
                ]
                name, scope = scopes[node]
                before, after = (" / ".join(lines) for lines in zip(*changed, strict=True))
                text = "\n".join((module, name, before, ast.unparse(scope) if name else after))
                key = hashlib.sha256(text.encode()).hexdigest()[:16]
                yield Mutant(module, name, getattr(node, "lineno", 0), before, after, key, source)
            vars(node).update(whole)


def _scopes(tree: ast.Module) -> dict[ast.AST, tuple[str, ast.AST]]:
    """The qualified name and node of the innermost function or class around each node."""
    found: dict[ast.AST, tuple[str, ast.AST]] = {tree: ("", tree)}
    for node in ast.walk(tree):
        name, scope = found[node]
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                found[child] = f"{name}.{child.name}".strip("."), child
            else:
                found[child] = name, scope
    return found


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


def checks() -> Iterator[tuple[str, Callable[[], object]]]:
    """What a mutant has to survive: a sample of every suite of this folder, the quickest first."""
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
    """Every test of a module, with each of its parameters."""
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


def decide(mutant: Mutant | None) -> Outcome:
    """What becomes of a mutant (None: of the modules as they are), in a forked process."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readable)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        signal.alarm(WALL_SECONDS)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        name = "import"
        try:
            if mutant is not None:
                sys.meta_path.insert(0, _Loader(mutant))
            for name, check in checks():
                os.write(writable, f"{name}\n".encode())
                check()
        except BaseException as error:
            reason = f"{name}: {type(error).__name__}: {error}".split("\n")[0][:160]
            os.write(writable, f"{reason}\n".encode())
            os._exit(1)
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as pipe:
        said = pipe.read().splitlines()
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    by = said[-1] if said else "import"
    if code < 0:
        by = f"{by}: {signal.Signals(-code).name}"
    mutant = mutant or Mutant("", "", 0, "", "", "", "")
    return Outcome(
        key=mutant.key, module=mutant.module, function=mutant.function, line=mutant.line, before=mutant.before,
        after=mutant.after, survived=code == 0, by="" if code == 0 else by, seconds=round(usage.ru_utime + usage.ru_stime, 2),
    )  # fmt: skip


def decided(path: Path) -> dict[str, Outcome]:
    """The outcomes on file, the last of each mutant."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {outcome.key: outcome for outcome in (Outcome(**json.loads(line)) for line in lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description="mutation testing of the translators")
    parser.add_argument("--module", choices=MODULES, action="append")
    parser.add_argument("--every", type=int, default=1, help="take every n-th mutant")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS, help="outcomes, one JSON object a line")
    parser.add_argument("--again", action="store_true", help="try the survivors on file again")
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    unchanged = decide(None)
    assert unchanged.survived, f"the checks fail with nothing changed: {unchanged.by}"
    known = decided(options.results)
    chosen = {
        module: {mutant.key: mutant for mutant in mutants(module, options.every)}
        for module in options.module or MODULES
    }
    todo = [
        mutant
        for module in chosen.values()
        for key, mutant in module.items()
        if key not in known or (options.again and known[key].survived)
    ]
    started = time.monotonic()
    with multiprocessing.get_context("fork").Pool(options.jobs) as pool, options.results.open("a") as file:
        for count, outcome in enumerate(pool.imap_unordered(decide, todo), start=1):
            print(json.dumps(asdict(outcome)), file=file, flush=True)
            known[outcome.key] = outcome
            word = "survived" if outcome.survived else f"killed by {outcome.by}"
            print(f"{count}/{len(todo)} {time.monotonic() - started:.0f} s: {outcome.module} {word}", flush=True)
    for module, found in chosen.items():
        alive = [known[key] for key in found if known[key].survived]
        print(f"{module}: {len(found)} mutants, {len(found) - len(alive)} killed, {len(alive)} survived")
        print("  " + ", ".join(f"{by}: {n}" for by, n in Counter(known[key].by.split(":")[0] for key in found).items()))
        for item in alive:
            print(f"  {item.function or module} ({item.line}): {item.before}  ->  {item.after}")


if __name__ == "__main__":
    main()
