"""Qwen3's mixtures of experts (arXiv:2505.09388, table 2), from the `config.json` of huggingface.co/Qwen.

All: 128 experts, 8 of them a token, weights that sum to 1, 4 key/value heads of 128, QK-norm, RoPE base 1000000,
RMSNorm eps 1e-6, SwiGLU, no biases, vocabulary 151936, context 40960, untied. `intermediate_size` is config.json's; no
layer uses it. The balance loss's weight is config.json's `router_aux_loss_coef` 0.001, which weighs a mean over layers
of a loss that is k = 8 when balanced; ours is 1 then, and added up over the layers. (They balance over the whole batch,
section 2; ours does over each sequence.)
"""

from dataclasses import replace

from lit_gpt.models.config import GPTConfig
from lit_gpt.models.experts_config import MoEConfig
from lit_gpt.models.presets import qwen3

_QWEN3_MOE = replace(qwen3.PRESETS["qwen3-8b"], n_kv_head=4, family="qwen3_moe")
_30B = MoEConfig(num_experts=128, num_experts_per_tok=8, intermediate_size=768, balance_loss_weight=0.001 * 8 / 48)
_235B = MoEConfig(num_experts=128, num_experts_per_tok=8, intermediate_size=1536, balance_loss_weight=0.001 * 8 / 94)

PRESETS: dict[str, GPTConfig] = {
    "qwen3-30b-a3b": replace(_QWEN3_MOE, n_layer=48, n_head=32, n_embd=2048, intermediate_size=6144, moe=_30B),
    "qwen3-235b-a22b": replace(_QWEN3_MOE, n_layer=94, n_head=64, n_embd=4096, intermediate_size=12288, moe=_235B),
}

# Sizes on huggingface.co/Qwen (30.5B and 235B).
PUBLISHED: dict[str, int] = {
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
}
