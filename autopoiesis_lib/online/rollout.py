"""The rollout of certified policies through a channel: shadow, canary, promote, roll back; every step a row in the log.

A decision is logged first and published second. A process killed in between leaves a debt (`RolloutState.owed`) that
`Rollout.reconcile` pays after a restart. Engines verify what they find for themselves, so the worst a controller can do is to
offer nothing.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ..certificate import Certificate
from ..logs import log_event
from ..store import Store
from .state import RolloutError, RolloutState, Stage, state_of, step

__all__ = ["CANARY_BOUND_S", "Channel", "Evidence", "Notice", "Rollout"]


logger = logging.getLogger("autopoiesis.rollout")

Mode = Literal["active", "shadow", "canary"]

CANARY_BOUND_S = 1_800.0
"""How long an engine lets a canary decide when nobody promotes or ends it: a control plane that died leaves none behind."""


class Notice(Protocol):
    """What a channel says is wanted."""

    @property
    def sequence(self) -> int:
        """Counts up with every publication."""

    @property
    def digest(self) -> str | None:
        """The policy wanted; None: the engine's built-in order."""

    @property
    def mode(self) -> str:
        """`active`, or `canary`: it decides for a bounded time, after which the engine goes back by itself."""


class Channel(Protocol):
    """The channel directory of `autopoiesis_adapters.channel`, or anything that reaches engines."""

    @property
    def root(self) -> Path:
        """The directory."""

    def publish(
        self,
        digest: str,
        source: str,
        certificate: str,
        *,
        contract: str,
        note: str,
        mode: Mode = "active",
        seconds: float | None = None,
    ) -> Notice:
        """Want a policy; as a canary for so many seconds at most."""

    def publish_builtin(self, *, note: str) -> Notice:
        """Want the built-in order."""

    def read(self) -> Notice | None:
        """The notice that stands."""

    def engines(self) -> dict[str, dict[str, Any]]:
        """What each engine last said of itself."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A candidate against what is active, on one window that neither the search nor earlier evidence used."""

    objective: str
    reduction: float
    """1 - candidate / active; above 0 is better."""
    ci95: tuple[float, float]
    requests: int
    window: str
    """Which window, for people."""
    agreement: float | None = None
    """Share of admissions that were the same request at the same place in the order: how different the two are."""

    @property
    def better(self) -> bool:
        """Beyond noise: the whole interval is above 0."""
        return self.ci95[0] > 0

    @property
    def worse(self) -> bool:
        """Beyond noise: the whole interval is below 0."""
        return self.ci95[1] < 0

    def to_json(self) -> dict[str, Any]:
        """For the audit log."""
        return {
            "objective": self.objective,
            "reduction": round(self.reduction, 5),
            "ci95": [round(end, 5) for end in self.ci95],
            "requests": self.requests,
            "window": self.window,
            "agreement": None if self.agreement is None else round(self.agreement, 5),
            "better": self.better,
        }


