"""Granite 3 as `transformers.GraniteForCausalLM` stores it: Llama with four multipliers."""

from typing import Any

from lit_gpt.checkpoints.huggingface.family import Family, optional
from lit_gpt.checkpoints.huggingface.shared import ANY, decoder_entries, demand_llama, read_shared, write_shared
from lit_gpt.models import GPTConfig


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`GraniteConfig` → ours."""
    return GPTConfig(**read_granite(values), family="granite")


def read_granite(values: dict[str, Any]) -> dict[str, Any]:
    """The fields that every Granite has."""
    return {
        **read_shared(values),
        "mlp_bias": optional(values, "mlp_bias", False),
        "embedding_scale": optional(values, "embedding_multiplier", 1.0),
        "attention_scale": optional(values, "attention_multiplier", 1.0),
        "residual_scale": optional(values, "residual_multiplier", 1.0),
        "logit_scale": 1.0 / optional(values, "logits_scaling", 1.0),
    }


def write_granite(config: GPTConfig, rope: dict[str, Any] | None = None, **differences: Any) -> dict[str, Any]:
    """The inverse of `read_granite`.

    Raises:
        UserError: If Granite cannot express the config.
    """
    demand_llama(
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
        "logits_scaling": whole if abs(whole - divisor) < 1e-9 * whole else divisor,  # 1 / (1 / 49) is not 49
    }


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `GraniteConfig`."""
    return write_granite(config)


GRANITE = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=decoder_entries,
)
