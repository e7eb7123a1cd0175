"""Llama 2 (arXiv:2307.09288), Llama 3 (arXiv:2407.21783) and their successors, as `transformers` stores them.

Presets are from table 1 and table 3 of the papers and the `config.json` of huggingface.co/meta-llama. All: RMSNorm eps
1e-5, SwiGLU, no biases. Llama 2: vocabulary 32000, context 4096, RoPE base 10000; grouped queries only at 70B.
Llama 3: vocabulary 128256, 8 key/value heads, RoPE base 500000; from 3.1 on, RoPE is scaled from the 8192 tokens of
pretraining to 131072.
"""

from dataclasses import replace
from typing import Any

from lit_gpt.models.config import GPTConfig, RopeScaling
from lit_gpt.models.families.config_json import optional
from lit_gpt.models.families.decoder import decoder_entries, read_shared, require_llama, write_shared
from lit_gpt.models.families.family import ANY, Family, GGUFArchitecture


def read_config(values: dict[str, Any]) -> GPTConfig:
    """Convert a `LlamaConfig` to a `GPTConfig`."""
    return GPTConfig(**read_shared(values), mlp_bias=optional(values, "mlp_bias", False), family="llama")


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Convert a `GPTConfig` to a `LlamaConfig`."""
    bias = config.has_attention_bias
    require_llama(config, has_attention_bias=ANY, has_attention_out_bias=bias, has_mlp_bias=ANY)
    return {**write_shared(config), "mlp_bias": config.has_mlp_bias}


LLAMA_GGUF = GGUFArchitecture(
    "llama", interleaved=True, demands={"has_attention_out_bias": ANY}, scalings=("linear", "yarn", "llama3")
)

LLAMA = Family(
    name="llama",
    model_type="llama",
    architecture="LlamaForCausalLM",
    read_config=read_config,
    write_config=write_config,
    entries=decoder_entries,
    gguf=LLAMA_GGUF,
    buffers=(".rotary_emb.inv_freq",),  # in files before 2023
)


_LLAMA2 = GPTConfig(
    vocab_size=32000,
    block_size=4096,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-5,
    positions="rope",
    rope_theta=10000.0,
    mlp="swiglu",
    tie_embeddings=False,
    scale_residual_init=False,
    family="llama",
)


_LLAMA3 = GPTConfig(
    n_head=32,
    n_kv_head=8,
    vocab_size=128256,
    block_size=8192,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-5,
    positions="rope",
    rope_theta=500000.0,
    mlp="swiglu",
    tie_embeddings=False,
    scale_residual_init=False,
    family="llama",
)
_8B = replace(_LLAMA3, n_layer=32, n_head=32, n_embd=4096, intermediate_size=14336)
_70B = replace(_LLAMA3, n_layer=80, n_head=64, n_embd=8192, intermediate_size=28672)
_405B = replace(_LLAMA3, n_layer=126, n_head=128, n_embd=16384, intermediate_size=53248)
_1B = replace(_LLAMA3, n_layer=16, n_head=32, n_embd=2048, intermediate_size=8192, tie_embeddings=True)
_3B = replace(_LLAMA3, n_layer=28, n_head=24, n_embd=3072, intermediate_size=8192, tie_embeddings=True)


def _long(config: GPTConfig, factor: float) -> GPTConfig:
    """Return a config with the context of 3.1 and later: `rope_scaling` of the published config.json."""
    scaling = RopeScaling("llama3", factor, low_freq_factor=1.0, high_freq_factor=4.0, original_block_size=8192)
    return replace(config, block_size=131072, rope_scaling=scaling)


FAMILIES = (LLAMA,)
PRESETS: dict[str, GPTConfig] = {
    "llama-2-7b": replace(_LLAMA2, n_layer=32, n_head=32, n_embd=4096, intermediate_size=11008),
    "llama-2-13b": replace(_LLAMA2, n_layer=40, n_head=40, n_embd=5120, intermediate_size=13824),
    "llama-2-70b": replace(_LLAMA2, n_layer=80, n_head=64, n_kv_head=8, n_embd=8192, intermediate_size=28672),
    "llama-3-8b": _8B,
    "llama-3-70b": _70B,
    "llama-3.1-8b": _long(_8B, 8.0),
    "llama-3.1-70b": _long(_70B, 8.0),
    "llama-3.1-405b": _long(_405B, 8.0),
    "llama-3.2-1b": _long(_1B, 32.0),
    "llama-3.2-3b": _long(_3B, 32.0),
    "llama-3.3-70b": _long(_70B, 8.0),
}

PUBLISHED: dict[str, int] = {
    # Sizes on huggingface.co/meta-llama, whose 7B page also counts 32 rotary buffers of 64.
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    # Sizes on huggingface.co/meta-llama.
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
}
