"""The policy library: the known policies, and a search for one that would serve better than the active policy."""

from collections.abc import Callable, Container, Mapping, Sequence

import numpy as np

from ..contract import Contract
from ..policy import Policy
from ..simulation.trace import Trace
from ..store import Store
from .drift import DriftSettings
from .memory import Memory
from .recall import alike
from .rollout import Evidence, Rollout
from .window import OPEN, Window

__all__ = ["KNOWN_LOOKS", "Repertoire"]

KNOWN_LOOKS = 3
"""Number of comparisons of the known policies after a change, before only evolution is left."""
MOST = 12
"""Greatest number of known policies besides the contract's baselines."""


class Repertoire:
    """The contract's baselines, the active policy, the given policies, and the newest certified ones.

    Args:
        given: policies that the control plane was given.
        evidence: compares candidates with the active policy on traces (see `evidence_on`).
    """

    def __init__(
        self,
        contract: Contract,
        rollout: Rollout,
        store: Store,
        memory: Memory,
        given: Sequence[Policy],
        drift: DriftSettings,
        evidence: Callable[..., list[Evidence]],
    ) -> None:
        self._contract, self._rollout, self._store, self._memory = contract, rollout, store, memory
        self._given, self._drift, self._evidence = given, drift, evidence

    def texts(self) -> list[str]:
        """Return the known policies besides the baselines: the active one, the given ones, the newest certified."""
        state = self._rollout.state
        texts = [self._rollout.source(state.active)] if state.active is not None else []
        texts += [policy.source for policy in self._given]
        texts += [source for _, source in reversed(self._store.certified(self._contract.digest))]
        return list(dict.fromkeys(texts))[:MOST]

    def recalled(self, window: Window) -> dict[int, Window]:
        """Return the remembered windows with a workload similar to a window's, by number."""
        return alike(window, self._memory.remembered(), self._drift.effects.lengths)

    def like(self, since: Window) -> Mapping[int, Window] | None:
        """Return the remembered windows of a similar workload.

        The result is None while too few requests have arrived, or their output lengths cannot be estimated.
        """
        if len(since) < self._drift.min_requests:
            return None
        like = self.recalled(since)
        return None if float(np.mean(since.unfinished)) > OPEN and not like else like

    def best_on_remembered(self, active: Policy, quarantined: Container[str]) -> tuple[Policy, Evidence] | None:
        """Return the policy that is most certainly better than `active` on all remembered windows, or None."""
        traces = [window.trace() for window in self._memory.remembered().values()]
        return self._best(traces, active, quarantined, "remembered", looks=1) if traces else None

    def best_since(
        self, since: Window, like: Mapping[int, Window], active: Policy, quarantined: Container[str]
    ) -> tuple[Policy, Evidence] | None:
        """Return the policy that is most certainly better than `active` since a change, or None.

        Policies are compared on the arrivals since the change, and on remembered windows of a similar workload, which
        also estimate the output lengths of unfinished requests. The intervals are widened, because the best of several
        policies is picked after several checks. Some policies may have been evolved on the remembered windows. None was
        evolved on the arrivals since the change, so the best must not be worse there.
        """
        came = since.completed(list(like.values())).trace()
        traces = [came, *(window.trace() for window in like.values())]
        found = self._best(traces, active, quarantined, "known", looks=KNOWN_LOOKS)
        if found is None or not like:
            return found
        (fresh,) = self._evidence([came], [found[0]], active, looks=KNOWN_LOOKS)
        self._rollout.note("evidence", found[0].digest, stage="since the change", **fresh.to_json())
        return None if fresh.worse else found

    def _best(
        self, traces: Sequence[Trace], active: Policy, quarantined: Container[str], stage: str, *, looks: int
    ) -> tuple[Policy, Evidence] | None:
        texts = dict.fromkeys([*self._contract.baselines().values(), *self.texts()])
        known = [Policy.from_source(text, self._contract) for text in texts]
        others = {policy.digest: policy for policy in known if policy.digest != active.digest}
        policies = [policy for digest, policy in others.items() if digest not in quarantined]
        if not policies:
            return None
        found = self._evidence(traces, policies, active, looks=looks)
        best, evidence = max(zip(policies, found, strict=True), key=lambda pair: pair[1].ci95[0])
        self._rollout.note("evidence", best.digest, stage=stage, among=len(policies), **evidence.to_json())
        return (best, evidence) if evidence.better else None
