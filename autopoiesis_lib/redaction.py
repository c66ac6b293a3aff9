"""Redaction: URLs and texts without the secrets in them, for a store, a log, an error or a report."""

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

__all__ = ["HIDDEN", "redacted_text", "redacted_url", "secrets_in_url"]

HIDDEN: Final = "***"
SHORT = 4
"""Length in letters below which a secret is replaced only where it is a whole word."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s\"'<>`]+")


def redacted_url(url: str) -> str:
    """Return a URL with its user name, password, query values and fragment as `***`.

    A URL that cannot be split into these parts is hidden as a whole.
    """
    parts = _split(url)
    if parts is None:
        return HIDDEN
    _, at, host = parts.netloc.rpartition("@")
    query = "&".join(f"{name}={HIDDEN}" if value else HIDDEN for name, value in _fields(parts.query))
    shown = f"{parts.scheme}://{f'{HIDDEN}@' if at else ''}{host}{parts.path}"
    return f"{shown}{f'?{query}' if query else ''}{f'#{HIDDEN}' if parts.fragment else ''}"


def secrets_in_url(url: str) -> list[str]:
    """Return the user name, password, query values and fragment of a URL, both as written and decoded."""
    parts = _split(url)
    if parts is None:
        return [url]
    user, at, _ = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    values = [value or name for name, value in _fields(parts.query)]
    found = [*((user, name, password) if at else ()), *values, parts.fragment]
    found += [value for _, value in parse_qsl(parts.query)]
    return list(dict.fromkeys(part for text in found for part in (text, unquote(text)) if part))


def redacted_text(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a text with the given secrets as `***`, and with every URL in it as `redacted_url` shows it."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        if len(secret) >= SHORT:
            text = text.replace(secret, HIDDEN)
        else:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    return _URL.sub(lambda found: _redacted_if_needed(found[0]), text)


def _redacted_if_needed(url: str) -> str:
    return redacted_url(url) if any(mark in url for mark in "@?#") else url


def _split(url: str) -> SplitResult | None:
    """Return the parts of an absolute URL; None when a user name may be in an unexpected place."""
    try:
        parts = urlsplit(url)
        _ = parts.port, parts.hostname
    except ValueError:
        return None
    of_a_file = parts.scheme.startswith(("sqlite", "file"))
    ambiguous = not of_a_file and (not parts.netloc or "@" in parts.path or "\\" in url)
    return None if "://" not in url or ambiguous else parts


def _fields(query: str) -> list[tuple[str, str]]:
    """Return the fields of a query as written; one without `=` has no name, and may be a secret itself."""
    pairs = [field.partition("=") for field in re.split("[&;]", query) if field]
    return [(name, value) if equals else (name, "") for name, equals, value in pairs]
