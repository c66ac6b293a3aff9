"""A signed channel and the live server on it, with what the fault tests do to either."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from autopoiesis_adapters.channel import Channel, write_atomically
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Certificate, Policy, verify
from autopoiesis_lib.signing import SigningKey, load_key, new_key, sign

from .live_server import Server, serve

CLIENTS = 16


@dataclass(frozen=True)
class Certified:
    """A policy and its signed certificate."""

    policy: Policy
    certificate: Certificate

    @property
    def digest(self) -> str:
        """The policy's digest."""
        return self.policy.digest

    @property
    def text(self) -> str:
        """The certificate as it lies in a channel."""
        return self.certificate.model_dump_json()


def certified(weight: int, key: SigningKey) -> Certified:
    """Shortest prompt first; a prompt token weighs as much as so many microseconds. Each weight is a policy of its own."""
    source = BASELINES["shortest-prompt-aging"].replace("10_000", str(weight))
    policy = Policy.from_source(source, RequestOrdering())
    return Certified(policy, sign(verify(policy), key))


def signing_key(folder: Path) -> SigningKey:
    """A new key pair in a folder."""
    new_key(folder, "fleet")
    return load_key(folder, "fleet")


@dataclass
class Live:
    """The server, its channel, the policy that should be serving, and what clients got before any fault."""

    server: Server
    keys: Path
    key: SigningKey
    stranger: SigningKey
    """Its public half is not among the trusted keys."""
    saboteur: Path
    good: Certified
    expected: Mapping[int, list[int]] = field(default_factory=dict)
    _weights: "count[int]" = field(default_factory=lambda: count(9_999, -1))

    @property
    def channel(self) -> Channel:
        """The channel."""
        return self.server.channel

    def fresh(self) -> Certified:
        """A policy that this engine has never seen."""
        return certified(next(self._weights), self.key)

    def publish(self, wanted: Certified, **how: Any) -> None:
        """Publish a policy properly."""
        self.channel.publish(wanted.digest, wanted.policy.source, wanted.text, **how)

    def offer(self, change: Callable[[Certificate], Certificate | str]) -> None:
        """Publish a policy never seen with its certificate changed."""
        wanted = self.fresh()
        text = change(wanted.certificate)
        self.channel.publish(
            wanted.digest, wanted.policy.source, text if isinstance(text, str) else text.model_dump_json()
        )

    def recover(self, wanted: Certified | None = None) -> None:
        """Publish a policy (the good one), and wait until it decides; fails when it does not within seconds."""
        wanted = wanted or self.good
        swaps = self.server.samples()["autopoiesis_swaps_total"]
        self.publish(wanted)
        self.until(
            lambda now: now["autopoiesis_swaps_total"] > swaps and deciding(now) == wanted.digest,
            f"policy {wanted.digest[:12]} decides again",
        )

    def until(self, holds: Callable[[dict[str, float]], bool], what: str, seconds: float = 20.0) -> dict[str, float]:
        """Wait until the engine's metrics say so, with a request now and then: an idle engine takes no step."""
        ends = time.monotonic() + seconds
        while True:
            now = self.server.samples()
            if holds(now):
                return now
            assert time.monotonic() < ends, f"the metrics never showed that {what}: {now}"
            number, tokens = self.server.complete(1)
            assert not self.expected or tokens == self.expected[number]
            time.sleep(0.02)

    def serve_with(self, fault: Callable[[], object]) -> None:
        """All clients at once, and the fault when a few have their answers; every answer must be the usual one."""
        _, tokens = serve(self.server, CLIENTS, after=3, then=fault)
        assert tokens == self.expected, "an answer changed"

    def sabotage(self, fault: str) -> None:
        """Break something inside the engine process; an empty name mends it."""
        write_atomically(self.saboteur / "wanted", fault)
        for _ in range(500):
            present = self.saboteur / "present"
            if (present.read_text() if present.exists() else "") == fault:
                return
            time.sleep(0.01)
        raise AssertionError(f"the engine process never took in the fault {fault!r}")

    def notice(self, **changes: Any) -> str:
        """The text of the next notice of the good policy, with some things changed."""
        standing = self.channel.read()
        assert standing is not None
        return json.dumps({"sequence": standing.sequence + 1, "digest": self.good.digest, **changes})


def deciding(samples: Mapping[str, float]) -> str:
    """The digest of the deciding policy, or `built-in`."""
    (label,) = (name for name in samples if name.startswith("autopoiesis_policy_active["))
    return label.removeprefix("autopoiesis_policy_active[").removesuffix("]")
