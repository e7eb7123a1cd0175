"""Granite 3 and the dense models of 4.1, from the `config.json` of huggingface.co/ibm-granite.

All: tied embeddings multiplied by 12, branches by 0.22, scores by 1 / head size, logits divided; 8 key/value heads,
RMSNorm eps 1e-5, SwiGLU, no biases (muP's multipliers, arXiv:2203.03466). 3.0 has a context of 4096 and RoPE base
10000; 3.1 is the same to 131072 with base 5000000, 3.3 with base 10000000 and four tokens more.
"""

from dataclasses import replace

from lit_gpt.models.config import GPTConfig

_GRANITE = GPTConfig(
    n_layer=40,
    n_head=32,
    n_kv_head=8,
    vocab_size=49155,
    block_size=4096,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-5,
    positions="rope",
    rope_theta=10000.0,
    mlp="swiglu",
    embedding_scale=12.0,
    residual_scale=0.22,
    tie_embeddings=True,
    scale_residual_init=False,
    family="granite",
)
_2B = replace(_GRANITE, n_embd=2048, intermediate_size=8192, attention_scale=0.015625, logit_scale=1 / 8)
_8B = replace(_GRANITE, n_embd=4096, intermediate_size=12800, attention_scale=0.0078125, logit_scale=1 / 16)
_31 = {"block_size": 131072, "rope_theta": 5_000_000.0}
_33 = {"block_size": 131072, "rope_theta": 10_000_000.0, "vocab_size": 49159}

PRESETS: dict[str, GPTConfig] = {
    "granite-3.0-2b": _2B,
    "granite-3.0-8b": _8B,
    "granite-3.1-2b": _2B.overridden(_31),
    "granite-3.1-8b": _8B.overridden(_31),
    "granite-3.3-2b": _2B.overridden(_33),
    "granite-3.3-8b": _8B.overridden(_33),
    "granite-4.1-3b": replace(
        _2B,
        n_head=40,
        n_embd=2560,
        vocab_size=100352,
        block_size=131072,
        rope_theta=10_000_000.0,
        logit_scale=1 / 10,
    ),
}

# Sizes on huggingface.co/ibm-granite; those of 3.3 and 4.1 are transformers' own GraniteForCausalLM, counted on the
# meta device.
PUBLISHED: dict[str, int] = {
    "granite-3.0-2b": 2_533_531_648,
    "granite-3.0-8b": 8_170_848_256,
    "granite-3.1-2b": 2_533_531_648,
    "granite-3.1-8b": 8_170_848_256,
    "granite-3.3-2b": 2_533_539_840,
    "granite-3.3-8b": 8_170_864_640,
    "granite-4.1-3b": 3_402_836_480,
}
