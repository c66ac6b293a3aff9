"""Faults that reach a live engine through files: certificates, signatures, notices, disks. Each breaks one thing."""

import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autopoiesis_lib import Certificate
from autopoiesis_lib.certificate import Signature
from autopoiesis_lib.protocol.keys import sign

from .live_channel import Live

Break = Callable[[Live], object]

NO_FILES = Path("/proc/self")
"""A folder in which nobody can make a file, not even root: as a folder without permission is for everybody else."""
READ_ERROR = Path("/proc/self/mem")
"""A file that opens and then fails to be read (EIO), as on a failing disk."""


def certificate_changed(change: Callable[[Live, Certificate], Certificate | str]) -> Break:
    return lambda live: live.offer(lambda certificate: change(live, certificate))


def re_signed(live: Live, certificate: Certificate, **changes: Any) -> Certificate:
    """Changed and signed again with the fleet's own key: only what it says can give it away."""
    return sign(certificate.model_copy(update=changes), live.key)


def signature_changed(certificate: Certificate) -> Certificate:
    assert certificate.signature is not None
    value = certificate.signature.value
    wrong = ("B" if value[0] == "A" else "A") + value[1:]
    return certificate.model_copy(update={"signature": Signature(key_id=certificate.signature.key_id, value=wrong)})


CERTIFICATES: dict[str, tuple[Callable[[Live, Certificate], Certificate | str], str]] = {
    "certificate-truncated": (lambda live, good: good.model_dump_json()[:1_000], "not a certificate"),
    "certificate-empty": (lambda live, good: "", "not a certificate"),
    "certificate-of-another-policy": (lambda live, good: live.good.certificate, "not the certified one"),
    "certificate-with-altered-claims": (
        lambda live, good: good.model_copy(update={"claims": ("it never waits",)}),
        "was changed after it was signed",
    ),
    "certificate-with-a-looser-bound": (
        lambda live, good: good.model_copy(update={"bounds": {"ages": 1}}),
        "was changed after it was signed",
    ),
    "certificate-without-its-proofs": (
        lambda live, good: re_signed(live, good, obligations=()),
        "does not prove `ages`",
    ),
    "certificate-of-a-bound-beyond-the-engines": (
        lambda live, good: re_signed(live, good, bounds={"ages": 10**10}),
        "its aging bound is",
    ),
    "certificate-stale-by-contract": (
        lambda live, good: re_signed(live, good, contract_digest="0" * 64),
        "another version of request-ordering",
    ),
    "certificate-stale-by-version": (
        lambda live, good: re_signed(live, good, versions={"autopoiesis-lib": "0.0.1"}),
        "certified by autopoiesis-lib 0.0.1",
    ),
    "certificate-of-another-contract": (
        lambda live, good: re_signed(live, good, contract="admission"),
        "for the contract admission",
    ),
    "signature-wrong": (lambda live, good: signature_changed(good), "was changed after it was signed"),
    "signature-missing": (lambda live, good: good.model_copy(update={"signature": None}), "is not signed"),
    "signature-by-an-unknown-key": (lambda live, good: sign(good, live.stranger), "unknown key"),
}


def policy_altered(live: Live) -> None:
    wanted = live.unwanted
    altered = wanted.policy.source.replace("8_192", "8_191")
    live.channel.publish(wanted.digest, altered, wanted.text)


def policy_missing(live: Live) -> None:
    live.channel.notice_path.write_text(live.notice(digest=live.fresh().digest))


def policy_no_text(live: Live) -> None:
    wanted = live.unwanted
    live.publish(live.good)
    live.channel.policy_path(wanted.digest).write_bytes(b"\xff\xfe\x00")
    live.channel.certificate_path(wanted.digest).write_text(wanted.text)
    live.channel.notice_path.write_text(live.notice(digest=wanted.digest))


def notice_is(text: Callable[[Live], str]) -> Break:
    return lambda live: live.channel.notice_path.write_text(text(live))


NOTICES: dict[str, Callable[[Live], str]] = {
    "notice-not-json": lambda live: "run the new policy, please",
    "notice-half-written": lambda live: live.notice()[:25],
    "notice-empty": lambda live: "",
    "notice-too-large": lambda live: live.notice(note="x" * 70_000),
    "notice-of-another-contract": lambda live: live.notice(contract="admission"),
    "notice-of-a-canary-without-a-bound": lambda live: live.notice(mode="canary", base=None),
    "notice-with-an-unknown-word": lambda live: live.notice(percent=50),
}


def stale_slot(live: Live) -> None:
    """A notice for the admission lever names a request-ordering policy."""
    live.publish(live.good, contract="admission")


@contextmanager
def notice_unreadable(live: Live) -> Iterator[None]:
    path = live.channel.notice_path
    path.unlink()
    path.symlink_to(READ_ERROR)
    try:
        yield
    finally:
        path.unlink()


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
def disk_full(live: Live) -> Iterator[None]:
    """The engine process can make files but not fill them; then a new status and new telemetry are due."""
    pid = int(live.channel.engines()["engine-0"]["pid"])
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@contextmanager
def keys_unreadable(live: Live) -> Iterator[None]:
    """One of the trusted keys is no key; a policy comes in."""
    broken = live.keys / "broken.pub"
    broken.write_text("no key")
    live.publish(live.unwanted)
    try:
        yield
    finally:
        broken.unlink()


@contextmanager
def keys_gone(live: Live) -> Iterator[None]:
    with moved_away(live.keys):
        live.publish(live.unwanted)
        yield


def channel_deleted(live: Live) -> None:
    """Gone with all that is in it; publishing makes it again."""
    root = live.channel.root
    shutil.rmtree(root.rename(root.with_name("deleted")))


def older_notice(live: Live) -> str:
    """An older notice is put back, as a restored backup does; returns the policy it names."""
    older = live.fresh()
    live.recover(older)
    text = live.channel.notice_path.read_text()
    live.recover()
    live.channel.notice_path.write_text(text)
    return older.digest


REFUSED: dict[str, tuple[Break, str]] = {
    **{name: (certificate_changed(change), why) for name, (change, why) in CERTIFICATES.items()},
    "policy-altered": (policy_altered, "not the certified one"),
    "policy-missing": (policy_missing, "cannot be read"),
    "policy-no-text": (policy_no_text, "cannot be read"),
    "another-levers-slot": (stale_slot, "this engine runs admission"),
    "notice-with-a-path-for-a-digest": (
        notice_is(lambda live: live.notice(digest="../../etc/passwd")),
        "not a digest",
    ),
}
"""What the engine must refuse, and what it must say: `autopoiesis_refused_total` rises, and what decided goes on deciding."""

UNREADABLE: dict[str, Break] = {
    **{name: notice_is(text) for name, text in NOTICES.items()},
    "channel-deleted": channel_deleted,
}
"""What the watcher stumbles over: `autopoiesis_watcher_errors_total` rises, and what decided goes on deciding."""

LASTING: dict[str, tuple[Callable[[Live], Any], str]] = {
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
    "trusted-keys-gone": (keys_gone, "refused"),
    "trusted-keys-damaged": (keys_unreadable, "refused"),
}
"""Faults with an end: (while inside it is broken, the counter that rises)."""

__all__ = ["LASTING", "REFUSED", "UNREADABLE", "older_notice"]
