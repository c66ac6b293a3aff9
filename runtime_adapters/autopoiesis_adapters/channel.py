"""The channel directory: how a policy reaches running engines, and how engines answer, with nothing but files.

```
active.json               the notice of request ordering: which policy is wanted now; replaced by one atomic rename
active-CONTRACT.json      the same for another policy type (admission, preemption): each has a slot of its own
drift.json                what the control plane last measured of drift; engines pass it on as metrics
policies/DIGEST.py        policy texts, by digest
certificates/DIGEST.json  their certificates
engines/ENGINE.json       what each engine runs, has refused and has dropped; written by the engine
quarantine/DIGEST-*.json  a dump of the state in which a policy was taken out
telemetry/ENGINE/*.npz    what an engine did, in numbered pieces; the oldest are removed
DISABLED                  while this file is there, every engine serves its built-in order
```

Any number of engines may watch one channel; each of them verifies what it finds for itself.
"""

import io
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from autopoiesis_lib.errors import AutopoiesisError

__all__ = ["LEVERS", "ORDERING", "Channel", "ChannelError", "Mode", "Notice", "OutOfReachError"]

ORDERING = "request-ordering"
"""The policy type whose notice is `active.json`."""

LEVERS = ("admission", "preemption")
"""The other policy types, whose notices are `active-CONTRACT.json`."""

Mode = Literal["active", "shadow", "canary"]
"""`active`: it decides. `shadow`: it is asked beside whatever decides, its answers are compared and change nothing.
`canary`: it decides for a bounded time or number of decisions; then the engine goes back to `base` by itself."""

MAX_NOTICE_BYTES = 65_536
"""A notice is a few hundred bytes; what is larger is none, and is not read into an engine's memory to find that out."""

KEPT_PIECES = 512
"""Pieces of telemetry an engine keeps: at one in ten seconds, 85 minutes for a control plane to come back in."""


class ChannelError(AutopoiesisError):
    """The channel directory cannot be written or holds something unreadable."""


class OutOfReachError(ChannelError):
    """A file of the channel is there and cannot be read just now; another try may succeed."""


class Notice(BaseModel):
    """What `active.json` says."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    sequence: int
    """Counts up with every publication, so that publishing the same policy again is seen."""
    digest: str | None
    """The policy spoken of; None: the engine's built-in rule."""
    contract: str = ORDERING
    """The policy type."""
    mode: Mode = "active"
    """How it is to be used."""
    base: str | None = None
    """What decides meanwhile (shadow) or afterwards (canary); None: the built-in rule. Unused when active."""
    seconds: float | None = Field(default=None, gt=0)
    """How long a shadow or canary lasts in each engine, from its first step on; None: not bounded by time."""
    decisions: int | None = Field(default=None, ge=1)
    """How many decisions a shadow or canary lasts in each engine; None: not bounded by number."""
    note: str = ""
    """For people: who or what published it, and why."""

    @property
    def decides(self) -> str | None:
        """The digest that decides once nobody promotes the candidate; None: the built-in rule."""
        return self.digest if self.mode == "active" else self.base

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.mode == "canary" and self.seconds is None and self.decisions is None:
            raise ValueError("a canary needs a bound: seconds or decisions")
        return self


