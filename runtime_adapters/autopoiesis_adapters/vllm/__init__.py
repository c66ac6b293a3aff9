"""Verified policies inside vLLM: `vllm serve MODEL --scheduler-cls autopoiesis_adapters.vllm.make_scheduler`.

Names are loaded on first use, so that importing this package does not import vLLM.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .scheduler import make_scheduler, policy_scheduler_class
    from .settings import Settings, read_settings

__all__ = ["Settings", "make_scheduler", "policy_scheduler_class", "read_settings"]

_HOMES = {
    "Settings": "settings",
    "read_settings": "settings",
    "make_scheduler": "scheduler",
    "policy_scheduler_class": "scheduler",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
