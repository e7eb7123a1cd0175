"""OLMo 2 (arXiv:2501.00656, table 1) and OLMo 3 (arXiv:2512.13961), from the `config.json` of huggingface.co/allenai.

All: the outputs of branches are normed, queries and keys as a whole, RMSNorm eps 1e-6, RoPE base 500000, SwiGLU, no
biases, untied head. OLMo 3 slides in three of four layers and stretches RoPE in the others by YaRN, from 8192 tokens
to 65536; its files have the tokenizer's 100278 rows, OLMo 2's are padded to 100352.
"""

from dataclasses import replace

from lit_gpt.models.config import GPTConfig, RopeScaling

_OLMO2 = GPTConfig(
    vocab_size=100352,
    block_size=4096,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-6,
    norm_placement="output",
    positions="rope",
    rope_theta=500000.0,
    mlp="swiglu",
    qk_norm="projection",
    tie_embeddings=False,
    scale_residual_init=False,
    family="olmo2",
)
_1B = replace(_OLMO2, n_layer=16, n_head=16, n_embd=2048, intermediate_size=8192)
_7B = replace(_OLMO2, n_layer=32, n_head=32, n_embd=4096, intermediate_size=11008)
_13B = replace(_OLMO2, n_layer=40, n_head=40, n_embd=5120, intermediate_size=13824)
_32B = replace(_OLMO2, n_layer=64, n_head=40, n_kv_head=8, n_embd=5120, intermediate_size=27648)


def _olmo3(config: GPTConfig) -> GPTConfig:
    """The parts that OLMo 3 changed."""
    return replace(
        config,
        vocab_size=100278,
        block_size=65536,
        sliding_window=4096,
        layer_windows=(True, True, True, False),
        rope_local_theta=500000.0,
        rope_scaling=RopeScaling("yarn", 8.0, original_block_size=8192, attention_factor=1.2079441541679836),
        family="olmo3",
    )


PRESETS: dict[str, GPTConfig] = {
    "olmo-2-1b": _1B,
    "olmo-2-7b": _7B,
    "olmo-2-13b": _13B,
    "olmo-2-32b": _32B,
    "olmo-3-7b": _olmo3(_7B),
    "olmo-3-32b": _olmo3(_32B),
}

# Sizes on huggingface.co/allenai; OLMo 3's 32B as transformers' own Olmo3ForCausalLM, counted on the meta device.
PUBLISHED: dict[str, int] = {
    "olmo-2-1b": 1_484_916_736,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
    "olmo-2-32b": 32_234_279_936,
    "olmo-3-7b": 7_298_011_136,
    "olmo-3-32b": 32_233_522_176,
}
