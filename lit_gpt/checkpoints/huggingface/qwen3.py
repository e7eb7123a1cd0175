"""Qwen3's dense models as `transformers.Qwen3ForCausalLM` stores them: Llama's layout, QK-norm, sliding layers."""

from typing import Any

from lit_gpt.checkpoints.huggingface.family import Family
from lit_gpt.checkpoints.huggingface.qwen2 import read_windows, write_windows
from lit_gpt.checkpoints.huggingface.shared import ANY, decoder_entries, demand_llama, read_shared, write_shared
from lit_gpt.models import GPTConfig


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`Qwen3Config` → ours."""
    fields = read_shared({"head_dim": 128} | values)
    windows = read_windows(values, fields["n_layer"], fields["block_size"])
    return GPTConfig(**fields, qk_norm="head", **windows, family="qwen3")


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `Qwen3Config`."""
    bias = config.has_attention_bias
    demand_llama(config, has_attention_bias=ANY, has_attention_out_bias=bias, qk_norm="head", sliding_window=ANY)
    return {**write_shared(config), **write_windows(config)}


QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=decoder_entries,
)
