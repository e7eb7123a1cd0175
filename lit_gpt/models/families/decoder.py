"""The Llama-style decoder that most families share: config.json's keys, tensor names, and mixtures of experts.

Tensor names are close to ours and RoPE pairs coordinates in the same way, so most weights are only renamed. On the Hub
each expert is a separate tensor; here, and in transformers' memory, the experts of a layer are stacked.
"""

from collections.abc import Callable
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.models.config import GPTConfig, MoEConfig
from lit_gpt.models.families.config_json import (
    expect,
    longest_context,
    optional,
    original_context,
    read_rope,
    require_values,
    required,
    write_rope,
)
from lit_gpt.models.families.family import ANY
from lit_gpt.models.families.weights import Entry, Stack, entry

LayerEntries = Callable[[GPTConfig, str, str], list[Entry]]
"""Entries of one part of a layer, from (config, "model.layers.0.", "blocks.0.")."""

PRE_NORMS = {"input_layernorm": "ln1", "post_attention_layernorm": "ln2"}
OUTPUT_NORMS = {"post_attention_layernorm": "ln1", "post_feedforward_layernorm": "ln2"}
SANDWICH_NORMS = {
    "input_layernorm": "ln1",
    "post_attention_layernorm": "ln1_out",
    "pre_feedforward_layernorm": "ln2",
    "post_feedforward_layernorm": "ln2_out",
}
"""The norms of a layer, as {name in files: local name}, by `norm_placement`."""

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
_PLAIN_MIXTURE: dict[str, Any] = {
    "shared_intermediate_size": 0,
    "scores": "softmax",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "router_bias": False,
    "selection_bias": False,
}


def require_llama(config: GPTConfig, **differences: Any) -> None:
    """Raise unless a config equals the Llama architecture, except for the family's differences.

    Args:
        config: The model's architecture; its `family` is named in errors.
        **differences: Fields or properties with the value that the family requires, or `ANY`. For example,
            `attention_scale=ANY` accepts any scale of the scores.

    Raises:
        UserError: With the first field that the family cannot express.
    """
    scale = differences.pop("attention_scale", None)
    needed = {name: value for name, value in (_LLAMA | differences).items() if value is not ANY}
    require_values(config, **needed)
    if "layer_windows" in needed and len({config.window(layer) for layer in range(config.n_layer)}) > 1:
        require_values(config, layer_types=None)  # the alternative to layer_windows
    if scale is None and config.mla is None and config.score_scale != config.head_dim**-0.5:
        require_values(config, attention_scale=None)


def read_shared(values: dict[str, Any], default_theta: float = 10000.0) -> dict[str, Any]:
    """Return the fields of `GPTConfig` that Llama and most other families store in the same way."""
    expect(values, "hidden_act", "silu")
    return {
        **read_sizes(values),
        **read_rope(values, default_theta),
        "mlp": "swiglu",
        "attention_bias": optional(values, "attention_bias", False),
    }


def read_sizes(values: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes among these fields, and the settings that all of these families share."""
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
        "scale_residual_init": False,  # transformers initializes all matrices with initializer_range
    }


def write_shared(config: GPTConfig, rope: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return config.json's keys; the inverse of `read_shared`.

    Args:
        config: The model's architecture.
        rope: RoPE's keys, if they differ from the shared form.
    """
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
    attention: LayerEntries | None = None,
    mlp: LayerEntries | None = None,
) -> list[Entry]:
    """Return the entries of all tensors of the checkpoint; a tied head has no entry.

    Args:
        config: The model's architecture.
        norms: The norms of a layer, as {name in files: local name}.
        attention: Entries of one layer's attention; None: Llama's.
        mlp: Entries of one layer's MLP or mixture of experts; None: Llama's gated MLP.
    """
    table = [entry("model.embed_tokens.weight", "wte.weight"), entry("model.norm.weight", "ln_f.weight")]
    for layer in range(config.n_layer):
        hf, local = f"model.layers.{layer}.", f"blocks.{layer}."
        table += [entry(f"{hf}{a}.weight", f"{local}{b}.weight") for a, b in norms.items()]
        table += (attention or attention_entries)(config, hf, local)
        table += (mlp or mlp_entries)(config, hf, local)
    if not config.tie_embeddings:
        table.append(entry("lm_head.weight", "lm_head.weight"))
    return table


def attention_entries(config: GPTConfig, hf: str, local: str) -> list[Entry]:
    """Return the entries of one layer's attention, which is only renamed."""
    names = [f"{part}_proj.weight" for part in "qkvo"]
    names += [f"{part}_proj.bias" for part in "qkv" if config.has_attention_bias]
    names += ["o_proj.bias"] if config.has_attention_out_bias else []
    names += ["q_norm.weight", "k_norm.weight"] if config.qk_norm else []
    names += ["sinks"] if config.attention_sinks else []
    return [entry(f"{hf}self_attn.{name}", f"{local}attn.{name}") for name in names]


