"""DeepSeek-V3 (arXiv:2412.19437, section 4.2), R1 (the same shape), and Moonlight (arXiv:2502.16982), its small cousin.

Sizes from the `config.json` of huggingface.co/deepseek-ai and huggingface.co/moonshotai: latent attention; sigmoid
routing with selection biases, weights that sum to 1 before they are scaled; the first layers plain; RoPE base 10000
with YaRN from 4096 to 163840 tokens (Moonlight: 50000, 8192 tokens); RMSNorm eps 1e-6 (Moonlight: 1e-5); no biases,
untied. Training from DeepSeek-V3's paper, section 4.2, for both: selection biases move by 0.001 a step, and the balance
loss weighs 0.0001. The block that predicts one token further is an option: `multi_token: 1`.
"""

from dataclasses import replace

from lit_gpt.models.config import GPTConfig
from lit_gpt.models.experts_config import MoEConfig
from lit_gpt.models.latent_config import MLAConfig
from lit_gpt.models.rope_scaling import RopeScaling

_V3 = GPTConfig(
    n_layer=61,
    n_head=128,
    n_embd=7168,
    block_size=163840,
    vocab_size=129280,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-6,
    positions="rope",
    rope_theta=10_000.0,
    rope_scaling=RopeScaling("yarn", 40.0, original_block_size=4096, mscale=1.0, mscale_all_dim=1.0),
    mlp="swiglu",
    intermediate_size=18432,
    mla=MLAConfig(kv_lora_rank=512, q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128),
    moe=MoEConfig(
        num_experts=256,
        num_experts_per_tok=8,
        intermediate_size=2048,
        shared_intermediate_size=2048,
        layers=(False,) * 3 + (True,) * 58,
        scores="sigmoid",
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        n_group=8,
        topk_group=4,
        selection_bias=True,
        bias_update_rate=0.001,
        balance_loss_weight=0.0001,
    ),
    tie_embeddings=False,
    init_std=0.02,  # config.json; the paper has 0.006
    scale_residual_init=False,
    family="deepseek_v3",
)
_MOONLIGHT = replace(
    _V3,
    n_layer=27,
    n_head=16,
    n_embd=2048,
    block_size=8192,
    vocab_size=163840,
    norm_eps=1e-5,
    rope_theta=50_000.0,
    rope_scaling=None,
    intermediate_size=11264,
    mla=MLAConfig(kv_lora_rank=512, q_lora_rank=None, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128),
    moe=MoEConfig(
        num_experts=64,
        num_experts_per_tok=6,
        intermediate_size=1408,
        shared_intermediate_size=2 * 1408,
        layers=(False,) + (True,) * 26,
        scores="sigmoid",
        norm_topk_prob=True,
        routed_scaling_factor=2.446,
        selection_bias=True,
        bias_update_rate=0.001,
        balance_loss_weight=0.0001,
    ),
)

PRESETS: dict[str, GPTConfig] = {
    "deepseek-v3": _V3,
    "deepseek-r1": _V3,
    "moonlight-16b-a3b": _MOONLIGHT,
}

# The papers say 671B and 16B; the digits are transformers' own DeepseekV3ForCausalLM, counted on the meta device. (Hub
# pages count selection biases, scales of FP8 and the block that predicts a token further: 685B.)
PUBLISHED: dict[str, int] = {
    "deepseek-v3": 671_026_404_352,
    "deepseek-r1": 671_026_404_352,
    "moonlight-16b-a3b": 15_960_108_544,
}
