"""OLMo 2 (arXiv:2501.00656) and OLMo 3 (arXiv:2512.13961), as `transformers` stores them.

The outputs of branches are normed instead of their inputs; queries and keys are normed over the whole projection. Some
layers of OLMo 3 use a sliding window; RoPE scaling does not affect them.

Presets are from OLMo 2's table 1 and the `config.json` of huggingface.co/allenai. All: RMSNorm eps 1e-6, RoPE base
500000, SwiGLU, no biases, untied head. OLMo 3 has a sliding window in three of four layers and scales RoPE in the
others by YaRN, from 8192 tokens to 65536; its files have the tokenizer's 100278 rows, OLMo 2's are padded to 100352.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_gpt.models.config import GPTConfig, RopeScaling
from lit_gpt.models.families.config_json import (
    FULL,
    SLIDING,
    expect,
    optional,
    read_layered_rope,
    read_layers,
    write_layered_rope,
    write_layers,
)
from lit_gpt.models.families.decoder import (
    OUTPUT_NORMS,
    decoder_entries,
    read_shared,
    read_sizes,
    require_llama,
    write_shared,
)
from lit_gpt.models.families.family import ANY, Family, GGUFArchitecture
from lit_gpt.models.families.weights import Entry


def read_olmo2(values: dict[str, Any]) -> GPTConfig:
    """Convert an `Olmo2Config` to a `GPTConfig`."""
    return GPTConfig(**read_shared({"rms_norm_eps": 1e-5} | values), **olmo_parts(), family="olmo2")


def olmo_parts() -> dict[str, Any]:
    """Return the fields in which OLMo 2 and 3 differ from Llama."""
    return {"norm_placement": "output", "qk_norm": "projection"}


def require_olmo(config: GPTConfig, **differences: Any) -> None:
    """Raise a `UserError` for config values that OLMo 2 or 3 cannot express."""
    bias = config.has_attention_bias
    require_llama(config, has_attention_bias=ANY, has_attention_out_bias=bias, **olmo_parts(), **differences)


def write_olmo2(config: GPTConfig) -> dict[str, Any]:
    """Convert a `GPTConfig` to an `Olmo2Config`."""
    require_olmo(config)
    return write_shared(config)


def olmo_entries(config: GPTConfig) -> list[Entry]:
    """Return the weight table: all tensors of the checkpoint."""
    return decoder_entries(config, OUTPUT_NORMS)


OLMO2 = Family(
    name="olmo2",
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    read_config=read_olmo2,
    write_config=write_olmo2,
    entries=olmo_entries,
    gguf=GGUFArchitecture("olmo2", own_head=True, own_width=False, fixed=olmo_parts()),
)


_OLMO3_THETA = 500_000.0


def read_olmo3(values: dict[str, Any]) -> GPTConfig:
    """Convert an `Olmo3Config` to a `GPTConfig`."""
    expect(values, "hidden_act", "silu")
    fields = read_sizes({"rms_norm_eps": 1e-5} | values)
    types = values.get("layer_types") or [SLIDING if (layer + 1) % 4 else FULL for layer in range(fields["n_layer"])]
    theta = optional(values, "rope_theta", _OLMO3_THETA)
    rope = read_layered_rope(values, full_theta=theta, sliding_theta=theta)
    # Even a window as long as the context marks the layers with a different RoPE.
    keep = rope["rope_local_theta"] is not None
    windows = read_layers(types, values.get("sliding_window", 4096), fields["block_size"], keep)
    if windows["sliding_window"] is None:
        rope["rope_local_theta"] = None
    return GPTConfig(
        **fields,
        **rope,
        **windows,
        **olmo_parts(),
        mlp="swiglu",
        attention_bias=optional(values, "attention_bias", False),
        family="olmo3",
    )


def write_olmo3(config: GPTConfig) -> dict[str, Any]:
    """Convert a `GPTConfig` to an `Olmo3Config`."""
    require_olmo(config, sliding_window=ANY, rope_local_theta=ANY)
    return {**write_shared(config, write_layered_rope(config)), **write_layers(config, needs_window=True)}


def _olmo3_gguf_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return RoPE's base in sliding-window layers, which equals the others' base if those are scaled (`olmo2.cpp`)."""
    scaled = values.get("rope.scaling.type", "none") != "none"
    return {"rope_local_theta": values.get("rope.freq_base_swa", values.get("rope.freq_base") if scaled else None)}


OLMO3 = Family(
    name="olmo3",
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    read_config=read_olmo3,
    write_config=write_olmo3,
    entries=olmo_entries,
    gguf=GGUFArchitecture(
        "olmo2",
        own_head=True,
        own_width=False,
        demands={"sliding_window": ANY},
        fixed=olmo_parts(),
        read=_olmo3_gguf_fields,
    ),
)


_OLMO2 = GPTConfig(
    vocab_size=100352,
    block_size=4096,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-6,
    norm_placement="output",
    positions="rope",
    rope_theta=500000.0,
    mlp="swiglu",
    qk_norm="projection",
    tie_embeddings=False,
    scale_residual_init=False,
    family="olmo2",
)
_1B = replace(_OLMO2, n_layer=16, n_head=16, n_embd=2048, intermediate_size=8192)
_7B = replace(_OLMO2, n_layer=32, n_head=32, n_embd=4096, intermediate_size=11008)
_13B = replace(_OLMO2, n_layer=40, n_head=40, n_embd=5120, intermediate_size=13824)
_32B = replace(_OLMO2, n_layer=64, n_head=40, n_kv_head=8, n_embd=5120, intermediate_size=27648)


def _olmo3(config: GPTConfig) -> GPTConfig:
    """Return OLMo 3's architecture from OLMo 2's of the same size."""
    return replace(
        config,
        vocab_size=100278,
        block_size=65536,
        sliding_window=4096,
        layer_windows=(True, True, True, False),
        rope_local_theta=500000.0,
        rope_scaling=RopeScaling("yarn", 8.0, original_block_size=8192, attention_factor=1.2079441541679836),
        family="olmo3",
    )


PRESETS: dict[str, GPTConfig] = {
    "olmo-2-1b": _1B,
    "olmo-2-7b": _7B,
    "olmo-2-13b": _13B,
    "olmo-2-32b": _32B,
    "olmo-3-7b": _olmo3(_7B),
    "olmo-3-32b": _olmo3(_32B),
}

# Sizes on huggingface.co/allenai; OLMo 3's 32B is from transformers' Olmo3ForCausalLM, counted on the meta device.
PUBLISHED: dict[str, int] = {
    "olmo-2-1b": 1_484_916_736,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
    "olmo-2-32b": 32_234_279_936,
    "olmo-3-7b": 7_298_011_136,
    "olmo-3-32b": 32_233_522_176,
}


FAMILIES = (OLMO2, OLMO3)
