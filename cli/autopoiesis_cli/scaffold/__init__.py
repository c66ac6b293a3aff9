"""`contracts new`: a small package with a contract, a policy and a test, all of which work without changes."""

import keyword
import re
import sys
from pathlib import Path

from autopoiesis_lib.errors import AutopoiesisError

__all__ = ["ScaffoldError", "write_scaffold"]


class ScaffoldError(AutopoiesisError):
    """A new contract that cannot be written."""


_FILES = {
    "{module}/__init__.py": "contract.py.jinja",
    "{module}/py.typed": None,
    "policies/smallest_first.py": "policy.py.jinja",
    "tests/test_{module}.py": "test.py.jinja",
    "pyproject.toml": "pyproject.toml.jinja",
    "README.md": "README.md.jinja",
}
"""Map from a path in the new folder to its template; None is an empty file."""


def write_scaffold(name: str, target: Path) -> list[Path]:
    """Write the package into a new folder and return its files, the contract first.

    Raises:
        ScaffoldError: the name is no contract name or is taken, or the folder exists already.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    module = _module_name(name)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ScaffoldError(f"{target} is there already; choose another folder with --out")
    templates = Environment(
        loader=PackageLoader("autopoiesis_cli", "scaffold"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    words = {"name": name, "module": module, "contract": "".join(part.capitalize() for part in name.split("-"))}
    written: list[Path] = []
    for path, template in _FILES.items():
        file = target / path.format(module=module)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("" if template is None else templates.get_template(template).render(words), encoding="utf-8")
        written.append(file)
    return written


def _module_name(name: str) -> str:
    from autopoiesis_lib.registry import contract_names

    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ScaffoldError(
            f"{name!r} is not a contract name; use lower-case words joined by hyphens, such as batch-sizing"
        )
    if name in contract_names():
        raise ScaffoldError(f"there is a contract {name!r} already; choose another name")
    module = name.replace("-", "_")
    if module in sys.stdlib_module_names or keyword.iskeyword(module):
        raise ScaffoldError(f"{name!r} would be the Python module `{module}`, which is taken; choose another name")
    return module
