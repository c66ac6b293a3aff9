"""Text of unknown origin, made safe to show to a person."""

import unicodedata

__all__ = ["hidden_character", "printable"]

HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that a terminal or an editor does not show as a glyph.

They are controls, bidirectional formatting, surrogates, private use, unassigned, and line and paragraph separators.
"""


def hidden_character(text: str, *, allowed: str = "\n") -> int | None:
    """Return the index of the first character that a reader cannot see, or None."""
    for index, letter in enumerate(text):
        if letter not in allowed and unicodedata.category(letter) in HIDDEN:
            return index
    return None


def printable(text: object, *, allowed: str = "") -> str:
    """Return the text with every hidden character as an escape, such as `\\x1b` or `\\u202e`.

    Args:
        text: anything; `str` is applied first.
        allowed: characters that stay as they are, such as a newline.
    """
    return "".join(
        letter
        if letter in allowed or unicodedata.category(letter) not in HIDDEN
        else letter.encode("unicode_escape", "surrogatepass").decode("ascii")
        for letter in str(text)
    )
