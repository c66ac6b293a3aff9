"""Freshness: the highest sequence numbers that one reader of a channel has accepted, kept on its own disk.

A signature does not say when it was made. A reader therefore remembers, per channel and slot, the newest notice it
accepted, and refuses every older one, also after a restart. The record is in the reader's state folder, never in the
channel, because a process that can write to the channel could restore an old record.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import AutopoiesisError
from .files import FileProblem, FileRefusedError, FileUnwritableError, opened_folder, read_bounded, write_atomically
from .notices import ChannelId, LogHeadNotice, Slot, StandingOrders

__all__ = ["Freshness", "FreshnessError", "Seen", "state_folder"]

MAX_RECORD_BYTES = 2_097_152
NOWHERE = Path("/nonexistent/autopoiesis")
"""A folder that does not exist and that no ordinary user can create."""


class FreshnessError(AutopoiesisError):
    """A record of accepted sequence numbers that is damaged, so nothing can be accepted."""


class Seen(BaseModel):
    """Everything that one reader accepted from one channel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = ""
    """The channel's path, for people."""
    channel: ChannelId | None = None
    """The id under which the channel was first seen."""
    notices: Mapping[Slot, int] = Field(default_factory=dict)
    """Highest sequence number by slot."""
    orders: StandingOrders | None = None
    """The newest standing orders."""
    logs: Mapping[str, LogHeadNotice] = Field(default_factory=dict)
    """The newest signed head of each log."""


def state_folder() -> Path:
    """Return the user's folder for records.

    It is `$AUTOPOIESIS_STATE`, else `$XDG_STATE_HOME/autopoiesis`, else `~/.local/state/autopoiesis`.
    """
    chosen = os.environ.get("AUTOPOIESIS_STATE")
    if chosen:
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "autopoiesis"
    except RuntimeError:  # a user without a home: the record is kept in memory
        return NOWHERE


class Freshness:
    """The record of one channel, for one user.

    Args:
        root: the channel's directory; its resolved path names the record.
        folder: the folder of records; None: `state_folder()`.
        unsigned: the reader accepts unsigned messages. Its record is separate from that of a reader that does not.
    """

    def __init__(self, root: Path, folder: Path | None = None, *, unsigned: bool = False) -> None:
        resolved = os.path.realpath(root)
        self._resolved = resolved
        base = state_folder() if folder is None else folder
        name = hashlib.sha256(resolved.encode(errors="surrogateescape")).hexdigest()[:32]
        self.path = base / "channels" / f"{name}{'-unsigned' if unsigned else ''}.json"
        self.problem = ""
        """The reason why the record is kept in memory only; empty while it is on disk."""
        self._memory = Seen(path=resolved)

    def read(self) -> Seen:
        """Return the record.

        Raises:
            FreshnessError: it is damaged or belongs to another user.
        """
        try:
            content = read_bounded(self.path, MAX_RECORD_BYTES)
            if self.path.stat().st_uid not in (os.geteuid(), 0):
                raise FreshnessError(f"{self.path} belongs to another user; remove it, or set AUTOPOIESIS_STATE")
            found = Seen.model_validate_json(content)
        except FileRefusedError as error:
            if error.problem is FileProblem.MISSING:
                return self._memory
            raise FreshnessError(f"the record of accepted notices {error}; mend it, or set AUTOPOIESIS_STATE") from None
        except (ValidationError, OSError):
            raise FreshnessError(
                f"the record of accepted notices {self.path} is damaged; remove it if no older notice can have been put back"
            ) from None
        return _merged(found, self._memory)

    def update(self, change: Callable[[Seen], Seen]) -> Seen:
        """Change the record under a lock and return it. Messages that other processes accepted meanwhile are kept.

        A record that cannot be written is kept in memory, and `problem` says so.

        Raises:
            FreshnessError: the record on disk is damaged.
        """
        try:
            with opened_folder(self.path.parent) as folder:
                lock = os.open(
                    ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600, dir_fd=folder
                )
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    before = self.read()
                    after = change(before)
                    if after != before or not self.path.exists():
                        write_atomically(self.path, after.model_dump_json(indent=1), mode=0o600)
                    self.problem = ""
                finally:
                    os.close(lock)
        except (OSError, FileUnwritableError) as error:
            self.problem = str(error)
            after = change(_merged(self._memory, self._memory))
        self._memory = after
        return after


def _merged(one: Seen, other: Seen) -> Seen:
    """Return the newest of two records, slot by slot."""
    slots = {*one.notices, *other.notices}
    orders = [item for item in (one.orders, other.orders) if item is not None]
    heads = sorted([*one.logs.items(), *other.logs.items()], key=lambda item: item[1].sequence)
    return Seen(
        path=one.path or other.path,
        channel=one.channel or other.channel,
        notices={slot: max(one.notices.get(slot, 0), other.notices.get(slot, 0)) for slot in sorted(slots)},
        orders=max(orders, key=lambda item: item.sequence, default=None),
        logs=dict(heads),
    )
