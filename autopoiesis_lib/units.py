"""Units and generous domains of the integers that a policy reads and returns.

Each name is an annotated `int`: mypy sees `int`, the proof gate sees the bounds, prompts and reports see the unit.
Tighten one in place with `Annotated[Tokens, Field(ge=1)]`: the tightest bounds win.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

__all__ = ["Blocks", "Count", "Flag", "Micros", "PerMille", "Priority", "Score", "Tokens", "Unit"]

DAY_US = 86_400_000_000
"""One day in microseconds: the longest wait a view can hold."""


@dataclass(frozen=True)
class Unit:
    """The unit of an integer, for people, prompts and unit-aware search."""

    symbol: str


Micros = Annotated[int, Field(ge=0, le=DAY_US), Unit("us")]
Tokens = Annotated[int, Field(ge=0, le=1_048_576), Unit("tokens")]
Blocks = Annotated[int, Field(ge=0, le=16_777_216), Unit("blocks")]
Count = Annotated[int, Field(ge=0, le=1_048_576), Unit("count")]
PerMille = Annotated[int, Field(ge=0, le=1_000), Unit("per mille")]
Priority = Annotated[int, Field(ge=0, le=15), Unit("priority level")]
Score = Annotated[int, Field(ge=-(2**62), le=2**62), Unit("score")]
Flag = bool
