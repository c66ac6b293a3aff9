"""The types gate: mypy, in process and incremental, over the candidate and a statement that it conforms to its contract.

mypy is a second opinion independent of our grammar. It sees the views as small stubs made from the contract, so that a check
costs milliseconds once the server is warm.
"""

import fcntl
import io
import os
import re
import shutil
import tempfile
import threading
import time
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from ..contract import Contract, Unhashed
from ..errors import AutopoiesisError
from ..language.grammar import universal_newlines
from ..policy import Policy
from ..units import __all__ as unit_names
from .verdict import GateResult, Reason, Verdict

__all__ = ["TypeCheckerError", "check", "check_alike", "type_errors", "warm"]

NUMBER = re.compile(r"\b[0-9][0-9_]*\b")
SHAPES = 16_384
"""Number of passed shapes of text that a process remembers."""
_passed: dict[tuple[str, str], GateResult] = {}


def check(policy: Policy) -> GateResult:
    """Type-check a policy's own text (comments removed, so that none can silence mypy) against its contract."""
    started = time.perf_counter()
    try:
        errors = type_errors(policy.source, policy.contract)
    except TypeCheckerError as error:
        seconds = time.perf_counter() - started
        return GateResult(
            name="types", verdict=Verdict.UNKNOWN, seconds=seconds, reason=Reason.TYPES, detail=str(error)
        )
    return GateResult(
        name="types",
        verdict=Verdict.INVALID if errors else Verdict.PASSED,
        seconds=time.perf_counter() - started,
        reason=Reason.TYPES if errors else None,
        detail=errors[0] if errors else "mypy --strict",
    )


def check_alike(policy: Policy) -> GateResult:
    """Return what `check` does, asking mypy about one text only of those that differ in integers above 1 alone.

    In what the policy language admits, mypy looks at the value of an integer in two places: a condition that is a constant (0
    and 1 are kept apart), and an exponent (texts with one are always checked). For screening; a certificate asks for each text.
    """
    if "**" in policy.source:
        return check(policy)
    shape = NUMBER.sub(_of_its_kind, policy.source)
    key = (policy.contract.digest, shape)
    result = _passed.get(key)
    if result is None:
        result = check(policy)
        if result.verdict is Verdict.PASSED:
            _passed[key] = result
            if len(_passed) > SHAPES:
                del _passed[next(iter(_passed))]
    return result


def _of_its_kind(number: "re.Match[str]") -> str:
    # Not by `int`, which refuses thousands of digits: a comment may have them.
    return number[0] if number[0].replace("_", "").lstrip("0") in ("", "1") else "2"


def type_errors(text: str, contract: Contract) -> list[str]:
    """Return mypy's errors in a text as a policy of a contract, one line each.

    Raises:
        TypeCheckerError: mypy itself failed, twice.
    """
    return _server().check(_without_comments(text), _stubs_of(contract.digest, Unhashed(contract)))


def warm(contract: Contract) -> None:
    """Start mypy on a contract, so that the first policy does not wait for it."""
    type_errors("", contract)


class TypeCheckerError(AutopoiesisError):
    """mypy itself failed; nothing is known about the policy."""


@cache
def _stubs_of(digest: str, handle: Unhashed) -> Mapping[str, str]:
    return _stubs(handle.contract)


def _stubs(contract: Contract) -> dict[str, str]:
    """Stubs for a contract's views, enums and units, and the statement of conformance: path -> text."""
    interface = contract.interface
    scalars = [f"{name} = {'bool' if name == 'Flag' else 'int'}" for name in unit_names if name != "Unit"]
    lines = ["from enum import IntEnum", *scalars]
    for name, enum in interface.enums.items():
        members = getattr(enum, "__members__", {})
        lines += [f"class {name}(IntEnum):", *(f"    {member} = {int(value)}" for member, value in members.items())]
    for name, view in interface.views.items():
        lines.append(f"class {name}:")
        for spec in view.fields():
            kind = "bool" if spec.domain.kind == "bool" else spec.domain.enum.__name__ if spec.domain.enum else "int"
            lines += ["    @property", f"    def {spec.name}(self) -> {kind}: ..."]
    views = "\n".join(lines) + "\n"
    files: dict[str, str] = {}
    for module in interface.modules:
        parts = module.split(".")
        for depth in range(1, len(parts)):
            files.setdefault("/".join(parts[:depth]) + "/__init__.pyi", "")
        is_package = any(other.startswith(f"{module}.") for other in interface.modules)
        files["/".join(parts) + ("/__init__.pyi" if is_package else ".pyi")] = (
            views if not is_package else f"from {interface.modules[0]} import *\n"
        )
    files.setdefault("autopoiesis_lib/__init__.pyi", "")
    files["autopoiesis_lib/units.pyi"] = "\n".join(scalars) + "\n"
    checks = [
        f"from {interface.modules[0]} import {', '.join((*interface.views, *interface.enums))}",
        "from collections.abc import Callable",
        "import candidate",
    ]
    for name, signature in interface.decisions.items():
        params = ", ".join(param.type for param in signature.params)
        result = "bool" if signature.result.kind == "bool" else "int"
        checks.append(f"_{name}: Callable[[{params}], {result}] = candidate.{name}")
    files["conformance.py"] = "\n".join(checks) + "\n"
    return files


