"""Granite with sliding layers and sinks as `transformers.GraniteSWAForCausalLM` stores it.

`layer_rope_theta` gives every layer a base, 0 where it does not rotate; ours has one for layers that slide and one
for the others.
"""

from typing import Any

from lit_gpt.checkpoints.huggingface.family import Family
from lit_gpt.checkpoints.huggingface.granite import read_granite, write_granite
from lit_gpt.checkpoints.huggingface.layers import read_layers, shortest_pattern, write_layers
from lit_gpt.checkpoints.huggingface.rope import FULL, SLIDING, write_rope
from lit_gpt.checkpoints.huggingface.shared import ANY, decoder_entries
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`GraniteSWAConfig` → ours."""
    fields = read_granite({"num_key_value_heads": 4, "rms_norm_eps": 1e-5, "tie_word_embeddings": True} | values)
    n_layer = fields["n_layer"]
    types = values.get("layer_types") or [SLIDING if layer % 4 else FULL for layer in range(n_layer)]
    thetas = values.get("layer_rope_theta") or [fields["rope_theta"]] * n_layer
    rotates = [bool(theta) for theta in thetas]
    fields |= _bases(types, thetas, fields)
    keep = fields["rope_local_theta"] is not None
    return GPTConfig(
        **fields,
        **read_layers(types, values.get("sliding_window", 128), fields["block_size"], keep),
        rope_layers=None if all(rotates) else shortest_pattern(rotates),
        attention_sinks=True,
        family="granite_swa",
    )


def _bases(types: list[str], thetas: list[float], fields: dict[str, Any]) -> dict[str, Any]:
    kinds = {kind: {t for k, t in zip(types, thetas, strict=True) if k == kind and t} for kind in (FULL, SLIDING)}
    if any(len(bases) > 1 for bases in kinds.values()):
        raise UserError(
            f"config.json has layer_rope_theta {sorted(kinds[FULL] | kinds[SLIDING])}; lit_gpt computes one base for "
            "layers that slide and one for the others"
        )
    sliding, full = (next(iter(kinds[kind]), None) for kind in (SLIDING, FULL))
    base = full or sliding or fields["rope_theta"]
    local = None if sliding in (None, base) else float(sliding)
    if local is not None and fields["rope_scaling"] is not None:
        raise UserError(
            "config.json stretches RoPE in sliding layers; lit_gpt computes that for the other layers alone"
        )
    return {"rope_theta": float(base), "rope_local_theta": local}


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `GraniteSWAConfig`."""
    differences = {"sliding_window": ANY, "attention_sinks": True, "rope_layers": ANY, "rope_local_theta": ANY}
    if config.rope_scaling is not None:
        differences["rope_local_theta"] = None  # all of its bases are stretched alike
    written = write_granite(config, write_rope(config), **differences)
    local = config.rope_theta if config.rope_local_theta is None else config.rope_local_theta
    thetas = [
        (local if config.slides(layer) else config.rope_theta) if config.rotates(layer) else 0.0
        for layer in range(config.n_layer)
    ]
    return {**written, **write_layers(config, needs_window=True), "layer_rope_theta": thetas}


GRANITE_SWA = Family(
    model_type="granite_swa",
    architecture="GraniteSWAForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=decoder_entries,
)
