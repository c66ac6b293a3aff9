"""Modes and owners of a channel and of a folder of keys: a check for others who could change what an engine trusts.

A wrong mode breaks no signature. It means that parties which the signatures separate can reach each other's files.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

__all__ = ["permission_problems"]


def permission_problems(channel: Path | None, keys: Path | None, *, engine: bool = False) -> list[str]:
    """Return one line for each mode or owner that gives others access; empty when there is none.

    Args:
        channel: the channel directory.
        keys: the folder of trusted keys.
        engine: this process is an engine, which must not be able to sign.
    """
    return [*_channel_problems(channel), *_key_problems(keys, engine)]


def _channel_problems(channel: Path | None) -> Iterator[str]:
    if channel is None:
        return
    for path in (channel, channel / "policies", channel / "certificates", channel / "log"):
        about = _about(path)
        if about is not None and about.st_mode & stat.S_IWOTH:
            yield f"{path} is writable by everybody; run `chmod o-w` on it, or `autopoiesis deploy init --group GROUP`"
    for name in ("engines", "telemetry", "quarantine"):
        about = _about(channel / name)
        if about is not None and about.st_mode & stat.S_IWOTH and not about.st_mode & stat.S_ISVTX:
            yield f"{channel / name} is writable by everybody and not sticky, so anybody can remove an engine's files"


def _key_problems(keys: Path | None, engine: bool) -> Iterator[str]:
    about = None if keys is None else _about(keys)
    if keys is None or about is None:
        return
    if about.st_uid not in (os.geteuid(), 0):
        yield f"{keys} belongs to another user (uid {about.st_uid}), who decides which keys are trusted here"
    if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield f"{keys} is writable by others, who decide which keys are trusted here; run `chmod go-w` on it"
    try:
        names = sorted(path.name for path in keys.iterdir() if path.suffix in (".key", ".pub"))
    except OSError:
        return
    for name in names[:256]:
        path, found = keys / name, _about(keys / name)
        if found is None:
            continue
        if name.endswith(".pub"):
            if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                yield f"{path} is writable by others, who decide which key is trusted here; run `chmod go-w` on it"
        elif found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield f"{path} is a private key that others may read; run `chmod 600` on it"
        elif engine and os.access(path, os.R_OK):
            yield f"{path} is a private key that this engine's user can read; keep it where engines cannot reach it"


def _about(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
