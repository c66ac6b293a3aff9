"""Faults that reach a live engine through files: certificates, signatures, notices, orders, disks. Each breaks one thing."""

import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from autopoiesis_lib.certificate import sign
from autopoiesis_lib.protocol.channel import ORDERING
from autopoiesis_lib.protocol.envelope import CERTIFICATE, Envelope
from autopoiesis_lib.protocol.notices import StandingOrders

from .forging import claiming, sealed, signed_claim, standing
from .live_channel import Certified, Live

__all__ = ["DIFFERING", "LASTING", "ORDERS", "PLACES", "REFUSED", "THINGS", "UNREADABLE", "older_notice", "replaced_by"]

Break = Callable[[Live], object]

NO_FILES = Path("/proc/self")
"""A folder in which nobody can make a file, not even root: as a folder without permission is for everybody else."""
READ_ERROR = Path("/proc/self/mem")
"""A file that opens and then fails to be read (EIO), as on a failing disk."""


def signature_changed(good: Certified) -> str:
    envelope = Envelope.parse(good.text.encode(), CERTIFICATE)
    ((key_id, value),) = envelope.signatures.items()
    wrong = bytes([value[0] ^ 1]) + value[1:]
    return Envelope(envelope.payload, CERTIFICATE, {key_id: wrong}).to_bytes().decode()


def claim_changed(good: Certified, **changes: Any) -> str:
    signatures = Envelope.parse(good.text.encode(), CERTIFICATE).signatures
    return Envelope(claiming(good.certificate, **changes), CERTIFICATE, signatures).to_bytes().decode()


CERTIFICATES: dict[str, tuple[Callable[[Live, Certified], str], str]] = {
    "certificate-truncated": (lambda live, good: good.text[:1_000], "is not signed"),
    "certificate-empty": (lambda live, good: "", "is not signed"),
    "certificate-of-4-mib-deep-json": (lambda live, good: "[" * 4_194_304, "is not signed"),
    "certificate-of-4-mib-flat-json": (lambda live, good: "[" + "1," * 2_097_150 + "1]", "is not signed"),
    "certificate-of-4-mib-parts": (lambda live, good: "{" + '"":{},' * 590_000 + '"":{}}', "is not signed"),
    "certificate-of-another-policy": (lambda live, good: live.good.text, "not the certified one"),
    "certificate-with-altered-claims": (
        lambda live, good: claim_changed(good, claims=["it never waits"]),
        "was changed after it was signed",
    ),
    "certificate-with-a-looser-bound": (
        lambda live, good: claim_changed(good, bounds={"ages": 1}),
        "was changed after it was signed",
    ),
    "certificate-without-its-proofs": (
        lambda live, good: signed_claim(good.certificate, live.key, obligations=[]),
        "does not prove `ages`",
    ),
    "certificate-of-a-bound-beyond-the-engines": (
        lambda live, good: signed_claim(good.certificate, live.key, bounds={"ages": 10**10}),
        "its aging bound is",
    ),
    "certificate-stale-by-contract": (
        lambda live, good: signed_claim(good.certificate, live.key, contract_digest="0" * 64),
        "another version of request-ordering",
    ),
    "certificate-stale-by-version": (
        lambda live, good: signed_claim(good.certificate, live.key, versions={"autopoiesis-lib": "0.0.1"}),
        "certified by autopoiesis-lib 0.0.1",
    ),
    "certificate-of-another-contract": (
        lambda live, good: signed_claim(good.certificate, live.key, contract="admission"),
        "for the contract admission",
    ),
    "certificate-without-an-envelope": (lambda live, good: good.certificate.payload().decode(), "is not signed"),
    "signature-wrong": (lambda live, good: signature_changed(good), "was changed after it was signed"),
    "signature-missing": (
        lambda live, good: Envelope(good.certificate.payload(), CERTIFICATE, {}).to_bytes().decode(),
        "is not signed",
    ),
    "signature-by-an-unknown-key": (
        lambda live, good: sign(good.certificate, live.stranger).to_bytes().decode(),
        "unknown key",
    ),
}


def offered(change: Callable[[Live, Certified], str]) -> Break:
    return lambda live: live.offer(change(live, live.unwanted))


def policy_altered(live: Live) -> None:
    wanted = live.unwanted
    live.channel.publish(wanted.digest, wanted.policy.source.replace("8_192", "8_191"), wanted.text)


def comments_differ(live: Live) -> None:
    """The same policy to a machine; a person reads something else than was certified."""
    wanted = live.unwanted
    live.channel.publish(wanted.digest, f"# reviewed and approved\n{wanted.policy.source}", wanted.text)


def policy_missing(live: Live) -> None:
    notice = live.unwanted_notice()
    live.channel.policy_path(live.unwanted.digest).unlink()
    live.put(notice, live.key)


