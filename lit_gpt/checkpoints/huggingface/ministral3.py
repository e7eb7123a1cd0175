"""Ministral 3 as `transformers.Ministral3ForCausalLM` stores it: Mistral with YaRN and queries scaled by position.

On the hub the models also see; their language part is what is read (`multimodal.py`).
"""

from typing import Any

from lit_gpt.checkpoints.huggingface.family import Family
from lit_gpt.checkpoints.huggingface.mistral import read_mistral
from lit_gpt.checkpoints.huggingface.rope import with_default_rope, write_rope
from lit_gpt.checkpoints.huggingface.shared import ANY, decoder_entries, demand_llama, write_shared
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig

_DEFAULT_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
"""`Ministral3Config`'s, where a file says nothing."""


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`Ministral3Config` → ours."""
    values = with_default_rope({"rms_norm_eps": 1e-5} | values, _DEFAULT_ROPE)
    return GPTConfig(**read_mistral(values), family="ministral3")


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `Ministral3Config`."""
    demand_llama(config, sliding_window=ANY, layer_windows=None)
    if config.rope_scaling is None or config.rope_scaling.kind not in ("yarn", "llama3", "longrope"):
        # its class divides by the original context, which only these kinds carry
        raise UserError("family 'ministral3' needs rope_scaling (kind: yarn); without it, export as family: mistral")
    return {**write_shared(config, write_rope(config, query_scale=True)), "sliding_window": config.sliding_window}


MINISTRAL3 = Family(
    model_type="ministral3",
    architecture="Ministral3ForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=decoder_entries,
)
