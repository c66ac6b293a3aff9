"""Operator settings of the adapter: environment variables, or `additional_config={"autopoiesis": {...}}`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.protocol.telemetry import MAX_ROWS

__all__ = ["Settings", "SettingsError", "read_settings"]

PREFIX = "AUTOPOIESIS_"


class SettingsError(AutopoiesisError):
    """Error for a setting of the adapter that cannot be read."""


class Settings(BaseModel):
    """The adapter's settings.

    `AUTOPOIESIS_<NAME>` sets a field, and so does its name in `additional_config["autopoiesis"]`, which wins.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    channel: Path | None = None
    """Directory in which `deploy` leaves policies; the adapter watches it. Without it, policies come only from `policy`
    and utility calls."""
    channel_id: str | None = Field(default=None, pattern=r"\A[0-9a-f]{32}\z")
    """Id of that channel (`deploy status` shows it). Without it, the adapter accepts the id that it first sees at the
    path."""
    engine: str | None = Field(default=None, pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,95}\z")
    """The engine's name. Without it, a name is made of the host, the process, the rank and random characters."""
    state: Path | None = None
    """Folder outside the channel for accepted sequence numbers. Without it, the user's own state folder is used."""
    policy: Path | None = None
    """Policy file to start with."""
    certificate: Path | None = None
    """The certificate of that policy."""
    allow_unsigned: bool = False
    """Accept notices without a signature, and prove an unsigned policy here, in a separate process, before it runs."""
    allow_single_solver: bool = False
    """Accept proofs that only one of the two solvers finished."""
    keys: Path | None = None
    """Directory of trusted public keys (`*.pub`)."""
    max_aging_us: int = Field(default=600_000_000, ge=0)
    """The largest proved aging bound T (us) this engine accepts."""
    admission: bool = True
    """True when certified admission policies may be loaded."""
    victims: bool = True
    """True when certified preemption policies may be loaded."""
    disable: bool = False
    """Kill switch: the engine always uses the built-in order. In the environment it overrides every other setting."""
    poll_ms: int = Field(default=10, ge=1, le=60_000)
    """Interval between two reads of the channel in milliseconds, outside the steps."""
    deadline_us: int = Field(default=10_000, ge=1)
    """The time in microseconds after which a decision is late."""
    telemetry_rows: int = Field(default=65_536, ge=16, le=MAX_ROWS)
    """Number of step records kept, and of request records."""
    snapshot_s: float = Field(default=10.0, ge=0)
    """Interval in seconds between two telemetry snapshots to the channel; 0 for none."""
    metrics_port: int = Field(default=0, ge=0, le=65_535)
    """Port on which this engine process serves its Prometheus metrics; 0 for none."""
    metrics_host: str = Field(default="127.0.0.1", min_length=1)
    """Address on which this engine process serves its metrics. No password is required. Use another address than this
    machine's own only on a network whose members may all read the metrics."""


def read_settings(additional_config: object = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of one engine.

    Raises:
        SettingsError: a value cannot be read, or a name is unknown; the message gives the name and the valid values.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {
        name: environ[PREFIX + name.upper()] for name in Settings.model_fields if environ.get(PREFIX + name.upper())
    }
    given = additional_config.get("autopoiesis", {}) if isinstance(additional_config, Mapping) else {}
    values.update(given)
    if environ.get(PREFIX + "DISABLE"):
        values["disable"] = environ[PREFIX + "DISABLE"]
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SettingsError(
            f"autopoiesis setting `{name}`: {first['msg']}; known: {', '.join(Settings.model_fields)}"
        ) from None