def policy_no_text(live: Live) -> None:
    notice = live.unwanted_notice()
    live.channel.policy_path(live.unwanted.digest).write_bytes(b"\xff\xfe\x00")
    live.put(notice, live.key)


def files_differ(live: Live) -> None:
    """Another certificate of the same policy, signed by the fleet as well, lies where the noticed one should."""
    notice = live.unwanted_notice()
    other = signed_claim(live.unwanted.certificate, live.key, created="2020-01-01T00:00:00+00:00")
    live.channel.certificate_path(live.unwanted.digest).write_text(other)
    live.put(notice, live.key)


def text_differs(live: Live) -> None:
    notice = live.unwanted_notice()
    live.channel.policy_path(live.unwanted.digest).write_text(live.unwanted.policy.source + "\n")
    live.put(notice, live.key)


def older_notice(live: Live) -> str:
    """An older notice is put back, as a restored backup does; returns the policy it names."""
    older = live.fresh()
    live.recover(older)
    content = live.channel.notice_path.read_bytes()
    live.recover()
    live.channel.notice_path.write_bytes(content)
    return older.digest


BUILT_IN: Final[Mapping[str, object]] = {"digest": None, "files": {}}
CANARY: Final[Mapping[str, object]] = {"mode": "canary", "decisions": 1_000}


def noticed(key: str, **changes: object) -> Break:
    """A notice of the unwanted policy: `key` is `key`, `stranger` or empty for no signature."""
    return lambda live: live.put(live.unwanted_notice(**changes), getattr(live, key) if key else None)


REFUSED: dict[str, tuple[Break, str]] = {
    **{name: (offered(change), why) for name, (change, why) in CERTIFICATES.items()},
    "policy-altered": (policy_altered, "not the certified one"),
    "policy-that-differs-in-comments": (comments_differ, "comments included"),
    "policy-missing": (policy_missing, "cannot be read"),
    "policy-no-text": (policy_no_text, "cannot be read"),
    "policy-text-exchanged": (text_differs, "its text in the channel is not the published one"),
    "certificate-exchanged-for-another-signed-one": (
        files_differ,
        "its certificate in the channel is not the published one",
    ),
    "another-levers-slot": (lambda live: live.publish(live.good, contract="admission"), "this engine runs admission"),
    "notice-unsigned": (noticed(""), "is not signed"),
    "notice-by-an-unknown-key": (noticed("stranger"), "unknown key"),
    "notice-of-the-built-in-order-unsigned": (noticed("", **BUILT_IN), "is not signed"),
    "notice-of-the-built-in-order-by-an-unknown-key": (noticed("stranger", **BUILT_IN), "unknown key"),
    "notice-of-a-canary-unsigned": (noticed("", **CANARY), "is not signed"),
    "notice-of-a-canary-by-an-unknown-key": (noticed("stranger", **CANARY), "unknown key"),
    "notice-with-an-old-sequence": (noticed("key", sequence=1), "an old notice was put back"),
    "notice-put-back": (older_notice, "an old notice was put back"),
    "notice-for-another-channel": (noticed("key", channel="0" * 32), "made for another channel"),
    "notice-for-another-slot": (noticed("key", contract="admission"), "speaks of admission"),
    "notice-expired": (noticed("key", expires=1), "has expired"),
}
"""What the engine must refuse, and what it must say: `autopoiesis_refused_total` rises, and what decided goes on deciding."""


def notice_is(content: Callable[[Live], str | bytes]) -> Break:
    def write(live: Live) -> None:
        text = content(live)
        live.channel.notice_path.write_bytes(text.encode() if isinstance(text, str) else text)

    return write


def hand_written(live: Live, **changes: object) -> str:
    """A notice as format 1 had it: whoever could write the file could decide."""
    number = standing(live.channel).sequence + 1
    words = {"sequence": number, "digest": live.unwanted.digest, **changes}
    return "{" + ", ".join(f'"{key}": "{value}"' for key, value in words.items()) + "}"


def channel_deleted(live: Live) -> None:
    """Gone with all that is in it; publishing makes it again, under the id that its users know."""
    root = live.channel.root
    aside = root.with_name("deleted")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(root.rename(aside))