@dataclass(frozen=True)
class Channel:
    """A channel directory. Creating the value touches nothing; folders are made when first written to."""

    root: Path

    @property
    def notice_path(self) -> Path:
        """The file whose change engines watch for, of request ordering."""
        return self.slot_path(ORDERING)

    def slot_path(self, contract: str) -> Path:
        """The notice of one policy type."""
        return self.root / ("active.json" if contract == ORDERING else f"active-{_plain(contract)}.json")

    @property
    def disabled_path(self) -> Path:
        """The file whose presence puts every engine on its built-in order."""
        return self.root / "DISABLED"

    def policy_path(self, digest: str) -> Path:
        """Where a policy's text lies."""
        return self.root / "policies" / f"{_plain(digest)}.py"

    def certificate_path(self, digest: str) -> Path:
        """Where its certificate lies."""
        return self.root / "certificates" / f"{_plain(digest)}.json"

    def engine_path(self, engine: str) -> Path:
        """What an engine says of itself."""
        return self.root / "engines" / f"{_plain(engine)}.json"

    def publish(
        self,
        digest: str,
        source: str,
        certificate: str,
        *,
        contract: str = ORDERING,
        note: str = "",
        mode: Mode = "active",
        seconds: float | None = None,
        decisions: int | None = None,
    ) -> Notice:
        """Want a policy from every engine on this channel. Engines see all of it or nothing of it.

        In shadow or as a canary it stands beside what the channel wants now, which goes on deciding or decides again.

        Args:
            digest: the policy's digest.
            source: its text.
            certificate: its certificate's JSON.
            contract: its policy type; each has a slot of its own.
            note: for people.
            mode: see `Mode`; a canary that is to stay is published again as `active`.
            seconds: how long a shadow or canary lasts in each engine.
            decisions: how many decisions it lasts; a canary needs one of the two.

        Raises:
            ChannelError: the directory cannot be written, or the bounds make no sense; nothing has changed for the
                engines.
        """
        write_atomically(self.policy_path(digest), source)
        write_atomically(self.certificate_path(digest), certificate)
        return self._announce(digest, contract, note, mode, seconds, decisions)

    def publish_again(
        self,
        digest: str,
        *,
        contract: str = ORDERING,
        note: str = "",
        mode: Mode = "active",
        seconds: float | None = None,
        decisions: int | None = None,
    ) -> Notice:
        """Want a policy that was published before: a rollback, or a canary promoted.

        Raises:
            ChannelError: the channel has no such policy, or cannot be written.
        """
        if not (self.policy_path(digest).is_file() and self.certificate_path(digest).is_file()):
            raise ChannelError(
                f"{self.root}: no policy {digest[:12]} was ever published here; publish it with its certificate"
            )
        return self._announce(digest, contract, note, mode, seconds, decisions)

    def publish_builtin(self, *, contract: str = ORDERING, note: str = "") -> Notice:
        """Want the engine's built-in rule; raises `ChannelError` as `publish` does."""
        return self._announce(None, contract, note)

    def read(self, contract: str = ORDERING) -> Notice | None:
        """The notice that stands in a policy type's slot; None when nothing was published yet.

        Raises:
            OutOfReachError: it cannot be read.
            ChannelError: it is not a notice.
        """
        path = self.slot_path(contract)
        try:
            with path.open("rb") as file:
                text = file.read(MAX_NOTICE_BYTES + 1)
            if len(text) > MAX_NOTICE_BYTES:
                raise ChannelError(f"{path} is not a notice (over {MAX_NOTICE_BYTES} bytes); publish the policy again")
            notice = Notice.model_validate_json(text)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutOfReachError(f"{path} cannot be read: {error.strerror or error}") from None
        except ValidationError as error:
            raise ChannelError(
                f"{path} is not a notice ({error.errors()[0]['msg']}); publish the policy again"
            ) from None
        if notice.contract != contract:
            raise ChannelError(f"{path} speaks of {notice.contract}, not of {contract}; publish the policy again")
        return notice

    def report_drift(self, statistics: Mapping[str, float]) -> None:
        """The control plane says what it measured: name -> value. Raises `ChannelError` when it cannot be written."""
        write_atomically(self.root / "drift.json", json.dumps(dict(statistics), sort_keys=True))

    def drift(self) -> dict[str, float]:
        """What the control plane last measured; empty when it never did, or when that cannot be read."""
        try:
            found = json.loads((self.root / "drift.json").read_bytes())
            return {str(name): float(value) for name, value in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def engines(self) -> dict[str, dict[str, Any]]:
        """What each engine last said of itself, by engine name; files that hold no such thing are left out."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted((self.root / "engines").glob("*.json")):
            try:
                status = json.loads(path.read_bytes())
            except (OSError, ValueError, RecursionError):
                continue
            if isinstance(status, dict):
                found[path.stem] = status
        return found

    def report(self, engine: str, status: dict[str, Any]) -> None:
        """An engine says what it runs; raises `ChannelError` when it cannot be written."""
        write_atomically(self.engine_path(engine), json.dumps(status, indent=1, sort_keys=True))

    def dump(self, name: str, content: dict[str, Any]) -> Path:
        """Keep the state in which a policy was taken out; raises `ChannelError` when it cannot be written."""
        path = self.root / "quarantine" / f"{_plain(name)}.json"
        write_atomically(path, json.dumps(content))
        return path

    def record(
        self, engine: str, number: int, columns: Mapping[str, NDArray[np.int64]], keep: int = KEPT_PIECES
    ) -> Path:
        """An engine leaves one piece of telemetry: columns of equal meaning and any length, compressed; keeps the last few.

        Raises:
            ChannelError: it cannot be written.
        """
        buffer = io.BytesIO()
        arrays: dict[str, Any] = dict(columns)
        np.savez_compressed(buffer, **arrays)
        folder = self.root / "telemetry" / _plain(engine)
        path = folder / f"{number:08}.npz"
        write_atomically(path, buffer.getvalue())
        numbers = sorted(int(old.stem) for old in folder.glob("*.npz") if old.stem.isdecimal())
        for old in numbers[:-keep]:  # by number, and nothing that is not a piece
            (folder / f"{old:08}.npz").unlink(missing_ok=True)
        return path

    def _announce(
        self,
        digest: str | None,
        contract: str,
        note: str,
        mode: Mode = "active",
        seconds: float | None = None,
        decisions: int | None = None,
    ) -> Notice:
        try:
            standing = self.read(contract)
        except ChannelError:
            standing = None  # an unreadable notice is replaced by a readable one
        try:
            notice = Notice(
                sequence=(standing.sequence if standing else 0) + 1,
                digest=digest,
                contract=contract,
                mode=mode,
                base=standing.decides if standing is not None and mode != "active" else None,
                seconds=seconds,
                decisions=decisions,
                note=note,
            )
        except ValidationError as error:
            raise ChannelError(f"nothing was published: {error.errors()[0]['msg']}") from None
        write_atomically(self.slot_path(contract), notice.model_dump_json(indent=1))
        return notice


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old text or the new, even across a crash.

    Raises:
        ChannelError: it cannot be written; the old text is still there.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise ChannelError(f"{path} cannot be written: {error.strerror or error}; nothing was published") from None


def _plain(name: str) -> str:
    if not name or not all(letter.isalnum() or letter in "-_." for letter in name) or name.startswith("."):
        raise ChannelError(f"{name!r} is not a digest or an engine name")
    return name
