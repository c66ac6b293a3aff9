"""The channel: what a reader accepts from it, what a publisher may put there, and what neither can be made to do."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autopoiesis_lib.protocol.channel import Channel, ChannelError, ChannelProblem, Trust
from autopoiesis_lib.protocol.envelope import NOTICE, Envelope, seal
from autopoiesis_lib.protocol.freshness import FreshnessError
from autopoiesis_lib.protocol.notices import Notice
from autopoiesis_lib.protocol.status import SILENT_S, is_silent
from tests.support.fleet import Fleet

ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


@pytest.fixture
def ours(fleet: Fleet) -> Channel:
    """The channel as the control plane has it."""
    return fleet.publisher(fleet.folder / "channel")


@pytest.fixture
def engine(fleet: Fleet) -> Channel:
    """The channel as an engine has it."""
    return fleet.reader(fleet.folder / "channel")


def publish(channel: Channel, digest: str, text: str = "policy", **how: object) -> Notice:
    return channel.publish(digest, text, "certificate", **how)  # type: ignore[arg-type]


def problem_of(channel: Channel, contract: str = "request-ordering") -> ChannelProblem:
    with pytest.raises(ChannelError) as refused:
        channel.accept(contract)
    assert "\n" not in str(refused.value)
    return refused.value.problem


def resealed(fleet: Fleet, path: Path, **changes: object) -> None:
    """Change a notice and sign it with the fleet's own key: only what it says can give it away."""
    content = json.loads(Envelope.parse(path.read_bytes(), NOTICE).payload) | changes
    path.write_bytes(seal(json.dumps(content).encode(), NOTICE, fleet.key).to_bytes())


