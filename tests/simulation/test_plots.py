"""Pictures show the numbers of the run."""

from pathlib import Path

import numpy as np
import pytest

from autopoiesis_lib.simulation import default_workload, simulate
from autopoiesis_lib.simulation.plots import PlotError, latency_cdf, queue_over_time


def test_pictures_show_the_runs_they_are_given(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    workload = default_workload()
    trace = workload.held_out.split(0.05)[0]
    run = simulate(trace, workload.engine, workload.calibration.step_time, step_log=True)
    figure = latency_cdf({"fcfs": run}, tmp_path / "cdf.svg")
    drawn = figure.axes[0].lines[0].get_xdata()
    assert np.max(np.asarray(drawn)) == pytest.approx(run.ttft.max)
    queue = queue_over_time({"fcfs": run}, tmp_path / "queue.svg")
    assert run.step_log is not None
    assert np.max(np.asarray(queue.axes[0].lines[0].get_ydata())) == run.step_log.waiting.max()
    assert (tmp_path / "cdf.svg").read_text().lstrip().startswith("<?xml")
    plain = simulate(trace, workload.engine, workload.calibration.step_time)
    with pytest.raises(PlotError, match="step_log=True"):
        queue_over_time({"fcfs": plain})
