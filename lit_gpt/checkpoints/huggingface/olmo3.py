"""OLMo 3 as `transformers.Olmo3ForCausalLM` stores it: OLMo 2 with sliding layers, which RoPE scaling leaves alone."""

from typing import Any

from lit_gpt.checkpoints.huggingface.family import Family, expect, optional
from lit_gpt.checkpoints.huggingface.layers import read_layers, write_layers
from lit_gpt.checkpoints.huggingface.olmo2 import demand_olmo, entries, olmo_parts
from lit_gpt.checkpoints.huggingface.rope import FULL, SLIDING, read_layered_rope, write_layered_rope
from lit_gpt.checkpoints.huggingface.shared import ANY, read_sizes, write_shared
from lit_gpt.models import GPTConfig

_THETA = 500_000.0


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`Olmo3Config` → ours."""
    expect(values, "hidden_act", "silu")
    fields = read_sizes({"rms_norm_eps": 1e-5} | values)
    types = values.get("layer_types") or [SLIDING if (layer + 1) % 4 else FULL for layer in range(fields["n_layer"])]
    theta = optional(values, "rope_theta", _THETA)
    rope = read_layered_rope(values, full_theta=theta, sliding_theta=theta)
    # A window that hides nothing still marks the layers that rotate differently.
    keep = rope["rope_local_theta"] is not None
    windows = read_layers(types, values.get("sliding_window", 4096), fields["block_size"], keep)
    if windows["sliding_window"] is None:
        rope["rope_local_theta"] = None
    return GPTConfig(
        **fields,
        **rope,
        **windows,
        **olmo_parts(),
        mlp="swiglu",
        attention_bias=optional(values, "attention_bias", False),
        family="olmo3",
    )


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `Olmo3Config`."""
    demand_olmo(config, sliding_window=ANY, rope_local_theta=ANY)
    return {**write_shared(config, write_layered_rope(config)), **write_layers(config, needs_window=True)}


OLMO3 = Family(
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=entries,
)
