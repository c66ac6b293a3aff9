"""What every test shares: nothing it keeps lands in the user's own folders."""

import logging
import os
import tempfile
from collections.abc import Iterator

import pytest
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

_cache = tempfile.TemporaryDirectory(prefix="autopoiesis-tests-")  # removed when the tests are over
os.environ.setdefault("AUTOPOIESIS_CACHE", _cache.name)
os.environ.setdefault("AUTOPOIESIS_STATE", os.path.join(_cache.name, "state"))  # noqa: PTH118


@pytest.fixture
def exported() -> Iterator[InMemoryLogRecordExporter]:
    """What OpenTelemetry would send of our log, from INFO on."""
    exporter, provider, logger = InMemoryLogRecordExporter(), LoggerProvider(), logging.getLogger("autopoiesis")
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    handler, level = LoggingHandler(logger_provider=provider), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield exporter
    logger.setLevel(level)
    logger.removeHandler(handler)
