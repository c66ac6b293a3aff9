"""The rollout of certified policies through a channel: shadow, canary, promotion, rollback.

Every step is a row in the audit log.

A decision is logged first and published second. A process killed in between leaves an unpublished decision
(`RolloutState.owed`), which `Rollout.reconcile` publishes after a restart. Engines verify every file themselves, so the
worst fault of a controller is to offer nothing.
"""

import hashlib
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ..certificate import Certificate
from ..logs import log_event
from ..protocol.channel import Channel, ChannelError, ChannelProblem, Mode, Notice
from ..protocol.envelope import CERTIFICATE, seal
from ..protocol.files import MAX_CERTIFICATE_BYTES, MAX_POLICY_BYTES, FileRefusedError, read_bounded
from ..protocol.notices import VALID_S
from ..protocol.statement import envelope_of
from ..protocol.status import is_silent
from ..store import Store
from .audit import append
from .state import NOTES, ORDERS, RolloutError, RolloutState, Stage, refuse_unfit, state_of, step
from .vouching import vouched_for

__all__ = ["CANARY_BOUND_S", "Evidence", "Rollout"]

logger = logging.getLogger("autopoiesis.rollout")

CANARY_BOUND_S = 1_800.0
"""Longest time, in seconds, that an engine runs a canary that nobody promotes or ends."""

RENEW_S = VALID_S / 3
"""Remaining validity, in seconds, at which the standing notice is published again."""

