"""The audit log of a channel: an entry in the store, and its head signed into the channel.

The entry is written first. A head is signed only for a log that agrees with the head signed before, so that a signature
never hides damage.
"""

import logging
from collections.abc import Mapping
from typing import Any

from ..logs import log_event
from ..protocol.channel import Channel, ChannelError
from ..store import LogCheck, LogHead, Store

__all__ = ["anchor", "append", "check", "sign_head"]

logger = logging.getLogger("autopoiesis.rollout")


def append(
    store: Store,
    channel: Channel,
    action: str,
    *,
    actor: str,
    digest: str | None,
    detail: Mapping[str, Any],
    certificate: str | None = None,
    sign: bool = True,
) -> None:
    """Write an entry, and sign the new head into the channel if there is a key.

    A head that cannot be signed now is logged; the next one covers the entry as well.

    Args:
        store: the store that holds the log.
        channel: the channel, which the log names by its resolved path.
        action: the entry's action.
        actor: the person or program that acts.
        digest: the policy it is about.
        detail: everything else, as JSON values.
        certificate: digest of the certificate it rests on.
        sign: sign the head; entries that change no state can wait for the next one that does.
    """
    store.log_deployment(
        str(channel.root), action, actor=actor, policy_digest=digest, certificate_digest=certificate, detail=detail
    )
    if not sign or channel.key is None:
        return
    try:
        sign_head(store, channel)
    except ChannelError as error:
        log_event(logger, "audit.unsigned", f"the head of the log is not signed: {error}", {"reason": str(error)},
                  level=logging.WARNING)  # fmt: skip


def sign_head(store: Store, channel: Channel) -> None:
    """Sign the head of a channel's log into the channel.

    Raises:
        ChannelError: the log does not agree with the head signed before, or the channel cannot be written.
    """
    found = check(store, channel)
    if not found.whole:
        raise ChannelError(
            f"the log of {channel.root} is damaged; `autopoiesis deploy log --check` shows where, and no head of it is signed"
        )
    channel.sign_log(store.identity, found.head.entries, found.head.chain)


def check(store: Store, channel: Channel) -> LogCheck:
    """Walk the log of a channel and compare it with the head that was signed last.

    Raises:
        ChannelError: the signed head cannot be read, no trusted key signed it, or it is older than one seen before.
    """
    signed = channel.log_head(store.identity)
    head = None if signed is None else LogHead(entries=signed.entries, chain=signed.chain)
    return store.check_log(str(channel.root), head)


def anchor(store: Store, channel: Channel, actor: str) -> None:
    """Sign the log as it is, whatever the previous signed head says, after adding an entry that records this.

    Use it for a store that was restored from a backup. The entry keeps the previous signed head and the problem it
    showed.

    Raises:
        ChannelError: the channel cannot be written.
    """
    try:
        found = check(store, channel)
        before = found.signed
        detail = {
            "signed": None if before is None else {"entries": before.entries, "chain": before.chain},
            "broken": None
            if found.broken is None
            else {"entry": found.broken.entry, "problem": str(found.broken.problem)},
        }
    except ChannelError as error:
        detail = {"signed": None, "broken": {"problem": str(error)}}
    append(store, channel, "anchor", actor=actor, digest=None, detail=detail, sign=False)
    head = store.log_head(str(channel.root))
    channel.sign_log(store.identity, head.entries, head.chain)
