"""Gemma 2 as `transformers.Gemma2ForCausalLM` stores it: sandwich norms whose gain is stored less one, soft-caps."""

import math
from typing import Any

from lit_gpt.checkpoints.huggingface.family import Entry, Family, demand, expect, optional
from lit_gpt.checkpoints.huggingface.layers import read_layers, write_layers
from lit_gpt.checkpoints.huggingface.rope import FULL, SLIDING, read_rope
from lit_gpt.checkpoints.huggingface.shared import (
    ANY,
    SANDWICH_NORMS,
    decoder_entries,
    demand_llama,
    read_sizes,
    write_shared,
)
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig

_ACTIVATION = "gelu_pytorch_tanh"
_DEFAULTS = {"num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096, "query_pre_attn_scalar": 256}


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`Gemma2Config` → ours."""
    values = _DEFAULTS | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0} | values
    fields = read_gemma(values)
    n_layer = fields["n_layer"]
    types = values.get("layer_types") or [FULL if layer % 2 else SLIDING for layer in range(n_layer)]
    return GPTConfig(
        **fields,
        **read_rope(values),
        **read_layers(types, values["sliding_window"], fields["block_size"]),
        attention_softcap=values["attn_logit_softcapping"],
        family="gemma2",
    )


def read_gemma(values: dict[str, Any]) -> dict[str, Any]:
    """The fields that Gemma 3 has too."""
    expect(values, "use_bidirectional_attention", False)
    # hidden_act of the first published files said "gelu" and was never looked at
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


def write_gemma(config: GPTConfig, rope: dict[str, Any] | None = None, **differences: Any) -> dict[str, Any]:
    """The inverse of `read_gemma`.

    Raises:
        UserError: If Gemma cannot express the config.
    """
    demand_llama(
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
        demand(config, config.family, embedding_scale="sqrt_width")
    scalar = config.score_scale**-2
    if not math.isclose(scalar, round(scalar), rel_tol=1e-6):
        raise UserError(
            f"family {config.family!r} scales scores by 1 / √n with a whole n, which attention_scale "
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


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `Gemma2Config`."""
    return write_gemma(config, attention_softcap=ANY)


def entries(config: GPTConfig) -> list[Entry]:
    """Every tensor of the checkpoint."""
    return decoder_entries(config, SANDWICH_NORMS)


GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=entries,
)
