"""`autopoiesis keys`: who may put a policy into an engine."""

from pathlib import Path
from typing import Annotated

import typer

from autopoiesis_cli.answer import Answer, Json, answering

__all__ = ["DEFAULT_KEYS", "FolderOption", "app"]

DEFAULT_KEYS = Path(".autopoiesis") / "keys"

FolderOption = Annotated[Path, typer.Option("--keys", metavar="DIR", help="The folder of keys.")]

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
    """The keys in a folder."""
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
