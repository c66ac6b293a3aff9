"""Log records for people and for machines: a sentence, and beside it the event's name and flat attributes.

OpenTelemetry's log handler and the usual JSON formatters pass on what a record carries beside its message. Here that is
`otel.event.name`, which OpenTelemetry makes the name of an event, and attributes under `autopoiesis.`.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

__all__ = ["log_event"]


def log_event(
    logger: logging.Logger,
    event: str,
    message: str,
    attributes: Mapping[str, Any],
    *,
    level: int = logging.INFO,
    exc_info: bool = False,
) -> None:
    """Log one event, `autopoiesis.EVENT` by name.

    Args:
        message: a sentence for people, in which the attributes need not be found.
        attributes: for machines. OpenTelemetry takes str, bool, int and float; anything else goes as JSON, None not at all.
        exc_info: whether the exception being handled goes along.
    """
    carried = {f"autopoiesis.{name}": _flat(value) for name, value in attributes.items() if value is not None}
    logger.log(
        level,
        "autopoiesis: %s",
        message,
        extra={"otel.event.name": f"autopoiesis.{event}", **carried},
        exc_info=exc_info,
        stacklevel=2,
    )


def _flat(value: Any) -> str | bool | int | float:
    return value if isinstance(value, (str, bool, int, float)) else json.dumps(value, default=str)
