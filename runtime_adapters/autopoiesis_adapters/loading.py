"""From a policy text and its certificate to a policy an engine may run; everything short of that is refused in one
line."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autopoiesis_lib.errors import AutopoiesisError

__all__ = ["Picker", "PolicyRefusedError", "VerifiedPolicy"]

Int64s = NDArray[np.int64]


class PolicyRefusedError(AutopoiesisError):
    """A policy may not run here. The message says why and what to do; what ran before goes on running."""


class Picker(Protocol):
    """What an adapter needs of `autopoiesis_lib`'s `Scorer`."""

    def argmax(self, columns: Int64s, tiebreak: Int64s, *context: Int64s, n: int | None = None) -> int:
        """The column with the highest score, ties to the smallest `tiebreak`; -1 when there is none."""


@dataclass(frozen=True)
class VerifiedPolicy:
    """A policy that passed every check and is compiled and warm."""

    digest: str
    scorer: Picker
    aging_us: int | None
    """The proved T: a pick is never enqueued later than T after a request still waiting. None: nothing of the kind was
    proved."""
    reads: frozenset[str]
    """Names of the request fields it reads."""


def loader(
    *, allow_unsigned: bool, allow_single_solver: bool = False, keys: Any = None
) -> Callable[[str, str], VerifiedPolicy]:
    """To be completed when the certificate lands."""

    def load(source: str, certificate: str) -> VerifiedPolicy:
        raise PolicyRefusedError("no certificates yet")

    return load
