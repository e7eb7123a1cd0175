"""Ministral (2024) as `transformers.MinistralForCausalLM` stores it: Mistral with chosen layers that slide."""

from typing import Any

from lit_gpt.checkpoints.huggingface.family import Family
from lit_gpt.checkpoints.huggingface.layers import read_layers, write_layers
from lit_gpt.checkpoints.huggingface.mistral import read_mistral
from lit_gpt.checkpoints.huggingface.rope import FULL, SLIDING
from lit_gpt.checkpoints.huggingface.shared import ANY, decoder_entries, demand_llama, write_shared
from lit_gpt.models import GPTConfig


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`MinistralConfig` → ours."""
    fields = read_mistral(values)
    window = values.get("sliding_window", 4096)
    types = values.get("layer_types") or [FULL if window is None else SLIDING] * fields["n_layer"]
    return GPTConfig(**fields | read_layers(types, window, fields["block_size"]), family="ministral")


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `MinistralConfig`."""
    demand_llama(config, sliding_window=ANY)
    return {**write_shared(config), **write_layers(config, needs_window=True)}


MINISTRAL = Family(
    model_type="ministral",
    architecture="MinistralForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=decoder_entries,
)
