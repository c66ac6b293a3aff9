"""Prometheus metrics of one engine, read from its counters when scraped: a step never touches a metric object."""

from collections.abc import Iterator
from threading import Thread
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from autopoiesis_lib.protocol.channel import ORDERING
from autopoiesis_lib.protocol.text import printable

from .watcher import Watcher

__all__ = ["EngineMetrics", "serve_metrics"]

COUNTERS = {
    "decisions": ("autopoiesis_decisions", "Picks made by a verified policy"),
    "fallbacks": ("autopoiesis_fallbacks", "Steps dropped to the built-in order"),
    "swaps": ("autopoiesis_swaps", "Changes of the deciding policy"),
    "refused": ("autopoiesis_refused", "Policies refused"),
    "overdue": ("autopoiesis_overdue", "Picks from the overdue lane: waits longer than the view can hold"),
    "late": ("autopoiesis_late_decisions", "Decisions over their deadline"),
    "aborted": ("autopoiesis_aborted", "Requests that left before they were done: their client went away"),
    "clock_backwards": ("autopoiesis_clock_backwards", "Clock reads that went backwards"),
    "watcher_errors": ("autopoiesis_watcher_errors", "Rounds of the watcher that failed"),
    "watcher_restarts": ("autopoiesis_watcher_restarts", "Times the watcher thread was found dead and started again"),
}


class EngineMetrics:
    """A collector for a `prometheus_client` registry; `collect` reads the current values of the counters."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of this engine, labelled with its name."""
        status = self._watcher.status()
        engine = [status["engine"]]
        counters: dict[str, int] = status["counters"]
        for key, (name, text) in COUNTERS.items():
            yield _counter(name, text, engine, counters.get(key, 0))
        yield _counter(
            "autopoiesis_decision_seconds",
            "Time in the policy's own code",
            engine,
            counters.get("decision_ns", 0) / 1e9,
        )
        faults = CounterMetricFamily("autopoiesis_faults", "Faults by kind", labels=["engine", "kind"])
        shadow_faults = CounterMetricFamily(
            "autopoiesis_shadow_faults", "Faults of shadows by kind", labels=["engine", "kind"]
        )
        for key, value in counters.items():
            kind, _, name = key.partition(":")
            if kind in ("fault", "shadow_fault"):
                (faults if kind == "fault" else shadow_faults).add_metric([*engine, name], value)
        yield faults
        yield shadow_faults
        yield from _modes(engine, {ORDERING: status, **status["levers"]})
        drift = GaugeMetricFamily(
            "autopoiesis_drift", "Drift as the control plane last measured it", labels=["engine", "statistic"]
        )
        for statistic, level in self._watcher.drift().items():
            drift.add_metric([*engine, printable(statistic)], level)
        yield drift
        active = GaugeMetricFamily(
            "autopoiesis_policy_active", "1 for the deciding policy", labels=["engine", "digest"]
        )
        active.add_metric([*engine, status["digest"] or "built-in"], 1)
        yield active
        request_to_active, swap_step = status["request_to_active_us"] or 0, status["swap_step_ns"] or 0
        gauges: tuple[tuple[str, str, float], ...] = (
            ("autopoiesis_disabled", "1 while the kill switch is on", status["disabled"]),
            ("autopoiesis_quarantined", "Policies in quarantine", len(status["quarantined"])),
            ("autopoiesis_request_to_active_seconds", "Last swap, request to active", request_to_active / 1e6),
            ("autopoiesis_swap_step_seconds", "Time the last swap added to its step", swap_step / 1e9),
        )
        for gauge_name, text, reading in gauges:
            gauge = GaugeMetricFamily(gauge_name, text, labels=["engine"])
            gauge.add_metric(engine, reading)
            yield gauge


def _modes(engine: list[str], seats: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    """Yield the mode of each policy type and the progress of its shadow or canary, labelled with the policy type."""
    labels = ["engine", "contract"]
    mode = GaugeMetricFamily(
        "autopoiesis_mode", "1 for the mode of the policy last published", labels=[*labels, "mode"]
    )
    lever = GaugeMetricFamily("autopoiesis_lever", "1 for the deciding policy", labels=[*labels, "digest"])
    trial = {
        "decisions": GaugeMetricFamily(
            "autopoiesis_trial_decisions", "Decisions of this shadow or canary", labels=labels
        ),
        "agreed": GaugeMetricFamily("autopoiesis_trial_agreed", "Those on which a shadow agreed", labels=labels),
        "ended": GaugeMetricFamily("autopoiesis_trial_ended", "1 when it ended by itself", labels=labels),
    }
    lever_counters = CounterMetricFamily(
        "autopoiesis_lever_events", "What other levers than ordering did", labels=[*labels, "event"]
    )
    for contract, seat in seats.items():
        mode.add_metric([*engine, contract, seat["mode"]], 1)
        lever.add_metric([*engine, contract, seat["digest"] or "built-in"], 1)
        for name, family in trial.items():
            if seat["trial"] is not None:
                value = seat["trial"][name]
                family.add_metric([*engine, contract], bool(value) if name == "ended" else value)
        if contract != ORDERING:
            for event, count in seat["counters"].items():
                lever_counters.add_metric([*engine, contract, event], count)
    yield from (mode, lever, *trial.values(), lever_counters)


def serve_metrics(watcher: Watcher, port: int, host: str) -> tuple[Any, Thread]:
    """Serve the metrics of this engine process at `http://host:port/metrics`; return (server, thread).

    Raises:
        OSError: the port is taken, or the address is not one of this machine.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(EngineMetrics(watcher))
    server: tuple[Any, Thread] = start_http_server(port, addr=host, registry=registry)
    return server


def _counter(name: str, text: str, engine: list[str], value: float) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=["engine"])
    family.add_metric(engine, value)
    return family
