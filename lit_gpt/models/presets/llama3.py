"""Llama 3 (arXiv:2407.21783, table 3) and its successors, from the `config.json` of huggingface.co/meta-llama.

All: vocabulary 128256, 8 key/value heads, RoPE base 500000, RMSNorm eps 1e-5, SwiGLU, no biases. From 3.1 on, RoPE's
frequencies are stretched from the 8192 tokens of pretraining to 131072.
"""

from dataclasses import replace

from lit_gpt.models.config import GPTConfig, RopeScaling

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
    """The context of 3.1 and later: `rope_scaling` of the published config.json."""
    scaling = RopeScaling("llama3", factor, low_freq_factor=1.0, high_freq_factor=4.0, original_block_size=8192)
    return replace(config, block_size=131072, rope_scaling=scaling)


PRESETS: dict[str, GPTConfig] = {
    "llama-3-8b": _8B,
    "llama-3-70b": _70B,
    "llama-3.1-8b": _long(_8B, 8.0),
    "llama-3.1-70b": _long(_70B, 8.0),
    "llama-3.1-405b": _long(_405B, 8.0),
    "llama-3.2-1b": _long(_1B, 32.0),
    "llama-3.2-3b": _long(_3B, 32.0),
    "llama-3.3-70b": _long(_70B, 8.0),
}

# Sizes on huggingface.co/meta-llama.
PUBLISHED: dict[str, int] = {
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
}
