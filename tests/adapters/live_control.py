"""`autopoiesis watch` in a process of its own beside a live server, evolving: started, killed, its store locked."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from autopoiesis_lib.protocol.channel import Channel
from autopoiesis_lib.store import Store

__all__ = ["ControlPlane"]


class ControlPlane:
    """The control plane of a channel. Its evolution lasts longer than any test, and nothing decides without approval."""

    def __init__(self, channel: Channel, keys: Path, folder: Path) -> None:
        self._channel, self._keys, self._folder = channel, keys, folder
        self._path = folder / "store.db"
        Store.open(self._path).close()
        self._log = folder / "watch.log"
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start it, again after it was killed."""
        command = [sys.executable, "-m", "autopoiesis_cli", "watch", "--channel", str(self._channel.root)]
        command += ["--store", str(self._path), "--state", str(self._folder / "state")]
        command += ["--key", "fleet", "--keys", str(self._keys), "--require-approval", "--no-known-first"]
        command += ["--window", "2", "--min-requests", "8", "--evolve-first", "--seconds", "3600", "--workers", "1"]
        with self._log.open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self._started.append(process)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._started[-1].poll() is None

    def kill(self) -> None:
        """SIGKILL to the control plane alone; its worker processes are left to find out."""
        self._started[-1].kill()
        self._started[-1].wait(60)

    def end(self) -> None:
        """Whatever is left of it, workers included."""
        for process in self._started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)

    def works(self, seconds: float = 120.0) -> None:
        """Wait until it has judged another candidate."""
        known, ends = self.candidates(), time.monotonic() + seconds
        while self.candidates() == known:
            assert self.alive, f"it ended: {self._log.read_text()[-2_000:]}"
            assert time.monotonic() < ends, f"it judged nothing: {self._log.read_text()[-2_000:]}"
            time.sleep(0.1)

    def runs(self) -> list[str]:
        """Evolutions in its store."""
        with closing(Store.open(self._path)) as store:
            return [run.id for run in store.runs()]

    def candidates(self) -> int:
        """Candidates judged so far."""
        with closing(Store.open(self._path)) as store:
            return sum(len(store.candidates(run.id)) for run in store.runs())

    def resumed(self) -> list[object]:
        """Which run each evolution went on with; None: it began a new one."""
        with closing(Store.open(self._path)) as store:
            rows = store.deployments(str(self._channel.root))
        return [row.detail["resumed"] for row in rows if row.action == "evolve"]

    @contextmanager
    def store_locked(self) -> Iterator[None]:
        """Nobody else can write to its store."""
        with closing(sqlite3.connect(self._path, timeout=60, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            try:
                yield
            finally:
                connection.execute("ROLLBACK")