UNUSABLE = frozenset({ChannelProblem.UNTRUSTED, ChannelProblem.FOREIGN, ChannelProblem.STALE, ChannelProblem.MALFORMED})
"""Problems of a notice that no publisher of this channel made. Engines refuse it, and it is replaced."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A comparison of a candidate with the active policy on windows that no search or earlier evidence used."""

    objective: str
    reduction: float
    """1 - candidate / active; above 0 is better."""
    ci95: tuple[float, float]
    requests: int
    window: str
    """Name of the window, for people."""
    agreement: float | None = None
    """Share of admissions with the same request at the same place in the order: the similarity of the two policies."""

    @property
    def better(self) -> bool:
        """True when the candidate is better beyond noise: the whole interval is above 0."""
        return self.ci95[0] > 0

    @property
    def worse(self) -> bool:
        """True when the candidate is worse beyond noise: the whole interval is below 0."""
        return self.ci95[1] < 0

    def to_json(self) -> dict[str, Any]:
        """Return the evidence as JSON values for the audit log."""
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
    """The rollout on one channel. All state is in the store; this object may be discarded at any time.

    With `canary_channel`, the canary runs only on engines that watch that directory (a share of the replicas); without
    it, on all engines of the channel. In each engine it runs for at most `canary_bound_s` seconds; then the engine
    reverts by itself.
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
        self.name = str(channel.root)
        """The channel's name in the log: its resolved path."""
        self.foreign: Notice | None = None
        """The shadow or canary of another publisher on the channel, as `reconcile` last saw it."""

    @property
    def state(self) -> RolloutState:
        """The current state: the log's state, with the channel's standing orders.

        Raises:
            ChannelError: the standing orders cannot be read, or no trusted key signed them.
        """
        found = state_of(self._store.deployments(self.name), self.contract)
        orders = self.channel.known_orders()
        return found if orders is None else replace(found, frozen=orders.frozen, quarantined=dict(orders.quarantined))

    def note(self, action: str, digest: str | None = None, **detail: Any) -> None:
        """Log an action that changes no state."""
        self._log(action, digest, detail)

    def propose(self, certificate: Certificate) -> RolloutState:
        """Accept a certified policy; it is in shadow from now on.

        Raises:
            RolloutError: another is being rolled out, or this one is quarantined or active, or the channel is frozen.
        """
        digest = certificate.policy_digest
        state = self.state
        refuse_unfit(state, digest)
        step(state, "propose", digest, {})
        self._store.put_policy(digest, certificate.contract, certificate.contract_digest, certificate.policy_source)
        envelope = seal(certificate.payload(), CERTIFICATE, self.channel.key)
        text = envelope.to_bytes().decode()
        kept = hashlib.sha256(text.encode()).hexdigest()  # of the whole: a signed certificate is not the unsigned one
        self._store.put_certificate(kept, digest, certificate.contract_digest, text)
        return self._change("propose", digest, {"signed": envelope.signed}, certificate=kept)

    def start_canary(self, evidence: Evidence) -> RolloutState:
        """Start the candidate on the canary engines.

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
        refuse_unfit(state, state.candidate)
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
        refuse_unfit(state, state.candidate)
        state = self._change("promote", state.candidate, {"rollout": True, **evidence.to_json()})
        self._publish(state, f"promoted by {self.actor}")
        return self.state

    def reject(self, reason: str) -> RolloutState:
        """Drop a candidate in shadow; no engine ran it."""
        return self._change("reject", self.state.candidate, {"reason": reason})

    def roll_back(self, reason: str, *, quarantine: bool = False) -> RolloutState:
        """Return from a canary to the active policy, or from the active policy to the one before it.

        A rollback is allowed while the channel is frozen. With `quarantine`, the policy that is rolled back never runs
        again.

        Raises:
            RolloutError: there is no earlier policy.
            AutopoiesisError: the channel cannot be written; the next `reconcile` tries again.
        """
        state = self.state
        left = state.candidate or state.active
        target = state.active
        if state.stage is Stage.IDLE:  # quarantined policies and the one being left are skipped
            out = {*state.quarantined, *([left] if quarantine and left is not None else [])}
            target = next((digest for digest in reversed(state.history) if digest is None or digest not in out), None)
        step(state, "rollback", target, {"rollout": True})
        if quarantine and left is not None:
            self._order_quarantine(left, reason)  # engines drop it at once, whatever happens in the next steps
        after = self._change("rollback", target, {"rollout": True, "left": left, "reason": reason})
        if after.owed:
            self._publish(after, f"rolled back by {self.actor}: {reason}", rollback=True)
        return self.state

    def approve(self, digest: str | None = None) -> RolloutState:
        """Approve the candidate (or the policy with a digest).

        Raises:
            RolloutError: there is no candidate.
        """
        digest = digest or self.state.candidate
        if digest is None:
            raise RolloutError("no policy waits for approval on this channel")
        return self._change("approve", digest, {})

    def freeze(self, reason: str = "") -> RolloutState:
        """Publish nothing new from now on; the running policy keeps running. Raises `ChannelError`."""
        for channel in self._channels():
            channel.freeze(reason)
        return self._change("freeze", None, {"reason": reason})

    def unfreeze(self) -> RolloutState:
        """Allow new policies again. Raises `ChannelError`."""
        for channel in self._channels():
            channel.unfreeze()
        return self._change("unfreeze", None, {})

    def quarantine(self, digest: str, reason: str) -> RolloutState:
        """Prevent a policy from ever running again; roll back if it is the candidate or active."""
        state = self.state
        if digest in (state.candidate, state.active) and (state.candidate is not None or state.history):
            return self.roll_back(reason, quarantine=True)
        self._order_quarantine(digest, reason)
        return self.state

    def release(self, digest: str) -> RolloutState:
        """Remove a policy from quarantine. An engine that found it faulty keeps it out until a restart."""
        for channel in self._channels():
            channel.release(digest)
        return self._change("release", digest, {})

    def _order_quarantine(self, digest: str, reason: str) -> None:
        for channel in self._channels():
            channel.quarantine(digest, reason)
        self._change("quarantine", digest, {"reason": reason})

    def _channels(self) -> tuple[Channel, ...]:
        """Return the main channel, and the canary channel if it is another one."""
        return tuple(dict.fromkeys((self.channel, self.canary_channel)))

    def held(self, state: RolloutState) -> bool:
        """Return true when the candidate waits for a person's approval."""
        return self.require_approval and state.candidate is not None and state.candidate not in state.approved

    def reconcile(self) -> RolloutState:
        """Publish decisions that were not published yet, and adopt the publications of others.

        A policy that another publisher made active is adopted. A shadow or canary of another publisher is left alone
        until it is over (`foreign`): it is temporary, so it must not become the active policy here. A notice that no
        trusted key signed is replaced by the one that this rollout wants.

        Raises:
            AutopoiesisError: the channel cannot be read or written.
        """
        state = self.state
        self.foreign = None
        known = state.published if state.published is not None else 0
        if self.channel.mend_orders():
            self.note("healed", None, reason="standing orders that no trusted key vouched for")
            state = self.state
        self._mirror(state)
        try:
            standing = self.channel.read(self.contract)
            if standing is None and state.published is not None:
                raise ChannelError(f"the notice of {self.contract} on {self.name} is gone", ChannelProblem.STALE)
        except ChannelError as error:
            if error.problem not in UNUSABLE or state.published is None:
                raise
            self.note("healed", state.wanted, reason=str(error))
            self._publish(state, f"published again by {self.actor}: {error.problem}", rollback=True)
            return self.state
        if standing is not None and standing.sequence > known and not (state.owed and self._is_ours(standing, state)):
            state = self._take_in(standing, state)
            if self.foreign is not None:
                return state
        if state.owed:
            self._publish(state, f"published after a restart of {self.actor}", rollback=state.frozen)
            return self.state
        if standing is not None and standing.mode == "active" and standing.expires - time.time() < RENEW_S:
            self._renew(standing)
        return state

    def _mirror(self, state: RolloutState) -> None:
        """Copy the standing orders to a separate canary channel, and withdraw a canary that is no longer wanted."""
        if self.canary_channel is self.channel:
            return
        there = self.canary_channel.known_orders()
        frozen, out = (False, {}) if there is None else (there.frozen, dict(there.quarantined))
        if (frozen, out) != (state.frozen, dict(state.quarantined)):
            self.canary_channel.order(
                lambda orders: orders.model_copy(
                    update={
                        "frozen": state.frozen,
                        "frozen_after": self.canary_channel.sequences() if state.frozen else {},
                        "quarantined": dict(state.quarantined),
                    }
                )
            )
        with suppress(ChannelError):
            standing = self.canary_channel.read(self.contract)
            if standing is not None and standing.mode == "canary" and state.stage is not Stage.CANARY:
                self._want(self.canary_channel, state, f"the canary is over, says {self.actor}", rollback=True)

    def _is_ours(self, notice: Notice, state: RolloutState) -> bool:
        return (notice.digest, notice.mode) == (state.wanted, _mode_of(state))

    def _take_in(self, notice: Notice, state: RolloutState) -> RolloutState:
        """Record a notice that another publisher made."""
        detail = {"sequence": notice.sequence, "mode": notice.mode, "reason": "published by somebody else"}
        if notice.mode != "active" and not self._is_over(notice):
            if state.stage is Stage.CANARY:
                state = self._change("displaced", state.candidate, detail)
            elif not self._noted("trial-seen", notice.sequence):
                self.note("trial-seen", notice.digest, **detail)
            self.foreign = notice
            return state
        decides = notice.decides
        undone = state.wanted if state.stage is Stage.CANARY or decides in state.history else None
        state = self._change("adopt", decides, detail)
        if undone is not None and undone != decides:
            self._order_quarantine(undone, "a person took it out")
            state = self.state
        return state

    def _is_over(self, notice: Notice) -> bool:
        """Return true for a trial that ended: by time, or because every engine that answers reports so."""
        if time.time() > notice.ends:
            return True
        trials = [status["trial"] for status in self.channel.engines().values() if not is_silent(status)]
        return bool(trials) and all(
            trial is not None and trial["digest"] == notice.digest and trial["ended"] for trial in trials
        )

    def _noted(self, action: str, sequence: int) -> bool:
        rows = self._store.deployments(self.name)
        return any(row.action == action and row.detail.get("sequence") == sequence for row in rows)

    def _renew(self, notice: Notice) -> None:
        """Publish the standing notice again before it expires."""
        why = f"renewed by {self.actor}"
        if notice.digest is None:
            again = self.channel.publish_builtin(contract=self.contract, note=why, expected=notice.sequence)
        else:
            again = self._offer(self.channel, notice.digest, why, "active", True, notice.sequence)
        self._change("published", notice.digest, {"sequence": again.sequence})

    def certificate(self, digest: str) -> Certificate:
        """Return the certificate with which a policy was proposed on this channel.

        Raises:
            RolloutError: it was never proposed.
        """
        return Certificate.of(envelope_of(self._certificate_text(digest).encode()))

    def _certificate_text(self, digest: str) -> str:
        for row in reversed(self._store.deployments(self.name)):
            if row.policy_digest == digest and row.certificate_digest is not None:
                return self._store.certificate(row.certificate_digest)
        raise RolloutError(f"policy {digest[:12]} was never proposed on {self.name}; deploy it with its certificate")

    def source(self, digest: str) -> str:
        """Return the text of a policy that was proposed here, or that another publisher published on this channel.

        Raises:
            RolloutError: its text is neither in the log nor in the channel.
        """
        try:
            return self.certificate(digest).policy_source
        except RolloutError:
            with suppress(FileRefusedError, UnicodeDecodeError):
                return read_bounded(self.channel.policy_path(digest), MAX_POLICY_BYTES).decode("utf-8")
            raise

    def _publish(self, state: RolloutState, note: str, *, rollback: bool = False) -> None:
        targets = {"canary": self.canary_channel} if state.stage is Stage.CANARY else {"main": self.channel}
        if state.stage is not Stage.CANARY and self.canary_channel is not self.channel:
            targets["canary"] = self.canary_channel
        main: int | None = None
        for channel in targets.values():
            notice = self._want(channel, state, note, rollback=rollback)
            if channel is self.channel:
                main = notice.sequence
        self._change("published", state.wanted, {} if main is None else {"sequence": main})

    def _want(self, channel: Channel, state: RolloutState, note: str, *, rollback: bool) -> Notice:
        """Publish on one channel the notice that the state wants, unless it stands already, and return the notice."""
        standing: Notice | None = None
        expected: int | None = None
        with suppress(ChannelError):
            standing = channel.read(self.contract)
            expected = 0 if standing is None else standing.sequence
        if standing is not None and self._is_ours(standing, state):
            return standing
        if channel is self.channel and standing is not None and standing.sequence > (state.published or 0):
            raise ChannelError(
                f"publication {standing.sequence} of somebody else stands on {self.name}; it is taken in first",
                ChannelProblem.OVERTAKEN,
            )
        if standing is None:
            expected = None  # the sequence numbers seen here before still count
        if state.wanted is None:
            return channel.publish_builtin(contract=self.contract, note=note, expected=expected)
        return self._offer(channel, state.wanted, note, _mode_of(state), rollback, expected)

    def _offer(
        self, channel: Channel, digest: str, note: str, mode: Mode, rollback: bool, expected: int | None
    ) -> Notice:
        try:
            data = self._certificate_text(digest).encode()
        except RolloutError:  # another publisher published it: the channel has both files
            data = read_bounded(self.channel.certificate_path(digest), MAX_CERTIFICATE_BYTES)
        source = self.source(digest)
        return channel.publish(
            digest,
            source,
            vouched_for(channel, digest, source, data),
            contract=self.contract,
            note=note,
            mode=mode,
            seconds=self.canary_bound_s if mode == "canary" else None,
            rollback=rollback,
            expected=expected,
        )

    def _change(
        self, action: str, digest: str | None, detail: Mapping[str, Any], *, certificate: str | None = None
    ) -> RolloutState:
        after = step(self.state, action, digest, detail)
        self._log(action, digest, detail, certificate)
        return after

    def _log(self, action: str, digest: str | None, detail: Mapping[str, Any], certificate: str | None = None) -> None:
        append(
            self._store,
            self.channel,
            action,
            actor=self.actor,
            digest=digest,
            detail={**detail, "contract": self.contract},
            certificate=certificate,
            sign=action not in NOTES or action in ORDERS,
        )
        about = {**detail, "channel": self.name, "contract": self.contract, "actor": self.actor, "digest": digest}
        log_event(logger, f"rollout.{action}", f"{action} {(digest or '')[:12]}".rstrip(), about)


def _mode_of(state: RolloutState) -> Mode:
    """Return the mode in which the wanted policy of a rollout is published."""
    return "canary" if state.stage is Stage.CANARY else "active"
