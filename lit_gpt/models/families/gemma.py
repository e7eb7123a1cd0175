"""Gemma 2 (arXiv:2408.00118) and Gemma 3's language models (arXiv:2503.19786), as `transformers` stores them.

Gemma 2 uses norms before and after each branch (with the gain stored as `gain - 1`) and soft-capped attention scores
and logits. Gemma 3 has QK-norm instead of the soft-caps and a separate RoPE base in sliding-window layers; the
published models from 4B up are multimodal, and only their language model is read.

Presets are from the papers (table 1; tables 1 and 2) and the `config.json` of huggingface.co/google. All: RMSNorm eps
1e-6, GeGLU with tanh, embeddings tied and multiplied by the square root of the width. Gemma 2 caps scores at 50 and
logits at 30 and uses a sliding window in every other layer; Gemma 3 in five of six, with a RoPE base of 10000 there and
1000000 elsewhere. The two 27B models scale scores by 1 / √(width / heads), the others by 1 / √256.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.models.config import GPTConfig, RopeScaling
from lit_gpt.models.families.config_json import (
    FULL,
    SLIDING,
    expect,
    integer,
    optional,
    read_layered_rope,
    read_layers,
    read_rope,
    require_values,
    write_layered_rope,
    write_layers,
)
from lit_gpt.models.families.decoder import SANDWICH_NORMS, decoder_entries, read_sizes, require_llama, write_shared
from lit_gpt.models.families.family import ANY, GIVEN, Family, GGUFArchitecture, MetadataValue
from lit_gpt.models.families.weights import Entry

_ACTIVATION = "gelu_pytorch_tanh"
_GEMMA2_DEFAULTS = {"num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096, "query_pre_attn_scalar": 256}


def read_gemma2(values: dict[str, Any]) -> GPTConfig:
    """Convert a `Gemma2Config` to a `GPTConfig`."""
    values = _GEMMA2_DEFAULTS | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0} | values
    fields = gemma_fields(values)
    n_layer = fields["n_layer"]
    types = values.get("layer_types") or [FULL if layer % 2 else SLIDING for layer in range(n_layer)]
    return GPTConfig(
        **fields,
        **read_rope(values),
        **read_layers(types, values["sliding_window"], fields["block_size"]),
        attention_softcap=values["attn_logit_softcapping"],
        family="gemma2",
    )


def gemma_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that Gemma 2 and 3 store in the same way."""
    expect(values, "use_bidirectional_attention", False)
    # The first published files set hidden_act to "gelu", but no implementation ever read that key.
    expect(values, "hidden_activation", _ACTIVATION)
    fields = read_sizes({"tie_word_embeddings": True} | values)
    scalar = values["query_pre_attn_scalar"]
    return {
        **fields,
        "norm_offset": True,
        "norm_placement": "sandwich",
        "mlp": "geglu_tanh",
        "attention_bias": optional(values, "attention_bias", False),
        "attention_scale": None if scalar == values["head_dim"] else scalar**-0.5,
        "embedding_scale": "sqrt_width",
        "logit_softcap": values.get("final_logit_softcapping"),
    }


def gemma_values(config: GPTConfig, rope: dict[str, Any] | None = None, **differences: Any) -> dict[str, Any]:
    """Return config.json's keys; the inverse of `gemma_fields`.

    Raises:
        UserError: If Gemma cannot express the config.
    """
    require_llama(
        config,
        norm_offset=True,
        norm_placement="sandwich",
        mlp="geglu_tanh",
        has_attention_bias=ANY,
        has_attention_out_bias=config.has_attention_bias,
        attention_scale=ANY,
        sliding_window=ANY,
        embedding_scale=ANY,
        logit_softcap=ANY,
        **differences,
    )
    if not math.isclose(config.embedding_multiplier, math.sqrt(config.n_embd), rel_tol=1e-6):
        require_values(config, embedding_scale="sqrt_width")
    scalar = config.score_scale**-2
    if not math.isclose(scalar, round(scalar), rel_tol=1e-6):
        raise UserError(
            f"family {config.family!r} scales scores by 1 / √n with an integer n, which attention_scale "
            f"{config.attention_scale} is not; change it, or leave it null for 1 / √head_size"
        )
    return {
        **write_shared(config, rope),
        "hidden_act": _ACTIVATION,
        "hidden_activation": _ACTIVATION,
        "query_pre_attn_scalar": round(scalar),
        "final_logit_softcapping": config.logit_softcap,
        "attn_logit_softcapping": config.attention_softcap,
        **write_layers(config, needs_window=True),
    }


