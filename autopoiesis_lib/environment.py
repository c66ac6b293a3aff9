"""The environment of a child process: only what it needs, so that it inherits no secret."""

import os
from typing import Final

__all__ = ["clean_environment"]

NAMES: Final = frozenset(
    {"PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH", "AUTOPOIESIS_CACHE", "XDG_CACHE_HOME", "LD_LIBRARY_PATH"}
)
PREFIXES: Final = ("OPENBLAS_", "OMP_")


def clean_environment() -> dict[str, str]:
    """Return the variables of this process that a child may see."""
    return {name: value for name, value in os.environ.items() if name in NAMES or name.startswith(PREFIXES)}
