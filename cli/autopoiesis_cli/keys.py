"""`autopoiesis keys`: the keys that may sign policies for an engine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopoiesis_cli.answer import Answer, Json, answering

if TYPE_CHECKING:
    from autopoiesis_lib.protocol.channel import Channel
    from autopoiesis_lib.protocol.keys import SigningKey

__all__ = [
    "DEFAULT_KEYS",
    "FolderOption",
    "KeyOption",
    "UnsignedOption",
    "app",
    "channel_at",
    "signing_channel",
    "signing_key",
]

DEFAULT_KEYS = Path(".autopoiesis") / "keys"

FolderOption = Annotated[Path, typer.Option("--keys", metavar="DIR", help="The folder of keys.")]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", metavar="NAME", help="Sign with this key; default: the only private key in the folder."),
]

UnsignedOption = Annotated[
    bool,
    typer.Option(
        "--allow-unsigned", help="Publish without a signature where there is no key; engines must allow it too."
    ),
]

app = typer.Typer(help="Signing keys for deployments.", no_args_is_help=True)


@app.command("new")
@answering
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is called.")],
    keys: FolderOption = DEFAULT_KEYS,
    json: Json = False,
) -> Answer:
    """Make a key pair: NAME.key stays here, NAME.pub goes to the engines."""
    from rich.text import Text

    from autopoiesis_lib.protocol.keys import new_key

    made = new_key(keys, name)
    return Answer(
        document={
            "name": made.name,
            "key_id": made.key_id,
            "private": str(keys / f"{name}.key"),
            "public": str(keys / f"{name}.pub"),
        },
        shown=[
            Text(
                f"key {made.name} ({made.key_id[:12]}): give engines {keys / f'{name}.pub'}, keep {keys / f'{name}.key'}"
            )
        ],
    )


@app.command("list")
@answering
def list_all(keys: FolderOption = DEFAULT_KEYS, json: Json = False) -> Answer:
    """List the keys in a folder."""
    from rich.text import Text

    from autopoiesis_lib.protocol.keys import list_keys

    found = list_keys(keys)
    return Answer(
        document={"keys": [{"name": key.name, "key_id": key.key_id, "can_sign": key.can_sign} for key in found]},
        shown=[
            Text(f"{key.name}  {key.key_id[:12]}  {'signs' if key.can_sign else 'public half only'}") for key in found
        ]
        or [Text(f"no keys in {keys}; make one with `autopoiesis keys new NAME`")],
    )


def signing_key(name: str | None, keys: Path, allow_unsigned: bool = False) -> "SigningKey | None":
    """Return the key to sign with: the one named, or the only private one in the folder.

    With `allow_unsigned` and no key at all there is None.

    Raises:
        SigningError: no key can be chosen, or it cannot be read.
    """
    from autopoiesis_lib.protocol.keys import SigningError, list_keys, load_key

    if name is not None:
        return load_key(keys, name)
    private = [key.name for key in list_keys(keys) if key.can_sign]
    if len(private) == 1:
        return load_key(keys, private[0])
    if private:
        raise SigningError(f"{keys} holds several private keys ({', '.join(private)}); say which with --key NAME")
    if allow_unsigned:
        return None
    raise SigningError(
        f"there is no private key in {keys} to sign with; `autopoiesis keys new NAME` makes one, --key NAME and --keys DIR "
        "name another, and --allow-unsigned does without where engines allow it"
    )


def channel_at(path: Path, keys: Path, key: "SigningKey | None" = None, allow_unsigned: bool = False) -> "Channel":
    """Return a channel that trusts the public keys of a folder and signs with a key, if there is one.

    A channel with a key never accepts unsigned files, because it would sign their content again.
    """
    from autopoiesis_lib.protocol.channel import Channel, Trust

    return Channel(path, key, Trust(keys if keys.is_dir() else None, allow_unsigned and key is None))


def signing_channel(path: Path, key: str | None, keys: Path, allow_unsigned: bool) -> "Channel":
    """Return a channel that a command may publish on; arguments and errors are those of `signing_key`."""
    return channel_at(path, keys, signing_key(key, keys, allow_unsigned), allow_unsigned)