class TestAccepting:
    def test_a_published_policy_with_its_files(self, ours: Channel, engine: Channel) -> None:
        publish(ours, ONE, "text of one")
        notice = engine.accept()
        assert notice is not None and (notice.digest, notice.sequence) == (ONE, 1)
        assert engine.files_of(notice, ONE) == ("text of one", b"certificate")

    @pytest.mark.parametrize("slot", ["request-ordering", "admission"])
    def test_an_older_notice_put_back_is_stale(self, ours: Channel, engine: Channel, slot: str) -> None:
        publish(ours, ONE, contract=slot)
        old = ours.slot_path(slot).read_bytes()
        publish(ours, TWO, contract=slot)
        engine.accept(slot)
        ours.slot_path(slot).write_bytes(old)
        assert problem_of(engine, slot) is ChannelProblem.STALE

    def test_staleness_survives_a_restart(self, ours: Channel, engine: Channel, fleet: Fleet) -> None:
        publish(ours, ONE)
        old = ours.notice_path.read_bytes()
        publish(ours, TWO)
        engine.accept()
        ours.notice_path.write_bytes(old)
        again = fleet.reader(fleet.folder / "channel")
        assert problem_of(again) is ChannelProblem.STALE
        publish(ours, THREE)
        accepted = again.accept()
        assert accepted is not None and accepted.sequence == 3

    def test_an_expired_notice(self, ours: Channel, engine: Channel, fleet: Fleet) -> None:
        publish(ours, ONE)
        resealed(fleet, ours.notice_path, expires=int(time.time()) - 1)
        assert problem_of(engine) is ChannelProblem.EXPIRED

    def test_a_notice_of_another_channel(self, ours: Channel, engine: Channel, fleet: Fleet) -> None:
        publish(ours, ONE)
        engine.accept()
        other = fleet.publisher(fleet.folder / "other")
        publish(other, TWO)
        publish(other, TWO)
        ours.notice_path.write_bytes(other.notice_path.read_bytes())
        assert problem_of(engine) is ChannelProblem.FOREIGN

    def test_a_copied_id_does_not_make_it_ours(self, ours: Channel, engine: Channel, fleet: Fleet) -> None:
        publish(ours, ONE)
        engine.accept()
        other = fleet.publisher(fleet.folder / "other")
        publish(other, TWO)
        publish(other, TWO)
        for name in ("active.json", "channel.json"):
            (ours.root / name).write_bytes((other.root / name).read_bytes())
        assert problem_of(engine) is ChannelProblem.FOREIGN

    def test_a_named_id_is_checked_at_first_sight(self, ours: Channel, fleet: Fleet) -> None:
        publish(ours, ONE)
        named = Channel(ours.root, trust=Trust(fleet.keys), state=fleet.folder / "state" / "new", id="0" * 32)
        assert problem_of(named) is ChannelProblem.FOREIGN

    def test_a_notice_of_another_slot(self, ours: Channel, engine: Channel) -> None:
        publish(ours, ONE, contract="admission")
        ours.notice_path.write_bytes(ours.slot_path("admission").read_bytes())
        assert problem_of(engine) is ChannelProblem.FOREIGN

    @pytest.mark.parametrize("mode", ["active", "canary", "shadow", "builtin"])
    @pytest.mark.parametrize("by", ["nobody", "a stranger"])
    def test_a_forged_notice(self, ours: Channel, engine: Channel, tmp_path: Path, mode: str, by: str) -> None:
        publish(ours, ONE)
        content = json.loads(Envelope.parse(ours.notice_path.read_bytes(), NOTICE).payload)
        content |= (
            {"sequence": 2, "digest": None} if mode == "builtin" else {"sequence": 2, "mode": mode, "seconds": 9.0}
        )
        (tmp_path / "stranger").mkdir()
        key = None if by == "nobody" else Fleet(tmp_path / "stranger").key
        ours.notice_path.write_bytes(seal(json.dumps(content).encode(), NOTICE, key).to_bytes())
        assert problem_of(engine) is ChannelProblem.UNTRUSTED

    @pytest.mark.parametrize(
        "change",
        [
            {"sequence": 0}, {"sequence": "2"}, {"sequence": 2**60}, {"digest": "../../etc/passwd"}, {"digest": 7},
            {"mode": "on"},
            {"mode": "canary"}, {"seconds": -1.0}, {"seconds": 1e300}, {"decisions": 0}, {"expires": None}, {"more": 1},
            {"version": 3}, {"contract": "../x"}, {"files": {}}, {"files": {ONE: {"policy": "x", "certificate": "y"}}},
            {"note": "x" * 3_000}, {"base": "x"}, {"channel": "x"},
        ],
        ids=str,
    )  # fmt: skip
    def test_a_signed_notice_that_makes_no_sense(
        self, ours: Channel, engine: Channel, fleet: Fleet, change: dict[str, object]
    ) -> None:
        publish(ours, ONE)
        resealed(fleet, ours.notice_path, **change)
        assert problem_of(engine) in (ChannelProblem.MALFORMED, ChannelProblem.FOREIGN)

    @pytest.mark.parametrize("which", ["text", "certificate"])
    def test_files_other_than_the_published_ones(self, ours: Channel, engine: Channel, which: str) -> None:
        notice = publish(ours, ONE)
        path = ours.policy_path(ONE) if which == "text" else ours.certificate_path(ONE)
        path.write_text("# a comment more\npolicy")
        with pytest.raises(ChannelError, match=f"its {which} in the channel is not the published one"):
            engine.files_of(notice, ONE)

    def test_a_damaged_record_accepts_nothing(self, ours: Channel, engine: Channel) -> None:
        publish(ours, ONE)
        engine.accept()
        engine.freshness.path.write_text("{")
        with pytest.raises(FreshnessError, match="is damaged"):
            engine.accept()

    def test_a_record_that_cannot_be_kept_is_said(self, ours: Channel, fleet: Fleet) -> None:
        publish(ours, ONE)
        (fleet.folder / "file").write_text("in the way")
        reader = Channel(ours.root, trust=Trust(fleet.keys), state=fleet.folder / "file" / "state")
        assert reader.accept() is not None
        assert reader.freshness.problem

    def test_an_unsigned_notice_where_those_are_allowed(self, tmp_path: Path) -> None:
        ours = Channel(tmp_path / "channel", trust=Trust(None, allow_unsigned=True), state=tmp_path / "a")
        publish(ours, ONE)
        publish(ours, TWO)
        lenient = Channel(tmp_path / "channel", trust=Trust(None, allow_unsigned=True), state=tmp_path / "b")
        assert lenient.accept() is not None
        strict = Channel(tmp_path / "channel", trust=Trust(None), state=tmp_path / "c")
        assert problem_of(strict) is ChannelProblem.UNTRUSTED


