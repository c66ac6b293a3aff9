"""Mutation testing of what a proof rests on: break one thing in a module, and see that the tests of its room notice.

    python -m tests.support.mutants [--module smt] [--every 1] [--jobs 2] [--results FILE] [--again]

A room is a module `mutants` beside tests (`ROOMS`): it names the product's modules, the checks of each and the survivors that are
argued to be harmless. Each mutant runs in a forked process of its own whose `autopoiesis_lib` is imported through a loader that
serves the mutated source; nothing on disk changes. A mutant is killed when a check fails, raises, or runs out of time or memory.
Each outcome is appended to a file as it comes, and a later run skips what the file decides: killed stays killed while checks are
only added, and survivors are tried again with `--again`. A mutant is known by its module, its function and that function's text,
so outcomes outlive changes elsewhere in the module; an argument is known by the changed lines alone. The command fails on a
survivor without an argument, where there are more of them than a room's document counts.
"""

import argparse
import ast
import hashlib
import importlib
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import cvc5  # noqa: F401  (imported once here, not once a mutant)
import hypothesis  # noqa: F401
import llvmlite.binding  # noqa: F401
import mypy.api  # noqa: F401
import numba  # noqa: F401
import numpy  # noqa: F401
import pydantic  # noqa: F401
import pytest
import z3  # noqa: F401

__all__ = ["Check", "Mutant", "Outcome", "Room", "argued", "decide", "mutants", "pytests", "rooms"]

LIBRARY = Path(__file__).parents[2] / "autopoiesis_lib"
ROOMS = ("tests.language.mutants", "tests.gates.mutants")
RESULTS = Path(".autopoiesis") / "mutants.jsonl"
CPU_SECONDS = 60
"""Of one mutant; processor time, so that a busy machine kills nothing."""
WALL_SECONDS = 600
ADDRESS_SPACE = 8 * 2**30

Check = tuple[str, Callable[[], object]]
Change = dict[str, Any]
"""New values of some attributes of a node."""

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
ANSWERS = {"sat": "unsat", "unsat": "sat", "unknown": "unsat"}
NAMES = {"all": "any", "any": "all", "min": "max", "max": "min"}
WRAPPERS = ("negation", "bool", "sorted", "set")
"""Functions of one argument that a mutant leaves out."""
VERDICTS = ("UNKNOWN", "VACUOUS", "REFUTED", "INVALID", "UNSUPPORTED")
"""Verdicts that a mutant calls PROVED."""


class Room(Protocol):
    """The checks beside the tests of some modules."""

    MODULES: tuple[str, ...]
    """Modules below `autopoiesis_lib`, dotted."""
    SOUNDNESS: bool
    """Whether mutants also leave things out, make verdicts greener and answers the opposite; texts are then left alone."""
    DOCUMENTED: Mapping[str, int]
    """By module, the number of survivors that `docs/mutants.md` argues in its own words, not by `argued`."""

    def checks(self, module: str) -> Iterator[Check]:
        """Yield the checks that a mutant of a module has to survive, the cheapest first."""

    def argued(self) -> dict[str, str]:
        """Return why each survivor that is known is harmless, by `Mutant.text`."""


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

    @property
    def text(self) -> str:
        """The change in one line, which does not depend on the rest of its function."""
        return f"{self.module}.{self.function or '(top)'}: {self.before}  ->  {self.after}"


@dataclass(frozen=True)
class Outcome:
    """The fate of a mutant."""

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

    @property
    def text(self) -> str:
        """As `Mutant.text`."""
        return Mutant(self.module, self.function, 0, self.before, self.after, "", "").text


def rooms() -> dict[str, Room]:
    """Return the room of each module that has mutants."""
    found: dict[str, Room] = {}
    for name in ROOMS:
        room: Any = importlib.import_module(name)
        found.update(dict.fromkeys(room.MODULES, room))
    return found


def argued(path: Path) -> dict[str, str]:
    """Return the arguments in a file, a JSON object of reasons with the mutants that each holds for."""
    return {text: reason for reason, texts in json.loads(path.read_text()).items() for text in texts}


def pytests(*names: str) -> Check:
    """Return the check that tests pass, in the order given; each name is a file or a test as pytest knows it."""

    def run() -> None:
        failed: list[str] = []

        class Listener:
            def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
                if report.failed:
                    failed.append(report.nodeid)

        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *names], plugins=[Listener()])
        if code:
            raise AssertionError(failed[0] if failed else f"pytest exits with {int(code)}")

    return "tests", run


