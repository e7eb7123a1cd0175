"""Phi-3, Phi-4 and Phi-4-mini as `transformers.Phi3ForCausalLM` stores them.

q, k and v are one matrix `qkv_proj`, in parts that grouped queries make unequal; gate and up are one, `gate_up_proj`.
"""

from typing import Any

from lit_gpt.checkpoints.huggingface.family import Entry, Family, entry, expect
from lit_gpt.checkpoints.huggingface.layers import read_layers
from lit_gpt.checkpoints.huggingface.layout import Split
from lit_gpt.checkpoints.huggingface.rope import FULL, SLIDING, read_rope
from lit_gpt.checkpoints.huggingface.shared import ANY, decoder_entries, demand_llama, read_sizes, write_shared
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`Phi3Config` → ours; of its three dropouts that of attention is taken."""
    expect(values, "hidden_act", "silu")
    values = {"original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5} | values
    for place in ("rope_parameters", "rope_scaling"):  # its class takes both older names for longrope
        parameters = values.get(place)
        if parameters and parameters.get("rope_type", parameters.get("type")) in ("su", "yarn"):
            values[place] = parameters | {"rope_type": "longrope"}
    fields = read_sizes(values)
    window = values.get("sliding_window")
    kind = FULL if window is None else SLIDING
    return GPTConfig(
        **fields,
        **read_rope(values, default_fraction=1.0),
        **read_layers([kind] * fields["n_layer"], window, fields["block_size"]),
        mlp="swiglu",
        attention_bias=False,
        family="phi3",
    )


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `Phi3Config`."""
    demand_llama(config, sliding_window=ANY, layer_windows=None, rope_fraction=ANY)
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind != "longrope":
        raise UserError(f"family 'phi3' cannot express rope_scaling of kind {scaling.kind!r} (only 'longrope')")
    written = write_shared(config)
    del written["attention_bias"]
    return {
        **written,
        "original_max_position_embeddings": 4096 if scaling is None else scaling.original_block_size,
        "sliding_window": config.sliding_window,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
    }


def _attention(config: GPTConfig, theirs: str, ours: str) -> list[Entry]:
    q, kv = config.n_head * config.head_dim, config.num_kv_heads * config.head_dim
    parts = [f"{ours}attn.{part}_proj.weight" for part in "qkv"]
    return [
        entry(f"{theirs}self_attn.qkv_proj.weight", parts, Split((q, kv, kv))),
        entry(f"{theirs}self_attn.o_proj.weight", f"{ours}attn.o_proj.weight"),
    ]


def _mlp(config: GPTConfig, theirs: str, ours: str) -> list[Entry]:
    parts = [f"{ours}mlp.{part}_proj.weight" for part in ("gate", "up")]
    return [
        entry(f"{theirs}mlp.gate_up_proj.weight", parts, Split((config.mlp_size, config.mlp_size))),
        entry(f"{theirs}mlp.down_proj.weight", f"{ours}mlp.down_proj.weight"),
    ]


def entries(config: GPTConfig) -> list[Entry]:
    """Every tensor of the checkpoint."""
    return decoder_entries(config, attention=_attention, mlp=_mlp)


PHI3 = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=entries,
)
