"""Log records for people and for machines: a sentence, and beside it the event's name and flat attributes.

OpenTelemetry's log handler and the usual JSON formatters pass on the extra fields of a record. Here these are
`otel.event.name`, which OpenTelemetry uses as the name of an event, and attributes under `autopoiesis.`.
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
        message: a sentence for people, which need not contain the attributes.
        attributes: values for machines. OpenTelemetry takes str, bool, int and float; any other value is sent as JSON,
            None is not sent.
        exc_info: true to add the exception that is being handled.
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
