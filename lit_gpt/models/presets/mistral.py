"""Mistral's dense models (arXiv:2310.06825) and Ministral 3 (arXiv:2601.08584), from huggingface.co/mistralai.

Values from each `config.json`. All: 8 key/value heads of 128, RMSNorm eps 1e-5, SwiGLU, no biases. Only the first 7B
slides. Ministral 3 stretches RoPE by YaRN from 16384 to 262144 tokens and scales queries by position; its 8B's values
are the defaults of transformers' Ministral3Config.
"""

from dataclasses import replace

from lit_gpt.models.config import GPTConfig, RopeScaling

_MISTRAL = GPTConfig(
    n_head=32,
    n_kv_head=8,
    head_size=128,
    vocab_size=32768,
    block_size=32768,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-5,
    positions="rope",
    rope_theta=1_000_000.0,
    mlp="swiglu",
    tie_embeddings=False,
    scale_residual_init=False,
    family="mistral",
)
_7B = replace(_MISTRAL, n_layer=32, n_embd=4096, intermediate_size=14336)
_12B = replace(_MISTRAL, n_layer=40, n_embd=5120, intermediate_size=14336, vocab_size=131072)
_MINISTRAL3 = replace(
    _MISTRAL,
    vocab_size=131072,
    block_size=262144,
    rope_scaling=RopeScaling(
        "yarn", 16.0, original_block_size=16384, mscale=1.0, mscale_all_dim=1.0, query_scale_beta=0.1
    ),
    family="ministral3",
)

PRESETS: dict[str, GPTConfig] = {
    "mistral-7b-v0.1": replace(_7B, vocab_size=32000, rope_theta=10000.0, sliding_window=4096),
    "mistral-7b-v0.2": replace(_7B, vocab_size=32000),
    "mistral-7b-v0.3": _7B,
    "mistral-nemo-12b": replace(_12B, block_size=131072),
    "mistral-small-24b": replace(_12B, intermediate_size=32768, rope_theta=100_000_000.0),  # 2501
    "ministral-3-3b": replace(_MINISTRAL3, n_layer=26, n_embd=3072, intermediate_size=9216, tie_embeddings=True),
    "ministral-3-8b": replace(_MINISTRAL3, n_layer=34, n_embd=4096, intermediate_size=14336),
}

# Sizes on huggingface.co/mistralai; Ministral 3's pages count the vision encoder too, so these two are transformers'
# own Ministral3ForCausalLM, counted on the meta device (its cards say 3.4B and 8.4B).
PUBLISHED: dict[str, int] = {
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.2": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mistral-small-24b": 23_572_403_200,
    "ministral-3-3b": 3_429_006_336,
    "ministral-3-8b": 8_489_553_920,
}
