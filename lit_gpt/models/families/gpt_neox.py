"""GPT-NeoX-20B (arXiv:2204.06745) and Pythia (arXiv:2304.01373), as `transformers.GPTNeoXForCausalLM` stores them.

q, k and v are one matrix `query_key_value`, interleaved by head: rows (H, 3, D).

Presets are from table 1 of both papers and the `config.json` of huggingface.co/EleutherAI. All: parallel residual, a
quarter of each head rotated, context 2048, LayerNorm eps 1e-5, biases, untied head. The vocabulary is the tokenizer's
50277, padded for the devices that each size was trained on. Initialization is as in transformers; the papers
initialized projections into the residual stream with smaller values (GPT-NeoX-20B, section 2.1), which config.json does
not record.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_gpt.models.config import GPTConfig
from lit_gpt.models.families.config_json import (
    flag,
    longest_context,
    optional,
    original_context,
    read_activation,
    read_rope,
    require_values,
    required,
    write_activation,
    write_rope,
)
from lit_gpt.models.families.decoder import require_llama
from lit_gpt.models.families.family import ANY, Family, GGUFArchitecture, MetadataValue
from lit_gpt.models.families.weights import Entry, Interleave, entry


def read_config(values: dict[str, Any]) -> GPTConfig:
    """Convert a `GPTNeoXConfig` to a `GPTConfig`; of its two dropouts the hidden one is used."""
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
    """Convert a `GPTConfig` to a `GPTNeoXConfig`."""
    bias = config.has_attention_bias
    require_llama(
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
        require_values(config, head_size=None)
    rope = write_rope(config)
    fraction = {"partial_rotary_factor": config.rope_fraction}  # the class's default would be 0.25
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
        "hidden_act": write_activation(config),
        "rope_parameters": rope["rope_parameters"] | fraction,
        "rope_scaling": rope["rope_scaling"] and rope["rope_scaling"] | fraction,
        "rotary_emb_base": config.rope_theta,
        "rotary_pct": config.rope_fraction,
    }


def entries(config: GPTConfig) -> list[Entry]:
    """Return the weight table: all tensors of the checkpoint; a tied head has no entry."""
    names = {
        "input_layernorm": "ln1",
        "post_attention_layernorm": "ln2",
        "attention.dense": "attn.o_proj",
        "mlp.dense_h_to_4h": "mlp.up_proj",
        "mlp.dense_4h_to_h": "mlp.down_proj",
    }
    table = [entry("gpt_neox.embed_in.weight", "wte.weight")]
    for layer in range(config.n_layer):
        hf, local = f"gpt_neox.layers.{layer}.", f"blocks.{layer}."
        for kind in ("weight", "bias"):
            biased = kind == "weight" or config.has_attention_bias
            table += [
                entry(f"{hf}{a}.{kind}", f"{local}{b}.{kind}")
                for a, b in names.items()
                if biased or not a.startswith("attention")
            ]
            if biased:
                qkv = [f"{local}attn.{part}_proj.{kind}" for part in "qkv"]
                table.append(entry(f"{hf}attention.query_key_value.{kind}", qkv, Interleave(3, config.head_dim)))
    table += [entry(f"gpt_neox.final_layer_norm.{kind}", f"ln_f.{kind}") for kind in ("weight", "bias")]
    if not config.tie_embeddings:
        table.append(entry("embed_out.weight", "lm_head.weight"))
    return table


def _gguf_settings(config: GPTConfig) -> dict[str, MetadataValue]:
    return {"use_parallel_residual": config.parallel_residual}


def _gguf_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"parallel_residual": values.get("use_parallel_residual", True)}


GPT_NEOX = Family(
    name="gpt_neox",
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    base_prefix="gpt_neox.",
    read_config=read_config,
    write_config=write_config,
    entries=entries,
    head="embed_out.weight",
    renamed=(("lm_head.", "embed_out."),),  # the name in memory since transformers 5; files keep the older one
    buffers=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),  # files before 2023
    gguf=GGUFArchitecture(
        "gptneox",
        fused_qkv=True,
        own_head=True,
        demands={"has_attention_out_bias": True, "rope_fraction": ANY},
        settings=_gguf_settings,
        fixed={"norm": "layernorm", "bias": True, "mlp": "gelu"},
        read=_gguf_fields,
    ),
)


_PYTHIA = GPTConfig(
    vocab_size=50304,
    block_size=2048,
    norm_eps=1e-5,
    bias=True,
    parallel_residual=True,
    positions="rope",
    rope_theta=10000.0,
    rope_fraction=0.25,
    mlp="gelu",
    tie_embeddings=False,
    scale_residual_init=False,
    family="gpt_neox",
)

PRESETS: dict[str, GPTConfig] = {
    "pythia-70m": replace(_PYTHIA, n_layer=6, n_head=8, n_embd=512),
    "pythia-160m": replace(_PYTHIA, n_layer=12, n_head=12, n_embd=768),
    "pythia-410m": replace(_PYTHIA, n_layer=24, n_head=16, n_embd=1024),
    "pythia-1b": replace(_PYTHIA, n_layer=16, n_head=8, n_embd=2048),
    "pythia-1.4b": replace(_PYTHIA, n_layer=24, n_head=16, n_embd=2048),
    "pythia-2.8b": replace(_PYTHIA, n_layer=32, n_head=32, n_embd=2560),
    "pythia-6.9b": replace(_PYTHIA, n_layer=32, n_head=32, n_embd=4096, vocab_size=50432),
    "pythia-12b": replace(_PYTHIA, n_layer=36, n_head=40, n_embd=5120, vocab_size=50688),
    "gpt-neox-20b": replace(_PYTHIA, n_layer=44, n_head=64, n_embd=6144, vocab_size=50432, mlp="gelu_tanh"),
}

# "Total params" in the README of github.com/EleutherAI/pythia; the last is from section 2.1 of the GPT-NeoX-20B paper.
PUBLISHED: dict[str, int] = {
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "gpt-neox-20b": 20_554_567_680,
}


FAMILIES = (GPT_NEOX,)
