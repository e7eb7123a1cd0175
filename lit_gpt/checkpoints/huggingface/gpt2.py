"""GPT-2 as `transformers.GPT2LMHeadModel` stores it.

Its linear layers are Conv1D: weights (inputs, outputs), so each matrix is transposed; and q, k and v are one matrix
`c_attn`, which is split in three.
"""

from typing import Any

from lit_gpt.checkpoints.huggingface.activations import read_activation, write_activation
from lit_gpt.checkpoints.huggingface.family import Entry, Family, demand, entry, expect, optional, required
from lit_gpt.checkpoints.huggingface.layout import Split, Transpose
from lit_gpt.checkpoints.huggingface.shared import demand_llama
from lit_gpt.models import GPTConfig


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`GPT2Config` → ours; of its three dropouts the residual one is taken."""
    expect(values, "scale_attn_weights", True)
    expect(values, "scale_attn_by_inverse_layer_idx", False)
    expect(values, "add_cross_attention", False)
    return GPTConfig(
        n_layer=required(values, "n_layer"),
        n_head=required(values, "n_head"),
        n_embd=required(values, "n_embd"),
        block_size=required(values, "n_positions"),
        vocab_size=required(values, "vocab_size"),
        dropout=optional(values, "resid_pdrop", 0.1),
        norm_eps=optional(values, "layer_norm_epsilon", 1e-5),
        mlp=read_activation("activation_function", optional(values, "activation_function", "gelu_new")),
        intermediate_size=values.get("n_inner"),
        tie_embeddings=optional(values, "tie_word_embeddings", True),
        init_std=optional(values, "initializer_range", 0.02),
        family="gpt2",
    )


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `GPT2Config`."""
    demand_llama(
        config,
        norm="layernorm",
        bias=True,
        positions="learned",
        rope_fraction=config.rope_fraction,
        mlp=config.mlp,
        has_attention_bias=True,
        has_attention_out_bias=True,
        has_mlp_bias=True,
        num_kv_heads=config.n_head,
    )
    if config.head_dim * config.n_head != config.n_embd:
        demand(config, "gpt2", head_size=None)
    return {
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_positions": config.block_size,
        "n_inner": config.intermediate_size,
        "activation_function": write_activation("gpt2", config.mlp),
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": config.norm_eps,
    }


def entries(config: GPTConfig) -> list[Entry]:
    """Every tensor of the checkpoint; a tied head has none of its own."""
    C = config.n_embd
    names = {"ln_1": "ln1", "attn.c_proj": "attn.o_proj", "ln_2": "ln2", "mlp.c_fc": "mlp.up_proj"}
    names["mlp.c_proj"] = "mlp.down_proj"
    table = [entry("transformer.wte.weight", "wte.weight"), entry("transformer.wpe.weight", "wpe.weight")]
    for layer in range(config.n_layer):
        theirs, ours = f"transformer.h.{layer}.", f"blocks.{layer}."
        for kind in ("weight", "bias"):
            transposed = (Transpose(),) if kind == "weight" else ()
            qkv = [f"{ours}attn.{part}_proj.{kind}" for part in "qkv"]
            table.append(entry(f"{theirs}attn.c_attn.{kind}", qkv, *transposed, Split((C, C, C))))
            for a, b in names.items():
                steps = () if a.startswith("ln_") else transposed
                table.append(entry(f"{theirs}{a}.{kind}", f"{ours}{b}.{kind}", *steps))
    table += [entry(f"transformer.ln_f.{kind}", f"ln_f.{kind}") for kind in ("weight", "bias")]
    if not config.tie_embeddings:
        table.append(entry("lm_head.weight", "lm_head.weight"))
    return table


GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    base_prefix="transformer.",
    read_config=read_config,
    write_config=write_config,
    entries=entries,
    buffers=(".attn.bias", ".attn.masked_bias"),  # the causal mask, which files before 2023 carry
)
