"""The channel directory: the files through which policies reach running engines, and engines report.

```
channel.json              the channel's id; a notice of another channel is refused
active.json               the signed notice of request ordering: the policy that is wanted now
active-CONTRACT.json      the same for another policy type (admission, preemption): each has a slot of its own
orders.json               signed standing orders: freeze and quarantine
log/STORE.json            the signed head of the audit log, by the store that holds it
policies/DIGEST.py        policy texts, by digest
certificates/DIGEST.json  their certificates, in signed envelopes
drift.json                the drift that the control plane last measured; engines pass it on as metrics
DISABLED                  while this file is there, every engine serves its built-in order

engines/ENGINE.json       the status of each engine, with a heartbeat
quarantine/NAME.json      a dump of the state in which a policy was taken out
telemetry/ENGINE/*.npz    telemetry of an engine, in numbered pieces; the oldest are removed
```

The control plane writes the first part and engines read it; engines write the second part and the control plane reads
it. Neither needs write access to the other's part: see `Channel.prepare` for two Unix users. Every file is hostile
until its signature is checked, and any number of engines may follow one channel.
"""

import fcntl
import grp
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_random

from ..errors import AutopoiesisError
from .envelope import LOG_HEAD, NOTICE, STANDING_ORDERS, Envelope, EnvelopeError, first_problem, seal
from .files import (
    MAX_CERTIFICATE_BYTES,
    MAX_NOTICE_BYTES,
    MAX_POLICY_BYTES,
    MAX_STATUS_BYTES,
    FileProblem,
    FileRefusedError,
    FileUnwritableError,
    opened_folder,
    read_bounded,
    write_atomically,
)
from .freshness import Freshness, Seen
from .keys import SignatureRefused, SigningKey, trusted_keys
from .notices import (
    ORDERING,
    VALID_S,
    ChannelId,
    Files,
    LogHeadNotice,
    Mode,
    Notice,
    NoticeError,
    StandingOrders,
    content_of,
)
from .status import EngineStatus
from .telemetry import TELEMETRY, write_piece
from .text import printable

__all__ = ["LEVERS", "ORDERING", "Channel", "ChannelError", "ChannelProblem", "Mode", "Notice", "Trust", "plain_name"]

LEVERS: Final = ("admission", "preemption")
"""The other policy types, whose notices are `active-CONTRACT.json`."""

MAX_ENGINES: Final = 1_024
"""Greatest number of engines whose statuses are read."""

MAX_ORDERS_BYTES: Final = 1_048_576
LOCK_S: Final = 60.0
"""Seconds that a publisher waits for the lock of another one."""
KEPT_S: Final = 7 * 86_400
"""Seconds after which the files of a silent engine are removed."""

Ours = TypeVar("Ours", bound=BaseModel)


class ChannelProblem(StrEnum):
    """The reason why a channel cannot be used as asked."""

    UNREADABLE = "unreadable"
    """A file exists and cannot be read now; another attempt may succeed."""
    UNWRITABLE = "unwritable"
    MALFORMED = "malformed"
    """A file has another content than it should."""
    VERSION = "version"
    """A file was written by an earlier version of this library."""
    UNTRUSTED = "untrusted"
    """A file that no trusted key signed."""
    FOREIGN = "foreign"
    """A file was made for another channel, or for another slot of this one."""
    STALE = "stale"
    """A file is older than one that was accepted before."""
    EXPIRED = "expired"
    FROZEN = "frozen"
    QUARANTINED = "quarantined"
    OVERTAKEN = "overtaken"
    """Another publisher published in the meantime."""
    UNKNOWN = "unknown"
    """The requested file was never published here."""


class ChannelError(AutopoiesisError):
    """A channel directory that cannot be used as asked; `problem` says why."""

    def __init__(self, message: str, problem: ChannelProblem = ChannelProblem.MALFORMED) -> None:
        super().__init__(message)
        self.problem = problem