class _Folder:
    """A temporary folder that goes with its process, however that ends.

    Workers are killed, and clean nothing up. A folder is locked while its process lives, and the lock goes with the process:
    whoever makes one removes those of which the lock can be had.
    """

    PREFIX = "autopoiesis-mypy-"
    LOCK = ".lock"

    def __init__(self) -> None:
        for left in Path(tempfile.gettempdir()).glob(f"{self.PREFIX}*"):
            with self._locked(left) as free:
                if free:
                    shutil.rmtree(left, ignore_errors=True)
        self._folder = tempfile.TemporaryDirectory(prefix=self.PREFIX)
        self.path = Path(self._folder.name)
        unlocked = self.path / f"{self.LOCK}-unlocked"
        self._lock = os.open(unlocked, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unlocked.rename(self.path / self.LOCK)  # who finds it under that name finds it locked

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self._lock)

    @classmethod
    @contextmanager
    def _locked(cls, folder: Path) -> Iterator[bool]:
        """Yield whether the lock of a folder could be taken; another user's folder, or one being made, has none."""
        try:
            lock = os.open(folder / cls.LOCK, os.O_RDWR)
        except OSError:
            yield False
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
        finally:
            os.close(lock)


class _Server:
    """mypy's fine-grained incremental build over a folder of stubs and one candidate.

    What `dmypy` does for files that may have changed anywhere is done here for files that only we write: mypy is told which
    ones changed, and looks at no other. mypy keeps state for the whole process, which a second build would break: there is
    one, and a change of contract is to it a change of stubs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        from mypy.fscache import FileSystemCache

        self._folder = _Folder()
        self._root = self._folder.path
        self._written: dict[str, str] = {}
        self._stubs: Mapping[str, str] = {}
        self._files = FileSystemCache()
        self._build: Any = None

    def check(self, text: str, stubs: Mapping[str, str]) -> list[str]:
        """Return the errors of a candidate beside stubs (path -> text), one line each.

        A build that fails inside mypy is replaced by a new one, once.

        Raises:
            TypeCheckerError: mypy fails on its own account.
        """
        with self._lock:
            try:
                return self._check(text, stubs)
            except (Exception, SystemExit):
                self._start()
            try:
                return self._check(text, stubs)
            except (Exception, SystemExit) as error:
                self._start()
                raise TypeCheckerError(
                    f"mypy failed on this policy ({type(error).__name__}: {error}); report it"
                ) from error

    def _check(self, text: str, stubs: Mapping[str, str]) -> list[str]:
        changed = [name for name in stubs if self._write(name, stubs[name])] if stubs is not self._stubs else []
        self._stubs = stubs
        if self._write("candidate.py", text):
            changed.append("candidate.py")
        messages = self._begun() if self._build is None else self._updated(changed)
        errors = []
        for line in messages:
            if ": error: " not in line:
                continue
            where, _, message = line.partition(": error: ")
            number = where.rpartition(":")[2]
            errors.append(f"line {number}: {message}" if "candidate.py" in where else message)
        if not errors and any(": note: " not in line for line in messages):
            raise RuntimeError(messages[0])
        return errors

    def _begun(self) -> list[str]:
        """Return mypy's messages when it sees the files for the first time, which takes half a second."""
        from mypy.build import build
        from mypy.errors import CompileError
        from mypy.modulefinder import BuildSource
        from mypy.server.update import FineGrainedBuildManager

        self._files.flush()
        sources = [BuildSource(str(self._root / name), _module(name)) for name in self._written]
        try:
            result = build(sources=sources, options=self._options(), fscache=self._files)
        except CompileError as error:
            return list(error.messages)
        self._build = FineGrainedBuildManager(result)
        return list(result.errors)

    def _updated(self, changed: Sequence[str]) -> list[str]:
        """Return mypy's messages once some files have changed, which takes two milliseconds for a candidate."""
        if list(changed) == ["candidate.py"]:
            path = str(self._root / "candidate.py")
            for known in (self._files.stat_or_none_cache, self._files.read_cache, self._files.hash_cache):
                known.pop(path, None)
        else:
            self._files.flush()
        self._build.flush_cache()
        messages: list[str] = self._build.update([(_module(name), str(self._root / name)) for name in changed], [])
        return messages

    def _options(self) -> Any:
        from mypy.options import Options

        options = Options()
        options.mypy_path = [str(self._root)]
        options.raise_exceptions = True
        options.fast_module_lookup = True  # in the sources first: mypy otherwise lists every directory on its path
        options.incremental = True
        options.fine_grained_incremental = True
        options.use_fine_grained_cache = False
        options.cache_dir = os.devnull
        options.local_partial_types = True
        options.disallow_untyped_defs = True
        options.disallow_incomplete_defs = True
        options.disallow_any_generics = True
        options.strict_equality = False
        options.warn_no_return = True
        options.show_traceback = False
        options.namespace_packages = True
        options.explicit_package_bases = True
        return options

    def _write(self, name: str, content: str) -> bool:
        """Write a file unless it holds the content already, and return whether it was written.

        It is overwritten in place: file systems flush a new one to disk at once.
        """
        if self._written.get(name) == content:
            return False
        path, data = self._root / name, content.encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.pwrite(handle, data, 0)
            os.ftruncate(handle, len(data))
        finally:
            os.close(handle)
        self._written[name] = content
        return True


def _module(path: str) -> str:
    """Return the module that a file of the folder is."""
    return path.rpartition(".")[0].replace("/", ".").removesuffix(".__init__")


@cache
def _server() -> _Server:
    return _Server()


def _without_comments(text: str) -> str:
    if "#" not in text:
        return text
    # Not `splitlines`: a docstring may hold characters at which that ends a line and Python does not.
    lines = universal_newlines(text).split("\n")
    for token in tokenize.generate_tokens(io.StringIO("\n".join(lines)).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(lines) + "\n"
