"""A signed channel and the live server on it, with what the fault tests do to either."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from itertools import count
from pathlib import Path
from typing import Any

from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Certificate, Policy, verify
from autopoiesis_lib.certificate import sign
from autopoiesis_lib.protocol.channel import Channel
from autopoiesis_lib.protocol.files import write_atomically
from autopoiesis_lib.protocol.keys import SigningKey
from autopoiesis_lib.protocol.notices import Files, Notice, StandingOrders

from ..support.fleet import Fleet
from .forging import altered, put, standing
from .live_server import Server

CLIENTS = 16


@dataclass(frozen=True)
class Certified:
    """A policy and its certificate."""

    policy: Policy
    certificate: Certificate
    text: str
    """The certificate as it lies in a channel, signed."""

    @property
    def digest(self) -> str:
        """The policy's digest."""
        return self.policy.digest


def certified(weight: int, key: SigningKey, baseline: str = "shortest-prompt-aging") -> Certified:
    """A baseline in which a prompt token weighs as much as so many microseconds. Each weight is a policy of its own."""
    source = BASELINES[baseline].replace("10_000", str(weight))
    policy = Policy.from_source(source, RequestOrdering())
    certificate = verify(policy)
    return Certified(policy, certificate, sign(certificate, key).to_bytes().decode())


