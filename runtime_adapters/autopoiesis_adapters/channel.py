"""The channel directory: how a policy reaches running engines, and how engines answer, with nothing but files.

```
active.json               the notice: which policy is wanted now; replaced by one atomic rename
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from autopoiesis_lib.errors import AutopoiesisError

__all__ = ["Channel", "ChannelError", "Notice"]


class ChannelError(AutopoiesisError):
    """The channel directory cannot be written or holds something unreadable."""


class Notice(BaseModel):
    """What `active.json` says."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    sequence: int
    """Counts up with every publication, so that publishing the same policy again is seen."""
    digest: str | None
    """The policy wanted; None: the engine's built-in order."""
    contract: str = "request-ordering"
    """The policy type."""
    mode: Literal["active"] = "active"
    """How the policy is to be used. Room for `shadow` and `canary`; an engine refuses what it does not know."""
    note: str = ""
    """For people: who or what published it, and why."""


@dataclass(frozen=True)
class Channel:
    """A channel directory. Creating the value touches nothing; folders are made when first written to."""

    root: Path

    @property
    def notice_path(self) -> Path:
        """The file whose change engines watch for."""
        return self.root / "active.json"

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

    def publish(
        self, digest: str, source: str, certificate: str, *, contract: str = "request-ordering", note: str = ""
    ) -> Notice:
        """Want a policy from every engine on this channel. Engines see all of it or nothing of it.

        Raises:
            ChannelError: the directory cannot be written; nothing has changed for the engines.
        """
        write_atomically(self.policy_path(digest), source)
        write_atomically(self.certificate_path(digest), certificate)
        return self._announce(digest, contract, note)

    def publish_again(self, digest: str, *, contract: str = "request-ordering", note: str = "") -> Notice:
        """Want a policy that was published before: a rollback.

        Raises:
            ChannelError: the channel has no such policy, or cannot be written.
        """
        if not (self.policy_path(digest).is_file() and self.certificate_path(digest).is_file()):
            raise ChannelError(
                f"{self.root}: no policy {digest[:12]} was ever published here; publish it with its certificate"
            )
        return self._announce(digest, contract, note)

    def publish_builtin(self, *, note: str = "") -> Notice:
        """Want the engine's built-in order; raises `ChannelError` as `publish` does."""
        return self._announce(None, "request-ordering", note)

    def read(self) -> Notice | None:
        """The notice that stands; None when nothing was published yet.

        Raises:
            ChannelError: `active.json` is not a notice.
        """
        try:
            return Notice.model_validate_json(self.notice_path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ChannelError(f"{self.notice_path} cannot be read: {error.strerror or error}") from None
        except ValidationError as error:
            raise ChannelError(
                f"{self.notice_path} is not a notice ({error.errors()[0]['msg']}); publish the policy again"
            ) from None

    def engines(self) -> dict[str, dict[str, Any]]:
        """What each engine last said of itself, by engine name; unreadable files are left out."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted((self.root / "engines").glob("*.json")):
            try:
                found[path.stem] = json.loads(path.read_bytes())
            except (OSError, ValueError):
                continue
        return found

    def report(self, engine: str, status: dict[str, Any]) -> None:
        """An engine says what it runs; raises `ChannelError` when it cannot be written."""
        write_atomically(self.root / "engines" / f"{_plain(engine)}.json", json.dumps(status, indent=1, sort_keys=True))

    def dump(self, name: str, content: dict[str, Any]) -> Path:
        """Keep the state in which a policy was taken out; raises `ChannelError` when it cannot be written."""
        path = self.root / "quarantine" / f"{_plain(name)}.json"
        write_atomically(path, json.dumps(content))
        return path

    def record(self, engine: str, number: int, columns: Mapping[str, NDArray[np.int64]], keep: int = 64) -> Path:
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
        for old in sorted(folder.glob("*.npz"))[:-keep]:
            old.unlink(missing_ok=True)
        return path

    def telemetry(self, engine: str, after: int = -1) -> Iterator[tuple[int, dict[str, NDArray[np.int64]]]]:
        """The pieces an engine has left with a number above `after`, oldest first; pieces removed meanwhile are skipped."""
        for path in sorted((self.root / "telemetry" / _plain(engine)).glob("*.npz")):
            if int(path.stem) > after:
                try:
                    with np.load(path, allow_pickle=False) as piece:
                        yield int(path.stem), {name: piece[name] for name in piece.files}
                except (OSError, ValueError):
                    continue

    def _announce(self, digest: str | None, contract: str, note: str) -> Notice:
        try:
            standing = self.read()
        except ChannelError:
            standing = None  # an unreadable notice is replaced by a readable one
        notice = Notice(
            sequence=(standing.sequence if standing else 0) + 1, digest=digest, contract=contract, note=note
        )
        write_atomically(self.notice_path, notice.model_dump_json(indent=1))
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
