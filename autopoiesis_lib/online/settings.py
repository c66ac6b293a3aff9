"""How a channel is watched."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..evolution import Budget
from ..simulation.result import Slo
from .drift import DriftSettings
from .guard import Guards
from .rollout import CANARY_BOUND_S

__all__ = ["WatchSettings"]


@dataclass(frozen=True, kw_only=True)
class WatchSettings:
    """How a channel is watched. Seconds of windows and canaries are the engines' own."""

    window_s: float = 300.0
    """Length of a telemetry window: what drift is looked for in, and what candidates are judged on."""
    evolve_window_s: float | None = None
    """Longest window to evolve on. A change is answered by an evolution on the first telemetry window since, then on twice as
    much, and so on up to this; without it, by the first alone."""
    back_to_back: bool = False
    """Evolve on every new window, drift or not."""
    evolve_first: bool = False
    """Answer the first requests as if work had changed, instead of only measuring drift against them."""
    known_first: bool = True
    """Let a known policy answer a change at once if one is better, before anything is evolved."""
    drift: DriftSettings = field(default_factory=DriftSettings)
    budget: Budget = field(default_factory=lambda: Budget(seconds=60.0))
    """Of one evolution."""
    objectives: Mapping[str, float] = field(default_factory=lambda: {"ttft_mean_us": 1.0})
    slo: Slo = field(default_factory=lambda: Slo(ttft_s=2.0, tpot_s=0.1))
    seed: int = 0
    workers: int | None = None
    give_way: bool = False
    """Let an evolution rest while requests wait in an engine, for most of its time if need be: for an engine on this machine."""
    canary_s: float = 120.0
    """How long a canary decides before it is judged."""
    canary_timeout_s: float = CANARY_BOUND_S
    """Wall seconds after which a canary without enough telemetry is rolled back."""
    guards: Guards = field(default_factory=Guards)
    allow_single_solver: bool = False
    """Publish proofs that only one solver finished; engines must allow them too."""
    poll_s: float = 1.0

    @property
    def longest_window_s(self) -> float:
        """Length of the longest window to evolve on."""
        return max(self.window_s, self.evolve_window_s or 0.0)

    @property
    def objective(self) -> str:
        """The metric with the largest weight: the one promotions are judged on."""
        return max(self.objectives, key=lambda name: self.objectives[name])
