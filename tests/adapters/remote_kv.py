"""A KV connector whose loads end when a test says so: vLLM's own scheduler side, with nothing to transfer."""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata

__all__ = ["RemoteKV"]


class RemoteKV(KVConnectorBase_V1):  # type: ignore[misc]  # vLLM ships no type information
    """Holds so many tokens of a request elsewhere as its `kv_transfer_params` say, loaded beside the steps."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        held = int((request.kv_transfer_params or {}).get("held_elsewhere", 0))
        more = max(held - num_computed_tokens, 0) if not request.num_preemptions else 0
        return more, more > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Nothing is sent."""

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return KVConnectorMetadata()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing runs a model here."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing runs a model here."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing runs a model here."""

    def wait_for_save(self) -> None:
        """Nothing runs a model here."""
