"""The longest gap between two steps of a live engine while hostile files are written to its channel.

One vLLM server on the CPU serves a steady load with a certified policy. Quiet windows and windows of attack, equally
long, alternate in the same run. In a window of attack, files are written one after the other, evenly spread, where the
engine reads notices, standing orders, the channel's id, policies and certificates. They are 50 MB of garbage and of
JSON, a sparse gigabyte, deep and flat JSON of every size within the bounds, FIFOs, folders, links, devices, and notices
that are forged, replayed or signed for another channel. Files are made beforehand and moved into place, so that the
engine's work is measured, not the attacker's. Gaps are differences of `at_us` in the adapter's own telemetry of steps.

    python benchmarks/hostile_files.py [--rounds 4] [--seconds 20] [--files 100] [--json]

Bar: the longest gap of all windows of attack is less than 50 ms above the longest of all quiet windows, the policy
decides from the first to the last step, and every client gets the same answers as before.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering
from numpy.typing import NDArray

from autopoiesis_lib import Policy
from autopoiesis_lib.certificate import verify
from autopoiesis_lib.protocol.channel import Channel
from autopoiesis_lib.protocol.files import MAX_CERTIFICATE_BYTES, MAX_NOTICE_BYTES
from autopoiesis_lib.protocol.keys import load_key, new_key
from autopoiesis_lib.protocol.telemetry import TelemetryReader

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.adapters.channel_faults import THINGS, remove
from tests.adapters.forging import altered, sealed, standing
from tests.adapters.live_server import Server, running
from tests.adapters.tiny_llama import write_tiny_llama
from tests.support.fleet import Fleet

BAR_MS = 50.0
CLIENTS = 4
MAX_ORDERS_BYTES = 1_048_576

Put = Callable[[], object]


@dataclass
class Load:
    """Clients that send one request after the other; every answer must equal the first one for its request."""

    server: Server
    expected: dict[int, list[int]] = field(default_factory=dict)
    answers: int = 0

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Serve the load while the block lasts; raise an error when an answer changes."""
        done = threading.Event()

        def client(first: int) -> int:
            for served in count():
                if done.is_set():
                    return served
                number, tokens = self.server.complete((first + 4 * served) % 16)
                if self.expected.setdefault(number, tokens) != tokens:
                    raise AssertionError(f"the answer to {number} changed")
            return 0

        with ThreadPoolExecutor(CLIENTS) as pool:
            serving = [pool.submit(client, first) for first in range(CLIENTS)]
            try:
                yield
            finally:
                done.set()
                self.answers += sum(one.result() for one in serving)


