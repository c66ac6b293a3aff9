"""The limits of an engine reach the calibration only when an engine says them, and says them well."""

from typing import Any

import pytest

from autopoiesis_lib.online.recalibration import with_limits
from autopoiesis_lib.simulation.workload import default_workload

CALIBRATION = default_workload().calibration
SAID = {"max_num_seqs": 7, "total_blocks": 512, "a name of a later version": 1}


def test_limits_that_every_engine_says_are_taken_over() -> None:
    found = with_limits(CALIBRATION, {"engine-0": {"limits": SAID}, "engine-1": {"limits": SAID}}).engine
    assert (found.max_num_seqs, found.total_blocks) == (7, 512)
    assert found.block_size == CALIBRATION.engine.block_size


def test_of_engines_that_differ_only_the_one_meant_counts() -> None:
    engines = {"engine-0": {"limits": SAID}, "engine-1": {"limits": {**SAID, "max_num_seqs": 9}}}
    assert with_limits(CALIBRATION, engines) is CALIBRATION
    assert with_limits(CALIBRATION, engines, "engine-1").engine.max_num_seqs == 9


@pytest.mark.parametrize("said", [None, {}, "abc", 3, [1], {"max_num_seqs": 0}, {"total_blocks": "many"}])
def test_what_makes_no_engine_leaves_the_operators_calibration(said: Any) -> None:
    assert with_limits(CALIBRATION, {"engine-0": {"limits": said}}) is CALIBRATION
    assert with_limits(CALIBRATION, {}) is CALIBRATION
