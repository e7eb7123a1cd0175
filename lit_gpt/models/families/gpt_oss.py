"""GPT-OSS (model card, arXiv:2508.10925), as `transformers.GptOssForCausalLM` stores it.

Features: attention sinks, alternating sliding-window and full-attention layers, biases, and clamped-SwiGLU experts. The
experts of a layer are two stacked tensors, transposed, with columns of gate and up interleaved. The Hub checkpoints
store them only in MXFP4, which is dequantized to bfloat16 on load; exports use bfloat16 (or the dtype of the weights).

Presets are from section 2 and the `config.json` of huggingface.co/openai. Both: width 2880 in the residual stream and
in the experts, 4 experts per token, 64 heads of 64 with a sink each, 8 key/value heads, every other layer (from the
first) with a window of 128 tokens, YaRN from 4096 to 131072 tokens without rounding to integer pairs, RoPE base 150000,
RMSNorm eps 1e-5, biases in attention, router and experts, vocabulary 201088, untied. OpenAI has not published how it
balanced the experts' load: set `moe.balance_loss_weight` to train a model from scratch.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from lit_gpt.models.config import GPTConfig, MoEConfig, RopeScaling
from lit_gpt.models.families.config_json import (
    FULL,
    SLIDING,
    expect,
    optional,
    read_layers,
    required,
    with_default_rope,
    write_layers,
)
from lit_gpt.models.families.decoder import (
    decoder_entries,
    read_balance,
    read_shared,
    require_llama,
    require_moe,
    write_balance,
    write_shared,
)
from lit_gpt.models.families.family import ANY, Family
from lit_gpt.models.families.weights import Entry, Interleave, Transpose, entry

_DEFAULTS = {
    "head_dim": 64,
    "num_key_value_heads": 8,
    "attention_bias": True,
    "rms_norm_eps": 1e-5,
    "sliding_window": 128,
}
_DEFAULT_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""Defaults of `GptOssConfig`, for keys missing in a file."""


def read_config(values: dict[str, Any]) -> GPTConfig:
    """Convert a `GptOssConfig` to a `GPTConfig`."""
    expect(values, "swiglu_limit", 7.0)
    expect(values, "swiglu_alpha", 1.702)
    values = with_default_rope(
        _DEFAULTS | values, _DEFAULT_ROPE | {"rope_theta": optional(values, "rope_theta", 150000.0)}
    )
    fields = read_shared(values, default_theta=150000.0) | {"mlp": "swiglu_clamped"}
    n_layer = fields["n_layer"]
    types = values.get("layer_types") or [FULL if layer % 2 else SLIDING for layer in range(n_layer)]
    moe = MoEConfig(
        num_experts=required(values, "num_local_experts"),
        num_experts_per_tok=required(values, "num_experts_per_tok"),
        router_bias=True,
        **read_balance(values),
    )
    windows = read_layers(types, values["sliding_window"], fields["block_size"])
    return GPTConfig(**fields, **windows, attention_sinks=True, mlp_bias=True, moe=moe, family="gpt_oss")


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Convert a `GPTConfig` to a `GptOssConfig`."""
    bias = config.has_attention_bias
    require_llama(
        config,
        mlp="swiglu_clamped",
        has_attention_bias=ANY,
        has_attention_out_bias=bias,
        has_mlp_bias=True,
        attention_sinks=True,
        moe=ANY,
        sliding_window=ANY,
    )
    moe = require_moe(config, all_layers=True, uniform_width=True, router_bias=True)
    return {
        **write_shared(config),
        **write_layers(config),
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.num_experts_per_tok,
        "experts_per_token": moe.num_experts_per_tok,
        "swiglu_limit": 7.0,
        **write_balance(config),
    }


def _mixture(config: GPTConfig, hf: str, local: str) -> list[Entry]:
    router = [entry(f"{hf}mlp.router.{kind}", f"{local}mlp.router.{kind}") for kind in ("weight", "bias")]
    hf, local = f"{hf}mlp.experts.", f"{local}mlp.experts."
    interleaved = Interleave(2, dim=-1)
    return [
        *router,
        entry(f"{hf}gate_up_proj", [f"{local}gate_proj", f"{local}up_proj"], interleaved, Transpose()),
        entry(f"{hf}gate_up_proj_bias", [f"{local}gate_bias", f"{local}up_bias"], interleaved),
        entry(f"{hf}down_proj", f"{local}down_proj", Transpose()),
        entry(f"{hf}down_proj_bias", f"{local}down_bias"),
    ]


GPT_OSS = Family(
    name="gpt_oss",
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    read_config=read_config,
    write_config=write_config,
    entries=partial(decoder_entries, mlp=_mixture),
)


_GPT_OSS = GPTConfig(
    n_head=64,
    n_kv_head=8,
    n_embd=2880,
    head_size=64,
    block_size=131072,
    vocab_size=201088,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-5,
    positions="rope",
    rope_theta=150_000.0,
    rope_scaling=RopeScaling("yarn", 32.0, original_block_size=4096, truncate=False),
    mlp="swiglu_clamped",
    intermediate_size=2880,
    attention_bias=True,
    mlp_bias=True,
    attention_sinks=True,
    sliding_window=128,
    layer_windows=(True, False),
    tie_embeddings=False,
    scale_residual_init=False,
    family="gpt_oss",
)

PRESETS: dict[str, GPTConfig] = {
    "gpt-oss-20b": replace(_GPT_OSS, n_layer=24, moe=MoEConfig(32, 4, router_bias=True)),
    "gpt-oss-120b": replace(_GPT_OSS, n_layer=36, moe=MoEConfig(128, 4, router_bias=True)),
}

# The model card's table 1 states 20.91B and 116.83B; the exact numbers are from transformers' GptOssForCausalLM,
# counted on the meta device (the Hub's pages count packed 4-bit weights).
PUBLISHED: dict[str, int] = {
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
}


FAMILIES = (GPT_OSS,)
