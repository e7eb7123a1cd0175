"""Qwen3's dense models (arXiv:2505.09388, table 1), from the `config.json` of huggingface.co/Qwen.

All: vocabulary 151936, heads of 128 whatever the width, 8 key/value heads, QK-norm, RoPE base 1000000, RMSNorm eps
1e-6, SwiGLU, no biases, context 40960 (32768 and room to think); the small three tie their embeddings.
"""

from dataclasses import replace

from lit_gpt.models.config import GPTConfig

_QWEN3 = GPTConfig(
    n_head=32,
    n_kv_head=8,
    head_size=128,
    vocab_size=151936,
    block_size=40960,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-6,
    positions="rope",
    rope_theta=1000000.0,
    mlp="swiglu",
    qk_norm="head",
    tie_embeddings=False,
    scale_residual_init=False,
    family="qwen3",
)
_TIED = replace(_QWEN3, tie_embeddings=True)

PRESETS: dict[str, GPTConfig] = {
    "qwen3-0.6b": replace(_TIED, n_layer=28, n_head=16, n_embd=1024, intermediate_size=3072),
    "qwen3-1.7b": replace(_TIED, n_layer=28, n_head=16, n_embd=2048, intermediate_size=6144),
    "qwen3-4b": replace(_TIED, n_layer=36, n_head=32, n_embd=2560, intermediate_size=9728),
    "qwen3-8b": replace(_QWEN3, n_layer=36, n_head=32, n_embd=4096, intermediate_size=12288),
    "qwen3-14b": replace(_QWEN3, n_layer=40, n_head=40, n_embd=5120, intermediate_size=17408),
    "qwen3-32b": replace(_QWEN3, n_layer=64, n_head=64, n_embd=5120, intermediate_size=25600),
}

# Sizes on huggingface.co/Qwen, less the tied head that the files of the small three store too.
PUBLISHED: dict[str, int] = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
}
