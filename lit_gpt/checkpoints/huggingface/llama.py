"""Llama as `transformers.LlamaForCausalLM` stores it, and what every family of its build shares with it.

Its names are nearly ours, and its RoPE pairs coordinates as ours does, so weights are only renamed.
"""

from typing import Any

from lit_gpt.checkpoints.huggingface.family import Entry, Family, demand, expect, required
from lit_gpt.checkpoints.huggingface.rope import read_rope, write_rope
from lit_gpt.models import GPTConfig


def read_shared(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of `GPTConfig` that Llama and its kin write alike."""
    expect(values, "hidden_act", "silu")
    return {
        "n_layer": required(values, "num_hidden_layers"),
        "n_head": required(values, "num_attention_heads"),
        "n_kv_head": values.get("num_key_value_heads"),
        "n_embd": required(values, "hidden_size"),
        "head_size": values.get("head_dim"),
        "block_size": required(values, "max_position_embeddings"),
        "vocab_size": required(values, "vocab_size"),
        "dropout": values.get("attention_dropout", 0.0),
        "bias": False,
        "norm": "rmsnorm",
        "norm_eps": values.get("rms_norm_eps", 1e-6),
        "positions": "rope",
        **read_rope(values),
        "mlp": "swiglu",
        "intermediate_size": required(values, "intermediate_size"),
        "attention_bias": values.get("attention_bias", False),
        "tie_embeddings": values.get("tie_word_embeddings", False),
        "init_std": values.get("initializer_range", 0.02),
    }


def write_shared(config: GPTConfig) -> dict[str, Any]:
    """The inverse of `read_shared`."""
    demand(config, config.family, positions="rope", norm="rmsnorm", mlp="swiglu")
    return {
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.num_kv_heads,
        "hidden_size": config.n_embd,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.block_size,
        "attention_dropout": config.dropout,
        "rms_norm_eps": config.norm_eps,
        **write_rope(config),
        "hidden_act": "silu",
        "intermediate_size": config.mlp_size,
        "attention_bias": config.has_attention_bias,
    }


def entries(config: GPTConfig) -> list[Entry]:
    """Every tensor of the checkpoint; a tied head has none of its own."""
    table = [Entry("model.embed_tokens.weight", ("wte.weight",)), Entry("model.norm.weight", ("ln_f.weight",))]
    attention = [f"{part}_proj" for part in "qkvo"]
    mlp = [f"{part}_proj" for part in ("gate", "up", "down")]
    names = {"input_layernorm.weight": "ln1.weight", "post_attention_layernorm.weight": "ln2.weight"}
    names |= {f"self_attn.{name}.weight": f"attn.{name}.weight" for name in attention}
    names |= {f"mlp.{name}.weight": f"mlp.{name}.weight" for name in mlp}
    if config.has_attention_bias:
        names |= {f"self_attn.{name}.bias": f"attn.{name}.bias" for name in attention}
    if config.has_mlp_bias:
        names |= {f"mlp.{name}.bias": f"mlp.{name}.bias" for name in mlp}
    if config.qk_norm:
        names |= {f"self_attn.{name}.weight": f"attn.{name}.weight" for name in ("q_norm", "k_norm")}
    for layer in range(config.n_layer):
        table += [Entry(f"model.layers.{layer}.{a}", (f"blocks.{layer}.{b}",)) for a, b in names.items()]
    if not config.tie_embeddings:
        table.append(Entry("lm_head.weight", ("lm_head.weight",)))
    return table


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`LlamaConfig` → ours."""
    return GPTConfig(**read_shared(values), mlp_bias=values.get("mlp_bias", False), family="llama")


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `LlamaConfig`."""
    demand(config, "llama", qk_norm=False, sliding_window=None)
    return {**write_shared(config), "mlp_bias": config.has_mlp_bias}


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=entries,
    buffers=(".rotary_emb.inv_freq",),  # files before 2023 carry it
)