def mutants(module: str, every: int = 1, *, soundness: bool = False) -> Iterator[Mutant]:
    """Yield every n-th mutant of a module."""
    tree = ast.parse((LIBRARY / f"{module.replace('.', '/')}.py").read_text())
    original = ast.unparse(tree).splitlines()
    skipped = set(_skipped(tree))
    scopes = _scopes(tree)
    count = 0
    for index, node in enumerate(list(ast.walk(tree))):
        if index in skipped:
            continue
        whole = dict(vars(node))
        for change in list(_changes(node, soundness)):
            vars(node).update(change)
            count += 1
            if count % every == 0:
                source = ast.unparse(ast.fix_missing_locations(tree))
                name, scope = scopes[node]
                before, after = _changed(original, source.splitlines())
                text = "\n".join((module, name, before, ast.unparse(scope) if name else after))
                key = hashlib.sha256(text.encode()).hexdigest()[:16]
                yield Mutant(module, name, getattr(node, "lineno", 0), before, after, key, source)
            vars(node).update(whole)


def _changed(original: list[str], source: list[str]) -> tuple[str, str]:
    """Return the lines that differ between two texts, each side on one line."""
    first = 0
    while first < min(len(original), len(source)) and original[first] == source[first]:
        first += 1
    last = 0
    while last < min(len(original), len(source)) - first and original[-1 - last] == source[-1 - last]:
        last += 1
    if len(original) == len(source):
        pairs = [pair for pair in zip(original, source, strict=True) if pair[0] != pair[1]]
        return tuple(" / ".join(line.strip() for line in lines) for lines in zip(*pairs, strict=True))  # type: ignore[return-value]
    old, new = (lines[first : len(lines) - last] for lines in (original, source))
    return " / ".join(line.strip() for line in old), " / ".join(line.strip() for line in new)


def _scopes(tree: ast.Module) -> dict[ast.AST, tuple[str, ast.AST]]:
    """Return the qualified name and node of the innermost function or class around each node."""
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
    """Yield positions that mean nothing at run time: docstrings, annotations, imports, `__all__`, messages of errors."""
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


def _changes(node: ast.AST, soundness: bool) -> Iterator[Change]:
    """Yield each change that makes a mutant of a node."""
    match node:
        case ast.Compare(ops=ops):
            for index, operator in enumerate(ops):
                if type(operator) in COMPARISONS:
                    yield {"ops": [*ops[:index], COMPARISONS[type(operator)](), *ops[index + 1 :]]}
        case ast.BinOp(op=operator) | ast.AugAssign(op=operator) if type(operator) in ARITHMETIC:
            yield {"op": ARITHMETIC[type(operator)]()}
        case ast.BoolOp(op=operator):
            yield {"op": ast.Or() if isinstance(operator, ast.And) else ast.And()}
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield {"operand": ast.UnaryOp(ast.Not(), operand)}
        case ast.UnaryOp(op=ast.USub()):
            yield {"op": ast.UAdd()}
        case ast.IfExp(body=body, orelse=orelse):
            yield {"body": orelse, "orelse": body}
        case ast.If(test=test) | ast.While(test=test):
            yield {"test": ast.UnaryOp(ast.Not(), test)}
        case ast.Constant(value=bool() as value):
            yield {"value": not value}
        case ast.Constant(value=int() as value):
            yield {"value": value + 1}
        case ast.Constant(value=str() as value) if not soundness:
            for hit in re.finditer(r"[a-z]+|[<>=!]=?|//|[%+*-]", value):
                if hit.group() in WORDS:
                    yield {"value": value[: hit.start()] + WORDS[hit.group()] + value[hit.end() :]}
        case _:
            pass
    if soundness:
        yield from _omissions(node)


def _omissions(node: ast.AST) -> Iterator[Change]:
    """Yield each change that leaves something out, or that makes an answer greener or the opposite."""
    match node:
        case ast.If():
            yield {"test": ast.Constant(False)}
        case ast.BoolOp(values=values):
            yield from ({"values": shorter} for shorter in _shorter(values))
        case ast.comprehension(ifs=ifs):
            yield from ({"ifs": shorter} for shorter in _shorter(ifs))
        case ast.List(elts=items, ctx=ast.Load()) | ast.Tuple(elts=items, ctx=ast.Load()) | ast.Set(elts=items):
            yield from ({"elts": shorter} for shorter in _shorter(items) if shorter or not isinstance(node, ast.Set))
        case ast.Constant(value=str() as value) if value in ANSWERS:
            yield {"value": ANSWERS[value]}
        case ast.Name(id=name, ctx=ast.Load()) if name in NAMES:
            yield {"id": NAMES[name]}
        case ast.Attribute(value=ast.Name(id="Verdict"), attr=name) if name in VERDICTS:
            yield {"attr": "PROVED"}
        case ast.Call(func=ast.Name(id=name), args=[_], keywords=[]) if name in WRAPPERS:
            yield {"func": ast.parse("(lambda same: same)", mode="eval").body}
        case _:
            pass
    for block in ("body", "orelse"):
        statements = getattr(node, block, None)
        if not isinstance(statements, list):
            continue
        for index, statement in enumerate(statements):
            call = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
            if call or isinstance(statement, ast.AugAssign):
                yield {block: [*statements[:index], ast.Pass(), *statements[index + 1 :]]}


