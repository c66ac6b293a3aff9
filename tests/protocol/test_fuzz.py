"""Fuzzing of everything that is read from a channel: only typed errors, in bounded time and memory."""

import base64
import json
import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.protocol.channel import Channel, ChannelError
from autopoiesis_lib.protocol.envelope import LOG_HEAD, NOTICE, STANDING_ORDERS, Envelope, seal
from autopoiesis_lib.protocol.notices import Files, LogHeadNotice, Notice, StandingOrders, content_of
from autopoiesis_lib.protocol.status import EngineStatus
from tests.support.fleet import Fleet
from tests.support.mutation import mutated_bytes, mutated_json

ONE, TWO, CHANNEL = "1" * 64, "2" * 64, "a" * 32
MESSAGES = {
    NOTICE: Notice(
        channel=CHANNEL, sequence=3, digest=ONE, mode="canary", base=TWO, seconds=60.0, expires=2_000_000_000, note="why",
        files={digest: Files(policy=ONE, certificate=TWO) for digest in (ONE, TWO)},
    ),
    STANDING_ORDERS: StandingOrders(
        channel=CHANNEL, sequence=3, frozen=True, frozen_after={"admission": 4}, quarantined={ONE: "seen to fail"}
    ),
    LOG_HEAD: LogHeadNotice(channel=CHANNEL, sequence=3, store="s", entries=7, chain=ONE),
}  # fmt: skip
STATUS = {
    "engine": "host-1", "host": "host", "pid": 7, "channel": CHANNEL, "started": 1.0, "heartbeat": 2.0, "digest": ONE,
    "mode": "canary", "trial": {"digest": ONE, "base": TWO, "decisions": 3, "agreed": 2, "ended": ""},
    "quarantined": {TWO: "late"}, "wanted": ONE, "sequence": 3, "refusal": "", "limits": {"block_size": 16},
    "counters": {"swaps": 2}, "levers": {"admission": {"digest": None, "counters": {}}}, "disabled": False,
}  # fmt: skip
ROUNDS, INPUTS = 500, 200
"""Examples that Hypothesis draws, and inputs made of each: 100,000 in all."""
LONGEST_S = 20.0
"""Far above what any input of these sizes takes, even on a busy machine; a hang is what this finds."""


def fuzzed(test: object) -> object:
    """Run a test with ROUNDS seeds."""
    found = settings(max_examples=ROUNDS, deadline=None, database=None, suppress_health_check=list(HealthCheck))(
        given(seed=st.integers(0, 2**63))(test)
    )  # type: ignore[arg-type]
    return pytest.mark.slow(found)


class TestSignedMessages:
    @pytest.mark.parametrize("payload_type", MESSAGES)
    @fuzzed
    def test_only_typed_errors_come_of_a_signed_message(self, payload_type: str, seed: int) -> None:
        random = Random(seed)
        for _ in range(INPUTS):
            message = MESSAGES[payload_type]
            payload = message.to_bytes()
            if random.random() < 0.6:  # the payload of a signed one: what a faulty publisher may write
                change = (
                    mutated_json(json.loads(payload), random)
                    if random.random() < 0.7
                    else mutated_bytes(payload, random)
                )
                data = seal(change, payload_type).to_bytes()
            elif random.random() < 0.5:
                data = mutated_bytes(seal(payload, payload_type).to_bytes(), random)
            else:
                document = json.loads(seal(payload, payload_type).to_bytes())
                document["signatures"] = [{"keyid": ONE, "sig": base64.b64encode(b"x" * 64).decode()}]
                data = mutated_json(document, random)
            started = time.monotonic()
            try:
                envelope = Envelope.parse(data, payload_type)
                found = content_of(type(message), envelope.payload)
            except AutopoiesisError as error:
                assert "\n" not in str(error) and len(str(error)) < 1_000
                assert str(error).isprintable()
            else:
                assert 1 <= found.sequence <= 2**53
                assert content_of(type(message), found.to_bytes()) == found
            assert time.monotonic() - started < LONGEST_S

    @fuzzed
    def test_only_bounded_values_come_of_a_status(self, seed: int) -> None:
        random = Random(seed)
        for _ in range(INPUTS):
            good = json.dumps(STATUS).encode()
            data = mutated_json(STATUS, random) if random.random() < 0.7 else mutated_bytes(good, random)
            started = time.monotonic()
            try:
                found = EngineStatus.model_validate_json(data).model_dump(mode="json")
            except ValueError:
                continue
            finally:
                assert time.monotonic() - started < LONGEST_S
            assert 0 <= found["heartbeat"] <= 1e12 and len(found["refusal"]) <= 2_000
            assert all(0 <= count < 2**63 for count in found["counters"].values())

    @pytest.mark.slow
    @settings(max_examples=1_500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 2**63))
    def test_a_channel_of_fuzzed_files_gives_typed_errors(
        self, tmp_path_factory: pytest.TempPathFactory, seed: int
    ) -> None:
        random = Random(seed)
        folder = tmp_path_factory.getbasetemp() / "fuzzed"
        folder.mkdir(exist_ok=True)
        ours, engine = Fleet(folder).publisher(folder / "channel"), Fleet(folder).reader(folder / "channel")
        names = (
            "active.json",
            "orders.json",
            "channel.json",
            "drift.json",
            f"policies/{ONE}.py",
            f"certificates/{ONE}.json",
        )
        if not (folder / "good").exists():
            ours.publish(ONE, "text", "certificate")
            ours.quarantine(TWO, "seen to fail")
            ours.report_drift({"rate": 0.5})
            (folder / "good").mkdir()
            for name in names:
                (folder / "good" / Path(name).name).write_bytes((ours.root / name).read_bytes())
        for name in names:
            good = (folder / "good" / Path(name).name).read_bytes()
            (ours.root / name).write_bytes(mutated_bytes(good, random) if random.random() < 0.4 else good)
        outcome = _outcome(engine)
        assert outcome is None or outcome == "text"


def _outcome(channel: Channel) -> str | None:
    """Follow a channel as an engine does: the text of the policy, or None when something was refused."""
    channel.drift()
    try:
        channel.accept_orders()
        notice = channel.accept()
        if notice is None or notice.digest is None:
            return None
        return channel.files_of(notice, notice.digest)[0]
    except ChannelError:
        return None
