"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"), as `transformers` stores it.

Its linear layers are Conv1D, with weights (inputs, outputs), so each matrix is transposed; q, k and v are one matrix
`c_attn`, which is split into three.

Presets are from table 2, the released `hparams.json` and the `config.json` of huggingface.co/openai-community:
vocabulary 50257, context 1024, LayerNorm eps 1e-5, GELU with tanh, biases, tied head. Dropout is 0 instead of 0.1: a
corpus seen about once needs none (as in nanoGPT's reproduction). Initialization: section 2.3 of the paper.
"""

from dataclasses import replace
from typing import Any

from lit_gpt.models.config import GPTConfig
from lit_gpt.models.families.config_json import (
    expect,
    optional,
    read_activation,
    require_values,
    required,
    write_activation,
)
from lit_gpt.models.families.decoder import require_llama
from lit_gpt.models.families.family import ANY, Family, GGUFArchitecture
from lit_gpt.models.families.weights import Entry, Split, Transpose, entry


def read_config(values: dict[str, Any]) -> GPTConfig:
    """Convert a `GPT2Config` to a `GPTConfig`; of its three dropouts the residual one is used."""
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
    """Convert a `GPTConfig` to a `GPT2Config`."""
    require_llama(
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
        require_values(config, head_size=None)
    return {
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_positions": config.block_size,
        "n_inner": config.intermediate_size,
        "activation_function": write_activation(config),
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": config.norm_eps,
    }


def entries(config: GPTConfig) -> list[Entry]:
    """Return the weight table: all tensors of the checkpoint; a tied head has no entry."""
    C = config.n_embd
    names = {"ln_1": "ln1", "attn.c_proj": "attn.o_proj", "ln_2": "ln2", "mlp.c_fc": "mlp.up_proj"}
    names["mlp.c_proj"] = "mlp.down_proj"
    table = [entry("transformer.wte.weight", "wte.weight"), entry("transformer.wpe.weight", "wpe.weight")]
    for layer in range(config.n_layer):
        hf, local = f"transformer.h.{layer}.", f"blocks.{layer}."
        for kind in ("weight", "bias"):
            transposed = (Transpose(),) if kind == "weight" else ()
            qkv = [f"{local}attn.{part}_proj.{kind}" for part in "qkv"]
            table.append(entry(f"{hf}attn.c_attn.{kind}", qkv, *transposed, Split((C, C, C))))
            for a, b in names.items():
                steps = () if a.startswith("ln_") else transposed
                table.append(entry(f"{hf}{a}.{kind}", f"{local}{b}.{kind}", *steps))
    table += [entry(f"transformer.ln_f.{kind}", f"ln_f.{kind}") for kind in ("weight", "bias")]
    if not config.tie_embeddings:
        table.append(entry("lm_head.weight", "lm_head.weight"))
    return table


GPT2 = Family(
    name="gpt2",
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    base_prefix="transformer.",
    read_config=read_config,
    write_config=write_config,
    entries=entries,
    buffers=(".attn.bias", ".attn.masked_bias"),  # the causal mask, in files before 2023
    gguf=GGUFArchitecture(
        "gpt2",
        fused_qkv=True,
        demands={"has_attention_out_bias": ANY},
        scalings=(),
        fixed={"norm": "layernorm", "bias": True, "positions": "learned", "mlp": "gelu_tanh"},
    ),
)


_GPT2 = GPTConfig(vocab_size=50257, block_size=1024, norm_eps=1e-5, mlp="gelu_tanh", bias=True, family="gpt2")

PRESETS: dict[str, GPTConfig] = {
    "gpt2": replace(_GPT2, n_layer=12, n_head=12, n_embd=768),  # 124M
    "gpt2-medium": replace(_GPT2, n_layer=24, n_head=16, n_embd=1024),  # 355M
    "gpt2-large": replace(_GPT2, n_layer=36, n_head=20, n_embd=1280),  # 774M
    "gpt2-xl": replace(_GPT2, n_layer=48, n_head=25, n_embd=1600),  # 1.5B
}

# Sizes on huggingface.co/openai-community, without the causal masks that their files contain.
PUBLISHED: dict[str, int] = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


FAMILIES = (GPT2,)
