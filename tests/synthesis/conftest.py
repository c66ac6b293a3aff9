"""The small language model that the slow tests serve."""

import os
from pathlib import Path

import pytest

from examples.self_scheduling.small_model import ModelUnavailable, small_model


@pytest.fixture(scope="session")
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds it: AUTOPOIESIS_MODELS if that is set, and otherwise in pytest's cache."""
    kept, cache = os.environ.get("AUTOPOIESIS_MODELS"), request.config.cache
    folder = Path(kept) if kept else Path(cache.mkdir("models")) if cache else tmp_path_factory.mktemp("models")
    try:
        small_model(folder)
    except ModelUnavailable as error:
        pytest.skip(f"no small language model to serve: {error}")
    return folder
