"""The types gate: mypy, in process and incremental, over the candidate and a statement that it conforms to its contract.

mypy is a second opinion independent of our grammar. It sees the views as small stubs made from the contract, so that a check
costs milliseconds once the server is warm.
"""

import io
import tempfile
import time
import tokenize
from functools import cache
from pathlib import Path
from typing import Any

from ..contract import Contract
from ..policy import Policy
from ..units import __all__ as unit_names
from .verdict import GateResult, Verdict

__all__ = ["check", "type_errors"]


def check(policy: Policy) -> GateResult:
    """Type-check a policy's own text (comments removed, so that none can silence mypy) against its contract."""
    started = time.perf_counter()
    errors = type_errors(policy.source, policy.contract)
    return GateResult(
        name="types",
        verdict=Verdict.INVALID if errors else Verdict.PASSED,
        seconds=time.perf_counter() - started,
        detail=errors[0] if errors else "mypy --strict",
    )


def type_errors(text: str, contract: Contract) -> list[str]:
    """What mypy says against a text as a policy of a contract, one line each; empty when nothing."""
    return _server(contract.digest, _Stubs.of(contract)).check(_without_comments(text))


class _Stubs:
    """The files mypy sees beside the candidate: path -> text."""

    def __init__(self, files: tuple[tuple[str, str], ...]) -> None:
        self.files = files

    def __hash__(self) -> int:
        return hash(self.files)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Stubs) and self.files == other.files

    @classmethod
    def of(cls, contract: Contract) -> "_Stubs":
        """Stubs for a contract's views, enums and units, and the statement of conformance."""
        interface = contract.interface
        scalars = [f"{name} = {'bool' if name == 'Flag' else 'int'}" for name in unit_names if name != "Unit"]
        lines = ["from enum import IntEnum", *scalars]
        for name, enum in interface.enums.items():
            members = getattr(enum, "__members__", {})
            lines += [f"class {name}(IntEnum):", *(f"    {member} = {int(value)}" for member, value in members.items())]
        for name, view in interface.views.items():
            lines.append(f"class {name}:")
            for spec in view.fields():
                kind = (
                    "bool" if spec.domain.kind == "bool" else spec.domain.enum.__name__ if spec.domain.enum else "int"
                )
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
        return cls(tuple(files.items()))


class _Server:
    """mypy's own incremental server over a folder of stubs and one candidate."""

    def __init__(self, stubs: _Stubs) -> None:
        from mypy.dmypy_server import Server
        from mypy.options import Options

        self._folder = tempfile.TemporaryDirectory(prefix="autopoiesis-mypy-")
        root = Path(self._folder.name)
        for name, text in stubs.files:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        options = Options()
        options.mypy_path = [str(root)]
        options.incremental = True
        options.fine_grained_incremental = True
        options.use_fine_grained_cache = False
        options.cache_dir = "/dev/null"
        options.local_partial_types = True
        options.disallow_untyped_defs = True
        options.disallow_incomplete_defs = True
        options.disallow_any_generics = True
        options.strict_equality = False
        options.warn_no_return = True
        options.show_traceback = False
        options.namespace_packages = True
        options.explicit_package_bases = True
        self._candidate = root / "candidate.py"
        self._conformance = root / "conformance.py"
        self._options = options
        self._server: Any = Server(options, str(root / "status.json"))

    def check(self, text: str) -> list[str]:
        """The errors of a candidate, in one line each."""
        from mypy.modulefinder import BuildSource

        self._candidate.write_text(text, encoding="utf-8")
        sources = [BuildSource(str(self._candidate), "candidate"), BuildSource(str(self._conformance), "conformance")]
        answer = self._server.check(sources, export_types=False, is_tty=False, terminal_width=100)
        errors = []
        for line in str(answer.get("out", "")).splitlines():
            if ": error: " not in line:
                continue
            where, _, message = line.partition(": error: ")
            number = where.rpartition(":")[2]
            errors.append(f"line {number}: {message}" if "candidate.py" in where else message)
        if not errors and answer.get("status") not in (0, 1):
            errors.append(f"mypy failed: {answer.get('err') or answer.get('out')}")
        return errors


@cache
def _server(contract_digest: str, stubs: _Stubs) -> _Server:
    return _Server(stubs)


def _without_comments(text: str) -> str:
    if "#" not in text:
        return text
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(lines) + "\n"