class Rollout:
    """The rollout on one channel. All state is in the store; this value may be thrown away at any time.

    With `canary_channel`, the canary decides only on engines that watch that directory (a share of the replicas); without it,
    on all engines of the channel. Either way for `canary_bound_s` at most in each engine: then it goes back by itself.
    """

    def __init__(
        self,
        store: Store,
        channel: Channel,
        *,
        contract: str,
        actor: str,
        canary_channel: Channel | None = None,
        require_approval: bool = False,
        canary_bound_s: float = CANARY_BOUND_S,
    ) -> None:
        self._store = store
        self.channel = channel
        self.canary_channel = canary_channel or channel
        self.contract = contract
        self.actor = actor
        self.require_approval = require_approval
        self.canary_bound_s = canary_bound_s
        self.name = str(channel.root.absolute())
        """What the channel is called in the log."""

    @property
    def state(self) -> RolloutState:
        """Where it stands now."""
        return state_of(self._store.deployments(self.name))

    def note(self, action: str, digest: str | None = None, **detail: Any) -> None:
        """Write something down that changes no state."""
        self._log(action, digest, detail)

    def propose(self, certificate: Certificate) -> RolloutState:
        """Take in a certified policy; it is in shadow from now on.

        Raises:
            RolloutError: another is being rolled out, or this one is quarantined or active, or the channel is frozen.
        """
        digest = certificate.policy_digest
        step(self.state, "propose", digest, {})
        self._store.put_policy(digest, certificate.contract, certificate.contract_digest, certificate.policy_source)
        text = certificate.model_dump_json()
        kept = hashlib.sha256(text.encode()).hexdigest()  # of the whole: a signed certificate is not the unsigned one
        self._store.put_certificate(kept, digest, certificate.contract_digest, text)
        return self._change("propose", digest, {"signed": certificate.signature is not None}, certificate=kept)

    def start_canary(self, evidence: Evidence) -> RolloutState:
        """Let the candidate decide on the canary engines.

        Raises:
            RolloutError: it is not in shadow, not better beyond noise, or waits for approval.
            AutopoiesisError: the channel cannot be written; the next `reconcile` tries again.
        """
        state = self.state
        if not evidence.better:
            raise RolloutError(f"policy {(state.candidate or '')[:12]} is not better beyond noise; reject it")
        if self.held(state):
            raise RolloutError(
                f"policy {(state.candidate or '')[:12]} waits for approval; `approve` it or roll it back"
            )
        state = self._change("canary", state.candidate, evidence.to_json())
        self._publish(state, f"canary of {self.actor}")
        return self.state

    def promote(self, evidence: Evidence) -> RolloutState:
        """Make the candidate the active policy of the whole channel.

        Raises:
            RolloutError: it is not in canary, or the evidence is worse beyond noise.
            AutopoiesisError: the channel cannot be written; the next `reconcile` tries again.
        """
        state = self.state
        if evidence.worse:
            raise RolloutError(f"policy {(state.candidate or '')[:12]} is worse beyond noise; roll it back")
        state = self._change("promote", state.candidate, {"rollout": True, **evidence.to_json()})
        self._publish(state, f"promoted by {self.actor}")
        return self.state

    def reject(self, reason: str) -> RolloutState:
        """Drop a candidate in shadow; engines never saw it."""
        return self._change("reject", self.state.candidate, {"reason": reason})

    def roll_back(self, reason: str, *, quarantine: bool = False) -> RolloutState:
        """From a canary to the active policy, or from the active policy to the one before it.

        Allowed while frozen: going back is always allowed. With `quarantine`, what is left behind never runs again.

        Raises:
            RolloutError: there is nothing to go back to.
            AutopoiesisError: the channel cannot be written; the next `reconcile` tries again.
        """
        state = self.state
        left = state.candidate or state.active
        target = step(state, "rollback", None, {"rollout": True}).active
        after = self._change("rollback", target, {"rollout": True, "left": left, "reason": reason})
        if quarantine and left is not None:
            after = self._change("quarantine", left, {"reason": reason})
        if after.owed:
            self._publish(after, f"rolled back by {self.actor}: {reason}")
        return self.state

    def approve(self, digest: str | None = None) -> RolloutState:
        """Say yes to the candidate (or to a digest).

        Raises:
            RolloutError: there is no candidate.
        """
        digest = digest or self.state.candidate
        if digest is None:
            raise RolloutError("no policy waits for approval on this channel")
        return self._change("approve", digest, {})

    def freeze(self, reason: str = "") -> RolloutState:
        """Publish nothing new from now on; what runs goes on running."""
        return self._change("freeze", None, {"reason": reason})

    def unfreeze(self) -> RolloutState:
        """Allow new policies again."""
        return self._change("unfreeze", None, {})

    def quarantine(self, digest: str, reason: str) -> RolloutState:
        """Never let a policy run again; roll back if it is deciding."""
        state = self.state
        if digest in (state.candidate, state.active) and (state.candidate is not None or state.history):
            return self.roll_back(reason, quarantine=True)
        return self._change("quarantine", digest, {"reason": reason})

    def release(self, digest: str) -> RolloutState:
        """Take a policy out of quarantine here (engines keep their own until they restart)."""
        return self._change("release", digest, {})

    def held(self, state: RolloutState) -> bool:
        """Whether the candidate waits for a person."""
        return self.require_approval and state.candidate is not None and state.candidate not in state.approved

    def reconcile(self) -> RolloutState:
        """After a restart: publish what was decided but not published, and adopt what somebody published past us.

        Raises:
            AutopoiesisError: the channel cannot be read or written.
        """
        state = self.state
        standing = self.channel.read()
        known = state.published if state.published is not None else 0
        if standing is not None and standing.sequence > known and not (state.owed and standing.digest == state.wanted):
            undone = state.wanted if state.stage is Stage.CANARY or standing.digest in state.history else None
            detail = {"sequence": standing.sequence, "reason": "published by somebody else"}
            state = self._change("adopt", standing.digest, detail)
            if undone is not None and undone != standing.digest:
                state = self._change("quarantine", undone, {"reason": "a person took it out"})
        if state.owed:
            self._publish(state, f"published after a restart of {self.actor}")
            return self.state
        return state

    def certificate(self, digest: str) -> Certificate:
        """The certificate with which a policy was proposed on this channel.

        Raises:
            RolloutError: it never was.
        """
        for row in reversed(self._store.deployments(self.name)):
            if row.policy_digest == digest and row.certificate_digest is not None:
                return Certificate.model_validate_json(self._store.certificate(row.certificate_digest))
        raise RolloutError(f"policy {digest[:12]} was never proposed on {self.name}; deploy it with its certificate")

    def source(self, digest: str) -> str:
        """The text of a policy that was proposed, or published on this channel by somebody else.

        Raises:
            RolloutError: nobody knows its text.
        """
        try:
            return self.certificate(digest).policy_source
        except RolloutError:
            path = self.channel.root / "policies" / f"{digest}.py"
            if path.is_file():
                return path.read_text(encoding="utf-8")
            raise

    def _publish(self, state: RolloutState, note: str) -> None:
        targets = {"canary": self.canary_channel} if state.stage is Stage.CANARY else {"main": self.channel}
        if state.stage is not Stage.CANARY and self.canary_channel is not self.channel:
            targets["canary"] = self.canary_channel
        main: int | None = None
        for channel in targets.values():
            standing = channel.read()
            mode: Mode = "canary" if state.stage is Stage.CANARY else "active"
            if standing is not None and (standing.digest, standing.mode) == (state.wanted, mode):
                notice: Notice = standing
            elif state.wanted is None:
                notice = channel.publish_builtin(note=note)
            else:
                notice = self._offer(channel, state.wanted, note, mode)
            if channel is self.channel:
                main = notice.sequence
        self._change("published", state.wanted, {} if main is None else {"sequence": main})

    def _offer(self, channel: Channel, digest: str, note: str, mode: Mode) -> Notice:
        try:
            text = self.certificate(digest).model_dump_json()
        except RolloutError:  # published by somebody else before: the channel has both files
            text = (self.channel.root / "certificates" / f"{digest}.json").read_text(encoding="utf-8")
        seconds = self.canary_bound_s if mode == "canary" else None
        return channel.publish(
            digest, self.source(digest), text, contract=self.contract, note=note, mode=mode, seconds=seconds
        )

    def _change(
        self, action: str, digest: str | None, detail: Mapping[str, Any], *, certificate: str | None = None
    ) -> RolloutState:
        after = step(self.state, action, digest, detail)
        self._log(action, digest, detail, certificate)
        return after

    def _log(self, action: str, digest: str | None, detail: Mapping[str, Any], certificate: str | None = None) -> None:
        self._store.log_deployment(
            self.name, action, actor=self.actor, policy_digest=digest, certificate_digest=certificate, detail=detail
        )
        about = {**detail, "channel": self.name, "contract": self.contract, "actor": self.actor, "digest": digest}
        log_event(logger, f"rollout.{action}", f"{action} {(digest or '')[:12]}".rstrip(), about)
