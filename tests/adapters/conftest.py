"""What the tests of the adapters share."""

from pathlib import Path

import pytest

from ..support.fleet import Fleet
from .tiny_llama import write_tiny_llama


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A signing key, its public half where engines look, and records of what was accepted; for any number of channels."""
    found = Fleet(tmp_path_factory.mktemp("fleet"))
    _ = found.key
    return found


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(params=[False, True], ids=["Scheduler", "AsyncScheduler"])
def asynchronous(request: pytest.FixtureRequest) -> bool:
    """Whether the scheduler is vLLM's asynchronous one."""
    return bool(request.param)