@dataclass(frozen=True)
class Trust:
    """The rule by which a reader accepts signed files."""

    keys: Path | None = None
    """Folder of trusted public keys (`*.pub`)."""
    allow_unsigned: bool = False
    """True to accept unsigned files. A wrong signature is never accepted."""

    def check(self, envelope: Envelope, what: str, own: SigningKey | None = None) -> str | None:
        """Return the id of the trusted key that signed an envelope; None where an unsigned one is accepted.

        Args:
            envelope: the envelope.
            what: its name in an error.
            own: a key that is trusted besides those in the folder.

        Raises:
            SignatureRefused: no trusted key signed it.
            SigningError: the folder of keys cannot be read.
        """
        if self.allow_unsigned and not envelope.signed:
            return None
        trusted = dict(trusted_keys(self.keys)) if self.keys is not None else {}
        if own is not None:
            trusted[own.key_id] = own.private.public_key()
        return envelope.signed_by(trusted, what)


class _Identity(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 2
    id: ChannelId


@dataclass(frozen=True)
class Channel:
    """A channel directory. Creating this object has no side effect; folders are created when first written to.

    Args:
        root: the directory; known from then on by its resolved path.
        key: the key that signs publications; None where nothing is published, or without signatures.
        trust: the rule for reading.
        state: folder of freshness records; None: the user's own.
        id: the channel's id, where an operator named it; None: the one that was first seen at this path.
    """

    root: Path
    key: SigningKey | None = field(default=None, repr=False)
    trust: Trust = Trust()
    state: Path | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(os.path.realpath(self.root)))

    # places

    @property
    def notice_path(self) -> Path:
        """The path of the notice of request ordering."""
        return self.slot_path(ORDERING)

    def slot_path(self, contract: str) -> Path:
        """Return the path of the notice of one policy type."""
        return self.root / ("active.json" if contract == ORDERING else f"active-{plain_name(contract)}.json")

    @property
    def orders_path(self) -> Path:
        """The path of the standing orders."""
        return self.root / "orders.json"

    @property
    def disabled_path(self) -> Path:
        """The file whose presence puts every engine on its built-in order."""
        return self.root / "DISABLED"

    def policy_path(self, digest: str) -> Path:
        """Return the path of a policy's text."""
        return self.root / "policies" / f"{plain_name(digest)}.py"

    def certificate_path(self, digest: str) -> Path:
        """Return the path of a policy's certificate."""
        return self.root / "certificates" / f"{plain_name(digest)}.json"

    def engine_path(self, engine: str) -> Path:
        """Return the path of an engine's status."""
        return self.root / "engines" / f"{plain_name(engine)}.json"

    @cached_property
    def freshness(self) -> Freshness:
        """The record of accepted messages of this channel."""
        return Freshness(self.root, self.state, unsigned=self.trust.allow_unsigned)

    # identity

    def identity(self) -> str | None:
        """Return the channel's id; None before the first publication.

        Raises:
            ChannelError: the id file is damaged, or names another id than this user has seen at this path.
        """
        path = self.root / "channel.json"
        known = self.id or self.freshness.read().channel
        try:
            found = _Identity.model_validate_json(read_bounded(path, MAX_NOTICE_BYTES)).id
        except FileRefusedError as error:
            if error.problem is FileProblem.MISSING:
                return known
            raise _unreadable(error) from None
        except ValidationError:
            raise ChannelError(f"{path} is not the id of a channel; remove it and publish again") from None
        if known is not None and found != known:
            raise ChannelError(
                f"{path} names another channel ({found[:12]}) than was {'named' if self.id else 'seen'} for this path before "
                f"({known[:12]}); if the channel was made anew, "
                f"{'name its new id' if self.id else f'remove {self.freshness.path}'}",
                ChannelProblem.FOREIGN,
            )
        return found

    def prepare(self, group: str | None = None) -> str:
        """Make the channel's folders, its id if it has none, and return the id.

        Args:
            group: a Unix group that the engines' users are in. The directory is then readable by that group alone, and
                the folders that engines write to are writable by it, with the sticky bit, so that no engine can remove
                the files of another one.

        Raises:
            ChannelError: something cannot be made or changed.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            gid = None if group is None else grp.getgrnam(group).gr_gid
            for path, mode in (
                (self.root, 0o2750),
                *((self.root / name, 0o2750) for name in ("policies", "certificates", "log")),
                *((self.root / name, 0o3770) for name in ("engines", "telemetry", "quarantine")),
            ):
                if gid is None:
                    continue
                with opened_folder(path) as folder:
                    os.fchown(folder, -1, gid)
                    os.fchmod(folder, mode)
        except KeyError:
            raise ChannelError(f"there is no group {printable(group)!r} here", ChannelProblem.UNKNOWN) from None
        except OSError as error:
            raise ChannelError(
                f"{error.filename or self.root} cannot be prepared: {error.strerror or error}",
                ChannelProblem.UNWRITABLE,
            ) from None
        with self._lock():
            return self._ensured_identity()

    def _ensured_identity(self) -> str:
        found = self.identity()
        path = self.root / "channel.json"
        if found is None or not path.exists():
            found = found or uuid.uuid4().hex
            self._write(path, _Identity(id=found).model_dump_json())
        if self.freshness.read().channel is None:
            self.freshness.update(lambda seen: seen.model_copy(update={"channel": found}))
        return found

    # publishing

    def publish(
        self,
        digest: str,
        source: str,
        certificate: str | bytes,
        *,
        contract: str = ORDERING,
        note: str = "",
        mode: Mode = "active",
        seconds: float | None = None,
        decisions: int | None = None,
        rollback: bool = False,
        expected: int | None = None,
        valid_s: float = VALID_S,
    ) -> Notice:
        """Publish a policy for every engine on this channel. Engines see all of the publication or none of it.

        A shadow or canary does not replace the policy that the channel wants now. That policy keeps deciding (shadow)
        or decides again afterwards (canary).

        Args:
            digest: the policy's digest.
            source: its text.
            certificate: its certificate file's content.
            contract: its policy type; each has a slot of its own.
            note: for people.
            mode: see `Mode`; a canary that is to stay is published again as `active`.
            seconds: duration of a shadow or canary in each engine.
            decisions: number of decisions it lasts; a canary needs one of the two.
            rollback: a return to an earlier policy, which a frozen channel allows.
            expected: sequence number that must stand in the slot (0: none); None: any.
            valid_s: seconds for which engines may accept the notice.

        Raises:
            ChannelError: the directory cannot be written, the channel is frozen, the policy is quarantined, another
                publisher published in the meantime, or the bounds are invalid; nothing has changed for the engines.
        """
        content = certificate.encode() if isinstance(certificate, str) else certificate
        limits = ((source.encode(), MAX_POLICY_BYTES, "policy"), (content, MAX_CERTIFICATE_BYTES, "certificate"))
        for data, limit, what in limits:
            if len(data) > limit:
                raise ChannelError(
                    f"nothing was published: the {what} of {printable(digest)[:12]} has {len(data)} bytes; engines read up "
                    f"to {limit}"
                )
        with self._lock():
            self._refuse_unwanted(digest, rollback=rollback)
            files = Files(
                policy=hashlib.sha256(source.encode()).hexdigest(), certificate=hashlib.sha256(content).hexdigest()
            )

            def write() -> None:
                self._write(self.policy_path(digest), source)
                self._write(self.certificate_path(digest), content)

            return self._announce(
                digest, contract, note, mode, seconds, decisions, rollback, expected, valid_s, files, write
            )

    def publish_again(
        self,
        digest: str,
        *,
        contract: str = ORDERING,
        note: str = "",
        mode: Mode = "active",
        seconds: float | None = None,
        decisions: int | None = None,
        rollback: bool = False,
        expected: int | None = None,
        valid_s: float = VALID_S,
    ) -> Notice:
        """Publish a policy again that was published before: a rollback, or a canary that is promoted.

        Arguments and errors are those of `publish`.
        """
        if not (self.policy_path(digest).is_file() and self.certificate_path(digest).is_file()):
            raise ChannelError(
                f"{self.root}: no policy {printable(digest)[:12]} was ever published here; publish it with its certificate",
                ChannelProblem.UNKNOWN,
            )
        with self._lock():
            self._refuse_unwanted(digest, rollback=rollback)
            return self._announce(digest, contract, note, mode, seconds, decisions, rollback, expected, valid_s)

    def publish_builtin(self, *, contract: str = ORDERING, note: str = "", expected: int | None = None) -> Notice:
        """Publish the engine's built-in rule; a frozen channel allows it. Raises `ChannelError` as `publish` does."""
        with self._lock():
            return self._announce(None, contract, note, "active", None, None, True, expected, VALID_S)

    def freeze(self, reason: str = "") -> StandingOrders:
        """Order that nothing new is published, and that engines accept nothing new; raises `ChannelError`."""
        return self.order(
            lambda orders: orders.model_copy(
                update={
                    "frozen": True,
                    "reason": _said(reason),
                    "frozen_after": orders.frozen_after if orders.frozen else self.sequences(),
                }
            )
        )

    def unfreeze(self) -> StandingOrders:
        """Allow publications again; raises `ChannelError`."""
        return self.order(lambda orders: orders.model_copy(update={"frozen": False, "reason": "", "frozen_after": {}}))

    def quarantine(self, digest: str, reason: str) -> StandingOrders:
        """Order that a policy must not run in any engine; raises `ChannelError`."""
        return self.order(
            lambda orders: orders.model_copy(
                update={"quarantined": {**orders.quarantined, digest: _said(reason) or "no reason was given"}}
            )
        )

    def release(self, digest: str) -> StandingOrders:
        """Allow a quarantined policy again; raises `ChannelError`."""
        return self.order(
            lambda orders: orders.model_copy(
                update={"quarantined": {key: why for key, why in orders.quarantined.items() if key != digest}}
            )
        )

    def order(self, change: Callable[[StandingOrders], StandingOrders]) -> StandingOrders:
        """Change the standing orders and return them.

        Orders that no trusted key signed are replaced by the last ones that were accepted here, with the change.

        Raises:
            ChannelError: they cannot be written, there is no key to sign with, or the file cannot be used and none was
                accepted here before.
        """
        with self._lock():
            return self._ordered(change)

    def _ordered(self, change: Callable[[StandingOrders], StandingOrders]) -> StandingOrders:
        channel = self._ensured_identity()
        standing = self.known_orders()
        before = standing or StandingOrders(channel=channel, sequence=1)
        # By the clock, so that a publisher that has seen nothing of the channel yet does not appear to be old.
        sequence = max(int(time.time()), before.sequence + 1)
        try:
            after = StandingOrders.model_validate(
                {**change(before).model_dump(exclude={"issued"}), "channel": channel, "sequence": sequence}
            )
        except ValidationError as error:
            raise ChannelError(f"nothing was ordered: {first_problem(error)}") from None
        sealed = self._sealed(after.to_bytes(), STANDING_ORDERS)
        if len(sealed) > MAX_ORDERS_BYTES:
            raise ChannelError(
                f"nothing was ordered: the orders have {len(sealed)} bytes, and engines read {MAX_ORDERS_BYTES}; release some "
                "policies first"
            )
        self._write(self.orders_path, sealed)
        self.freshness.update(lambda seen: seen.model_copy(update={"orders": after}))
        return after

    def known_orders(self) -> StandingOrders | None:
        """Return the standing orders that apply: if the file cannot be used, those accepted here before.

        Raises:
            ChannelError: the file cannot be read, or it cannot be used and none was accepted here before.
        """
        try:
            return self.orders()
        except ChannelError as error:
            known = self.freshness.read().orders
            if error.problem is ChannelProblem.UNREADABLE or known is None:
                raise ChannelError(
                    f"{error}. Nothing is known here of earlier orders; where that is meant, remove {self.orders_path} first",
                    error.problem,
                ) from None
            return known

    def mend_orders(self) -> bool:
        """Sign the standing orders again if those in the file cannot be used; return true if it did.

        A key that is no longer trusted leaves such orders behind, and so does any process that can write to the
        channel.

        Raises:
            ChannelError: they cannot be read or written.
        """
        try:
            self.orders()
        except ChannelError as error:
            if error.problem is ChannelProblem.UNREADABLE:
                raise
            self.order(lambda orders: orders)
            return True
        return False

    def sign_log(self, store: str, entries: int, chain: str) -> None:
        """Sign the head of the audit log into the channel; raises `ChannelError`.

        Args:
            store: identity of the store that holds the log.
            entries: number of entries of this channel in it.
            chain: hash over all of them.
        """
        with self._lock():
            channel, name = self._ensured_identity(), self._log_name(store)
            known = self.freshness.read().logs.get(name)
            sequence = max(int(time.time()), known.sequence + 1 if known is not None else 1)
            head = LogHeadNotice(channel=channel, sequence=sequence, store=store, entries=entries, chain=chain)
            self._write(self._log_path(store), self._sealed(head.to_bytes(), LOG_HEAD))
            self.freshness.update(lambda seen: seen.model_copy(update={"logs": {**seen.logs, name: head}}))

    def log_head(self, store: str) -> LogHeadNotice | None:
        """Return the newest signed head of the audit log in a store: the channel's, or a newer one seen here before.

        Raises:
            ChannelError: the file exists but cannot be used, and no head was seen here before.
        """
        path, known = self._log_path(store), self.freshness.read().logs.get(self._log_name(store))
        try:
            head = self._signed(path, MAX_NOTICE_BYTES, LOG_HEAD, LogHeadNotice, f"the head of the log {path}")
            if head is not None and head.store != store:
                raise ChannelError(f"{path} is about another store", ChannelProblem.FOREIGN)
        except ChannelError:
            if known is None:
                raise
            return known
        return max((item for item in (head, known) if item is not None), key=lambda item: item.sequence, default=None)

    def other_logs(self, store: str) -> int:
        """Return the number of signed heads of logs on this channel, less that of one store."""
        names = {*_listed(self.root / "log", ".json"), *self.freshness.read().logs}
        return len(names - {self._log_name(store)})

    def _log_name(self, store: str) -> str:
        """Return the name of a log: its store, and a hash of the path under which the store knows the channel."""
        return f"{plain_name(store)}-{hashlib.sha256(os.fsencode(self.root)).hexdigest()[:8]}"

    def _log_path(self, store: str) -> Path:
        return self.root / "log" / f"{self._log_name(store)}.json"

    def _announce(
        self,
        digest: str | None,
        contract: str,
        note: str,
        mode: Mode,
        seconds: float | None,
        decisions: int | None,
        rollback: bool,
        expected: int | None,
        valid_s: float,
        files: Files | None = None,
        write: Callable[[], None] = lambda: None,
    ) -> Notice:
        """Publish a notice; call `write`, which writes its files, once nothing can be refused any more."""
        channel = self._ensured_identity()
        sequence = self.freshness.read().notices.get(contract, 0)
        try:
            standing = self.read(contract)
            sequence = max(sequence, standing.sequence if standing is not None else 0)
        except ChannelError as error:
            if error.problem is ChannelProblem.UNREADABLE:
                raise
            standing = None  # a notice that nobody signed, or of an earlier version, is replaced
            if sequence == 0 and error.problem is not ChannelProblem.VERSION:
                sequence = int(time.time())  # sequence numbers accepted elsewhere are not known here
        if expected is not None and sequence != expected:
            raise ChannelError(
                f"nothing was published: publication {sequence} stands for {contract}, not {expected}; look again",
                ChannelProblem.OVERTAKEN,
            )
        base = standing.decides if standing is not None and mode != "active" else None
        orders = self.known_orders() if base is not None else None
        if base is not None and orders is not None and base in orders.quarantined:
            base = None
        now = int(time.time())
        try:
            notice = Notice(
                channel=channel,
                sequence=sequence + 1,
                digest=digest,
                contract=contract,
                mode=mode,
                base=base,
                files={
                    name: files if files is not None and name == digest else self._files(name)
                    for name in (digest, base)
                    if name is not None
                },
                seconds=seconds,
                decisions=decisions,
                rollback=rollback,
                issued=now,
                expires=now + int(valid_s),
                note=printable(note)[:1_000],
            )
        except ValidationError as error:
            raise ChannelError(f"nothing was published: {first_problem(error)}") from None
        sealed = self._sealed(notice.to_bytes(), NOTICE)
        write()
        self._write(self.slot_path(contract), sealed)
        self.freshness.update(lambda seen: _with_notice(seen, contract, notice.sequence))
        return notice

    def refuse_frozen(self) -> None:
        """Raise `ChannelError` while the channel is frozen."""
        orders = self.known_orders()
        if orders is not None and orders.frozen:
            raise ChannelError(
                f"{self.root} is frozen, and nothing new is published there; `autopoiesis deploy unfreeze` it first",
                ChannelProblem.FROZEN,
            )

    def _refuse_unwanted(self, digest: str, *, rollback: bool) -> None:
        orders = self.known_orders()
        if orders is None:
            return
        if digest in orders.quarantined:
            raise ChannelError(
                f"policy {digest[:12]} is in quarantine on {self.root} ({printable(orders.quarantined[digest])}); "
                "`autopoiesis deploy release` it first if it is sound",
                ChannelProblem.QUARANTINED,
            )
        if not rollback:
            self.refuse_frozen()

    def sequences(self) -> dict[str, int]:
        """Return the sequence number that stands in each slot."""
        found = dict(self.freshness.read().notices)
        for contract in {ORDERING, *LEVERS, *found}:
            with suppress(ChannelError):
                notice = self.read(contract)
                if notice is not None:
                    found[contract] = max(found.get(contract, 0), notice.sequence)
        return found

    def _files(self, digest: str) -> Files:
        try:
            return Files(
                policy=hashlib.sha256(read_bounded(self.policy_path(digest), MAX_POLICY_BYTES)).hexdigest(),
                certificate=hashlib.sha256(
                    read_bounded(self.certificate_path(digest), MAX_CERTIFICATE_BYTES)
                ).hexdigest(),
            )
        except FileRefusedError as error:
            raise ChannelError(f"nothing was published: {error}", ChannelProblem.UNREADABLE) from None

    def _sealed(self, payload: bytes, payload_type: str) -> bytes:
        if self.key is None and not self.trust.allow_unsigned:
            raise ChannelError(
                f"nothing was published on {self.root}: a publication needs a key; give --key NAME (`autopoiesis keys new NAME` "
                "makes one)",
                ChannelProblem.UNTRUSTED,
            )
        return seal(payload, payload_type, self.key).to_bytes()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the channel's lock, so that publishers run one after another.

        Raises:
            ChannelError: the lock cannot be made, or another publisher holds it for too long.
        """
        name = ".publish.lock"
        try:
            with opened_folder(self.root) as folder:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                lock = os.open(name, flags, 0o600, dir_fd=folder)
                owner = os.fstat(folder).st_uid
                if os.geteuid() == 0 and os.fstat(lock).st_uid != owner:
                    os.fchown(lock, owner, -1)  # the channel's own user must not be locked out by root
        except OSError as error:
            raise ChannelError(
                f"{self.root / name} cannot be locked: {error.strerror or error}", ChannelProblem.UNWRITABLE
            ) from None
        try:
            waiting = Retrying(
                stop=stop_after_delay(LOCK_S), wait=wait_random(0.001, 0.02), retry=retry_if_result(lambda got: not got)
            )
            waiting(_try_lock, lock)
            yield
        except RetryError:
            raise ChannelError(
                f"another publisher has held {self.root / name} for {LOCK_S:g} s; stop it first",
                ChannelProblem.UNWRITABLE,
            ) from None
        finally:
            os.close(lock)

    # reading

    def read(self, contract: str = ORDERING) -> Notice | None:
        """Return the notice in a slot, if a trusted key signed it; None when nothing was published.

        Its expiry and the standing orders are not checked here: `accept` checks those.

        Raises:
            ChannelError: it cannot be read, is not a notice, is not signed by a trusted key, is of another channel, or
                is older than one that was seen here before.
        """
        notice = self._read_notice(contract)
        seen = self.freshness.read().notices.get(contract, 0)
        if notice is not None and notice.sequence < seen:  # perhaps replaced while it was read
            notice = self._read_notice(contract)
        if notice is not None and notice.sequence < seen:
            raise ChannelError(
                f"{self.slot_path(contract)} holds publication {notice.sequence}, and publication {seen} was seen before; an old "
                "notice was put back: publish the policy again",
                ChannelProblem.STALE,
            )
        return notice

    def _read_notice(self, contract: str) -> Notice | None:
        path = self.slot_path(contract)
        notice = self._signed(path, MAX_NOTICE_BYTES, NOTICE, Notice, f"the notice {path}")
        if notice is not None and notice.contract != contract:
            raise ChannelError(
                f"{path} speaks of {notice.contract}, not of {contract}; publish the policy again",
                ChannelProblem.FOREIGN,
            )
        return notice

    def accept(self, contract: str = ORDERING) -> Notice | None:
        """Return the notice in a slot that an engine may follow, and remember its sequence number.

        Raises:
            ChannelError: as `read`; or it has expired, the channel was frozen before it, or its policy is quarantined.
        """
        notice = self.read(contract)
        if notice is None:
            return None
        path = self.slot_path(contract)
        if notice.expires < time.time():
            raise ChannelError(f"{path} has expired; publish the policy again", ChannelProblem.EXPIRED)
        orders = self.known_orders()
        if orders is not None:
            if notice.digest is not None and notice.digest in orders.quarantined:
                raise ChannelError(
                    f"policy {notice.digest[:12]} is in quarantine on this channel ({orders.quarantined[notice.digest]})",
                    ChannelProblem.QUARANTINED,
                )
            new = notice.sequence > orders.frozen_after.get(contract, 0)
            if orders.frozen and new and not notice.rollback:
                raise ChannelError(f"{path} was published on a frozen channel", ChannelProblem.FROZEN)
        self.freshness.update(
            lambda seen: _with_notice(seen, contract, notice.sequence).model_copy(update={"channel": notice.channel})
        )
        return notice

    def orders(self) -> StandingOrders | None:
        """Return the newest known standing orders: those in the channel, or newer ones seen before.

        Raises:
            ChannelError: the file cannot be read, or no trusted key signed it.
        """
        known = self.freshness.read().orders
        found = self._signed(
            self.orders_path,
            MAX_ORDERS_BYTES,
            STANDING_ORDERS,
            StandingOrders,
            f"the standing orders {self.orders_path}",
        )
        if found is None or (known is not None and known.sequence > found.sequence):
            return known
        return found

    def accept_orders(self) -> StandingOrders | None:
        """Return the newest standing orders, and remember them; raises `ChannelError` as `orders` does."""
        orders = self.orders()
        if orders is not None and orders != self.freshness.read().orders:
            self.freshness.update(lambda seen: seen.model_copy(update={"orders": orders, "channel": orders.channel}))
        return orders

    def files_of(self, notice: Notice, digest: str) -> tuple[str, bytes]:
        """Return the text of a policy and the content of its certificate file, exactly as a notice names them.

        Raises:
            ChannelError: one of them cannot be read, or is another file than the notice names.
        """
        try:
            source = read_bounded(self.policy_path(digest), MAX_POLICY_BYTES)
            certificate = read_bounded(self.certificate_path(digest), MAX_CERTIFICATE_BYTES)
            text = source.decode("utf-8")
        except (FileRefusedError, UnicodeDecodeError) as error:
            raise ChannelError(
                f"policy {digest[:12]}: its text or certificate cannot be read ({error}); publish it again",
                ChannelProblem.UNREADABLE,
            ) from None
        meant = notice.files[digest]
        for content, wanted, what in ((source, meant.policy, "text"), (certificate, meant.certificate, "certificate")):
            if hashlib.sha256(content).hexdigest() != wanted:
                raise ChannelError(
                    f"policy {digest[:12]}: its {what} in the channel is not the published one; publish it again",
                    ChannelProblem.FOREIGN,
                )
        return text, certificate

    def _signed(self, path: Path, limit: int, payload_type: str, kind: type[Ours], what: str) -> Ours | None:
        """Return the message in a signed file of this channel; None when there is no such file."""
        try:
            data = read_bounded(path, limit)
        except FileRefusedError as error:
            if error.problem is FileProblem.MISSING:
                return None
            raise _unreadable(error) from None
        try:
            envelope = Envelope.parse(data, payload_type)
            self.trust.check(envelope, what, self.key)
            message: Ours = content_of(kind, envelope.payload)  # type: ignore[arg-type]
        except EnvelopeError as error:
            if payload_type == NOTICE and _is_of_version_1(data):
                raise ChannelError(
                    f"{path} is a notice of format 1, which is not signed; publish the policy again with `autopoiesis deploy`",
                    ChannelProblem.VERSION,
                ) from None
            raise ChannelError(f"{path} cannot be used: {error}; publish it again") from None
        except SignatureRefused as error:
            raise ChannelError(str(error), ChannelProblem.UNTRUSTED) from None
        except NoticeError as error:
            raise ChannelError(f"{path} cannot be used: {error}; publish it again") from None
        identity, claimed = self.identity(), getattr(message, "channel", None)
        if claimed != identity:
            raise ChannelError(
                f"{what} was made for another channel ({str(claimed)[:12]}); publish it here", ChannelProblem.FOREIGN
            )
        return message

    # engines

    def engines(self) -> dict[str, dict[str, Any]]:
        """Return the status that each engine last wrote, by engine name; files that hold no status are left out."""
        found: dict[str, dict[str, Any]] = {}
        for name in _listed(self.root / "engines", ".json"):
            with suppress(FileRefusedError, ValidationError):
                content = read_bounded(self.root / "engines" / f"{name}.json", MAX_STATUS_BYTES)
                found[name] = EngineStatus.model_validate_json(content).model_dump(mode="json")
        return found

    def report(self, engine: str, status: Mapping[str, Any], *, durable: bool = True) -> None:
        """Write the status of an engine; raises `ChannelError`."""
        self._write(self.engine_path(engine), json.dumps(status, indent=1, sort_keys=True), durable=durable)

    def dump(self, name: str, content: Mapping[str, Any]) -> Path:
        """Keep the state in which a policy was quarantined, and return its path; raises `ChannelError`."""
        path = self.root / "quarantine" / f"{plain_name(name)}.json"
        self._write(path, json.dumps(content))
        return path

    def prune(self, now: float | None = None) -> list[str]:
        """Remove the files of engines that have been silent for a week, and return their names."""
        now = time.time() if now is None else now
        known = self.engines()
        removed = []
        for name in sorted({*known, *_listed(self.root / TELEMETRY, "")}):
            heard = [float(known[name]["heartbeat"])] if name in known else []
            for path in (self.engine_path(name), self.root / TELEMETRY / name):
                with suppress(OSError):
                    heard.append(path.lstat().st_mtime)
            if now - max(heard, default=now) > KEPT_S:
                self._remove_engine(name)
                removed.append(name)
        return removed

    def _remove_engine(self, name: str) -> None:
        with suppress(OSError):
            with opened_folder(self.root / TELEMETRY / name, create=False) as folder, os.scandir(folder) as pieces:
                for piece in pieces:
                    os.unlink(piece.name, dir_fd=folder)
            (self.root / TELEMETRY / name).rmdir()
        with suppress(OSError):
            self.engine_path(name).unlink()

    def report_drift(self, statistics: Mapping[str, float]) -> None:
        """Publish the drift that the control plane measured, by name; raises `ChannelError`."""
        self._write(self.root / "drift.json", json.dumps(dict(statistics), sort_keys=True))

    def drift(self) -> dict[str, float]:
        """Return the drift that the control plane last measured.

        The result is empty when it never did, or when the file cannot be read.
        """
        try:
            found = json.loads(read_bounded(self.root / "drift.json", MAX_NOTICE_BYTES))
            return {str(name)[:64]: float(value) for name, value in list(found.items())[:64]}
        except (FileRefusedError, ValueError, TypeError, AttributeError, RecursionError, OverflowError):
            return {}

    def record(self, engine: str, number: int, columns: Mapping[str, NDArray[np.int64]]) -> Path:
        """Write one piece of telemetry of an engine and return its path; the oldest are removed.

        Raises:
            TelemetryError: the columns are not those of the schema.
            FileUnwritableError: the piece cannot be written, or the engine's folder is a link or another user's.
        """
        return write_piece(self.root, engine, number, columns)

    def _write(self, path: Path, content: str | bytes, *, durable: bool = True) -> None:
        try:
            write_atomically(path, content, durable=durable)
        except FileUnwritableError as error:
            raise ChannelError(f"{error}; nothing was published", ChannelProblem.UNWRITABLE) from None


def plain_name(name: str) -> str:
    """Return a name that may be part of a path: a digest, an engine's or a slot's.

    Raises:
        ChannelError: it may not be.
    """
    ascii_only = name.isascii() and all(letter.isalnum() or letter in "-_." for letter in name)
    if not ascii_only or not 0 < len(name) <= 128 or name.startswith("."):
        raise ChannelError(f"{printable(name)[:80]!r} is not a digest or an engine name")
    return name


def _listed(folder: Path, suffix: str) -> list[str]:
    """Return the plain names of at most MAX_ENGINES files of a folder, sorted."""
    found: list[str] = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name.removesuffix(suffix)
            if name == entry.name or len(found) >= MAX_ENGINES:
                continue
            with suppress(ChannelError):
                found.append(plain_name(name))
    return sorted(found)


def _said(reason: str) -> str:
    """Return a reason as it may stand in orders: printable, and short."""
    return printable(" ".join(reason.split()))[:300]


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unreadable(error: FileRefusedError) -> ChannelError:
    kind = ChannelProblem.UNREADABLE if error.problem is FileProblem.UNREADABLE else ChannelProblem.MALFORMED
    return ChannelError(f"{error}; publish it again", kind)


def _with_notice(seen: Seen, contract: str, sequence: int) -> Seen:
    highest = max(seen.notices.get(contract, 0), sequence)
    return seen.model_copy(update={"notices": {**seen.notices, contract: highest}})


def _is_of_version_1(data: bytes) -> bool:
    return len(data) <= MAX_NOTICE_BYTES and b'"sequence"' in data and b'"payload"' not in data
