"""An architecture of somebody else's: config mapping, weight table and presets, registered without editing lit_gpt.

A small Llama with names of its own, whose files store q, k and v of a layer as one matrix (inputs, outputs). The package
declares this module as an entry point of the group `lit_gpt.extensions`.
"""

from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig
from lit_gpt.models.families import Family, register_family, register_presets
from lit_gpt.models.families.weights import Entry, Interleave, Split, Transpose, entry


def read_config(values: dict[str, Any]) -> GPTConfig:
    """Turn config.json into a `GPTConfig`."""
    return GPTConfig(
        n_layer=values["depth"],
        n_head=values["heads"],
        n_kv_head=values["kv_heads"],
        n_embd=values["width"],
        intermediate_size=values["hidden"],
        block_size=values["context"],
        vocab_size=values["vocab_size"],
        bias=False,
        norm="rmsnorm",
        norm_eps=values["eps"],
        positions="rope",
        rope_theta=values["theta"],
        mlp="swiglu",
        tie_embeddings=values["tie_word_embeddings"],
        scale_residual_init=False,
        family="acme",
    )


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Turn a `GPTConfig` into config.json."""
    if (config.norm, config.positions, config.mlp, config.bias) != ("rmsnorm", "rope", "swiglu", False):
        raise UserError("family 'acme' has rmsnorm, rope, swiglu and no biases; set `family` to another")
    return {
        "depth": config.n_layer,
        "heads": config.n_head,
        "kv_heads": config.num_kv_heads,
        "width": config.n_embd,
        "hidden": config.mlp_size,
        "context": config.block_size,
        "eps": config.norm_eps,
        "theta": config.rope_theta,
    }


def entries(config: GPTConfig) -> list[Entry]:
    """Return every tensor of the checkpoint."""
    q, kv = config.n_head * config.head_dim, config.num_kv_heads * config.head_dim
    table = [entry("tokens.weight", "wte.weight"), entry("norm.gain", "ln_f.weight")]
    for layer in range(config.n_layer):
        file, local = f"layers.{layer}.", f"blocks.{layer}."
        qkv = [f"{local}attn.{part}_proj.weight" for part in "qkv"]
        gated = [f"{local}mlp.{part}_proj.weight" for part in ("gate", "up")]
        table += [
            entry(f"{file}norm1.gain", f"{local}ln1.weight"),
            entry(f"{file}norm2.gain", f"{local}ln2.weight"),
            entry(f"{file}qkv.weight", qkv, Transpose(), Split((q, kv, kv))),
            entry(f"{file}out.weight", f"{local}attn.o_proj.weight", Transpose()),
            entry(f"{file}gate_up.weight", gated, Interleave(2)),
            entry(f"{file}down.weight", f"{local}mlp.down_proj.weight"),
        ]
    return table if config.tie_embeddings else [*table, entry("head.weight", "lm_head.weight")]


register_family(
    Family(
        name="acme",
        model_type="acme_lm",
        architecture="AcmeForCausalLM",
        read_config=read_config,
        write_config=write_config,
        entries=entries,
        base_prefix="",
        head="head.weight",
    )
)
_TINY = GPTConfig(
    n_layer=2,
    n_head=4,
    n_kv_head=2,
    n_embd=32,
    intermediate_size=48,
    block_size=64,
    vocab_size=300,
    bias=False,
    norm="rmsnorm",
    positions="rope",
    mlp="swiglu",
    scale_residual_init=False,
    family="acme",
)
register_presets({"acme-tiny": _TINY, "acme-tiny-untied": _TINY.overridden({"tie_embeddings": False})})
