"""Bounded reads and atomic writes: the only way in which files pass between a control plane, engines and users.

A file is hostile until its signature is checked. Before that it is only known to be a regular file of bounded size; a
FIFO, a device, a symbolic link or a file that is too large is refused without a blocking call.
"""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Final

from ..errors import AutopoiesisError

__all__ = [
    "MAX_CERTIFICATE_BYTES",
    "MAX_KEY_BYTES",
    "MAX_NOTICE_BYTES",
    "MAX_POLICY_BYTES",
    "MAX_STATUS_BYTES",
    "FileProblem",
    "FileRefusedError",
    "FileUnwritableError",
    "opened_folder",
    "opened_regular",
    "read_bounded",
    "write_atomically",
    "write_in",
]

MAX_POLICY_BYTES: Final = 65_536
MAX_CERTIFICATE_BYTES: Final = 4_194_304
MAX_NOTICE_BYTES: Final = 65_536
MAX_STATUS_BYTES: Final = 262_144
MAX_KEY_BYTES: Final = 4_096

FILE_MODE: Final = 0o644
"""Mode of every published file. Its content is not secret; the modes of the folders decide who may read it."""
FOLDER_MODE: Final = 0o755
"""Mode of every folder that is created for published files, besides the bits that it inherits from its parent."""


class FileProblem(StrEnum):
    """The reason why a file was not read."""

    MISSING = "missing"
    LINK = "link"
    """The path names a symbolic link."""
    NOT_REGULAR = "not-regular"
    """A folder, FIFO, socket or device."""
    TOO_LARGE = "too-large"
    UNREADABLE = "unreadable"
    """A file that the operating system refused, or failed, to read; another attempt may succeed."""


class FileRefusedError(AutopoiesisError):
    """A file from outside that was not read; `problem` says why."""

    def __init__(self, path: Path, problem: FileProblem, detail: str) -> None:
        super().__init__(f"{path} {detail}")
        self.path, self.problem = path, problem


class FileUnwritableError(AutopoiesisError):
    """A file that could not be written; the earlier content is still there."""


def read_bounded(path: str | Path, limit: int, *, follow_links: bool = False) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    Opening never blocks, and at most `limit` + 1 bytes are ever in memory, whatever the file's size says.

    Args:
        path: the file.
        limit: the largest size accepted, in bytes.
        follow_links: accept a symbolic link, for files that a person named on a command line.

    Raises:
        FileRefusedError: the file is missing, no regular file, too large or unreadable.
    """
    path = Path(path)
    with opened_regular(path, limit, follow_links=follow_links) as handle:
        try:
            content = _read_up_to(handle, limit + 1)
        except OSError as error:
            raise FileRefusedError(path, FileProblem.UNREADABLE, f"cannot be read: {error.strerror or error}") from None
    if len(content) > limit:
        raise FileRefusedError(path, FileProblem.TOO_LARGE, f"grew beyond {limit} bytes while it was read")
    return content


@contextmanager
def opened_regular(path: str | Path, limit: int, *, follow_links: bool = False) -> Iterator[int]:
    """Open a regular file of at most `limit` bytes, without ever blocking, and yield a descriptor to read it in pieces.

    Args:
        path: the file.
        limit: the largest size accepted, in bytes. The file may still grow while it is read.
        follow_links: accept a symbolic link, for files that a person named on a command line.

    Raises:
        FileRefusedError: the file is missing, no regular file, too large or cannot be opened.
    """
    path = Path(path)
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | (0 if follow_links else os.O_NOFOLLOW)
    try:
        handle = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        raise FileRefusedError(path, FileProblem.MISSING, "is not there") from None
    except (OSError, ValueError) as error:
        if not follow_links and path.is_symlink():
            raise FileRefusedError(path, FileProblem.LINK, "is a symbolic link, which is not followed") from None
        raise FileRefusedError(
            path, FileProblem.UNREADABLE, f"cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise FileRefusedError(path, FileProblem.NOT_REGULAR, "is not a regular file")
        if about.st_size > limit:
            raise FileRefusedError(
                path, FileProblem.TOO_LARGE, f"has {about.st_size} bytes; at most {limit} are accepted"
            )
        yield handle
    finally:
        os.close(handle)


def _read_up_to(handle: int, count: int) -> bytes:
    parts: list[bytes] = []
    while count > 0 and (part := os.read(handle, min(count, 1 << 20))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


@contextmanager
def opened_folder(path: str | Path, *, create: bool = True, inside: int | None = None) -> Iterator[int]:
    """Open a folder, never through a symbolic link in its last part, and yield a descriptor for calls with `dir_fd`.

    Args:
        path: the folder.
        create: create it, and its parents, when it is missing.
        inside: a descriptor of the folder that `path` is relative to; None: the working folder.

    Raises:
        OSError: it is a link, is not a folder, or cannot be opened or created.
    """
    made = False
    if create:
        with suppress(FileExistsError):
            if inside is None:
                Path(path).mkdir(parents=True)
            else:
                os.mkdir(path, dir_fd=inside)
            made = True
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
    try:
        if made:  # other users read the files in it as well, whatever the umask
            os.fchmod(handle, stat.S_IMODE(os.fstat(handle).st_mode) | FOLDER_MODE)
        yield handle
    finally:
        os.close(handle)


def write_atomically(path: str | Path, content: str | bytes, *, mode: int = FILE_MODE, durable: bool = True) -> None:
    """Replace a file so that a reader sees the old content or the new, also across a crash.

    The folder is made when it is missing. Neither the folder nor the file is reached through a symbolic link.

    Args:
        path: the file.
        content: text (written as UTF-8) or bytes.
        mode: the file's mode, whatever the umask.
        durable: wait until the content is on the disk. A heartbeat need not be.

    Raises:
        FileUnwritableError: it cannot be written; the old file is still there.
    """
    path = Path(path)
    try:
        with opened_folder(path.parent) as folder:
            write_in(folder, path.name, content, mode=mode, durable=durable)
    except OSError as error:
        raise FileUnwritableError(f"{path} cannot be written: {error.strerror or error}") from None


def write_in(folder: int, name: str, content: str | bytes, *, mode: int = FILE_MODE, durable: bool = True) -> None:
    """Replace one file of an open folder, as `write_atomically` does.

    Args:
        folder: a descriptor of the folder.
        name: the file's name in it.
        content: text (written as UTF-8) or bytes.
        mode: the file's mode, whatever the umask.
        durable: wait until the content is on the disk.

    Raises:
        OSError: it cannot be written; the old file is still there.
    """
    temporary = f".{secrets.token_hex(8)}.part"
    handle = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder
    )
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
