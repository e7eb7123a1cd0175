"""DeepSeek-V3 (R1, V3.1, Moonlight too) as `transformers.DeepseekV3ForCausalLM` stores it.

Latent attention, groups of experts chosen by biased sigmoids, a shared expert. The hub has DeepSeek's own weights in
FP8 with a scale for each block of 128 × 128, which `quantized.py` turns into bfloat16 on the way in. The layer after
the last, which predicts one token further (section 2.2 of arXiv:2412.19437), is left out, as transformers does.
"""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from lit_gpt.checkpoints.huggingface.experts import expert_entries, moe_or_mlp, read_balance, write_balance
from lit_gpt.checkpoints.huggingface.family import Entry, Family, entry, expect, whole
from lit_gpt.checkpoints.huggingface.latent import latent_entries, read_latent, shared_expert_entries, write_latent
from lit_gpt.checkpoints.huggingface.qwen3_moe import PROJECTIONS
from lit_gpt.checkpoints.huggingface.shared import decoder_entries
from lit_gpt.models import GPTConfig

_DEFAULTS = {
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 3,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
"""`DeepseekV3Config`'s."""


def read_config(values: dict[str, Any]) -> GPTConfig:
    """`DeepseekV3Config` → ours."""
    expect(values, "scoring_func", "sigmoid")
    expect(values, "topk_method", "noaux_tc")
    moe = {"scores": "sigmoid", "selection_bias": True, **read_balance(values)}
    return GPTConfig(**read_latent(values, _DEFAULTS, **moe), family="deepseek_v3")


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Ours → `DeepseekV3Config`."""
    return {
        **write_latent(config, scores="sigmoid", selection_bias=True),
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "num_nextn_predict_layers": 0,
        **write_balance(config),
    }


def _mixture(config: GPTConfig, theirs: str, ours: str) -> list[Entry]:
    return [
        entry(f"{theirs}mlp.gate.weight", f"{ours}mlp.router.weight"),
        entry(f"{theirs}mlp.gate.e_score_correction_bias", f"{ours}mlp.router.selection_bias"),
        *expert_entries(config, f"{theirs}mlp.experts.", f"{ours}mlp.experts.", PROJECTIONS),
        *shared_expert_entries(theirs, ours),
    ]


def _left_out(config: GPTConfig, values: Mapping[str, Any], names: Collection[str]) -> tuple[str, ...]:
    """As many layers after the last as config.json says predict further, and only those that can."""
    further = range(config.n_layer, config.n_layer + whole(values, "num_nextn_predict_layers", 0))
    beginnings = [f"model.layers.{layer}." for layer in further]
    return tuple(name for name in beginnings if f"{name}eh_proj.weight" in names)


DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    base_prefix="model.",
    read_config=read_config,
    write_config=write_config,
    entries=partial(decoder_entries, attention=latent_entries, mlp=moe_or_mlp(_mixture)),
    left_out=_left_out,
    buffers=(".rotary_emb.inv_freq",),
)
