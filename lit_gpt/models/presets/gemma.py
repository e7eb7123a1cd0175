"""Gemma 2 (arXiv:2408.00118, table 1) and Gemma 3's language models (arXiv:2503.19786, tables 1 and 2).

From the papers and the `config.json` of huggingface.co/google. All: RMSNorm eps 1e-6 whose gain is stored less one,
before and after each branch; GeGLU by tanh; embeddings tied and multiplied by the root of the width. Gemma 2 caps
scores at 50 and logits at 30 and slides in every other layer; Gemma 3 has QK-norm instead of caps and slides in five
of six, with a RoPE base of 10000 there and 1000000 elsewhere. The two 27B scale scores by 1 / √(width / heads), the
others by 1 / √256.
"""

from dataclasses import replace

from lit_gpt.models.config import GPTConfig, RopeScaling

_GEMMA = GPTConfig(
    head_size=256,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-6,
    norm_offset=True,
    norm_placement="sandwich",
    positions="rope",
    rope_theta=10000.0,
    mlp="geglu_tanh",
    embedding_scale="sqrt_width",
    tie_embeddings=True,
    scale_residual_init=False,
)
_GEMMA2 = replace(
    _GEMMA,
    vocab_size=256000,
    block_size=8192,
    attention_softcap=50.0,
    logit_softcap=30.0,
    sliding_window=4096,
    layer_windows=(True, False),
    family="gemma2",
)
_GEMMA3 = replace(
    _GEMMA,
    vocab_size=262208,
    block_size=131072,
    qk_norm="head",
    rope_theta=1_000_000.0,
    rope_local_theta=10000.0,
    rope_scaling=RopeScaling("linear", 8.0),
    sliding_window=1024,
    layer_windows=(True, True, True, True, True, False),
    family="gemma3",
)
_GEMMA3_SMALL = replace(_GEMMA3, vocab_size=262144, block_size=32768, rope_scaling=None, sliding_window=512)


def _wide(config: GPTConfig, n_embd: int, intermediate_size: int, **sizes: int) -> GPTConfig:
    return config.overridden({"n_embd": n_embd, "intermediate_size": intermediate_size, **sizes})


PRESETS: dict[str, GPTConfig] = {
    "gemma-2-2b": _wide(_GEMMA2, 2304, 9216, n_layer=26, n_head=8, n_kv_head=4),
    "gemma-2-9b": _wide(_GEMMA2, 3584, 14336, n_layer=42, n_head=16, n_kv_head=8),
    "gemma-2-27b": replace(
        _wide(_GEMMA2, 4608, 36864, n_layer=46, n_head=32, n_kv_head=16, head_size=128), attention_scale=144**-0.5
    ),
    "gemma-3-270m": _wide(_GEMMA3_SMALL, 640, 2048, n_layer=18, n_head=4, n_kv_head=1),
    "gemma-3-1b": _wide(_GEMMA3_SMALL, 1152, 6912, n_layer=26, n_head=4, n_kv_head=1),
    "gemma-3-4b": _wide(_GEMMA3, 2560, 10240, n_layer=34, n_head=8, n_kv_head=4),
    "gemma-3-12b": _wide(_GEMMA3, 3840, 15360, n_layer=48, n_head=16, n_kv_head=8),
    "gemma-3-27b": replace(
        _wide(_GEMMA3, 5376, 21504, n_layer=62, n_head=32, n_kv_head=16, head_size=128), attention_scale=168**-0.5
    ),
}

# Sizes on huggingface.co/google; from 4B on Gemma 3's pages count the vision tower too, so those three are
# transformers' own Gemma3ForCausalLM, counted on the meta device.
PUBLISHED: dict[str, int] = {
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,
    "gemma-3-12b": 11_766_034_176,
    "gemma-3-27b": 27_009_346_304,
}
