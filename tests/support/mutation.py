"""Hostile variants of valid inputs: of their bytes, and of the structure of a JSON document."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

__all__ = ["mutated_bytes", "mutated_json"]

TOKENS = (
    b"\x00", b"\xff", b"\xed\xa0\x80", b"\x1b[2J", "\u202e".encode(), b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"null",
    b"true",
    b"NaN", b"-Infinity", b"1e999", b"-0", b"9" * 40, b"9" * 5_000, b"[" * 2_000, b'{"a":' * 1_000, b"\\ud800", b"\\u0000", b"\n",
    b"\r",
    b"A" * 10_000, b"//", b"=", b"..", b"%s", b"0x10",
)  # fmt: skip

VALUES: tuple[Callable[[Random], Any], ...] = (
    lambda _: None,
    lambda _: True,
    lambda random: random.choice((0, 1, -1, 2**31, 2**53, 2**63, -(2**63) - 1, 10**30, 10**400)),
    lambda random: random.choice((0.5, -0.0, 1e308, float("inf"), float("-inf"), float("nan"))),
    lambda random: random.choice(
        ("", "x", "\u202e", "\x1b[2J", "\x00", "\ud800", "../x", "0" * 64, "é" * 300, "9" * 5_000)
    ),
    lambda _: [],
    lambda _: {},
    lambda random: [0] * random.choice((1, 10, 5_000)),
    lambda random: {str(number): number for number in range(random.choice((1, 300)))},
    lambda random: nested(random.choice((5, 200, 900))),
)


def nested(depth: int) -> Any:
    """Return a list in a list in a list ..."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def mutated_bytes(data: bytes, random: Random) -> bytes:
    """Return the data after a few changes: flipped, inserted, removed, repeated or moved bytes."""
    found = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randint(0, len(found))
        match random.randrange(6):
            case 0 if found:
                found[at % len(found)] ^= 1 << random.randrange(8)
            case 1:
                found[at:at] = random.choice(TOKENS)
            case 2:
                del found[at : at + random.randint(1, 50)]
            case 3:
                found[at:at] = found[at : at + random.randint(1, 200)]
            case 4:
                found = found[:at]
            case _:
                other = random.randint(0, len(found))
                found[at : at + 8] = found[other : other + 8]
    return bytes(found)


def mutated_json(document: Any, random: Random) -> bytes:
    """Return the document as JSON after a few changes of its structure."""
    changed = json.loads(json.dumps(document))
    for _ in range(random.randint(1, 3)):
        changed = _changed(changed, random, random.randint(1, 6))
    text = json.dumps(changed, ensure_ascii=random.random() < 0.8)
    return text.encode("utf-8", "surrogatepass")


def _changed(value: Any, random: Random, depth: int) -> Any:
    if depth and isinstance(value, dict) and value:
        key = random.choice(list(value))
        match random.randrange(5):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {**value, random.choice(("more", "", "\u202e", "__class__")): random.choice(VALUES)(random)}
            case _:
                return {**value, key: _changed(value[key], random, depth - 1)}
    if depth and isinstance(value, list) and value:
        at = random.randrange(len(value))
        match random.randrange(4):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value[: at + 1] + value[at:]
            case _:
                return [*value[:at], _changed(value[at], random, depth - 1), *value[at + 1 :]]
    return random.choice(VALUES)(random)
