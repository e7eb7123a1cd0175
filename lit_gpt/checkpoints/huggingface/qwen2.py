"""Qwen2 and 2.5 as `transformers.Qwen2ForCausalLM` stores them: Llama with biases of q, k and v, and sliding layers."""

from typing import Any

from lit_gpt.checkpoints.huggingface.family import Family, flag, whole
from lit_gpt.checkpoints.huggingface.layers import read_layers, write_layers
from lit_gpt.checkpoints.huggingface.rope import FULL, SLIDING
from lit_gpt.checkpoints.huggingface.shared import ANY, decoder_entries, demand_llama, read_shared, write_shared
from lit_gpt.models import GPTConfig


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`Qwen2Config` → ours."""
    fields = read_shared(values) | {"attention_bias": True, "attention_out_bias": False}
    return GPTConfig(**fields, **read_windows(values, fields["n_layer"], fields["block_size"]), family="qwen2")


def read_windows(values: dict[str, Any], n_layer: int, block_size: int) -> dict[str, Any]:
    """Which layers slide: those from `max_window_layers` on, unless `layer_types` says which."""
    window = values.get("sliding_window", 4096) if flag(values, "use_sliding_window", False) else None
    first = whole(values, "max_window_layers", 28)
    types = values.get("layer_types") or [SLIDING if layer >= first else FULL for layer in range(n_layer)]
    return read_layers(types, window, block_size)


def write_windows(config: GPTConfig) -> dict[str, Any]:
    """The inverse of `read_windows`."""
    slides = [config.slides(layer) for layer in range(config.n_layer)]
    return {
        "use_sliding_window": any(slides),
        "max_window_layers": slides.index(True) if any(slides) else config.n_layer,
        **write_layers(config),
    }


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `Qwen2Config`."""
    demand_llama(config, has_attention_bias=True, sliding_window=ANY)
    return {**write_shared(config), **write_windows(config)}


QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=decoder_entries,
    buffers=(".rotary_emb.inv_freq",),
)