class TestStandingOrders:
    def test_frozen_channels_take_nothing_new(self, ours: Channel, engine: Channel) -> None:
        publish(ours, ONE)
        ours.freeze("hands off")
        with pytest.raises(ChannelError) as refused:
            publish(ours, TWO)
        assert refused.value.problem is ChannelProblem.FROZEN
        accepted = engine.accept()
        assert accepted is not None and accepted.digest == ONE, "what was there before the freeze still is"
        assert ours.publish_builtin().sequence == 2
        accepted = engine.accept()
        assert accepted is not None and accepted.digest is None, "going back is allowed"

    def test_engines_refuse_what_went_past_a_freeze(self, ours: Channel, engine: Channel) -> None:
        publish(ours, ONE)
        ours.freeze()
        frozen = ours.orders_path.read_bytes()
        ours.unfreeze()
        publish(ours, TWO)  # a publisher that knows of no freeze
        engine.accept_orders()
        ours.freeze()
        assert frozen != ours.orders_path.read_bytes()
        resealed_sequence = ours.orders()
        assert resealed_sequence is not None and resealed_sequence.frozen_after["request-ordering"] == 2
        ours.order(lambda orders: orders.model_copy(update={"frozen_after": {"request-ordering": 1}}))
        assert problem_of(engine) is ChannelProblem.FROZEN

    def test_a_quarantined_policy_is_neither_published_nor_accepted(self, ours: Channel, engine: Channel) -> None:
        publish(ours, ONE)
        ours.quarantine(ONE, "seen to fail")
        assert problem_of(engine) is ChannelProblem.QUARANTINED
        with pytest.raises(ChannelError, match="seen to fail"):
            ours.publish_again(ONE)
        ours.release(ONE)
        assert engine.accept() is not None

    def test_orders_that_were_put_back_are_not_obeyed(self, ours: Channel, engine: Channel) -> None:
        ours.freeze()
        ours.unfreeze()
        lenient = ours.orders_path.read_bytes()
        publish(ours, ONE)
        ours.quarantine(ONE, "seen to fail")
        engine.accept_orders()
        for put_back in (lambda: ours.orders_path.write_bytes(lenient), ours.orders_path.unlink):
            put_back()
            orders = engine.orders()
            assert orders is not None and ONE in orders.quarantined
            assert problem_of(engine) is ChannelProblem.QUARANTINED

    @pytest.mark.parametrize("content", [b"{}", b"\x00" * 100, seal(b"{}", "application/x", None).to_bytes()])
    def test_forged_orders_change_nothing_for_a_publisher_that_knows_them(self, ours: Channel, content: bytes) -> None:
        ours.quarantine(TWO, "seen to fail")
        ours.orders_path.write_bytes(content)
        publish(ours, ONE)
        with pytest.raises(ChannelError, match="seen to fail"):
            publish(ours, TWO)
        assert ours.mend_orders() and not ours.mend_orders()
        assert TWO in ours.orders().quarantined  # type: ignore[union-attr]

    def test_forged_orders_stop_a_publisher_that_knows_none(self, ours: Channel, fleet: Fleet) -> None:
        ours.quarantine(TWO, "seen to fail")
        ours.orders_path.write_bytes(b"{}")
        fresh = Channel(ours.root, fleet.key, Trust(fleet.keys), fleet.folder / "state" / "fresh")
        for act in (lambda: publish(fresh, ONE), lambda: fresh.freeze(), lambda: fresh.quarantine(ONE, "why")):
            with pytest.raises(ChannelError, match="Nothing is known here of earlier orders"):
                act()

    def test_orders_of_a_fresh_publisher_are_newer(self, ours: Channel, engine: Channel, fleet: Fleet) -> None:
        ours.quarantine(TWO, "seen to fail")
        engine.accept_orders()
        ours.orders_path.unlink()
        Channel(ours.root, fleet.key, Trust(fleet.keys), fleet.folder / "state" / "fresh").freeze("from another host")
        orders = engine.accept_orders()
        assert orders is not None and orders.frozen

    def test_orders_stay_within_what_readers_read(self, ours: Channel) -> None:
        with pytest.raises(ChannelError, match="release some policies first"):
            ours.order(
                lambda orders: orders.model_copy(
                    update={"quarantined": {f"{number:064x}": "\u20ac" * 300 for number in range(4_000)}}
                )
            )
        ours.quarantine(ONE, "\u202e" * 5_000)
        assert len(ours.orders().quarantined[ONE]) <= 300  # type: ignore[union-attr]

    def test_a_digest_that_is_none_is_refused_in_one_line(self, ours: Channel) -> None:
        with pytest.raises(ChannelError, match="nothing was ordered"):
            ours.quarantine("abc", "why")

    def test_who_signs_believes_nothing_unsigned(self, tmp_path: Path, ours: Channel) -> None:
        ours.quarantine(TWO, "seen to fail")
        lenient = Channel(ours.root, trust=Trust(None, allow_unsigned=True), state=tmp_path / "attacker")
        lenient.orders_path.unlink()
        lenient.unfreeze()
        ours.freeze()
        assert TWO in ours.orders().quarantined  # type: ignore[union-attr]


