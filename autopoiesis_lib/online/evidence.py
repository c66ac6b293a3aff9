"""Shadow evidence: a test for a candidate that is better than the active policy beyond noise.

The test uses windows that no evolution was trained on.

Shadow mode has no effect on any engine: both policies replay the same recorded window, and the replays are compared.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..contract import Contract
from ..evolution import Measurement, SimulationEvaluator
from ..evolution.compare import improvement
from ..policy import Policy
from ..simulation.calibration import Calibration
from ..simulation.result import Slo
from ..simulation.trace import Trace
from .rollout import Evidence, Rollout
from .settings import WatchSettings

__all__ = ["Judge", "evidence_on", "replayer"]


def evidence_on(
    contract: Contract,
    traces: Sequence[Trace],
    calibration: Calibration,
    candidates: Sequence[Policy],
    active: Policy,
    *,
    objective: str,
    slo: Slo,
    seed: int = 0,
    looks: int = 1,
) -> list[Evidence]:
    """Replay windows under every candidate and under the active policy, and compare with a paired block bootstrap.

    All intervals hold together with 95% (`evolution.compare`), so the best candidate may be picked by them. They also
    hold together over `looks` checks of a growing window.
    """
    evaluator = replayer(contract, traces, calibration, slo)

    def measured(policy: Policy) -> tuple[Sequence[Measurement], NDArray[np.int64]]:
        replays = [evaluator.replay(policy, trace) for trace in traces]
        orders = [np.argsort(replay.times.scheduled_ns, kind="stable") for replay in replays]
        return [evaluator.measurement(replay, samples=True) for replay in replays], np.concatenate(orders)

    theirs, their_order = measured(active)
    evidence: list[Evidence] = []
    for candidate in candidates:
        ours, our_order = measured(candidate)
        found = improvement(objective, active.digest[:12], theirs, ours, seed, comparisons=looks * len(candidates))
        evidence.append(
            Evidence(
                objective=objective,
                reduction=found.reduction,
                ci95=found.ci95,
                requests=sum(map(len, traces)),
                window=traces[0].name if len(traces) == 1 else f"{traces[0].name} and {len(traces) - 1} more",
                agreement=float(np.mean(our_order == their_order)),
            )
        )
    return evidence


def replayer(contract: Contract, traces: Sequence[Trace], calibration: Calibration, slo: Slo) -> SimulationEvaluator:
    """Return an evaluator that replays recorded traces on the calibrated engine."""
    return SimulationEvaluator(
        train=tuple(traces), held_out=tuple(traces), engine=calibration.engine, step_time=calibration.step_time, slo=slo,
        slots=dict(contract.slots), name=traces[0].name,
    )  # fmt: skip


class Judge:
    """The replay of traces on the engine with its current calibration.

    Args:
        rollout: finds the text of a policy by its digest.
    """

    def __init__(self, contract: Contract, rollout: Rollout, settings: WatchSettings, calibration: Calibration) -> None:
        self._contract, self._rollout, self._settings = contract, rollout, settings
        self.calibration = calibration

    def evidence(
        self, traces: Sequence[Trace], candidates: Sequence[Policy], active: Policy, *, looks: int = 1
    ) -> list[Evidence]:
        """Compare candidates with the active policy on traces; see `evidence_on`."""
        return evidence_on(
            self._contract, traces, self.calibration, candidates, active,
            objective=self._settings.objective, slo=self._settings.slo, seed=self._settings.seed, looks=looks,
        )  # fmt: skip

    def replayer(self, traces: Sequence[Trace]) -> SimulationEvaluator:
        """Return an evaluator for traces; see the function of the same name."""
        return replayer(self._contract, traces, self.calibration, self._settings.slo)

    def policy(self, digest: str | None) -> Policy:
        """Return a policy by its digest; None is the engine's built-in order, the contract's first baseline."""
        if digest is None:
            return Policy.from_source(next(iter(self._contract.baselines().values())), self._contract)
        return Policy.from_source(self._rollout.source(digest), self._contract)