def _shorter(items: list[ast.expr]) -> Iterator[list[ast.expr]]:
    """Yield a list without each of its items."""
    return (items[:index] + items[index + 1 :] for index in range(len(items)))


class _Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """An importer of one mutated module."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.name = f"autopoiesis_lib.{mutant.module}"

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def exec_module(self, module: Any) -> None:
        exec(compile(self.mutant.source, self.name, "exec"), module.__dict__)


def decide(module: str, mutant: Mutant | None) -> Outcome:
    """Return the fate of a mutant of a module (None: of the module as it is) in a forked process."""
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
            for name, check in rooms()[module].checks(module):
                os.write(writable, f"{name}\n".encode())
                check()
        except BaseException as error:
            reason = f"{name}: {type(error).__name__}: {error}".split("\n")[0][:240]
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
    mutant = mutant or Mutant(module, "", 0, "", "", "", "")
    return Outcome(
        key=mutant.key, module=module, function=mutant.function, line=mutant.line, before=mutant.before,
        after=mutant.after, survived=code == 0, by="" if code == 0 else by, seconds=round(usage.ru_utime + usage.ru_stime, 2),
    )  # fmt: skip


def _decide(mutant: Mutant) -> Outcome:
    return decide(mutant.module, mutant)


def decided(path: Path) -> dict[str, Outcome]:
    """Return the outcomes on file, the last of each mutant."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {outcome.key: outcome for outcome in (Outcome(**json.loads(line)) for line in lines)}


def main() -> int:
    """Run mutants and return 1 if one survives that is not argued to be harmless."""
    known_rooms = rooms()
    parser = argparse.ArgumentParser(description="mutation testing of what a proof rests on")
    parser.add_argument("--module", choices=known_rooms, action="append")
    parser.add_argument("--every", type=int, default=1, help="take every n-th mutant")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS, help="outcomes, one JSON object a line")
    parser.add_argument("--again", action="store_true", help="try the survivors on file that are not argued again")
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    known = decided(options.results)
    open_ones = 0
    for module in options.module or known_rooms:
        room = known_rooms[module]
        found = {item.key: item for item in mutants(module, options.every, soundness=room.SOUNDNESS)}
        reasons = room.argued()
        todo = [
            mutant
            for key, mutant in found.items()
            if key not in known or (options.again and known[key].survived and mutant.text not in reasons)
        ]
        if todo:
            unchanged = decide(module, None)
            if not unchanged.survived:
                print(f"{module}: the checks fail with nothing changed: {unchanged.by}", file=sys.stderr)
                return 2
        _run(todo, known, options.jobs, options.results)
        documented = room.DOCUMENTED.get(module, 0)
        open_ones += max(0, _report(module, [known[key] for key in found], reasons) - documented)
    return int(open_ones > 0)


def _run(todo: list[Mutant], known: dict[str, Outcome], jobs: int, results: Path) -> None:
    """Decide mutants and keep each outcome as it comes."""
    started = time.monotonic()
    with multiprocessing.get_context("fork").Pool(jobs) as pool, results.open("a") as file:
        for count, outcome in enumerate(pool.imap_unordered(_decide, todo), start=1):
            print(json.dumps(asdict(outcome)), file=file, flush=True)
            known[outcome.key] = outcome
            word = "survived" if outcome.survived else f"killed by {outcome.by}"
            print(f"{count}/{len(todo)} {time.monotonic() - started:.0f} s: {outcome.module} {word}", flush=True)


def _report(module: str, outcomes: Iterable[Outcome], reasons: dict[str, str]) -> int:
    """Print what became of a module's mutants, and return how many survivors are not argued."""
    outcomes = list(outcomes)
    alive = [item for item in outcomes if item.survived]
    unargued = [item for item in alive if item.text not in reasons]
    print(
        f"{module}: {len(outcomes)} mutants, {len(outcomes) - len(alive)} killed, {len(alive) - len(unargued)} argued, "
        f"{len(unargued)} open"
    )
    by = Counter(item.by.split(": ")[0] for item in outcomes if not item.survived)
    print("  " + ", ".join(f"{name}: {count}" for name, count in by.most_common()))
    for item in alive:
        reason = reasons.get(item.text)
        print(f"  survived: {'open' if reason is None else f'argued: {reason}'}\n    {item.line}: {item.text}")
    return len(unargued)


if __name__ == "__main__":
    sys.exit(main())
