"""The environment of child processes: the variables that a worker needs, and no secret of the parent process."""

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

__all__ = ["clean_environment", "names_a_secret", "only_clean_environment_inherited"]

NEEDED: Final = frozenset(
    {
        "CONDA_PREFIX", "DYLD_LIBRARY_PATH", "HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LD_PRELOAD", "LOGNAME", "PATH",
        "SHELL", "TEMP", "TMP", "TMPDIR", "TZ", "USER", "VIRTUAL_ENV",
    }
)  # fmt: skip
NEEDED_PREFIXES: Final = (
    "AUTOPOIESIS_", "CUDA_", "GOMP_", "KMP_", "LC_", "MALLOC_", "MKL_", "MYPY", "NUMBA_", "OMP_", "OPENBLAS_", "PYTHON",
    "RAY_", "XDG_",
)  # fmt: skip

_SECRET = re.compile(
    r"(KEY|TOKEN|SECRET|PASSW(OR)?D|PASSPHRASE|PASSFILE|CREDENTIAL|COOKIE|AUTHORIZATION|DSN|_STORE$|_AUTH$|(URL|URI)S?$)",
    re.IGNORECASE,
)
_USER_IN_URL = re.compile(r"://[^/?#\s]*@")
_SPAWNING = threading.Lock()


def names_a_secret(name: str) -> bool:
    """Return true if a variable of this name usually holds a key, a password or an address with one."""
    return _SECRET.search(name) is not None


def clean_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that a worker needs; all others are left out, and so is a needed one that holds a secret."""
    environ = os.environ if environ is None else environ
    return {
        name: value
        for name, value in environ.items()
        if (name in NEEDED or name.startswith(NEEDED_PREFIXES))
        and not names_a_secret(name)
        and _USER_IN_URL.search(value) is None
    }


@contextmanager
def only_clean_environment_inherited() -> Iterator[None]:
    """Let processes that start inside inherit `clean_environment()`, for a library that accepts no environment.

    `os.environ` stays as it is, so other threads see no difference; only the block that a child inherits changes.
    """
    with _SPAWNING:
        hidden = {name: value for name, value in os.environ.items() if name not in clean_environment()}
        try:
            for name in hidden:
                os.unsetenv(name)
            yield
        finally:
            for name, value in hidden.items():
                os.putenv(name, value)
