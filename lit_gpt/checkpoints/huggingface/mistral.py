"""Mistral as `transformers.MistralForCausalLM` stores it: Llama's layout; every layer slides, or none."""

from typing import Any

from lit_gpt.checkpoints.huggingface.family import Family
from lit_gpt.checkpoints.huggingface.layers import read_layers
from lit_gpt.checkpoints.huggingface.rope import FULL, SLIDING
from lit_gpt.checkpoints.huggingface.shared import ANY, decoder_entries, demand_llama, read_shared, write_shared
from lit_gpt.models import GPTConfig


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`MistralConfig` → ours."""
    return GPTConfig(**read_mistral(values), family="mistral")


def read_mistral(values: dict[str, Any]) -> dict[str, Any]:
    """The fields that Ministral 3 has too."""
    shared = read_shared({"num_key_value_heads": 8} | values)
    # transformers looks at the window alone, whatever layer_types says
    window = values.get("sliding_window", 4096 if values.get("model_type") == "mistral" else None)
    kind = FULL if window is None else SLIDING
    return {**shared, "attention_bias": False, **read_layers([kind] * shared["n_layer"], window, shared["block_size"])}


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `MistralConfig`."""
    demand_llama(config, sliding_window=ANY, layer_windows=None)
    return {**write_shared(config), "sliding_window": config.sliding_window}


MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=decoder_entries,
    buffers=(".rotary_emb.inv_freq",),
)
