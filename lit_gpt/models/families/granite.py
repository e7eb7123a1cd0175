"""Granite 3 and the dense models of 4.1, and Granite with sliding windows and sinks, as `transformers` stores them.

Granite is Llama with four multipliers (muP's, arXiv:2203.03466). GraniteSWA's `layer_rope_theta` gives each layer its
own base, 0 for no RoPE; a `GPTConfig` has one base for sliding-window layers and one for the others.

Presets are from the `config.json` of huggingface.co/ibm-granite. All: tied embeddings multiplied by 12, branches by
0.22, scores by 1 / head size, logits divided; 8 key/value heads, RMSNorm eps 1e-5, SwiGLU, no biases. 3.0 has a context
of 4096 and RoPE base 10000; 3.1 is the same up to 131072 with base 5000000, 3.3 with base 10000000 and four more
tokens.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.families.config_json import (
    FULL,
    SLIDING,
    optional,
    read_layers,
    shortest_pattern,
    write_layers,
    write_rope,
)
from lit_gpt.models.families.decoder import decoder_entries, read_shared, require_llama, write_shared
from lit_gpt.models.families.family import ANY, Family, GGUFArchitecture, MetadataValue


def read_granite(values: dict[str, Any]) -> GPTConfig:
    """Convert a `GraniteConfig` to a `GPTConfig`."""
    return GPTConfig(**granite_fields(values), family="granite")


def granite_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that both Granite families store in the same way."""
    return {
        **read_shared(values),
        "mlp_bias": optional(values, "mlp_bias", False),
        "embedding_scale": optional(values, "embedding_multiplier", 1.0),
        "attention_scale": optional(values, "attention_multiplier", 1.0),
        "residual_scale": optional(values, "residual_multiplier", 1.0),
        "logit_scale": 1.0 / optional(values, "logits_scaling", 1.0),
    }


def granite_values(config: GPTConfig, rope: dict[str, Any] | None = None, **differences: Any) -> dict[str, Any]:
    """Return config.json's keys; the inverse of `granite_fields`.

    Raises:
        UserError: If Granite cannot express the config.
    """
    require_llama(
        config,
        has_attention_bias=ANY,
        has_attention_out_bias=config.has_attention_bias,
        has_mlp_bias=ANY,
        attention_scale=ANY,
        embedding_scale=ANY,
        residual_scale=ANY,
        logit_scale=ANY,
        **differences,
    )
    divisor = 1.0 / config.logit_scale
    whole = float(round(divisor))
    return {
        **write_shared(config, rope),
        "mlp_bias": config.has_mlp_bias,
        "embedding_multiplier": config.embedding_multiplier,
        "attention_multiplier": config.score_scale,
        "residual_multiplier": config.residual_scale,
        "logits_scaling": whole if abs(whole - divisor) < 1e-9 * whole else divisor,  # 1 / (1 / 49) != 49 in floats
    }


def write_granite(config: GPTConfig) -> dict[str, Any]:
    """Convert a `GPTConfig` to a `GraniteConfig`."""
    return granite_values(config)


def _gguf_settings(config: GPTConfig) -> dict[str, MetadataValue]:
    """Return the four multipliers."""
    return {
        "attention.scale": float(config.score_scale),
        "embedding_scale": float(config.embedding_multiplier),
        "residual_scale": float(config.residual_scale),
        "logit_scale": 1.0 / config.logit_scale,
    }


def _gguf_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the four multipliers; a score multiplier of 0 means 1 / √(head size)."""
    return {
        "attention_scale": values.get("attention.scale") or None,
        "embedding_scale": values.get("embedding_scale", 1.0),
        "residual_scale": values.get("residual_scale", 1.0),
        "logit_scale": 1.0 / values.get("logit_scale", 1.0),
    }


GRANITE = Family(
    name="granite",
    model_type="granite",
    architecture="GraniteForCausalLM",
    read_config=read_granite,
    write_config=write_granite,
    entries=decoder_entries,
    gguf=GGUFArchitecture(
        "granite",
        interleaved=True,
        demands={"has_attention_out_bias": ANY},
        scalings=("linear", "yarn", "llama3"),
        settings=_gguf_settings,
        read=_gguf_fields,
    ),
)


def read_granite_swa(values: dict[str, Any]) -> GPTConfig:
    """Convert a `GraniteSWAConfig` to a `GPTConfig`."""
    fields = granite_fields({"num_key_value_heads": 4, "rms_norm_eps": 1e-5, "tie_word_embeddings": True} | values)
    n_layer = fields["n_layer"]
    types = values.get("layer_types") or [SLIDING if layer % 4 else FULL for layer in range(n_layer)]
    thetas = values.get("layer_rope_theta") or [fields["rope_theta"]] * n_layer
    rotates = [bool(theta) for theta in thetas]
    fields |= _granite_swa_bases(types, thetas, fields)
    keep = fields["rope_local_theta"] is not None
    return GPTConfig(
        **fields,
        **read_layers(types, values.get("sliding_window", 128), fields["block_size"], keep),
        rope_layers=None if all(rotates) else shortest_pattern(rotates),
        attention_sinks=True,
        family="granite_swa",
    )


def _granite_swa_bases(types: list[str], thetas: list[float], fields: dict[str, Any]) -> dict[str, Any]:
    """Return `rope_theta` and `rope_local_theta` from the base of each layer."""
    kinds = {kind: {t for k, t in zip(types, thetas, strict=True) if k == kind and t} for kind in (FULL, SLIDING)}
    if any(len(bases) > 1 for bases in kinds.values()):
        raise UserError(
            f"config.json has layer_rope_theta {sorted(kinds[FULL] | kinds[SLIDING])}; lit_gpt supports one base for "
            "sliding-window layers and one for the others"
        )
    sliding, full = (next(iter(kinds[kind]), None) for kind in (SLIDING, FULL))
    base = full or sliding or fields["rope_theta"]
    local = None if sliding in (None, base) else float(sliding)
    if local is not None and fields["rope_scaling"] is not None:
        raise UserError(
            "config.json scales RoPE in sliding-window layers; lit_gpt supports that only in full-attention layers"
        )
    return {"rope_theta": float(base), "rope_local_theta": local}


def write_granite_swa(config: GPTConfig) -> dict[str, Any]:
    """Convert a `GPTConfig` to a `GraniteSWAConfig`."""
    differences = {"sliding_window": ANY, "attention_sinks": True, "rope_layers": ANY, "rope_local_theta": ANY}
    if config.rope_scaling is not None:
        differences["rope_local_theta"] = None  # the class applies one scaling to all layers
    written = granite_values(config, write_rope(config), **differences)
    local = config.rope_theta if config.rope_local_theta is None else config.rope_local_theta
    thetas = [
        (local if config.slides(layer) else config.rope_theta) if config.rotates(layer) else 0.0
        for layer in range(config.n_layer)
    ]
    return {**written, **write_layers(config, needs_window=True), "layer_rope_theta": thetas}


GRANITE_SWA = Family(
    name="granite_swa",
    model_type="granite_swa",
    architecture="GraniteSWAForCausalLM",
    read_config=read_granite_swa,
    write_config=write_granite_swa,
    entries=decoder_entries,
)


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

# Sizes on huggingface.co/ibm-granite; those of 3.3 and 4.1 are from transformers' GraniteForCausalLM, counted on the
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


FAMILIES = (GRANITE, GRANITE_SWA)
