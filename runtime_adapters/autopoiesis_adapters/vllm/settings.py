"""How an operator sets the adapter up: environment variables, or `additional_config={"autopoiesis": {...}}`."""

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
    """A setting of the adapter cannot be read."""


class Settings(BaseModel):
    """Each field is set by `AUTOPOIESIS_<NAME>` or by its name in `additional_config["autopoiesis"]`, which wins."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    channel: Path | None = None
    """Directory in which `deploy` leaves policies; watched. Without it only `policy` and utility calls bring policies
    in."""
    channel_id: str | None = Field(default=None, pattern=r"\A[0-9a-f]{32}\z")
    """Id of that channel (`deploy status` shows it). Without it, the id that is first seen at the path is the right one."""
    engine: str | None = Field(default=None, pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,95}\z")
    """The engine's name. Without it, a name is made of host, process, rank and chance."""
    state: Path | None = None
    """Folder outside the channel in which accepted sequence numbers are kept; without it, the user's own."""
    policy: Path | None = None
    """Policy file to start with."""
    certificate: Path | None = None
    """Its certificate."""
    allow_unsigned: bool = False
    """Accept notices without a signature, and prove a policy without one here, in a process of its own, before it runs."""
    allow_single_solver: bool = False
    """Accept proofs that only one of the two solvers finished."""
    keys: Path | None = None
    """Directory of trusted public keys (`*.pub`)."""
    max_aging_us: int = Field(default=600_000_000, ge=0)
    """The largest proved aging bound T (us) this engine accepts."""
    admission: bool = True
    """Whether certified admission policies may be brought in."""
    victims: bool = True
    """Whether certified preemption policies may be brought in."""
    disable: bool = False
    """Kill switch: the built-in order, always. In the environment it beats every other setting."""
    poll_ms: int = Field(default=10, ge=1, le=60_000)
    """How often the channel is looked at, off the step path."""
    deadline_us: int = Field(default=10_000, ge=1)
    """A decision that takes longer is late."""
    telemetry_rows: int = Field(default=65_536, ge=16, le=MAX_ROWS)
    """Step and request records kept, each."""
    snapshot_s: float = Field(default=10.0, ge=0)
    """How often telemetry goes to the channel, in seconds; 0: never."""
    metrics_port: int = Field(default=0, ge=0, le=65_535)
    """Port on which this engine process serves its Prometheus metrics; 0: none."""
    metrics_host: str = Field(default="127.0.0.1", min_length=1)
    """Address on which it serves them. Nobody is asked for a password there: name another one than this machine's own only
    on a network whose members may all read the metrics."""


def read_settings(additional_config: object = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of one engine.

    Raises:
        SettingsError: a value cannot be read, or a name is unknown; names it and what would be right.
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
