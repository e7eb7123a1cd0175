"""Gemma 3's language models as `transformers.Gemma3ForCausalLM` stores them.

Gemma 2 with QK-norm instead of soft-caps, and a RoPE of its own in layers that slide. From 4B on the published models
also see; their language part is what is read (`multimodal.py`).
"""

from typing import Any

from lit_gpt.checkpoints.huggingface.family import Family, expect, whole
from lit_gpt.checkpoints.huggingface.gemma2 import entries, read_gemma, write_gemma
from lit_gpt.checkpoints.huggingface.layers import read_layers
from lit_gpt.checkpoints.huggingface.rope import FULL, SLIDING, read_layered_rope, write_layered_rope
from lit_gpt.checkpoints.huggingface.shared import ANY
from lit_gpt.models import GPTConfig

_DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
}
"""Of `Gemma3TextConfig`: the published files leave out what equals it."""


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`Gemma3TextConfig` → ours."""
    values = _DEFAULTS | values
    expect(values, "attn_logit_softcapping", None)
    fields = read_gemma(values)
    every = whole(values, "sliding_window_pattern", 6, least=1)
    types = values.get("layer_types") or [
        SLIDING if (layer + 1) % every else FULL for layer in range(fields["n_layer"])
    ]
    rope = read_layered_rope(values, full_theta=1_000_000.0, sliding_theta=10_000.0)
    windows = read_layers(types, values["sliding_window"], fields["block_size"], keep=True)
    if windows["sliding_window"] is None:
        rope["rope_local_theta"] = None
    return GPTConfig(**fields, **rope, **windows, qk_norm="head", family="gemma3")


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `Gemma3TextConfig`."""
    return write_gemma(config, write_layered_rope(config), qk_norm="head", rope_local_theta=ANY)


GEMMA3 = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=entries,
    name="gemma3",
)
