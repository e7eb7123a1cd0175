"""Adapters: a few new weights trained on top of a frozen model (LoRA and its variants, through `peft`)."""

from lit_gpt.adapters.config import AdapterConfig
from lit_gpt.adapters.inject import (
    adapter_state_dict,
    adapters_disabled,
    add_adapter,
    base_name,
    init_adapter,
    trainable_counts,
    trained_names,
)
from lit_gpt.adapters.merge import merged_weights

__all__ = [
    "AdapterConfig",
    "adapter_state_dict",
    "adapters_disabled",
    "add_adapter",
    "base_name",
    "init_adapter",
    "merged_weights",
    "trainable_counts",
    "trained_names",
]
