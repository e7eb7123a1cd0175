"""SmolLM3 as `transformers.SmolLM3ForCausalLM` stores it: Llama with layers that do not rotate (`no_rope_layers`)."""

from typing import Any

from lit_gpt.checkpoints.huggingface.family import Family, flag, optional, whole
from lit_gpt.checkpoints.huggingface.layers import read_layers, shortest_pattern, write_layers
from lit_gpt.checkpoints.huggingface.rope import FULL, SLIDING
from lit_gpt.checkpoints.huggingface.shared import ANY, decoder_entries, demand_llama, read_shared, write_shared
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`SmolLM3Config` → ours."""
    values = {"num_key_value_heads": 4, "tie_word_embeddings": True} | values
    fields = read_shared(values, default_theta=2_000_000.0)
    n_layer, every = fields["n_layer"], whole(values, "no_rope_layer_interval", 4, least=1)
    flags = values.get("no_rope_layers")  # despite the name: 1 where a layer rotates
    rotates = [bool((layer + 1) % every) for layer in range(n_layer)] if flags is None else [bool(f) for f in flags]
    if not all(type(f) in (int, bool) for f in flags or ()):
        raise UserError(f"config.json has no_rope_layers: {flags!r}, it must be a list of 0 and 1, one for each layer")
    rotates = rotates[:n_layer]
    window = values.get("sliding_window") if flag(values, "use_sliding_window", False) else None
    types = values.get("layer_types") or [FULL if rotating else SLIDING for rotating in rotates]
    return GPTConfig(
        **fields,
        **read_layers(types, window, fields["block_size"]),
        rope_layers=None if all(rotates) else shortest_pattern(rotates),
        mlp_bias=optional(values, "mlp_bias", False),
        family="smollm3",
    )


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `SmolLM3Config`."""
    demand_llama(
        config,
        rope_layers=ANY,
        sliding_window=ANY,
        has_attention_bias=ANY,
        has_attention_out_bias=config.has_attention_bias,
        has_mlp_bias=ANY,
    )
    return {
        **write_shared(config),
        **write_layers(config),
        "use_sliding_window": config.sliding_window is not None,
        "no_rope_layers": [int(config.rotates(layer)) for layer in range(config.n_layer)],
        "mlp_bias": config.has_mlp_bias,
    }


SMOLLM3 = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=decoder_entries,
)
