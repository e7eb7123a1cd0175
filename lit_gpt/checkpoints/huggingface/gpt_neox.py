"""GPT-NeoX and Pythia as `transformers.GPTNeoXForCausalLM` stores them.

q, k and v are one matrix `query_key_value`, dealt out by head: rows (H, 3, D).
"""

from typing import Any

from lit_gpt.checkpoints.huggingface.activations import read_activation, write_activation
from lit_gpt.checkpoints.huggingface.family import Entry, Family, demand, entry, flag, optional, required
from lit_gpt.checkpoints.huggingface.layout import Interleave
from lit_gpt.checkpoints.huggingface.rope import longest_context, original_context, read_rope, write_rope
from lit_gpt.checkpoints.huggingface.shared import demand_llama
from lit_gpt.models import GPTConfig


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`GPTNeoXConfig` → ours; of its two dropouts the hidden one is taken."""
    return GPTConfig(
        n_layer=required(values, "num_hidden_layers"),
        n_head=required(values, "num_attention_heads"),
        n_embd=required(values, "hidden_size"),
        block_size=longest_context(values),
        vocab_size=required(values, "vocab_size"),
        dropout=optional(values, "hidden_dropout", 0.0),
        attention_bias=None if flag(values, "attention_bias", True) else False,
        norm_eps=optional(values, "layer_norm_eps", 1e-5),
        parallel_residual=optional(values, "use_parallel_residual", True),
        positions="rope",
        **read_rope(values, optional(values, "rotary_emb_base", 10000.0), optional(values, "rotary_pct", 0.25)),
        mlp=read_activation("hidden_act", optional(values, "hidden_act", "gelu")),
        intermediate_size=required(values, "intermediate_size"),
        tie_embeddings=optional(values, "tie_word_embeddings", False),
        init_std=optional(values, "initializer_range", 0.02),
        scale_residual_init=False,
        family="gpt_neox",
    )


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `GPTNeoXConfig`."""
    bias = config.has_attention_bias
    demand_llama(
        config,
        norm="layernorm",
        bias=True,
        parallel_residual=config.parallel_residual,
        rope_fraction=config.rope_fraction,
        mlp=config.mlp,
        has_attention_bias=bias,
        has_attention_out_bias=bias,
        has_mlp_bias=True,
        num_kv_heads=config.n_head,
    )
    if config.head_dim * config.n_head != config.n_embd:
        demand(config, "gpt_neox", head_size=None)
    rope = write_rope(config)
    fraction = {"partial_rotary_factor": config.rope_fraction}  # its class would take 0.25 for granted
    return {
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "hidden_size": config.n_embd,
        "intermediate_size": config.mlp_size,
        "max_position_embeddings": original_context(config),
        "hidden_dropout": config.dropout,
        "attention_dropout": config.dropout,
        "attention_bias": bias,
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.parallel_residual,
        "hidden_act": write_activation("gpt_neox", config.mlp),
        "rope_parameters": rope["rope_parameters"] | fraction,
        "rope_scaling": rope["rope_scaling"] and rope["rope_scaling"] | fraction,
        "rotary_emb_base": config.rope_theta,
        "rotary_pct": config.rope_fraction,
    }


def entries(config: GPTConfig) -> list[Entry]:
    """Every tensor of the checkpoint; a tied head has none of its own."""
    names = {
        "input_layernorm": "ln1",
        "post_attention_layernorm": "ln2",
        "attention.dense": "attn.o_proj",
        "mlp.dense_h_to_4h": "mlp.up_proj",
        "mlp.dense_4h_to_h": "mlp.down_proj",
    }
    table = [entry("gpt_neox.embed_in.weight", "wte.weight")]
    for layer in range(config.n_layer):
        theirs, ours = f"gpt_neox.layers.{layer}.", f"blocks.{layer}."
        for kind in ("weight", "bias"):
            biased = kind == "weight" or config.has_attention_bias
            table += [
                entry(f"{theirs}{a}.{kind}", f"{ours}{b}.{kind}")
                for a, b in names.items()
                if biased or not a.startswith("attention")
            ]
            if biased:
                qkv = [f"{ours}attn.{part}_proj.{kind}" for part in "qkv"]
                table.append(entry(f"{theirs}attention.query_key_value.{kind}", qkv, Interleave(3, config.head_dim)))
    table += [entry(f"gpt_neox.final_layer_norm.{kind}", f"ln_f.{kind}") for kind in ("weight", "bias")]
    if not config.tie_embeddings:
        table.append(entry("embed_out.weight", "lm_head.weight"))
    return table


GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    base_prefix="gpt_neox.",
    read_config=read_config,
    write_config=write_config,
    entries=entries,
    head="embed_out.weight",
    renamed=(("lm_head.", "embed_out."),),  # today's name in transformers; on disk it is the older one
    buffers=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),  # files before 2023
)
