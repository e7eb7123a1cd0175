"""GPT-OSS (model card, arXiv:2508.10925, section 2), from the `config.json` of huggingface.co/openai.

Both: width 2880 in the stream and in the experts, 4 experts a token, 64 heads of 64 with a sink each, 8 key/value
heads, every other layer (from the first) with a window of 128 tokens, YaRN from 4096 to 131072 tokens without rounding
to whole pairs, RoPE base 150000, RMSNorm eps 1e-5, biases in attention, router and experts, vocabulary 201088, untied.
OpenAI has not said how it balanced the load: set `moe.balance_loss_weight` for a training from scratch.
"""

from dataclasses import replace

from lit_gpt.models.config import GPTConfig
from lit_gpt.models.experts_config import MoEConfig
from lit_gpt.models.rope_scaling import RopeScaling

_GPT_OSS = GPTConfig(
    n_head=64,
    n_kv_head=8,
    n_embd=2880,
    head_size=64,
    block_size=131072,
    vocab_size=201088,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-5,
    positions="rope",
    rope_theta=150_000.0,
    rope_scaling=RopeScaling("yarn", 32.0, original_block_size=4096, truncate=False),
    mlp="swiglu_clamped",
    intermediate_size=2880,
    attention_bias=True,
    mlp_bias=True,
    attention_sinks=True,
    sliding_window=128,
    layer_windows=(True, False),
    tie_embeddings=False,
    scale_residual_init=False,
    family="gpt_oss",
)

PRESETS: dict[str, GPTConfig] = {
    "gpt-oss-20b": replace(_GPT_OSS, n_layer=24, moe=MoEConfig(32, 4, router_bias=True)),
    "gpt-oss-120b": replace(_GPT_OSS, n_layer=36, moe=MoEConfig(128, 4, router_bias=True)),
}

# The model card's table 1 says 20.91B and 116.83B; the digits are transformers' own GptOssForCausalLM, counted on the
# meta device (the hub's pages count packed 4-bit weights).
PUBLISHED: dict[str, int] = {
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
}
