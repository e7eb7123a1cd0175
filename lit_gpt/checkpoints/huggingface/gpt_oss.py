"""GPT-OSS as `transformers.GptOssForCausalLM` stores it: sinks, alternating windows, biases, clamped experts.

The experts of a layer are two stacked tensors, transposed, gate and up dealt out in turn. The hub has them in MXFP4
alone, which `quantized.py` turns into bfloat16 on the way in; an export is bfloat16 (or what the weights are).
"""

from functools import partial
from typing import Any

from lit_gpt.checkpoints.huggingface.experts import demand_moe, read_balance, write_balance
from lit_gpt.checkpoints.huggingface.family import Entry, Family, entry, expect, optional, required
from lit_gpt.checkpoints.huggingface.layers import read_layers, write_layers
from lit_gpt.checkpoints.huggingface.layout import Interleave, Transpose
from lit_gpt.checkpoints.huggingface.rope import FULL, SLIDING, with_default_rope
from lit_gpt.checkpoints.huggingface.shared import ANY, decoder_entries, demand_llama, read_shared, write_shared
from lit_gpt.models import GPTConfig, MoEConfig

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
"""Both `GptOssConfig`'s, where a file says nothing."""


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`GptOssConfig` → ours."""
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
    """Ours → `GptOssConfig`."""
    bias = config.has_attention_bias
    demand_llama(
        config,
        mlp="swiglu_clamped",
        has_attention_bias=ANY,
        has_attention_out_bias=bias,
        has_mlp_bias=True,
        attention_sinks=True,
        moe=ANY,
        sliding_window=ANY,
    )
    moe = demand_moe(config, every_layer=True, one_width=True, router_bias=True)
    return {
        **write_shared(config),
        **write_layers(config),
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.num_experts_per_tok,
        "experts_per_token": moe.num_experts_per_tok,
        "swiglu_limit": 7.0,
        **write_balance(config),
    }


def _mixture(config: GPTConfig, theirs: str, ours: str) -> list[Entry]:
    router = [entry(f"{theirs}mlp.router.{kind}", f"{ours}mlp.router.{kind}") for kind in ("weight", "bias")]
    theirs, ours = f"{theirs}mlp.experts.", f"{ours}mlp.experts."
    dealt = Interleave(2, dim=-1)
    return [
        *router,
        entry(f"{theirs}gate_up_proj", [f"{ours}gate_proj", f"{ours}up_proj"], dealt, Transpose()),
        entry(f"{theirs}gate_up_proj_bias", [f"{ours}gate_bias", f"{ours}up_bias"], dealt),
        entry(f"{theirs}down_proj", f"{ours}down_proj", Transpose()),
        entry(f"{theirs}down_proj_bias", f"{ours}down_bias"),
    ]


GPT_OSS = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=partial(decoder_entries, mlp=_mixture),
)
