"""Qwen2.5 (arXiv:2412.15115, table 1), from the `config.json` of huggingface.co/Qwen (the base models').

All: biases of q, k and v alone, RoPE base 1000000, SwiGLU; the small three tie their embeddings. The vocabulary has
151665 tokens, padded to 151936 or 152064 rows.
"""

from dataclasses import replace

from lit_gpt.models.config import GPTConfig

_QWEN2 = GPTConfig(
    vocab_size=152064,
    block_size=131072,
    bias=False,
    attention_bias=True,
    attention_out_bias=False,
    norm="rmsnorm",
    norm_eps=1e-6,
    positions="rope",
    rope_theta=1_000_000.0,
    mlp="swiglu",
    tie_embeddings=False,
    scale_residual_init=False,
    family="qwen2",
)
_TIED = replace(_QWEN2, vocab_size=151936, tie_embeddings=True)
_WIDE = replace(_QWEN2, norm_eps=1e-5, n_head=40, n_kv_head=8, n_embd=5120)

PRESETS: dict[str, GPTConfig] = {
    "qwen2.5-0.5b": replace(
        _TIED, n_layer=24, n_head=14, n_kv_head=2, n_embd=896, intermediate_size=4864, block_size=32768
    ),
    "qwen2.5-1.5b": replace(_TIED, n_layer=28, n_head=12, n_kv_head=2, n_embd=1536, intermediate_size=8960),
    "qwen2.5-3b": replace(
        _TIED, n_layer=36, n_head=16, n_kv_head=2, n_embd=2048, intermediate_size=11008, block_size=32768
    ),
    "qwen2.5-7b": replace(_QWEN2, n_layer=28, n_head=28, n_kv_head=4, n_embd=3584, intermediate_size=18944),
    "qwen2.5-14b": replace(_WIDE, n_layer=48, intermediate_size=13824),
    "qwen2.5-32b": replace(_WIDE, n_layer=64, intermediate_size=27648),
    "qwen2.5-72b": replace(_WIDE, n_layer=80, n_head=64, n_embd=8192, intermediate_size=29568),
}

# Sizes on huggingface.co/Qwen.
PUBLISHED: dict[str, int] = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
}
