"""Our own ladder: today's parts at sizes from a laptop's minutes to a node's days.

The parts are Qwen3's (arXiv:2505.09388), so that any of them exports to a class every tool knows: RMSNorm, RoPE,
QK-norm, SwiGLU, no biases. Sizes follow GPT-3's table 2.1 (arXiv:2005.14165) in width, with heads of 64 (128 from
760m), an MLP of 8/3 the width rounded up to 128 (so SwiGLU's three matrices cost what GELU's two of 4x do;
arXiv:2002.05202), and the depth that brings the name's count at the vocabulary given: GPT-2's, padded to a multiple
of 64 as in nanoGPT, smaller on the small rungs, where it would be most of the model. All embeddings are tied.
The vocabulary is usually replaced by the tokenizer's own size. RoPE's base is RoFormer's 10000, enough for 2048 tokens.
"""

from dataclasses import replace

from lit_gpt.models.config import GPTConfig

_LADDER = GPTConfig(
    vocab_size=50304,
    block_size=1024,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-6,
    positions="rope",
    rope_theta=10000.0,
    mlp="swiglu",
    qk_norm="head",
    tie_embeddings=True,
    family="qwen3",
)
_TINY = replace(_LADDER, vocab_size=4096, block_size=256)
_20M = replace(_LADDER, vocab_size=16384, block_size=512)
_LONG = replace(_LADDER, block_size=2048)

PRESETS: dict[str, GPTConfig] = {
    "tiny": replace(_TINY, n_layer=6, n_head=4, n_embd=256, intermediate_size=768),
    "20m": replace(_20M, n_layer=8, n_head=6, n_embd=384, intermediate_size=1024),
    "50m": replace(_LADDER, n_layer=8, n_head=8, n_embd=512, intermediate_size=1408),
    "124m": replace(_LADDER, n_layer=12, n_head=12, n_embd=768, intermediate_size=2048),
    "350m": replace(_LONG, n_layer=24, n_head=16, n_embd=1024, intermediate_size=2816),
    "760m": replace(_LONG, n_layer=24, n_head=12, n_embd=1536, intermediate_size=4096),
    "1.5b": replace(_LONG, n_layer=28, n_head=16, n_embd=2048, intermediate_size=5504),
}
