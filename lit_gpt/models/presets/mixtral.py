"""Mixtral (arXiv:2401.04088, table 1), from the `config.json` of huggingface.co/mistralai.

All: 8 experts, 2 of them a token, 8 key/value heads of 128, RoPE base 1000000, RMSNorm eps 1e-5, SwiGLU, no biases, no
window. The balance loss's weight is config.json's `router_aux_loss_coef` 0.001 (0.02 in the first), which weighs a mean
over layers of a loss that is k = 2 when balanced; ours is 1 then, and added up over the layers.
"""

from dataclasses import replace

from lit_gpt.models.config import GPTConfig
from lit_gpt.models.experts_config import MoEConfig

_MIXTRAL = GPTConfig(
    n_head=32,
    n_kv_head=8,
    vocab_size=32000,
    block_size=32768,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-5,
    positions="rope",
    rope_theta=1_000_000.0,
    mlp="swiglu",
    tie_embeddings=False,
    scale_residual_init=False,
    family="mixtral",
)
_8X7B = MoEConfig(num_experts=8, num_experts_per_tok=2, balance_loss_weight=0.02 * 2 / 32)
_8X22B = MoEConfig(num_experts=8, num_experts_per_tok=2, balance_loss_weight=0.001 * 2 / 56)

PRESETS: dict[str, GPTConfig] = {
    "mixtral-8x7b": replace(_MIXTRAL, n_layer=32, n_embd=4096, intermediate_size=14336, moe=_8X7B),
    "mixtral-8x22b": replace(
        _MIXTRAL, n_layer=56, n_head=48, n_embd=6144, intermediate_size=16384, block_size=65536, moe=_8X22B
    ),
}

# Sizes on huggingface.co/mistralai (46.7B and 141B).
PUBLISHED: dict[str, int] = {
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
}
