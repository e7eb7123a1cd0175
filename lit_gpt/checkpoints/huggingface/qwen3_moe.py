"""Qwen3's mixtures as `transformers.Qwen3MoeForCausalLM` stores them: Qwen3 with experts in most layers or all."""

from functools import partial
from typing import Any

from lit_gpt.checkpoints.huggingface.experts import (
    demand_moe,
    expert_entries,
    moe_or_mlp,
    read_balance,
    write_balance,
)
from lit_gpt.checkpoints.huggingface.family import Entry, Family, entry, flag, optional, required, whole
from lit_gpt.checkpoints.huggingface.layers import read_layers, shortest_pattern
from lit_gpt.checkpoints.huggingface.rope import SLIDING
from lit_gpt.checkpoints.huggingface.shared import ANY, decoder_entries, demand_llama, read_shared, write_shared
from lit_gpt.models import GPTConfig, MoEConfig

PROJECTIONS = {name: name for name in ("gate_proj", "up_proj", "down_proj")}
"""An expert's projections, which Qwen and DeepSeek call what we do."""
_AUX = "router_aux_loss_coef"


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`Qwen3MoeConfig` → ours."""
    values = {"num_key_value_heads": 4, _AUX: 0.001} | values
    fields = read_shared(values)
    n_layer, step = fields["n_layer"], whole(values, "decoder_sparse_step", 1, least=1)
    dense = set(values.get("mlp_only_layers") or ())
    pattern = shortest_pattern([layer not in dense and (layer + 1) % step == 0 for layer in range(n_layer)])
    moe = MoEConfig(
        num_experts=values.get("num_local_experts") or required(values, "num_experts"),
        num_experts_per_tok=required(values, "num_experts_per_tok"),
        intermediate_size=required(values, "moe_intermediate_size"),
        layers=None if pattern == (True,) else pattern,
        norm_topk_prob=optional(values, "norm_topk_prob", False),
        **read_balance(values, _AUX),
    )
    # Here a window is every layer's, whatever max_window_layers says.
    window = values.get("sliding_window", 4096) if flag(values, "use_sliding_window", False) else None
    windows = read_layers([SLIDING] * n_layer, window, fields["block_size"])
    return GPTConfig(**fields, qk_norm="head", moe=moe, **windows, family="qwen3_moe")


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `Qwen3MoeConfig`."""
    bias = config.has_attention_bias
    demand_llama(
        config,
        has_attention_bias=ANY,
        has_attention_out_bias=bias,
        qk_norm="head",
        moe=ANY,
        sliding_window=ANY,
        layer_windows=None,
    )
    moe = demand_moe(config, norm_topk_prob=ANY)
    return {
        **write_shared(config),
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.num_experts_per_tok,
        "moe_intermediate_size": config.expert_size,
        "norm_topk_prob": moe.norm_topk_prob,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer in range(config.n_layer) if not config.is_moe(layer)],
        **write_balance(config, _AUX),
    }


def _mixture(config: GPTConfig, theirs: str, ours: str) -> list[Entry]:
    router = entry(f"{theirs}mlp.gate.weight", f"{ours}mlp.router.weight")
    return [router, *expert_entries(config, f"{theirs}mlp.experts.", f"{ours}mlp.experts.", PROJECTIONS)]


QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=partial(decoder_entries, mlp=moe_or_mlp(_mixture)),
)