UNREADABLE: dict[str, Break] = {
    "notice-not-json": notice_is(lambda live: "run the new policy, please"),
    "notice-half-written": notice_is(lambda live: sealed(live.unwanted_notice(), live.key)[:100]),
    "notice-empty": notice_is(lambda live: ""),
    "notice-too-large": notice_is(lambda live: sealed(live.unwanted_notice(note="x" * 70_000), live.key)),
    "notice-of-deep-json": notice_is(lambda live: "[" * 65_536),
    "notice-of-flat-json": notice_is(lambda live: "[" + "1," * 32_000 + "1]"),
    "notice-of-parts": notice_is(lambda live: "{" + '"":{},' * 9_000 + '"":{}}'),
    "notice-hand-written": notice_is(hand_written),
    "notice-hand-written-with-an-old-sequence": notice_is(lambda live: hand_written(live, sequence=1)),
    "notice-of-a-canary-without-a-bound": noticed("key", mode="canary"),
    "notice-with-an-unknown-word": noticed("key", mode="half"),
    "notice-that-names-no-files": noticed("key", files={}),
    "orders-in-place-of-a-notice": notice_is(
        lambda live: sealed(StandingOrders(channel=standing(live.channel).channel, sequence=10**6), live.key)
    ),
    "channel-deleted": channel_deleted,
}
"""What the watcher stumbles over: `autopoiesis_watcher_errors_total` rises, and what decided goes on deciding."""


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """What lies at a path lies there again afterwards, in a new file; what lay there meanwhile is gone."""
    content = path.read_bytes() if path.is_file() else None
    remove(path)
    try:
        yield
    finally:
        remove(path)
        if content is not None:
            path.write_bytes(content)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**30)  # takes no disk


def garbage(path: Path) -> None:
    with path.open("wb") as file:
        for _ in range(50):
            file.write(os.urandom(1 << 20))


THINGS: dict[str, Callable[[Path], object]] = {
    "50-mb-of-garbage": garbage,
    "50-mb-of-json": lambda path: path.write_bytes(b"[" + b"1," * 25_000_000 + b"1]"),
    "sparse-gigabyte": sparse,
    "4-mib-of-deep-json": lambda path: path.write_bytes(b"[" * 4_194_304),
    "4-mib-of-flat-json": lambda path: path.write_bytes(b"[" + b"1," * 2_097_150 + b"1]"),
    "1-mib-of-parts": lambda path: path.write_bytes(b"{" + b'"":{},' * 149_000 + b'"":{}}'),
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
    "link": lambda path: path.symlink_to(READ_ERROR),
    "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 5)),
}
"""What may lie where the engine looks for a file of a few kilobytes."""


@dataclass(frozen=True)
class Place:
    """Where the engine looks for a file."""

    path: Callable[[Live], Path]
    counter: str
    """The counter that rises when something else lies there."""
    slot: str | None = ORDERING
    """The slot that is refused then."""
    noticed: bool = False
    """Whether only a notice makes the engine look there."""


PLACES: dict[str, Place] = {
    "notice": Place(lambda live: live.channel.notice_path, "watcher_errors"),
    "admission-notice": Place(lambda live: live.channel.slot_path("admission"), "watcher_errors", "admission"),
    "orders": Place(lambda live: live.channel.orders_path, "watcher_errors", None),
    "channel-id": Place(lambda live: live.channel.root / "channel.json", "watcher_errors", noticed=True),
    "policy": Place(lambda live: live.channel.policy_path(live.unwanted.digest), "refused", noticed=True),
    "certificate": Place(lambda live: live.channel.certificate_path(live.unwanted.digest), "refused", noticed=True),
}


@contextmanager
def replaced_by(live: Live, place: Place, thing: str) -> Iterator[None]:
    """Something else lies where a file should."""
    notice = sealed(live.unwanted_notice(), live.key)
    with kept(place.path(live)):
        THINGS[thing](place.path(live))
        if place.noticed:
            live.channel.notice_path.write_bytes(notice)
        yield


def orders_are(change: Callable[[Live, StandingOrders], bytes]) -> Callable[[Live], AbstractContextManager[None]]:
    """Orders that take the good policy's quarantine back are put where the true ones lay."""

    @contextmanager
    def broken(live: Live) -> Iterator[None]:
        true = live.channel.orders()
        assert true is not None
        with kept(live.channel.orders_path):
            live.channel.orders_path.write_bytes(change(live, true))
            yield

    return broken


def released(orders: StandingOrders, **changes: object) -> StandingOrders:
    return orders.model_copy(update={"quarantined": {}, "sequence": orders.sequence + 1, **changes})


ORDERS: dict[str, Callable[[Live], AbstractContextManager[None]]] = {
    "unsigned": orders_are(lambda live, true: sealed(released(true), None)),
    "by-an-unknown-key": orders_are(lambda live, true: sealed(released(true), live.stranger)),
    "rolled-back": orders_are(lambda live, true: sealed(released(true, sequence=true.sequence - 1), live.key)),
    "of-another-channel": orders_are(lambda live, true: sealed(released(true, channel="0" * 32), live.key)),
    "garbage": orders_are(lambda live, true: os.urandom(1_000_000)),
    "a-notice": orders_are(lambda live, true: sealed(live.unwanted_notice(), live.key)),
    "gone": lambda live: kept(live.channel.orders_path),
}
"""Orders that must not end a quarantine."""