@dataclass
class Live:
    """The server, its channel, the policy that should be serving, and what clients got before any fault."""

    server: Server
    fleet: Fleet
    stranger: SigningKey
    """Its public half is not among the trusted keys."""
    saboteur: Path
    good: Certified
    unwanted: Certified
    """As good, but it always comes in some way in which it must be refused, so this engine never runs it."""
    cached_prefix: Certified
    """A policy that asks the prefix cache."""
    spares: Iterator[Certified]
    """Policies as good, made before anybody is served: proving takes CPU time that the server needs."""
    expected: Mapping[int, list[int]] = field(default_factory=dict)
    answered: int = 0
    """Answers that clients got, all of them the expected ones."""

    @property
    def channel(self) -> Channel:
        """The channel, as its publisher has it."""
        return self.server.channel

    @property
    def keys(self) -> Path:
        """The folder of trusted public keys."""
        return self.fleet.keys

    @property
    def key(self) -> SigningKey:
        """The key that signs here."""
        return self.fleet.key

    def fresh(self) -> Certified:
        """A policy that this engine has never seen."""
        return next(self.spares)

    def publish(self, wanted: Certified, **how: Any) -> None:
        """Publish a policy properly."""
        self.channel.publish(wanted.digest, wanted.policy.source, wanted.text, **how)

    def offer(self, text: str) -> None:
        """Publish the unwanted policy with another certificate than its own."""
        self.channel.publish(self.unwanted.digest, self.unwanted.policy.source, text)

    @contextmanager
    def clients(self, patient: bool = False) -> Iterator[None]:
        """Clients that ask one thing after the other until the block is left; every answer must be the usual one.

        Patient ones ask again when the server is not there.
        """
        done, lock = threading.Event(), threading.Lock()

        def client(first: int) -> None:
            for number in count(first):
                if done.is_set():
                    return
                self._ask(number % CLIENTS, patient)
                with lock:
                    self.answered += 1

        with ThreadPoolExecutor(CLIENTS) as pool:
            serving = [pool.submit(client, first) for first in range(CLIENTS)]
            try:
                yield
            finally:
                done.set()
                failures = [error for error in (one.exception() for one in serving) if error is not None]
        if failures:
            raise failures[0]

    def _ask(self, number: int, patient: bool) -> None:
        ends = time.monotonic() + 300
        while True:
            try:
                _, tokens = self.server.complete(number)
                break
            except (OSError, HTTPException):
                if not patient or time.monotonic() > ends:
                    raise
                time.sleep(0.5)
        assert tokens == self.expected[number], f"the answer to {number} changed"

    def recover(self, wanted: Certified | None = None) -> None:
        """Publish a policy (the good one), and wait until it decides; fails when it does not within seconds."""
        wanted = wanted or self.good
        swaps = self.server.samples()["autopoiesis_swaps_total"]
        self.publish(wanted)
        self.until(
            lambda now: now["autopoiesis_swaps_total"] > swaps and deciding(now) == wanted.digest,
            f"policy {wanted.digest[:12]} decides again",
        )

    def until(self, holds: Callable[[dict[str, float]], bool], what: str, seconds: float = 60.0) -> dict[str, float]:
        """Wait until the engine's metrics say so; somebody must be asking, as an idle engine takes no step."""
        ends = time.monotonic() + seconds
        while True:
            now = self.server.samples()
            if holds(now):
                return now
            assert time.monotonic() < ends, f"the metrics never showed that {what}: {now}"
            time.sleep(0.02)

    def rises(self, counter: str, since: Mapping[str, float]) -> dict[str, float]:
        """Wait until a counter is above what it was; returns all of them as they are then."""
        before = since.get(counter, 0)
        return self.until(lambda now: now.get(counter, 0) > before, f"{counter} rises above {before}")

    def goes_on_deciding(self, digest: str) -> None:
        """The policy picks requests, now and from now on."""
        now = self.server.samples()
        assert deciding(now) == digest, f"{deciding(now)[:12]} decides, not {digest[:12]}"
        made = now["autopoiesis_decisions_total"]
        self.until(lambda now: now["autopoiesis_decisions_total"] > made + 3, "decisions are made")
        assert deciding(self.server.samples()) == digest

    def serves_without_a_policy(self) -> None:
        """As many answers as there are clients, and not one decision by a policy."""
        before = self.until(lambda now: deciding(now) == "built-in", "the built-in order decides")
        answered = self.answered
        now = self.until(lambda _now: self.answered >= answered + CLIENTS, "the built-in order serves")
        assert deciding(now) == "built-in"
        assert now["autopoiesis_decisions_total"] == before["autopoiesis_decisions_total"]

    def status(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The engine's own report in the channel, once it says so."""
        for _ in range(200):
            found = self.channel.engines().get(self.server.name, {})
            if found and holds(found):
                return found
            time.sleep(0.05)
        raise AssertionError(f"the engine never reported it: {found}")

    @contextmanager
    def sabotage(self, fault: str) -> Iterator[None]:
        """Something is broken inside the engine process; mended in the end."""
        self._command(fault)
        try:
            yield
        finally:
            self._command("")

    def _command(self, fault: str) -> None:
        wanted = self.saboteur / "wanted"
        write_atomically(wanted, fault)
        ends = time.monotonic() + 20
        while wanted.exists():
            assert time.monotonic() < ends, f"the engine process never took in the fault {fault!r}"
            time.sleep(0.01)

    def unwanted_notice(self, **changes: object) -> Notice:
        """The next notice, of the unwanted policy, with some things changed; its files lie in the channel."""
        wanted, channel = self.unwanted, self.channel
        channel.policy_path(wanted.digest).write_text(wanted.policy.source)
        channel.certificate_path(wanted.digest).write_text(wanted.text)
        files = Files(
            policy=hashlib.sha256(wanted.policy.source.encode()).hexdigest(),
            certificate=hashlib.sha256(wanted.text.encode()).hexdigest(),
        )
        return altered(standing(channel), **{"digest": wanted.digest, "files": {wanted.digest: files}, **changes})

    def put(self, message: Notice | StandingOrders, key: SigningKey | None) -> None:
        """Write a notice or orders into the channel, past every check of a publisher."""
        put(self.channel, message, key)


def refusals(status: Mapping[str, Any]) -> str:
    """What an engine's status says of why policies do not run, over all slots."""
    return "; ".join(slot["refusal"] for slot in (status, *status["levers"].values()) if slot["refusal"])


def deciding(samples: Mapping[str, float]) -> str:
    """The digest of the deciding policy, or `built-in`."""
    (label,) = (name for name in samples if name.startswith("autopoiesis_policy_active["))
    return label.removeprefix("autopoiesis_policy_active[").removesuffix("]")
