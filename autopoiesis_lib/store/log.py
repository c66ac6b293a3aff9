"""The hash chain of the audit log, independent of any database.

The chain value of an entry is the SHA-256 of the previous chain value and of every column of the entry. The last chain
value, the head, therefore stands for all entries up to it. The signer of a head can later detect that one of them was
changed, removed, added or moved. Entries after the last signed head are only checked for consistency: a writer who
drops the triggers can replace them by other consistent entries.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from .rows import typed

__all__ = ["CHAINED", "LogBreak", "LogCheck", "LogHead", "LogProblem", "chain_after", "genesis", "log_text", "walk"]

CHAINED: Final = (
    "id",
    "at",
    "channel",
    "entry",
    "action",
    "policy_digest",
    "certificate_digest",
    "actor",
    "detail",
)
"""Columns of an entry that its chain value covers: all of them. `detail` is covered as it is stored, as JSON text."""


class LogProblem(StrEnum):
    """The kind of damage at the first broken entry of a log."""

    CHANGED = "changed"
    """The content of the entry differs from the content that its chain value was computed from."""
    MISSING = "missing"
    """The entry is absent, and later entries are present."""
    REORDERED = "reordered"
    """Entries have changed places."""
    FORKED = "forked"
    """Two entries have the same number, or a consistent log differs from the log whose head was signed."""
    TRUNCATED = "truncated"
    """The log ends before the signed head."""


@typed
@dataclass(frozen=True, kw_only=True)
class LogHead:
    """The end of a channel's log, which a control plane signs into the channel."""

    entries: int
    """Number of entries, which is also the number of the last entry; 0 for an empty log."""
    chain: str
    """Chain value of the last entry. For an empty log it is the value that the first entry will be chained to."""


@dataclass(frozen=True, kw_only=True)
class LogBreak:
    """The first broken entry of a log."""

    entry: int
    problem: LogProblem


@dataclass(frozen=True, kw_only=True)
class LogCheck:
    """The result of a walk over a channel's log."""

    channel: str
    entries: int
    """Number of rows in the log."""
    head: LogHead
    """The last entry of the intact part."""
    signed: LogHead | None
    """The signed head that the log was compared with."""
    covered: int
    """Number of entries that the signed head proves unchanged; 0 without a signed head or if the log disagrees with it.
    """
    broken: LogBreak | None
    """The first broken entry; None for an intact log.

    For a log that is FORKED from the signed head it is the signed entry, and the change lies there or before it.
    """

    @property
    def whole(self) -> bool:
        """True if no entry is broken."""
        return self.broken is None


def genesis(store: str, channel: str) -> str:
    """Return the value that the first entry of a channel is chained to. It binds the log to its store and channel."""
    return _digest(["autopoiesis log", store, channel])


def chain_after(previous: str, row: Mapping[str, Any]) -> str:
    """Return the chain value of an entry, given the chain value of the entry before it.

    Raises:
        TypeError: a column has a value that no writer of this library puts there, such as bytes.
    """
    return _digest([previous, {name: row[name] for name in CHAINED}])


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def walk(store: str, channel: str, rows: Iterable[Mapping[str, Any]], signed: LogHead | None) -> LogCheck:
    """Walk a channel's log and compare it with a signed head.

    Args:
        store: the store's identity.
        channel: the channel's name.
        rows: the rows of the log, sorted by `entry`; the walk assumes nothing else about them.
        signed: the head that was signed last, if any.
    """
    head = LogHead(entries=0, chain=genesis(store, channel))
    agrees = signed is not None and signed == head
    unnumbered, total = 0, 0
    broken: LogBreak | None = None
    remaining = iter(rows)
    last_id = 0
    for row in remaining:
        total += 1
        entry = row["entry"]
        if type(entry) is not int or entry < 1:
            unnumbered += 1
            continue
        expected = head.entries + 1
        if entry != expected:
            problem = LogProblem.MISSING if entry > expected else LogProblem.FORKED
            broken = LogBreak(entry=min(entry, expected), problem=problem)
        elif (chain := _chain_of(head.chain, row)) is None or chain != row["chain"]:
            later = [other["id"] for other in remaining]
            total += len(later)
            moved = _before(row["id"], last_id) or any(_before(other, row["id"]) for other in later)
            broken = LogBreak(entry=entry, problem=LogProblem.REORDERED if moved else LogProblem.CHANGED)
        else:
            head, last_id = LogHead(entries=entry, chain=chain), row["id"]
            agrees = agrees or signed == head
            continue
        break
    total += sum(1 for _ in remaining)
    if broken is None and unnumbered:
        broken = LogBreak(entry=head.entries + 1, problem=LogProblem.CHANGED)
    if signed is not None and not agrees and (broken is None or broken.entry > signed.entries):
        truncated = head.entries < signed.entries
        broken = LogBreak(
            entry=head.entries + 1 if truncated else max(1, signed.entries),
            problem=LogProblem.TRUNCATED if truncated else LogProblem.FORKED,
        )
    proved = signed is not None and agrees and (broken is None or broken.entry > signed.entries)
    covered = signed.entries if signed is not None and proved else 0
    return LogCheck(channel=channel, entries=total, head=head, signed=signed, covered=covered, broken=broken)


def _chain_of(previous: str, row: Mapping[str, Any]) -> str | None:
    try:
        return chain_after(previous, row)
    except TypeError:
        return None


def _before(one: object, other: object) -> bool:
    return isinstance(one, int) and isinstance(other, int) and one < other


def log_text(check: LogCheck) -> str:
    """Return one sentence for people about a checked log."""
    if check.broken is not None:
        entry = check.broken.entry
        return {
            LogProblem.CHANGED: f"entry {entry} was changed after it was written",
            LogProblem.MISSING: f"entry {entry} is missing",
            LogProblem.REORDERED: f"entry {entry} is not in its place",
            LogProblem.FORKED: f"entry {entry} is there twice, or the log was written anew up to it",
            LogProblem.TRUNCATED: f"the log ends before entry {entry}, which was signed",
        }[check.broken.problem]
    if check.signed is None:
        return f"all {check.entries} entries are consistent; no signed head says that they are the ones written"
    later = check.entries - check.covered
    return f"whole: the signed head proves {check.covered} of {check.entries} entries" + (
        f", and {later} later ones are consistent" if later else ""
    )
