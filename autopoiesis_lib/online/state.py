"""The state of a rollout, derived from its audit log.

The log (the store's append-only `deployments` table) is the only record; the state is the sum of its rows. A controller
that was killed therefore knows after a restart exactly what was decided, and nobody can change the state without the
log. `promote` and `rollback` rows of the command line record what a person published directly. They carry no `rollout`
mark and change nothing here: the controller adopts the policy from the channel itself. Freeze and quarantine are
standing orders of the channel, where every publisher and every engine finds them; the log has rows about them for
people only.

    IDLE -- propose --> SHADOW -- (approve) --> CANARY -- promote --> IDLE
                           \\------- reject -------/ \\-- rollback --> IDLE
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from ..errors import AutopoiesisError
from ..protocol.notices import ORDERING
from ..store import DeploymentRow

__all__ = ["NOTES", "ORDERS", "RolloutError", "RolloutState", "Stage", "refuse_unfit", "state_of", "step"]


class RolloutError(AutopoiesisError):
    """An error of a state change that the current state does not allow."""


class Stage(StrEnum):
    """The stage of the candidate."""

    IDLE = "idle"
    """No candidate."""
    SHADOW = "shadow"
    """Candidate judged beside the active policy on live windows; no engine runs it."""
    CANARY = "canary"
    """Candidate that runs on the canary engines, or everywhere for a bounded time."""


@dataclass(frozen=True, kw_only=True)
class RolloutState:
    """One channel's rollout."""

    stage: Stage = Stage.IDLE
    candidate: str | None = None
    """Digest of the policy being rolled out."""
    since: str | None = None
    """Beginning of the stage: UTC, ISO 8601."""
    active: str | None = None
    """Digest of the promoted policy; None is the engine's built-in order."""
    history: tuple[str | None, ...] = ()
    """Earlier active policies, oldest first; `rollback` goes back through them."""
    frozen: bool = False
    """True while nothing new is published; from the channel's standing orders."""
    approved: frozenset[str] = frozenset()
    """Digests that a person approved."""
    quarantined: Mapping[str, str] = field(default_factory=dict)
    """Map from a digest to the reason why it must not run; from the channel's standing orders."""
    published: int | None = None
    """Sequence number of the last notice this rollout put on the main channel."""
    owed: bool = False
    """True when a decision was logged but not published: the process died in between."""

    @property
    def wanted(self) -> str | None:
        """The policy that the canary engines (or all, when there are no separate ones) should run."""
        return self.candidate if self.stage is Stage.CANARY else self.active


ORDERS = frozenset({"freeze", "unfreeze", "quarantine", "release"})
"""Actions that are standing orders of the channel; the log repeats them for people."""

NOTES = ORDERS | frozenset(
    {
        "watch", "drift", "calibrate", "evolve", "evolved", "evidence", "certify", "refused", "no-candidate", "trial-seen",
        "anchor", "healed",
    }
)  # fmt: skip
"""Actions that are logged for people and change no rollout."""


def state_of(rows: Sequence[DeploymentRow], contract: str = ORDERING) -> RolloutState:
    """Return the state that a channel's log adds up to for one policy type. Unknown rows change nothing."""
    state = RolloutState()
    for row in rows:
        if row.detail.get("contract", ORDERING) != contract:
            continue
        try:
            state = step(state, row.action, row.policy_digest, row.detail, row.at)
        except RolloutError:
            continue  # rows are checked before they are written; one that races another process has no effect
    return state


def step(
    state: RolloutState, action: str, digest: str | None, detail: Mapping[str, object], at: str | None = None
) -> RolloutState:
    """Return the state after one more action.

    Raises:
        RolloutError: the action is not allowed now; the text says why and what to do.
    """
    short = (digest or "built-in")[:12]
    match action:
        case "propose":
            if state.stage is not Stage.IDLE:
                raise RolloutError(
                    f"policy {(state.candidate or '')[:12]} is being rolled out; wait for it, or roll it back"
                )
            if digest == state.active:
                raise RolloutError(f"policy {short} is active already")
            return replace(state, stage=Stage.SHADOW, candidate=digest, since=at)
        case "canary":
            _need(state, Stage.SHADOW, digest, short)
            return replace(state, stage=Stage.CANARY, since=at, owed=True)
        case "promote" if detail.get("rollout"):
            _need(state, Stage.CANARY, digest, short)
            return _now_active(state, digest)
        case "reject":
            _need(state, Stage.SHADOW, digest, short)
            return replace(state, stage=Stage.IDLE, candidate=None, since=at)
        case "rollback" if detail.get("rollout"):
            if state.stage is not Stage.IDLE:
                debt = state.owed or state.stage is Stage.CANARY
                return replace(state, stage=Stage.IDLE, candidate=None, since=at, owed=debt)
            if not state.history:
                raise RolloutError("nothing was promoted on this channel, so there is nothing to go back to")
            # Back to the newest that the row names; quarantined policies were skipped.
            kept = next((n for n in reversed(range(len(state.history))) if state.history[n] == digest), 0)
            return replace(state, active=digest, history=state.history[:kept], owed=True)
        case "adopt":
            return replace(_now_active(state, digest), published=_sequence(detail, state.published))
        case "published":
            return replace(state, owed=False, published=_sequence(detail, state.published))
        case "approve":
            return replace(state, approved=state.approved | {digest or ""})
        case "displaced":
            return replace(state, stage=Stage.IDLE, candidate=None, since=at, owed=False)
        case _ if action in NOTES:
            return state
    return state


def _now_active(state: RolloutState, digest: str | None) -> RolloutState:
    history = state.history if digest == state.active else (*state.history, state.active)
    return replace(state, stage=Stage.IDLE, candidate=None, since=None, active=digest, history=history, owed=True)


def _need(state: RolloutState, stage: Stage, digest: str | None, short: str) -> None:
    if state.stage is not stage or state.candidate != digest:
        now = (
            f"policy {state.candidate[:12]} is in {state.stage}" if state.candidate else "no policy is being rolled out"
        )
        raise RolloutError(f"policy {short} is not in {stage}: {now}")


def refuse_unfit(state: RolloutState, digest: str | None) -> None:
    """Refuse a policy that the channel's standing orders exclude.

    Raises:
        RolloutError: it is in quarantine, or the channel is frozen.
    """
    short = (digest or "built-in")[:12]
    if digest in state.quarantined:
        raise RolloutError(
            f"policy {short} is in quarantine ({state.quarantined[digest or '']}); release it first if it is sound"
        )
    if state.frozen:
        raise RolloutError("the channel is frozen; `unfreeze` it first")


def _sequence(detail: Mapping[str, object], otherwise: int | None) -> int | None:
    value = detail.get("sequence")
    return value if isinstance(value, int) else otherwise
