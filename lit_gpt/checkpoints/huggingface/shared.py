"""What the families of Llama's build share: keys of config.json, names of tensors, and what they cannot express.

Their names are nearly ours, and their RoPE pairs coordinates as ours does, so most weights are only renamed.
"""

from collections.abc import Callable
from typing import Any, Final

from lit_gpt.checkpoints.huggingface.family import Entry, demand, entry, expect, optional, required
from lit_gpt.checkpoints.huggingface.rope import longest_context, original_context, read_rope, write_rope
from lit_gpt.models import GPTConfig

ANY: Final = object()
"""In `demand_llama`: the family can express every value."""

PRE_NORMS = {"input_layernorm": "ln1", "post_attention_layernorm": "ln2"}
OUTPUT_NORMS = {"post_attention_layernorm": "ln1", "post_feedforward_layernorm": "ln2"}
SANDWICH_NORMS = {
    "input_layernorm": "ln1",
    "post_attention_layernorm": "ln1_out",
    "pre_feedforward_layernorm": "ln2",
    "post_feedforward_layernorm": "ln2_out",
}
"""Their norms of a layer → ours, by `norm_placement`."""

_LLAMA: dict[str, Any] = {
    "norm": "rmsnorm",
    "norm_offset": False,
    "norm_placement": "pre",
    "parallel_residual": False,
    "positions": "rope",
    "rope_fraction": 1.0,
    "rope_local_theta": None,
    "rope_layers": None,
    "mlp": "swiglu",
    "has_attention_bias": False,
    "has_attention_out_bias": False,
    "has_mlp_bias": False,
    "qk_norm": None,
    "attention_softcap": None,
    "attention_sinks": False,
    "mla": None,
    "moe": None,
    "sliding_window": None,
    "chunked_window": False,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
    "logit_scale": 1.0,
    "logit_softcap": None,
}


def demand_llama(config: GPTConfig, **differences: Any) -> None:
    """Refuse to export what is not Llama's build, but for the differences that the family has.

    Args:
        config: The model's shape, whose `family` is meant.
        **differences: Fields or properties with the value that the family needs, or `ANY`. `attention_scale=ANY` lets
            any scale of scores pass.

    Raises:
        UserError: Naming the first field that the family cannot express.
    """
    scale = differences.pop("attention_scale", None)
    needed = {name: value for name, value in (_LLAMA | differences).items() if value is not ANY}
    demand(config, config.family, **needed)
    if scale is None and config.mla is None and config.score_scale != config.head_dim**-0.5:
        demand(config, config.family, attention_scale=None)


def read_shared(values: dict[str, Any], default_theta: float = 10000.0) -> dict[str, Any]:
    """The fields of `GPTConfig` that Llama and its kin write alike."""
    expect(values, "hidden_act", "silu")
    return {
        **read_sizes(values),
        **read_rope(values, default_theta),
        "mlp": "swiglu",
        "attention_bias": optional(values, "attention_bias", False),
    }


def read_sizes(values: dict[str, Any]) -> dict[str, Any]:
    """The sizes among them, and what all of them have."""
    n_head, n_embd = required(values, "num_attention_heads"), required(values, "hidden_size")
    head_dim, kv_heads = values.get("head_dim"), values.get("num_key_value_heads")
    return {
        "n_layer": required(values, "num_hidden_layers"),
        "n_head": n_head,
        "n_kv_head": None if kv_heads == n_head else kv_heads,
        "n_embd": n_embd,
        "head_size": None if head_dim is None or head_dim * n_head == n_embd else head_dim,
        "block_size": longest_context(values),
        "vocab_size": required(values, "vocab_size"),
        "dropout": values.get("attention_dropout") or 0.0,
        "bias": False,
        "norm": "rmsnorm",
        "norm_eps": optional(values, "rms_norm_eps", 1e-6),
        "positions": "rope",
        "intermediate_size": required(values, "intermediate_size"),
        "tie_embeddings": optional(values, "tie_word_embeddings", False),
        "init_std": optional(values, "initializer_range", 0.02),
        "scale_residual_init": False,  # transformers draws all matrices with initializer_range alone
    }


def write_shared(config: GPTConfig, rope: dict[str, Any] | None = None) -> dict[str, Any]:
    """The inverse of `read_shared`; `rope`: the keys of RoPE, if the family has its own."""
    return {
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.num_kv_heads,
        "hidden_size": config.n_embd,
        "head_dim": config.head_dim,
        "max_position_embeddings": original_context(config),
        "attention_dropout": config.dropout,
        "rms_norm_eps": config.norm_eps,
        **(write_rope(config) if rope is None else rope),
        "hidden_act": "silu",
        "intermediate_size": config.mlp_size,
        "attention_bias": config.has_attention_bias,
    }


def decoder_entries(
    config: GPTConfig,
    norms: dict[str, str] = PRE_NORMS,
    attention: Callable[[GPTConfig, str, str], list[Entry]] | None = None,
    mlp: Callable[[GPTConfig, str, str], list[Entry]] | None = None,
) -> list[Entry]:
    """Every tensor of the checkpoint; a tied head has none of its own.

    Args:
        config: The model's shape.
        norms: Their norms of a layer → ours.
        attention: Entries of one layer's attention, from (config, "model.layers.0.", "blocks.0."); None = Llama's.
        mlp: Entries of one layer's MLP, likewise.
    """
    table = [entry("model.embed_tokens.weight", "wte.weight"), entry("model.norm.weight", "ln_f.weight")]
    for layer in range(config.n_layer):
        theirs, ours = f"model.layers.{layer}.", f"blocks.{layer}."
        table += [entry(f"{theirs}{a}.weight", f"{ours}{b}.weight") for a, b in norms.items()]
        table += (attention or attention_entries)(config, theirs, ours)
        table += (mlp or mlp_entries)(config, theirs, ours)
    if not config.tie_embeddings:
        table.append(entry("lm_head.weight", "lm_head.weight"))
    return table


def attention_entries(config: GPTConfig, theirs: str, ours: str) -> list[Entry]:
    """One layer's attention, name by name."""
    names = [f"{part}_proj.weight" for part in "qkvo"]
    names += [f"{part}_proj.bias" for part in "qkv" if config.has_attention_bias]
    names += ["o_proj.bias"] if config.has_attention_out_bias else []
    names += ["q_norm.weight", "k_norm.weight"] if config.qk_norm else []
    names += ["sinks"] if config.attention_sinks else []
    return [entry(f"{theirs}self_attn.{name}", f"{ours}attn.{name}") for name in names]


def mlp_entries(config: GPTConfig, theirs: str, ours: str) -> list[Entry]:
    """One layer's gated MLP, name by name."""
    kinds = ("weight", "bias") if config.has_mlp_bias else ("weight",)
    names = [f"{part}_proj.{kind}" for part in ("gate", "up", "down") for kind in kinds]
    return [entry(f"{theirs}mlp.{name}", f"{ours}mlp.{name}") for name in names]
