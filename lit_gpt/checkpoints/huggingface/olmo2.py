"""OLMo 2 as `transformers.Olmo2ForCausalLM` stores it: norms of branches' outputs, queries and keys normed whole."""

from typing import Any

from lit_gpt.checkpoints.huggingface.family import Entry, Family
from lit_gpt.checkpoints.huggingface.shared import (
    ANY,
    OUTPUT_NORMS,
    decoder_entries,
    demand_llama,
    read_shared,
    write_shared,
)
from lit_gpt.models import GPTConfig


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`Olmo2Config` → ours."""
    return GPTConfig(**read_shared({"rms_norm_eps": 1e-5} | values), **olmo_parts(), family="olmo2")


def olmo_parts() -> dict[str, Any]:
    """What makes a Llama an OLMo 2 or 3."""
    return {"norm_placement": "output", "qk_norm": "projection"}


def demand_olmo(config: GPTConfig, **differences: Any) -> None:
    """Refuse to export what OLMo 2 or 3 cannot express."""
    bias = config.has_attention_bias
    demand_llama(config, has_attention_bias=ANY, has_attention_out_bias=bias, **olmo_parts(), **differences)


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `Olmo2Config`."""
    demand_olmo(config)
    return write_shared(config)


def entries(config: GPTConfig) -> list[Entry]:
    """Every tensor of the checkpoint."""
    return decoder_entries(config, OUTPUT_NORMS)


OLMO2 = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=entries,
)