def mlp_entries(config: GPTConfig, hf: str, local: str) -> list[Entry]:
    """Return the entries of one layer's gated MLP, which is only renamed."""
    kinds = ("weight", "bias") if config.has_mlp_bias else ("weight",)
    names = [f"{part}_proj.{kind}" for part in ("gate", "up", "down") for kind in kinds]
    return [entry(f"{hf}mlp.{name}", f"{local}mlp.{name}") for name in names]


def require_moe(
    config: GPTConfig, all_layers: bool = False, uniform_width: bool = False, **differences: Any
) -> MoEConfig:
    """Return the `moe` of a config, or raise if its family cannot express it.

    Args:
        config: The model's architecture; its `family` is named in errors.
        all_layers: Whether all layers must be mixtures of experts.
        uniform_width: Whether the experts' width must equal `intermediate_size`.
        **differences: Fields of `moe` with the value that the family requires, or `ANY`, if it differs from the
            default: a softmax over the chosen experts.

    Raises:
        UserError: For the first field that the family cannot express.
    """
    family, moe = config.family, config.moe
    if moe is None:
        raise UserError(f"family {family!r} is a mixture of experts, but moe is null; set `family` to a dense one")
    for name, value in (_PLAIN_MIXTURE | differences).items():
        if value is not ANY and getattr(moe, name) != value:
            raise UserError(
                f"family {family!r} cannot express moe.{name} {getattr(moe, name)!r} (only {value!r}); "
                "set `family` to one that can, or train with that value"
            )
    if all_layers and not all(config.is_moe(layer) for layer in range(config.n_layer)):
        raise UserError(f"family {family!r} has experts in every layer, but moe.layers is {moe.layers}")
    if uniform_width and config.expert_size != config.mlp_size:
        raise UserError(
            f"family {family!r} has a single width: moe.intermediate_size {config.expert_size} must be "
            "intermediate_size "
            f"{config.mlp_size}"
        )
    return moe


def read_balance(values: dict[str, Any], key: str = "aux_loss_alpha") -> dict[str, Any]:
    """Return the fields of `MoEConfig` that balance the experts' load in training.

    Args:
        values: Content of config.json.
        key: The family's key of the balance loss's weight. The loss of `router_aux_loss_coef` is k (experts per token)
            when balanced and averaged over the layers; ours is 1 when balanced and summed over the layers.
    """
    weight = values.get(key) or 0.0
    if key == "router_aux_loss_coef":
        weight = weight * values["num_experts_per_tok"] / values["num_hidden_layers"]
    return {
        "balance_loss_weight": weight,
        "z_loss_weight": values.get("router_z_loss_coef") or 0.0,
        "bias_update_rate": values.get("bias_update_speed") or 0.0,
    }


def write_balance(config: GPTConfig, key: str = "aux_loss_alpha") -> dict[str, Any]:
    """Return the inverse of `read_balance`; transformers only reads `router_aux_loss_coef` and keeps the others."""
    moe = config.moe
    assert moe is not None
    weight = moe.balance_loss_weight
    if key == "router_aux_loss_coef":
        weight = float(
            f"{weight * config.n_layer / moe.num_experts_per_tok:.12g}"
        )  # the original value: 12 digits hide the rounding of the division
    rest = {"router_z_loss_coef": moe.z_loss_weight, "bias_update_speed": moe.bias_update_rate}
    return {key: weight} | {name: value for name, value in rest.items() if value}


def moe_or_mlp(mixture: LayerEntries) -> LayerEntries:
    """Return the mixture's entries for mixture-of-experts layers and the gated MLP's entries for the others."""

    def entries(config: GPTConfig, hf: str, local: str) -> list[Entry]:
        layer = int(local.split(".")[1])
        return mixture(config, hf, local) if config.is_moe(layer) else mlp_entries(config, hf, local)

    return entries


def expert_entries(config: GPTConfig, hf: str, local: str, names: dict[str, str] | None = None) -> list[Entry]:
    """Return the entries of one layer's experts, each of which is a separate tensor in files.

    Args:
        config: The model's architecture.
        hf: Prefix up to the expert's index: "model.layers.0.mlp.experts.".
        local: Prefix up to the stack's name: "blocks.0.mlp.experts.".
        names: Projections as {name in files: local name}, such as {"w1": "gate_proj"}.
    """
    assert config.moe is not None
    names = names or {name: name for name in ("gate_proj", "up_proj", "down_proj")}
    numbers = range(config.moe.num_experts)
    return [
        entry([f"{hf}{number}.{name}.weight" for number in numbers], f"{local}{stack}", Stack())
        for name, stack in names.items()
    ]
