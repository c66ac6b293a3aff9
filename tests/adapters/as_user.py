"""A control plane or an engine under a Unix user of its own; run by `test_vllm_users.py` as root, which it then gives up.

    python -m tests.adapters.as_user control-plane UID GROUP FOLDER
    python -m tests.adapters.as_user engine UID GROUP FOLDER NAME

Everything is imported, and done once elsewhere, before root is given up: the interpreter may lie where only root can read.
Prints one JSON object: what it could do, and for each thing it should not be able to do the error it met.
"""

import grp
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from autopoiesis_adapters.vllm.engine_side import attach
from autopoiesis_adapters.vllm.settings import Settings
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Certificate, Policy, verify
from autopoiesis_lib.online.observer import Observer
from autopoiesis_lib.protocol.channel import Channel, Trust
from autopoiesis_lib.protocol.permissions import permission_problems
from autopoiesis_lib.protocol.telemetry import COLUMNS, write_piece

from ..support.fleet import Fleet
from .tiny_llama import write_tiny_llama
from .vllm_bench import Bench, policy_bench, request, vllm_config

POLICY = Policy.from_source(BASELINES["shortest-prompt-aging"], RequestOrdering())


def become(uid: int, group: str) -> None:
    """Give up root for good."""
    gid = grp.getgrnam(group).gr_gid
    os.setgroups([gid])
    os.setgid(gid)
    os.setuid(uid)
    os.umask(0o077)
    assert os.getresuid() == (uid, uid, uid) and not os.access("/root", os.R_OK)


def error_of(work: Callable[[], object]) -> str:
    """Return the name of the error that something raises; empty when it raises none."""
    try:
        work()
    except Exception as error:
        return type(error).__name__
    return ""


def control_plane(fleet: Fleet, root: Path, group: str, certificate: Certificate) -> dict[str, Any]:
    """Prepare the channel and publish on it; a second call reads what the engines left there."""
    channel = fleet.publisher(root)
    if channel.identity() is None:
        channel.prepare(group)
        fleet.publish(root, POLICY, certificate)
        channel.quarantine("0" * 64, "a test")
    observer = Observer(root, 3_600.0)
    observer.look()
    engines = channel.engines()
    windows = {name: observer.named(name) for name in engines}
    return {
        "digest": POLICY.digest,
        "problems": permission_problems(root, fleet.keys),
        "engines": engines,
        "refused": {name: dict(counts) for name, counts in observer.refused.items()},
        "requests": {name: 0 if window is None else window.count for name, window in windows.items()},
    }


def engine(bench: Bench, fleet: Fleet, root: Path, state: Path, name: str) -> dict[str, Any]:
    """Serve with the channel's policy, then try what an engine must not be able to do."""
    settings = Settings(
        channel=root, keys=fleet.folder / "trusted", state=state, engine=name, allow_single_solver=True, snapshot_s=60.0
    )
    scheduler = bench.scheduler
    side = scheduler.autopoiesis = attach(scheduler, settings)
    bench.add(request(f"r{number}", prompt=10 + number) for number in range(12))
    bench.run()
    scheduler.shutdown()
    channel = Channel(root, trust=Trust(settings.keys), state=state)
    other = next((one for one in channel.engines() if one != name), None)
    tried: dict[str, Callable[[], object]] = {
        "read the private key": lambda: (fleet.folder / "secret" / "fleet.key").read_bytes(),
        "write a notice": lambda: channel.notice_path.write_text("{}"),
        "replace a notice": lambda: channel._write(channel.notice_path, "{}"),
        "remove a notice": channel.notice_path.unlink,
        "write another slot's notice": lambda: channel.slot_path("admission").write_text("{}"),
        "write orders": lambda: channel.orders_path.write_text("{}"),
        "remove orders": channel.orders_path.unlink,
        "remove the id": (root / "channel.json").unlink,
        "write a policy": lambda: channel.policy_path(POLICY.digest).write_text("x"),
        "add a policy": lambda: channel.policy_path("0" * 64).write_text("x"),
        "remove a certificate": channel.certificate_path(POLICY.digest).unlink,
        "use the kill switch": channel.disabled_path.touch,
        "take the publishers' lock": lambda: (root / ".publish.lock").open("w"),
        "add a trusted key": lambda: (settings.keys / "mine.pub").write_text("x"),
    }
    if other is not None:
        piece = next((root / "telemetry" / other).glob("*.npz"))
        tried |= {
            "write another engine's status": lambda: channel.engine_path(other).write_text("{}"),
            "replace another engine's status": lambda: channel.report(other, {}),
            "remove another engine's status": channel.engine_path(other).unlink,
            "remove another engine's telemetry": piece.unlink,
            "write another engine's telemetry": lambda: piece.write_bytes(b""),
            "move another engine's telemetry": lambda: piece.parent.rename(root / "telemetry" / "moved"),
        }
    return {
        "name": side.watcher.engine,
        "digest": side.watcher.status()["digest"],
        "problems": permission_problems(root, settings.keys, engine=True),
        "errors": side.watcher.errors,
        "finished": len(bench.finished),
        "tried": {what: error_of(work) for what, work in tried.items()},
        "remembered": channel.freshness.path.exists(),
    }


def main() -> None:
    """Do everything once as root, on a channel of root's; then give root up and do it for real."""
    role, uid, group, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    fleet, root = Fleet(folder / "fleet"), folder / "channel"
    scratch = Path(tempfile.mkdtemp())  # root's, and left to whoever started this
    os.environ["HOME"] = str(scratch)
    own, certificate = Fleet(scratch / "fleet"), verify(POLICY)
    write_piece(scratch / "channel", "warm-up", 1, {name: np.ones(1, np.int64) for name in COLUMNS})
    control_plane(own, scratch / "channel", group, certificate)
    if role == "control-plane":
        become(uid, group)
        print(json.dumps(control_plane(fleet, root, group, certificate)))
    else:
        bench = policy_bench(vllm_config(write_tiny_llama(scratch / "tiny-llama"), max_num_seqs=2))
        bench.scheduler.autopoiesis.close()
        engine(bench, own, scratch / "channel", scratch / "state", "warm-up")
        bench.finished.clear()
        become(uid, group)
        print(json.dumps(engine(bench, fleet, root, folder / f"state-{uid}", sys.argv[5])))
    sys.stdout.flush()
    os._exit(0)  # what was left in folders of root's cannot be removed from here


if __name__ == "__main__":
    main()
