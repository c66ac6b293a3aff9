"""Plots of runs with the `plots` extra (matplotlib): latency CDFs and the queue over time."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.simulation.result import SimulationResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PlotError", "latency_cdf", "queue_over_time"]


class PlotError(AutopoiesisError):
    """A plot cannot be drawn."""


def latency_cdf(results: Mapping[str, SimulationResult], path: str | Path | None = None) -> "Figure":
    """Return CDFs of TTFT, TPOT and end-to-end latency, one line per run, on a logarithmic time axis.

    The figure is saved to `path` if given.
    """
    figure, axes = _figure(3)
    measures = (("ttft_s", "TTFT"), ("tpot_s", "TPOT"), ("e2e_s", "end to end"))
    for axis, (column, title) in zip(axes, measures, strict=True):
        for name, result in results.items():
            values = np.sort(getattr(result.times, column))
            values = values[values > 0]
            axis.step(values, np.arange(1, len(values) + 1) / max(1, len(values)), where="post", label=name)
        axis.set(xscale="log", xlabel=f"{title}, seconds", ylim=(0, 1))
    axes[0].set_ylabel("share of requests")
    axes[0].legend()
    return _saved(figure, path)


def queue_over_time(results: Mapping[str, SimulationResult], path: str | Path | None = None) -> "Figure":
    """Return the numbers of waiting and running requests at each step, one line per run and replica.

    The runs need `step_log=True`.

    Raises:
        PlotError: a run has no step log, or matplotlib is not installed.
    """
    figure, axes = _figure(2)
    for name, result in results.items():
        log = result.step_log
        if log is None:
            raise PlotError(f"run {name!r} has no step log: simulate it with step_log=True")
        replicas = np.unique(log.replica)
        for replica in replicas:
            rows = log.replica == replica
            label = name if len(replicas) == 1 else f"{name}, replica {replica}"
            axes[0].plot(log.start_ns[rows] / 1e9, log.waiting[rows], label=label, linewidth=0.8)
            axes[1].plot(log.start_ns[rows] / 1e9, log.running[rows], label=label, linewidth=0.8)
    for axis, what in zip(axes, ("waiting", "running"), strict=True):
        axis.set(xlabel="seconds", ylabel=f"requests {what}", ylim=(0, None))
    axes[0].legend()
    return _saved(figure, path)


def _figure(columns: int) -> tuple["Figure", Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise PlotError("plots need matplotlib: pip install 'autopoiesis-lib[plots]'") from missing
    figure = Figure(figsize=(4.5 * columns, 3.6), layout="constrained")
    return figure, figure.subplots(1, columns)


def _saved(figure: "Figure", path: str | Path | None) -> "Figure":
    if path is not None:
        figure.savefig(path)
    return figure
