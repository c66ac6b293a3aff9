"""The record of exchanges with language models, one JSON object per line, without keys and other secrets.

A record can be replayed: the same prompts then get the same answers without any model.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..environment import names_a_secret
from ..redaction import redacted_text, secrets_in_url
from .proposer import ProposerError

__all__ = ["Recorder", "Recording", "Scrubber", "exchange_key"]


class Scrubber:
    """A filter that replaces secrets in all data that leaves the process."""

    def __init__(self, secrets: Sequence[str]) -> None:
        named = {value for name, value in os.environ.items() if names_a_secret(name) and "://" not in value}
        addresses = [value for value in os.environ.values() if "://" in value and "@" in value]
        found = {*secrets, *(part for url in addresses for part in secrets_in_url(url))}
        kept = [secret for secret in found if len(secret) >= 4] + [value for value in named if len(value) >= 6]
        # A header that cannot be sent is quoted with escapes, and a key read from a file may end in a newline.
        self._secrets = list({form for secret in kept for form in (secret, secret.strip(), repr(secret)[1:-1])})

    def text(self, text: str) -> str:
        """Return the text with every known secret, and the secret parts of every URL, as `***`."""
        return redacted_text(text, self._secrets)

    def value(self, value: Any) -> Any:
        """Return a JSON value whose texts are scrubbed in the same way."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in value]
        return value


def exchange_key(model: str, messages: Sequence[Mapping[str, str]], seed: int, generation: int, slot: int) -> str:
    """Return the key of an exchange: a digest of the whole prompt, the model, the seed, the generation and the slot."""
    text = json.dumps([model, list(messages), seed, generation, slot], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Recorder:
    """A writer that appends exchanges to a file. Each line is written whole and flushed."""

    def __init__(self, path: str | Path, scrubber: Scrubber) -> None:
        self._path = Path(path)
        self._scrubber = scrubber
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
        except OSError as error:
            raise ProposerError(f"the record {self._path} cannot be written: {error.strerror or error}") from None

    def write(self, exchange: Mapping[str, Any]) -> None:
        """Append one exchange."""
        line = json.dumps(self._scrubber.value(exchange), sort_keys=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class Recording:
    """A record that was read from a file."""

    def __init__(self, path: str | Path) -> None:
        self._exchanges: dict[str, dict[str, Any]] = {}
        number = 0
        try:
            for line in Path(path).read_text(encoding="utf-8").splitlines():
                number += 1
                exchange = json.loads(line)
                self._exchanges[exchange["key"]] = exchange
        except OSError as error:
            raise ProposerError(f"the record {path} cannot be read: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ProposerError(f"the record {path} is damaged at line {number}; replay an undamaged one") from None

    def exchanges(self) -> Sequence[Mapping[str, Any]]:
        """Return all exchanges in the order in which they were written. Of several with one key, the last counts."""
        return list(self._exchanges.values())

    def exchange(self, key: str) -> dict[str, Any]:
        """Return the exchange with a key.

        Raises:
            ProposerError: the record lacks the prompt, because the contract, workload, seed or library differs from the
                recorded run.
        """
        if key not in self._exchanges:
            raise ProposerError(
                "the record holds no answer to this prompt: the contract, workload, seed or library version differs from the "
                "recorded run; replay with the same ones"
            )
        return self._exchanges[key]