PUBLISHER = """
import sys
from pathlib import Path
from tests.support.fleet import Fleet
fleet = Fleet(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    fleet.publisher(fleet.folder / "channel").publish("%064x" % (int(sys.argv[2]) * 1000 + number), "text", "certificate")
"""


class TestPublishing:
    @pytest.mark.slow
    def test_three_publishers_lose_no_publication(self, ours: Channel, engine: Channel, fleet: Fleet) -> None:
        _ = fleet.key
        running = [
            subprocess.Popen([sys.executable, "-c", PUBLISHER, str(fleet.folder), str(number), "100"])
            for number in range(3)
        ]
        seen: set[int] = set()
        while any(one.poll() is None for one in running):
            notice = engine.accept()
            if notice is not None:
                seen.add(notice.sequence)
        assert [one.wait() for one in running] == [0, 0, 0]
        last = engine.accept()
        assert last is not None and last.sequence == 300
        assert len(seen) > 1

    def test_a_refused_publication_leaves_the_standing_one_whole(self, ours: Channel, engine: Channel) -> None:
        publish(ours, ONE, "text of one")
        for how in ({"expected": 7}, {"mode": "canary"}):
            with pytest.raises(ChannelError):
                publish(ours, ONE, "text of one", **how) if "mode" in how else ours.publish(
                    ONE, "another text", "another certificate", expected=7
                )
        notice = engine.accept()
        assert notice is not None and engine.files_of(notice, ONE) == ("text of one", b"certificate")

    def test_a_fresh_publisher_over_a_notice_it_cannot_read(self, ours: Channel, engine: Channel, fleet: Fleet) -> None:
        for digest in (ONE, TWO):
            publish(ours, digest)
        engine.accept()
        ours.notice_path.write_text("{}")
        fresh = Channel(ours.root, fleet.key, Trust(fleet.keys), fleet.folder / "state" / "fresh")
        publish(fresh, THREE)
        accepted = engine.accept()
        assert accepted is not None and accepted.digest == THREE

    def test_a_deleted_channel_goes_on_where_it_was(self, ours: Channel, engine: Channel) -> None:
        publish(ours, ONE)
        publish(ours, TWO)
        engine.accept()
        identity = ours.identity()
        for path in (ours.notice_path, ours.root / "channel.json"):
            path.unlink()
        assert publish(ours, THREE).sequence == 3
        assert ours.identity() == identity
        assert engine.accept() is not None

    def test_it_can_be_told_what_must_stand(self, ours: Channel) -> None:
        publish(ours, ONE, expected=0)
        with pytest.raises(ChannelError) as refused:
            publish(ours, TWO, expected=0)
        assert refused.value.problem is ChannelProblem.OVERTAKEN
        assert publish(ours, TWO, expected=1).sequence == 2

    def test_without_a_key_nothing_is_published(self, tmp_path: Path) -> None:
        keyless = Channel(tmp_path / "channel", state=tmp_path / "state")
        with pytest.raises(ChannelError, match="needs a key"):
            publish(keyless, ONE)
        assert not keyless.notice_path.exists()

    def test_what_engines_would_not_read_is_not_published(self, ours: Channel) -> None:
        with pytest.raises(ChannelError, match="the policy of"):
            publish(ours, ONE, "x" * 100_000)
        with pytest.raises(ChannelError, match="the certificate of"):
            ours.publish(ONE, "text", "x" * 5_000_000)
        assert not ours.notice_path.exists()

    @pytest.mark.parametrize("spelling", ["{}/../channel", "{}/../alias", "{}/."])
    def test_every_spelling_of_a_path_is_one_channel(self, ours: Channel, fleet: Fleet, spelling: str) -> None:
        publish(ours, ONE)
        (fleet.folder / "alias").symlink_to("channel")
        other = fleet.publisher(Path(spelling.format(ours.root)))
        assert (other.root, other.identity()) == (ours.root, ours.identity())
        assert publish(other, TWO).sequence == 2

    @pytest.mark.parametrize("name", ["", "..", "../x", ".hidden", "a/b", "x" * 200, "²", "a\nb", "a\x1b[2J", "é"])
    def test_a_name_cannot_leave_its_folder(self, ours: Channel, name: str) -> None:
        for path in (ours.policy_path, ours.certificate_path, ours.engine_path):
            with pytest.raises(ChannelError):
                path(name)


