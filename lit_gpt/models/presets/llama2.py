"""Llama 2 (arXiv:2307.09288, table 1), from the `config.json` of huggingface.co/meta-llama.

All: vocabulary 32000, context 4096, RoPE base 10000, RMSNorm eps 1e-5, SwiGLU, no biases; grouped queries at 70B alone.
"""

from dataclasses import replace

from lit_gpt.models.config import GPTConfig

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

PRESETS: dict[str, GPTConfig] = {
    "llama-2-7b": replace(_LLAMA2, n_layer=32, n_head=32, n_embd=4096, intermediate_size=11008),
    "llama-2-13b": replace(_LLAMA2, n_layer=40, n_head=40, n_embd=5120, intermediate_size=13824),
    "llama-2-70b": replace(_LLAMA2, n_layer=80, n_head=64, n_kv_head=8, n_embd=8192, intermediate_size=28672),
}

# Sizes on huggingface.co/meta-llama, whose 7B page counts 32 rotary buffers of 64 besides.
PUBLISHED: dict[str, int] = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
}
