"""Llama (2, 3, 3.1, ...; SmolLM2 too) as `transformers.LlamaForCausalLM` stores it."""

from typing import Any

from lit_gpt.checkpoints.huggingface.family import Family, optional
from lit_gpt.checkpoints.huggingface.shared import ANY, decoder_entries, demand_llama, read_shared, write_shared
from lit_gpt.models import GPTConfig


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`LlamaConfig` → ours."""
    return GPTConfig(**read_shared(values), mlp_bias=optional(values, "mlp_bias", False), family="llama")


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `LlamaConfig`."""
    bias = config.has_attention_bias
    demand_llama(config, has_attention_bias=ANY, has_attention_out_bias=bias, has_mlp_bias=ANY)
    return {**write_shared(config), "mlp_bias": config.has_mlp_bias}


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=decoder_entries,
    buffers=(".rotary_emb.inv_freq",),  # files before 2023 carry it
)