class TestStatuses:
    def test_files_that_hold_no_status_are_left_out(self, engine: Channel) -> None:
        engine.report("good", {"engine": "good", "heartbeat": time.time()})
        folder = engine.root / "engines"
        (folder / "list.json").write_text("[]")
        (folder / "deep.json").write_text("[" * 100_000)
        (folder / "huge.json").write_bytes(b"x" * 1_000_000)
        (folder / "types.json").write_text('{"quarantined": 7, "counters": {"x": -1}}')
        (folder / "infinite.json").write_text('{"heartbeat": 1e999}')
        (folder / "²\u202e.json").write_text("{}")
        (folder / "link.json").symlink_to("good.json")
        os.mkfifo(folder / "fifo.json")
        assert list(engine.engines()) == ["good"]

    def test_a_heartbeat_tells_the_living_from_the_dead(self) -> None:
        assert not is_silent({"heartbeat": 1_000.0}, now=1_000.0 + SILENT_S - 1)
        assert is_silent({"heartbeat": 1_000.0}, now=1_000.0 + SILENT_S + 1)
        assert is_silent({}, now=1_000.0)

    def test_only_long_silent_engines_are_pruned(self, engine: Channel) -> None:
        week = 8 * 86_400.0
        engine.report("new", {"heartbeat": time.time()})
        engine.report("old", {"heartbeat": time.time() - week})
        os.utime(engine.engine_path("old"), (time.time() - week,) * 2)
        (engine.root / "telemetry" / "old").mkdir(parents=True)
        (engine.root / "telemetry" / "old" / "1.npz").write_text("")
        os.utime(engine.root / "telemetry" / "old", (time.time() - week,) * 2)
        (engine.root / "telemetry" / "nameless").mkdir()
        assert engine.prune() == ["old"]
        assert list(engine.engines()) == ["new"] and not (engine.root / "telemetry" / "old").exists()
        assert (engine.root / "telemetry" / "nameless").exists()

    def test_pruning_follows_no_link(self, engine: Channel, tmp_path: Path) -> None:
        week = 8 * 86_400.0
        engine.report("old", {"heartbeat": time.time() - week})
        os.utime(engine.engine_path("old"), (time.time() - week,) * 2)
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "file").write_text("")
        (engine.root / "telemetry").mkdir()
        (engine.root / "telemetry" / "old").symlink_to(tmp_path / "precious")
        os.utime(engine.root / "telemetry" / "old", (time.time() - week,) * 2, follow_symlinks=False)
        assert engine.prune() == ["old"]
        assert (tmp_path / "precious" / "file").exists()

    @pytest.mark.parametrize("text", ["[" * 60_000, '{"a": "b"}', '{"a": [1]}', "[1]", "null", '{"a": 1e999', "\x00"])
    def test_damaged_drift_is_no_drift(self, engine: Channel, text: str) -> None:
        engine.root.mkdir()
        (engine.root / "drift.json").write_text(text)
        assert engine.drift() == {}