class Attack:
    """Hostile files, made beforehand, and the places where the engine reads."""

    def __init__(self, channel: Channel, fleet: Fleet, staged: Path) -> None:
        self._channel, self._staged, self._number = channel, staged, count()
        staged.mkdir()
        new_key(fleet.folder / "stranger", "stranger")
        notice, stranger = standing(channel), load_key(fleet.folder / "stranger", "stranger")
        wanted = Policy.from_source(BASELINES["fcfs"], RequestOrdering())
        channel.policy_path(wanted.digest).write_text(wanted.source)
        self._unwanted = wanted.digest
        files = {wanted.digest: next(iter(notice.files.values()))}
        forged = altered(notice, digest=wanted.digest, files=files)
        contents = {
            "unsigned": sealed(forged, None),
            "stranger": sealed(forged, stranger),
            "another channel": sealed(forged.model_copy(update={"channel": "0" * 32}), fleet.key),
            "old": sealed(altered(notice, sequence=1, digest=wanted.digest, files=files), fleet.key),
            "expired": sealed(forged.model_copy(update={"expires": 1}), fleet.key),
        }
        for limit in (MAX_NOTICE_BYTES, MAX_ORDERS_BYTES, MAX_CERTIFICATE_BYTES):
            contents |= {
                f"flat {limit}": b"[" + b"1," * (limit // 2 - 2) + b"1]",
                f"deep {limit}": b"[" * limit,
                f"parts {limit}": b"{" + b'"":{},' * (limit // 6 - 2) + b'"":{}}',
                f"text {limit}": b'{"payload":"' + b"A" * (limit - 200) + b'","payloadType":"x","signatures":[]}',
                f"random {limit}": os.urandom(limit),
            }
        for name, content in contents.items():
            (staged / name).write_bytes(content)
        for name in ("50-mb-of-garbage", "50-mb-of-json", "sparse-gigabyte"):
            THINGS[name](staged / name)
        # A notice that makes the engine read the id, a policy and a certificate: signed, and with a higher number every
        # time.
        self._noticed = [
            sealed(forged.model_copy(update={"sequence": forged.sequence + k}), fleet.key) for k in range(4)
        ]
        self._good = {path: path.read_bytes() for path in (channel.notice_path, channel.root / "channel.json")}

    def files(self) -> Iterator[tuple[str, Put]]:
        """Yield the name and the write function of each file, forever, in one order."""
        root, channel = self._channel.root, self._channel
        places = [
            channel.notice_path,
            channel.slot_path("admission"),
            channel.slot_path("preemption"),
            channel.orders_path,
        ]
        read = [root / "channel.json", channel.policy_path(self._unwanted), channel.certificate_path(self._unwanted)]
        staged = sorted(path.name for path in self._staged.iterdir() if path.is_file())
        kinds = [*staged, *(name for name in THINGS if name in ("fifo", "folder", "link", "device"))]
        for turn in cycle(range(len(kinds) * (len(places) + len(read)))):
            kind, place = kinds[turn % len(kinds)], [*places, *read][turn % (len(places) + len(read))]
            yield f"{kind} as {place.name}", self._put(kind, place, noticed=place in read)

    def _put(self, kind: str, place: Path, noticed: bool) -> Put:
        def put() -> None:
            if kind in THINGS and kind in ("fifo", "folder", "link", "device"):
                remove(place)
                THINGS[kind](place)
            else:
                link = place.with_name(f".{next(self._number)}.link")
                os.link(self._staged / kind, link)
                if place.is_dir() and not place.is_symlink():
                    place.rmdir()
                link.replace(place)
            if noticed:
                self._write(self._channel.notice_path, self._noticed[next(self._number) % len(self._noticed)])

        return put

    def clean(self) -> None:
        """Restore all files."""
        for path in (
            *(self._channel.slot_path(name) for name in ("request-ordering", "admission", "preemption")),
            self._channel.orders_path,
            self._channel.certificate_path(self._unwanted),
            self._channel.root / "channel.json",
        ):
            remove(path)
        for path, content in reversed(self._good.items()):
            self._write(path, content)

    def _write(self, path: Path, content: bytes) -> None:
        part = path.with_name(f".{next(self._number)}.part")
        part.write_bytes(content)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        part.replace(path)


def now_us() -> int:
    """Return the time of the adapter's telemetry clock, which all processes of a machine share."""
    return time.perf_counter_ns() // 1_000


def window(seconds: float, puts: list[tuple[str, Put]]) -> tuple[int, int, list[tuple[int, str]]]:
    """Wait for the length of a window while writing files at even intervals.

    Return its start, its end and each file's time (us).
    """
    began, came = now_us(), []
    for number, (name, put) in enumerate(puts):
        time.sleep(max(0.0, began / 1e6 + (number + 0.5) * seconds / len(puts) - now_us() / 1e6))
        came.append((now_us(), name))
        put()
    time.sleep(max(0.0, began / 1e6 + seconds - now_us() / 1e6))
    return began, now_us(), came


def gaps_ms(at_us: NDArray[np.int64], began: int, ended: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the steps of a window, and the gap before each in milliseconds."""
    inside = at_us[(at_us >= began) & (at_us <= ended)]
    return inside[1:], np.diff(inside) / 1e3


def measure(folder: Path, rounds: int, seconds: float, files: int) -> dict[str, Any]:
    """Run the benchmark and return all figures."""
    fleet = Fleet(folder / "fleet")
    channel = fleet.publisher(folder / "channel")
    policy = Policy.from_source(BASELINES["shortest-prompt-aging"], RequestOrdering())
    fleet.publish(channel.root, policy, verify(policy))
    settings = {
        "AUTOPOIESIS_KEYS": str(fleet.keys),
        "AUTOPOIESIS_STATE": str(folder / "engine-state"),
        "AUTOPOIESIS_ALLOW_SINGLE_SOLVER": "1",
        "AUTOPOIESIS_SNAPSHOT_S": "5",
        "AUTOPOIESIS_DEADLINE_US": "250000",
    }
    server = Server(write_tiny_llama(folder / "tiny-llama"), channel, folder / "server.log", settings, max_tokens=16)
    attack = Attack(channel, fleet, folder / "staged")
    hostile, windows = attack.files(), []
    with running(server):
        load = Load(server)
        with load.steady():
            time.sleep(5.0)  # the caches are warm after that
            before = server.samples()
            for turn in range(rounds):
                for kind in ("quiet", "attack") if turn % 2 == 0 else ("attack", "quiet"):
                    puts = list(islice(hostile, files)) if kind == "attack" else []
                    windows.append((kind, *window(seconds, puts)))
                    attack.clean()
                    time.sleep(1.0)
            after = server.samples()
    reader, steps = TelemetryReader(channel.root / "telemetry" / server.name), []
    for piece in reader.read().pieces:
        steps.append(piece.steps["at_us"])
    at_us = np.concatenate(steps)
    found: dict[str, Any] = {"windows": [], "files": files, "seconds": seconds, "answers": load.answers}
    for kind, began, ended, came in windows:
        ends, gaps = gaps_ms(at_us, began, ended)
        worst = int(gaps.argmax())
        blamed = [name for when, name in came if when <= ends[worst]][-1:] if came else []
        found["windows"].append(
            {
                "kind": kind,
                "steps": len(gaps),
                "worst_ms": float(gaps[worst]),
                "p999_ms": float(np.percentile(gaps, 99.9)),
                "median_ms": float(np.median(gaps)),
                "after": blamed[0] if blamed else "",
            }
        )
    for kind in ("quiet", "attack"):
        found[f"worst_{kind}_ms"] = max(row["worst_ms"] for row in found["windows"] if row["kind"] == kind)
    found["difference_ms"] = found["worst_attack_ms"] - found["worst_quiet_ms"]
    counted = ("autopoiesis_refused_total", "autopoiesis_watcher_errors_total", "autopoiesis_swaps_total")
    found |= {name: after[name] - before[name] for name in counted}
    decides = after.get(f"autopoiesis_policy_active[{policy.digest}]") == 1
    found["bars_held"] = found["difference_ms"] < BAR_MS and decides and found["autopoiesis_swaps_total"] == 0
    return found


def main() -> int:
    """Measure, print, and report whether the bar holds; return 1 when it does not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=4, help="quiet windows, and as many of attack")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a window")
    parser.add_argument("--files", type=int, default=100, help="hostile files in a window of attack")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args.rounds, args.seconds, args.files)
        shutil.rmtree(Path(folder) / "staged")
    if args.json:
        print(json.dumps(found))
    else:
        for row in found["windows"]:
            after = f"  (last file before it: {row['after']})" if row["after"] else ""
            print(
                f"{row['kind']:>6}: {row['steps']:>5} steps, median gap {row['median_ms']:.1f} ms, 99.9% "
                f"{row['p999_ms']:.1f} ms, longest {row['worst_ms']:.1f} ms{after}"
            )
        print(
            f"longest gap: quiet {found['worst_quiet_ms']:.1f} ms, under attack {found['worst_attack_ms']:.1f} ms, difference "
            f"{found['difference_ms']:+.1f} ms (bar: below {BAR_MS:.0f}); {found['autopoiesis_refused_total']:.0f} refusals and "
            f"{found['autopoiesis_watcher_errors_total']:.0f} errors of the watcher, "
            f"{found['autopoiesis_swaps_total']:.0f} swaps, {found['answers']} answers"
        )
        print("bars held" if found["bars_held"] else "a bar is NOT held")
    return 0 if found["bars_held"] else 1


if __name__ == "__main__":
    sys.exit(main())