def write_gemma2(config: GPTConfig) -> dict[str, Any]:
    """Convert a `GPTConfig` to a `Gemma2Config`."""
    return gemma_values(config, attention_softcap=ANY)


def gemma_entries(config: GPTConfig) -> list[Entry]:
    """Return the weight table: all tensors of the checkpoint."""
    return decoder_entries(config, SANDWICH_NORMS)


def _gemma2_gguf_settings(config: GPTConfig) -> dict[str, MetadataValue]:
    """Return the settings; without a window, write block_size as the window: llama.cpp would default to 4096."""
    return {} if config.sliding_window is not None else {"attention.sliding_window": config.block_size}


_GGUF_FIXED = {
    "norm_offset": True,
    "norm_placement": "sandwich",
    "mlp": "geglu_tanh",
    "embedding_scale": "sqrt_width",
}


def _gemma2_gguf_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the soft-caps, for which llama.cpp has defaults."""
    return {
        "attention_softcap": values.get("attn_logit_softcapping", 50.0),
        "logit_softcap": values.get("final_logit_softcapping", 30.0),
    }


GEMMA2 = Family(
    name="gemma2",
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    read_config=read_gemma2,
    write_config=write_gemma2,
    entries=gemma_entries,
    gguf=GGUFArchitecture(
        "gemma2",
        demands={
            "sliding_window": ANY,
            "tie_embeddings": True,
            "attention_softcap": GIVEN,
            "logit_softcap": GIVEN,
        },
        full_every=2,
        width_scaled_depth=46,
        settings=_gemma2_gguf_settings,
        fixed=_GGUF_FIXED,
        read=_gemma2_gguf_fields,
    ),
)


_GEMMA3_DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
}
"""Defaults of `Gemma3TextConfig`; published files omit values that equal these."""


def read_gemma3(values: dict[str, Any]) -> GPTConfig:
    """Convert a `Gemma3TextConfig` to a `GPTConfig`."""
    values = _GEMMA3_DEFAULTS | values
    expect(values, "attn_logit_softcapping", None)
    fields = gemma_fields(values)
    every = integer(values, "sliding_window_pattern", 6, least=1)
    types = values.get("layer_types") or [
        SLIDING if (layer + 1) % every else FULL for layer in range(fields["n_layer"])
    ]
    rope = read_layered_rope(values, full_theta=1_000_000.0, sliding_theta=10_000.0)
    windows = read_layers(types, values["sliding_window"], fields["block_size"], keep=True)
    if windows["sliding_window"] is None:
        rope["rope_local_theta"] = None
    return GPTConfig(**fields, **rope, **windows, qk_norm="head", family="gemma3")


def write_gemma3(config: GPTConfig) -> dict[str, Any]:
    """Convert a `GPTConfig` to a `Gemma3TextConfig`."""
    return gemma_values(config, write_layered_rope(config), qk_norm="head", rope_local_theta=ANY)


def _gemma3_gguf_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return RoPE's base in sliding-window layers, for which llama.cpp has a default."""
    return {"rope_local_theta": values.get("rope.freq_base_swa", 10000.0)}


GEMMA3 = Family(
    name="gemma3",
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    read_config=read_gemma3,
    write_config=write_gemma3,
    entries=gemma_entries,
    text_part_of=("gemma3",),
    gguf=GGUFArchitecture(
        "gemma3",
        demands={"sliding_window": ANY},
        scalings=("linear",),
        full_every=6,
        width_scaled_depth=62,
        fixed=_GGUF_FIXED | {"qk_norm": "head"},
        read=_gemma3_gguf_fields,
    ),
)


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

# Sizes on huggingface.co/google; from 4B on Gemma 3's pages also count the vision tower, so those three are from
# transformers' Gemma3ForCausalLM, counted on the meta device.
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


FAMILIES = (GEMMA2, GEMMA3)
