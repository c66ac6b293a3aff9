"""Differences between a foreign certificate and the one that was made here for the same policy and contract."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from .certificate import Certificate
from .proofs.smtlib import SmtLibError, read
from .protocol.text import printable

__all__ = ["differences", "shown"]

MOST: Final = 50
"""Greatest number of listed differences."""
LONGEST: Final = 100
"""Greatest number of characters of a foreign value that are shown."""

SOLVERS: Final = ("autopoiesis-lib", "z3-solver", "cvc5")
"""Packages whose version affects how an obligation is printed and proved."""

HOW_IT_WAS_MADE: Final = frozenset({"seconds", "created", "versions", "proof", "proof_gap"})
"""Fields about the making of a certificate.

They differ between two runs, and nothing depends on them; proofs are checked.
"""


def differences(claimed: Certificate, proved: Certificate) -> tuple[str, ...]:
    """Return the differences of a claimed certificate from one that was made here, one printable line each.

    All fields but those in `HOW_IT_WAS_MADE` are compared; SMT-LIB texts by their canonical form.
    """
    found = list(islice(_walk("", proved.model_dump(mode="json"), claimed.model_dump(mode="json")), MOST + 1))
    if len(found) > MOST:
        found[MOST:] = ["and more"]
    if not found:
        return ()
    skew = [
        f"versions: it was made with {name} {shown(claimed.versions.get(name))}, here is {proved.versions[name]}: another "
        "version may print and prove an obligation differently"
        for name in SOLVERS
        if claimed.versions.get(name) != proved.versions[name]
    ]
    return (*skew, *found)


def shown(value: object) -> str:
    """Return a foreign value as bounded printable text."""
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else str(value)[: 2 * LONGEST]
    return f"`{printable(text[:LONGEST])}`" + ("..." if len(text) > LONGEST else "")


def _walk(where: str, here: Any, there: Any) -> Iterator[str]:
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        for key in (*here, *(key for key in there if key not in here)):
            if key not in HOW_IT_WAS_MADE:
                inner = f"{where}.{printable(key)[:LONGEST]}" if where else key
                step = _texts if key == "smtlib" else _walk
                yield from step(inner, here.get(key), there.get(key))
    elif isinstance(here, list) and isinstance(there, list):
        if _are_named(here) and _are_named(there):
            yield from _by_name(where, here, there)
        else:
            for index in range(max(len(here), len(there))):
                ours = here[index] if index < len(here) else None
                theirs = there[index] if index < len(there) else None
                yield from _walk(f"{where}[{index}]", ours, theirs)
    elif type(here) is not type(there) or here != there:
        yield f"{where}: {shown(here)} here, {shown(there)} in the file"


def _are_named(items: Sequence[Any]) -> bool:
    return all(isinstance(item, Mapping) and "name" in item for item in items)


def _by_name(where: str, here: Sequence[Any], there: Sequence[Any]) -> Iterator[str]:
    """Compare obligations, lemmas, theorems or gates, whatever their order."""
    theirs = {item["name"]: item for item in there}
    ours = {item["name"]: item for item in here}
    for name, count in Counter(item["name"] for item in there).items():
        if name not in ours:
            yield f"{where}: {shown(name)} in the file, not here"
        elif count > 1:
            yield f"{where}: {shown(name)} {count} times in the file"
    for name, item in ours.items():
        if name not in theirs:
            yield f"{where}: {shown(name)} here, not in the file"
        else:
            yield from _walk(f"{where}.{name}", item, theirs[name])


def _texts(where: str, here: str | None, there: str | None) -> Iterator[str]:
    if here == there:
        return
    if here is None or there is None:
        yield f"{where}: no text {'here' if here is None else 'in the file'}"
        return
    try:
        if read(there).text != read(here).text:
            yield f"{where}: the file's text is not the one that is encoded here"
    except SmtLibError as error:
        yield f"{where}: the file's text is refused: {error}"
