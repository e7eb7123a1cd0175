"""GPT-2 as `transformers.GPT2LMHeadModel` stores it.

Its linear layers are Conv1D: weights (inputs, outputs), so each matrix is transposed; and q, k and v are one matrix
`c_attn`, which is split in three.
"""

from typing import Any

from lit_gpt.checkpoints.huggingface.family import Entry, Family, demand, expect, required
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig
from lit_gpt.models.config import Activation

# "gelu_new", "gelu_fast" and "gelu_pytorch_tanh" are one function, written in three ways.
_READ: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu2": "relu2",
}
_WRITE = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu2": "relu2"}


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`GPT2Config` → ours; of its three dropouts the residual one is taken."""
    expect(values, "scale_attn_weights", True)
    expect(values, "scale_attn_by_inverse_layer_idx", False)
    expect(values, "add_cross_attention", False)
    activation = values.get("activation_function", "gelu_new")
    if activation not in _READ:
        raise UserError(f"activation_function {activation!r} is not one of {', '.join(_READ)}")
    return GPTConfig(
        n_layer=required(values, "n_layer"),
        n_head=required(values, "n_head"),
        n_embd=required(values, "n_embd"),
        block_size=required(values, "n_positions"),
        vocab_size=required(values, "vocab_size"),
        dropout=values.get("resid_pdrop", 0.1),
        norm_eps=values.get("layer_norm_epsilon", 1e-5),
        mlp=_READ[activation],
        intermediate_size=values.get("n_inner"),
        tie_embeddings=values.get("tie_word_embeddings", True),
        init_std=values.get("initializer_range", 0.02),
        family="gpt2",
    )


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `GPT2Config`."""
    demand(config, "gpt2", positions="learned", norm="layernorm", qk_norm=False, sliding_window=None)
    demand(config, "gpt2", num_kv_heads=config.n_head, bias=True, has_attention_bias=True, has_mlp_bias=True)
    if config.head_dim * config.n_head != config.n_embd or config.mlp not in _WRITE:
        raise UserError(
            f"family 'gpt2' needs n_head * head_size = n_embd and an mlp of {', '.join(_WRITE)}; got "
            f"{config.n_head} * {config.head_dim}, {config.n_embd} and {config.mlp}"
        )
    return {
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_positions": config.block_size,
        "n_inner": config.intermediate_size,
        "activation_function": _WRITE[config.mlp],
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": config.norm_eps,
    }


def entries(config: GPTConfig) -> list[Entry]:
    """Every tensor of the checkpoint; a tied head has none of its own."""
    table = [Entry("transformer.wte.weight", ("wte.weight",)), Entry("transformer.wpe.weight", ("wpe.weight",))]
    for layer in range(config.n_layer):
        theirs, ours = f"transformer.h.{layer}.", f"blocks.{layer}."
        for kind in ("weight", "bias"):
            matrix = kind == "weight"
            qkv = tuple(f"{ours}attn.{part}_proj.{kind}" for part in "qkv")
            table += [
                Entry(f"{theirs}ln_1.{kind}", (f"{ours}ln1.{kind}",)),
                Entry(f"{theirs}attn.c_attn.{kind}", qkv, transposed=matrix),
                Entry(f"{theirs}attn.c_proj.{kind}", (f"{ours}attn.o_proj.{kind}",), transposed=matrix),
                Entry(f"{theirs}ln_2.{kind}", (f"{ours}ln2.{kind}",)),
                Entry(f"{theirs}mlp.c_fc.{kind}", (f"{ours}mlp.up_proj.{kind}",), transposed=matrix),
                Entry(f"{theirs}mlp.c_proj.{kind}", (f"{ours}mlp.down_proj.{kind}",), transposed=matrix),
            ]
    table += [Entry(f"transformer.ln_f.{kind}", (f"ln_f.{kind}",)) for kind in ("weight", "bias")]
    if not config.tie_embeddings:
        table.append(Entry("lm_head.weight", ("lm_head.weight",)))
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