NOBODY = 65_534
AS_ENGINE = """
import json, os, sys
from pathlib import Path
group, root, keys, state, secret = int(sys.argv[1]), *map(Path, sys.argv[2:6])
from autopoiesis_lib.protocol.channel import Channel, Trust
Channel(root, trust=Trust(keys), state=state / "warm").accept()  # imports what another user may not be able to read
os.setgroups([]); os.setgid(group); os.setuid(65534)
channel = Channel(root, trust=Trust(keys), state=state)
notice = channel.accept()
found = {"accepted": notice.digest, "files": channel.files_of(notice, notice.digest)[0]}
channel.report("theirs", {"engine": "theirs", "heartbeat": 1.0})
channel.dump("theirs-fault", {"kind": "late"})
def tries(work):
    try:
        work()
        return "done"
    except Exception as error:
        return type(error).__name__
found["reads key"] = tries(lambda: secret.read_bytes())
found["writes notice"] = tries(lambda: (root / "active.json").write_text("x"))
found["replaces notice"] = tries(lambda: os.replace(root / "engines" / "theirs.json", root / "active.json"))
found["removes notice"] = tries(lambda: (root / "active.json").unlink())
found["writes policy"] = tries(lambda: (root / "policies" / "x.py").write_text("x"))
found["removes another's status"] = tries(lambda: (root / "engines" / "other.json").unlink())
found["freezes"] = tries(lambda: channel.freeze())
print(json.dumps(found))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
class TestTwoUsers:
    """The control plane and an engine are different Unix users that share a group."""

    def test_an_engine_reads_its_channel_and_can_change_nothing(self, tmp_path: Path) -> None:
        for folder in (tmp_path, *tmp_path.parents):
            if folder.stat().st_mode & 0o005 != 0o005:
                folder.chmod(folder.stat().st_mode | 0o005)
            if folder.name.startswith("pytest-of"):
                break
        fleet = Fleet(tmp_path)
        before = os.umask(0o077)
        try:
            ours = fleet.publisher(tmp_path / "channel")
            ours.prepare("nogroup")
            publish(ours, ONE, "text of one")
            ours.report("other", {"engine": "other"})
        finally:
            os.umask(before)
        (tmp_path / "trusted").chmod(0o755)
        (tmp_path / "trusted" / "fleet.pub").chmod(0o644)
        (tmp_path / "engine-state").mkdir()
        os.chown(tmp_path / "engine-state", NOBODY, NOBODY)
        done = subprocess.run(
            [
                sys.executable, "-c", AS_ENGINE, str(NOBODY), str(ours.root), str(fleet.keys), str(tmp_path / "engine-state"),
                str(tmp_path / "secret" / "fleet.key"),
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found.pop("accepted") == ONE and found.pop("files") == "text of one"
        assert set(found.values()) <= {"PermissionError", "ChannelError"}, found
        assert ours.engines()["theirs"]["engine"] == "theirs"
        assert "other" in ours.engines()
        accepted = fleet.reader(ours.root, "second").accept()
        assert accepted is not None and accepted.digest == ONE
