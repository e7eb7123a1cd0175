"""Mistral Small 4's language model, from transformers' Mistral4Config, whose defaults are its values (release 2603).

DeepSeek-V3's latent attention with a softmax router: 4 of 128 experts a token and one shared, in every layer; YaRN
from 8192 to 1048576 tokens, queries scaled by position, RMSNorm eps 1e-6, no biases, untied. How its load was balanced
is not published: set `moe.balance_loss_weight` for a training from scratch.
"""

from lit_gpt.models.config import GPTConfig
from lit_gpt.models.experts_config import MoEConfig
from lit_gpt.models.latent_config import MLAConfig
from lit_gpt.models.rope_scaling import RopeScaling

PRESETS: dict[str, GPTConfig] = {
    "mistral-small-4-119b": GPTConfig(
        n_layer=36,
        n_head=32,
        n_embd=4096,
        block_size=1_048_576,
        vocab_size=131072,
        bias=False,
        norm="rmsnorm",
        norm_eps=1e-6,
        positions="rope",
        rope_theta=10_000.0,
        rope_scaling=RopeScaling(
            "yarn", 128.0, original_block_size=8192, mscale=1.0, mscale_all_dim=1.0, query_scale_beta=0.1
        ),
        mlp="swiglu",
        intermediate_size=12288,
        mla=MLAConfig(kv_lora_rank=256, q_lora_rank=1024, qk_nope_head_dim=64, qk_rope_head_dim=64, v_head_dim=128),
        moe=MoEConfig(num_experts=128, num_experts_per_tok=4, intermediate_size=2048, shared_intermediate_size=2048),
        tie_embeddings=False,
        scale_residual_init=False,
        family="mistral4",
    )
}

# The release says 119B; the digits are transformers' own Mistral4ForCausalLM, counted on the meta device (the hub's
# page counts the vision encoder too).
PUBLISHED: dict[str, int] = {"mistral-small-4-119b": 118_972_826_624}
