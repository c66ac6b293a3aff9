"""Calibrations, the simulator's knowledge of an engine: step times, memory and batch limits."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from autopoiesis_lib.errors import AutopoiesisError
from autopoiesis_lib.protocol.files import FileRefusedError, read_bounded
from autopoiesis_lib.protocol.text import printable
from autopoiesis_lib.simulation._rows import FieldError, json_object, shown

__all__ = ["Calibration", "CalibrationError", "EngineConfig", "StepTimeModel"]

MAX_CALIBRATION_BYTES: Final = 1 << 20
_FS: Final = 1e15


class CalibrationError(AutopoiesisError):
    """A calibration or an engine configuration cannot be used."""


class StepTimeModel(BaseModel):
    """A model of the seconds that one engine step takes.

    `t = c0 + max(floor, c1*prefill_tokens + c4*sum(chunk*(context + chunk/2))) + c2*decodes + c3*sum(decode contexts)`.
    The second term applies only to steps that prefill. All coefficients are in seconds and not negative. The kernel
    rounds them to femtoseconds, so that the times of any number of steps add up exactly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    c0: float = Field(ge=0, le=100)
    """Constant seconds per step."""
    c1: float = Field(ge=0, le=1)
    """Seconds per prefilled token."""
    c2: float = Field(ge=0, le=1)
    """Seconds per decoding sequence."""
    c3: float = Field(ge=0, le=0.001)
    """Seconds per token of decode context read."""
    c4: float = Field(ge=0, le=0.0001)
    """Seconds per pair of tokens in prefill attention."""
    floor: float = Field(default=0.0, ge=0, le=100)
    """Minimum seconds of the prefill part of a step."""

    @model_validator(mode="after")
    def _takes_time(self) -> Self:
        if self.c0 + self.c2 <= 0 or self.c0 + self.c1 + self.floor <= 0:
            raise ValueError("a decode step and a prefill step must take time: raise c0, or both c1 (or floor) and c2")
        return self

    def femtoseconds(self) -> tuple[int, int, int, int, int, int]:
        """Return (c0, c1, c2, c3, c4/2, floor) in femtoseconds, in the form that the kernel uses."""
        return (
            round(self.c0 * _FS),
            round(self.c1 * _FS),
            round(self.c2 * _FS),
            round(self.c3 * _FS),
            round(self.c4 * _FS / 2),
            round(self.floor * _FS),
        )

    def step_seconds(self, *, prefill_tokens: int, attention: float, decodes: int, context: int) -> float:
        """Return the seconds of one step. `attention` is the sum of chunk*(context + chunk/2) over its chunks."""
        compute = self.c1 * prefill_tokens + self.c4 * attention
        prefill = max(self.floor, compute) if prefill_tokens else 0.0
        return self.c0 + prefill + self.c2 * decodes + self.c3 * context


class EngineConfig(BaseModel):
    """The KV memory and the limits of a vLLM-like engine, under vLLM's own names where they exist."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block_size: int = Field(default=16, ge=1, le=4_096)
    """Tokens per KV block."""
    total_blocks: int = Field(ge=1, le=16_777_216)
    """KV blocks of one replica."""
    max_num_seqs: int = Field(default=256, ge=1, le=65_536)
    max_num_batched_tokens: int = Field(default=2_048, ge=1, le=1_048_576)
    """Maximum number of tokens in one step. A decode uses one, and prefill chunks use the rest."""
    long_prefill_token_threshold: int = Field(default=0, ge=0, le=1_048_576)
    """Maximum number of prompt tokens of one request in one step; 0 for no such limit."""
    watermark: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Fraction of the blocks that admission leaves free while a request runs."""
    enable_prefix_caching: bool = True
    """True if freed blocks keep their content until they are needed.

    Prefixes can then hit, and a preempted request finds the blocks that are left.
    """

    @model_validator(mode="after")
    def _every_sequence_has_a_token(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs, as vLLM demands")
        return self

    @property
    def watermark_blocks(self) -> int:
        return int(self.watermark * self.total_blocks)


class Calibration(BaseModel):
    """A step-time model with the engine that it was measured on, its origin and its prediction errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    step_time: StepTimeModel
    engine: EngineConfig
    source: str
    """The measurement that the model was fitted to, with its licence."""
    method: str = ""
    errors: Mapping[str, float] = Field(default_factory=dict)
    """Relative errors on the unseen part, by metric: `(simulated - measured) / measured`."""

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a calibration from a JSON file of at most MAX_CALIBRATION_BYTES.

        Raises:
            CalibrationError: the file cannot be read or is wrong. The message names the first fault.
        """
        where = f"calibration {printable(path)}"
        try:
            content = json_object(read_bounded(path, MAX_CALIBRATION_BYTES, follow_links=True))
            return cls.model_validate(content, strict=True)
        except FileRefusedError as refused:
            raise CalibrationError(f"cannot read calibration: {printable(refused)}") from None
        except FieldError as wrong:
            raise CalibrationError(f"{where}: {wrong}") from None
        except ValidationError as problem:
            first = problem.errors(include_url=False, include_input=False)[0]
            field = shown(".".join(map(str, first["loc"])) or "file")[1:-1]
            raise CalibrationError(f"{where}: {field}: {first['msg']}") from None

    def write(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.model_dump(mode="json"), indent=2) + "\n")

    @classmethod
    def shipped(cls, name: str) -> Self:
        """Return a calibration that comes with the library. `Calibration.names()` lists them.

        Raises:
            CalibrationError: there is no such calibration.
        """
        if name not in cls.names():
            raise CalibrationError(f"no shipped calibration {name!r}; there are {', '.join(cls.names())}")
        resource = files("autopoiesis_lib") / "data" / "calibrations" / f"{name}.json"
        return cls.model_validate_json(resource.read_text())

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the shipped calibrations."""
        found = (item.name for item in (files("autopoiesis_lib") / "data" / "calibrations").iterdir())
        return tuple(sorted(name.removesuffix(".json") for name in found if name.endswith(".json")))
