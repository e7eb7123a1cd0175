"""SmolLM2 (arXiv:2502.02737) and SmolLM3, from the `config.json` of huggingface.co/HuggingFaceTB.

SmolLM2 is a Llama with tied embeddings. SmolLM3 leaves RoPE out of every fourth layer (arXiv:2501.18795), and its
base of 5 million is that of the last stage of training, from 32768 to 65536 tokens.
"""

from dataclasses import replace

from lit_gpt.models.config import GPTConfig

_SMOLLM2 = GPTConfig(
    vocab_size=49152,
    block_size=8192,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-5,
    positions="rope",
    rope_theta=100000.0,
    mlp="swiglu",
    tie_embeddings=True,
    scale_residual_init=False,
    family="llama",
)

PRESETS: dict[str, GPTConfig] = {
    "smollm2-135m": replace(
        _SMOLLM2, n_layer=30, n_head=9, n_kv_head=3, n_embd=576, intermediate_size=1536, init_std=0.041666666666666664
    ),
    "smollm2-360m": replace(_SMOLLM2, n_layer=32, n_head=15, n_kv_head=5, n_embd=960, intermediate_size=2560),
    "smollm2-1.7b": replace(
        _SMOLLM2, n_layer=24, n_head=32, n_kv_head=32, n_embd=2048, intermediate_size=8192, rope_theta=130000.0
    ),
    "smollm3-3b": replace(
        _SMOLLM2,
        n_layer=36,
        n_head=16,
        n_kv_head=4,
        n_embd=2048,
        intermediate_size=11008,
        vocab_size=128256,
        block_size=65536,
        norm_eps=1e-6,
        rope_theta=5_000_000.0,
        rope_layers=(True, True, True, False),
        family="smollm3",
    ),
}

# Sizes on huggingface.co/HuggingFaceTB.
PUBLISHED: dict[str, int] = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
}
