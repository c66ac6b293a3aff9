"""Settings of the control plane for one channel."""

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
    """Settings of the control plane for one channel.

    Durations of windows and canaries are in seconds of the engines' clocks.
    """

    window_s: float = 300.0
    """Length of a telemetry window: drift is tested on it, and candidates are judged on it."""
    evolve_window_s: float | None = None
    """Longest window to evolve on.

    After a change, the first evolution uses the first telemetry window; each later one uses twice as much, up to this.
    Without it, only the first runs.
    """
    back_to_back: bool = False
    """True to evolve on every new window, drift or not."""
    evolve_first: bool = False
    """True to answer the first requests as if work had changed, instead of only measuring drift against them."""
    known_first: bool = True
    """True to start a canary of a known policy at once after a change if one is better, before any evolution."""
    drift: DriftSettings = field(default_factory=DriftSettings)
    budget: Budget = field(default_factory=lambda: Budget(seconds=60.0))
    """Budget of one evolution."""
    objectives: Mapping[str, float] = field(default_factory=lambda: {"ttft_mean_us": 1.0})
    slo: Slo = field(default_factory=lambda: Slo(ttft_s=2.0, tpot_s=0.1))
    seed: int = 0
    workers: int | None = None
    give_way: bool = False
    """True to pause an evolution while requests wait in an engine on this machine.

    If necessary, it pauses for most of its time.
    """
    canary_s: float = 120.0
    """Duration of a canary before it is judged."""
    canary_timeout_s: float = CANARY_BOUND_S
    """Wall seconds after which a canary without enough telemetry is rolled back."""
    guards: Guards = field(default_factory=Guards)
    allow_single_solver: bool = False
    """True to publish proofs that only one solver finished; engines must allow them too."""
    poll_s: float = 1.0

    @property
    def longest_window_s(self) -> float:
        """Length of the longest window to evolve on."""
        return max(self.window_s, self.evolve_window_s or 0.0)

    @property
    def objective(self) -> str:
        """The metric with the largest weight; promotions are judged on it."""
        return max(self.objectives, key=lambda name: self.objectives[name])
