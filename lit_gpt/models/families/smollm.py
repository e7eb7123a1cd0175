"""SmolLM2 (arXiv:2502.02737) and SmolLM3, as `transformers` stores them.

SmolLM2 is the Llama architecture with tied embeddings and uses the `llama` family. SmolLM3 uses no RoPE in some layers
(arXiv:2501.18795); despite its name, `no_rope_layers` in config.json is 1 for the layers that do use RoPE.

Presets are from the `config.json` of huggingface.co/HuggingFaceTB. SmolLM3 uses no RoPE in every fourth layer (NoPE);
its RoPE base of 5 million is from the last stage of training, which extended the context from 32768 to 65536 tokens.
"""

from dataclasses import replace
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.families.config_json import (
    FULL,
    SLIDING,
    flag,
    integer,
    optional,
    read_layers,
    shortest_pattern,
    write_layers,
)
from lit_gpt.models.families.decoder import decoder_entries, read_shared, require_llama, write_shared
from lit_gpt.models.families.family import ANY, Family, GGUFArchitecture


def read_config(values: dict[str, Any]) -> GPTConfig:
    """Convert a `SmolLM3Config` to a `GPTConfig`.

    Raises:
        UserError: `no_rope_layers` is not a list of 0 and 1.
    """
    values = {"num_key_value_heads": 4, "tie_word_embeddings": True} | values
    fields = read_shared(values, default_theta=2_000_000.0)
    n_layer, every = fields["n_layer"], integer(values, "no_rope_layer_interval", 4, least=1)
    no_rope_layers = values.get("no_rope_layers")
    if not all(type(value) in (int, bool) for value in no_rope_layers or ()):
        raise UserError(
            f"config.json has no_rope_layers: {no_rope_layers!r}, it must be a list of 0 and 1, one per layer"
        )
    if no_rope_layers is None:
        rotates = [bool((layer + 1) % every) for layer in range(n_layer)]
    else:
        rotates = [bool(value) for value in no_rope_layers]
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
    """Convert a `GPTConfig` to a `SmolLM3Config`."""
    require_llama(
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
    name="smollm3",
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    read_config=read_config,
    write_config=write_config,
    entries=decoder_entries,
    gguf=GGUFArchitecture("smollm3", interleaved=True, demands={"has_mlp_bias": False}, unrotated_every=4),
)


_SMOLLM2 = GPTConfig(
    vocab_size=49152,
    block_size=8192,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-5,
    positions="rope",
    rope_theta=100000.0,
    mlp="swiglu",
    tie_embeddings=True,
    scale_residual_init=False,
    family="llama",
)

PRESETS: dict[str, GPTConfig] = {
    "smollm2-135m": replace(
        _SMOLLM2, n_layer=30, n_head=9, n_kv_head=3, n_embd=576, intermediate_size=1536, init_std=0.041666666666666664
    ),
    "smollm2-360m": replace(_SMOLLM2, n_layer=32, n_head=15, n_kv_head=5, n_embd=960, intermediate_size=2560),
    "smollm2-1.7b": replace(
        _SMOLLM2, n_layer=24, n_head=32, n_kv_head=32, n_embd=2048, intermediate_size=8192, rope_theta=130000.0
    ),
    "smollm3-3b": replace(
        _SMOLLM2,
        n_layer=36,
        n_head=16,
        n_kv_head=4,
        n_embd=2048,
        intermediate_size=11008,
        vocab_size=128256,
        block_size=65536,
        norm_eps=1e-6,
        rope_theta=5_000_000.0,
        rope_layers=(True, True, True, False),
        family="smollm3",
    ),
}

# Sizes on huggingface.co/HuggingFaceTB.
PUBLISHED: dict[str, int] = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
}


FAMILIES = (SMOLLM3,)