DIFFERING: dict[str, Callable[[Path], object]] = {
    "file": Path.touch,
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
    "link": lambda path: path.symlink_to(READ_ERROR),
    "dangling-link": lambda path: path.symlink_to("nowhere"),
    "device": THINGS["device"],
}
"""What the kill switch may be: it is never opened."""


@contextmanager
def notice_unreadable(live: Live) -> Iterator[None]:
    with kept(live.channel.notice_path):
        live.channel.notice_path.symlink_to(READ_ERROR)
        yield


@contextmanager
def moved_away(path: Path, instead: Callable[[Path], object] = lambda _path: None) -> Iterator[None]:
    """A file or folder is not there, or something else is in its place."""
    aside = path.with_name(path.name + ".aside")
    path.rename(aside)
    instead(path)
    try:
        yield
    finally:
        for attempt in range(100):  # the engine may make a folder of that name at any moment
            try:
                if path.is_symlink() or path.exists():
                    path.rename(path.with_name(f"{path.name}.{attempt}"))
                aside.rename(path)
                break
            except OSError:
                continue


@contextmanager
def linked_elsewhere(live: Live, *parts: str) -> Iterator[None]:
    """A folder that the engine writes to is a link to one where it should not write, and does not."""
    elsewhere = live.channel.root.with_name("elsewhere")
    shutil.rmtree(elsewhere, ignore_errors=True)
    elsewhere.mkdir()
    with moved_away(live.channel.root.joinpath(*parts), lambda path: path.symlink_to(elsewhere)):
        yield
    assert not list(elsewhere.iterdir())


@contextmanager
def disk_full(live: Live) -> Iterator[None]:
    """The engine process can make files but not fill them; then a new status and new telemetry are due."""
    pid = int(live.channel.engines()[live.server.name]["pid"])
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@contextmanager
def keys_unreadable(live: Live) -> Iterator[None]:
    """One of the trusted keys is no key; a policy comes in."""
    broken, notice = live.keys / "broken.pub", sealed(live.unwanted_notice(), live.key)
    with kept(live.channel.notice_path):
        broken.write_text("no key")
        try:
            live.channel.notice_path.write_bytes(notice)
            yield
        finally:
            broken.unlink()


@contextmanager
def keys_gone(live: Live) -> Iterator[None]:
    """The trusted keys are out of reach; a policy comes in."""
    notice = sealed(live.unwanted_notice(), live.key)
    before = live.channel.notice_path.read_bytes()
    with moved_away(live.keys):
        live.channel.notice_path.write_bytes(notice)
        try:
            yield
        finally:
            live.channel.notice_path.write_bytes(before)


@contextmanager
def id_of_another_channel(live: Live) -> Iterator[None]:
    """Another channel's id, and a notice that the fleet signed for that one, are copied over."""
    other = live.fleet.publisher(live.channel.root.with_name("other-channel"))
    other.publish(live.unwanted.digest, live.unwanted.policy.source, live.unwanted.text)
    with kept(live.channel.root / "channel.json"), kept(live.channel.notice_path):
        (live.channel.root / "channel.json").write_bytes((other.root / "channel.json").read_bytes())
        live.channel.notice_path.write_bytes(other.notice_path.read_bytes())
        yield


LASTING: dict[str, tuple[Callable[[Live], AbstractContextManager[None]], str]] = {
    "notice-unreadable": (notice_unreadable, "watcher_errors"),
    "disk-full": (disk_full, "watcher_errors"),
    "file-in-place-of-the-channel": (
        lambda live: moved_away(live.channel.root, lambda path: path.write_text("a file")),
        "watcher_errors",
    ),
    "channel-unmounted": (lambda live: moved_away(live.channel.root), "watcher_errors"),
    "status-folder-not-writable": (
        lambda live: moved_away(live.channel.root / "engines", lambda path: path.symlink_to(NO_FILES)),
        "watcher_errors",
    ),
    "telemetry-folder-not-writable": (
        lambda live: moved_away(live.channel.root / "telemetry", lambda path: path.symlink_to(NO_FILES)),
        "watcher_errors",
    ),
    "status-folder-linked-elsewhere": (lambda live: linked_elsewhere(live, "engines"), "watcher_errors"),
    "telemetry-folder-linked-elsewhere": (
        lambda live: linked_elsewhere(live, "telemetry", live.server.name),
        "watcher_errors",
    ),
    "trusted-keys-gone": (keys_gone, "refused"),
    "trusted-keys-damaged": (keys_unreadable, "refused"),
    "id-of-another-channel": (id_of_another_channel, "refused"),
}
"""Faults with an end: (while inside it is broken, the counter that rises)."""
