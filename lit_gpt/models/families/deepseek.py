"""DeepSeek-V3 (arXiv:2412.19437), R1 (same architecture) and Moonlight (arXiv:2502.16982), as `transformers` has them.

Features: latent attention, grouped experts selected by biased sigmoid scores, and a shared expert. The files rotate
coordinates (2i, 2i + 1) together, we (i, i + R/2), so the rows of the rotary parts are permuted. Mistral 4 has the same
attention and uses these functions. The Hub stores DeepSeek's own weights in FP8 with a scale for each block of
128 × 128, which are dequantized to bfloat16 on load. The layer after the last one, which predicts a further token
(section 2.2), is ignored, as in transformers.

Presets are from the `config.json` of huggingface.co/deepseek-ai and huggingface.co/moonshotai: sigmoid routing with
selection biases, weights that sum to 1 before they are scaled; the first layers dense; RoPE base 10000 with YaRN from
4096 to 163840 tokens (Moonlight: 50000, 8192 tokens); RMSNorm eps 1e-6 (Moonlight: 1e-5); no biases, untied. Training
follows DeepSeek-V3's section 4.2 for both: selection biases change by 0.001 per step, and the balance loss has weight
0.0001. The block that predicts one more token is optional: `multi_token: 1`.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.models.config import GPTConfig, MLAConfig, MoEConfig, RopeScaling
from lit_gpt.models.families.config_json import expect, integer, required, shortest_pattern
from lit_gpt.models.families.decoder import (
    decoder_entries,
    expert_entries,
    moe_or_mlp,
    read_balance,
    read_shared,
    require_llama,
    require_moe,
    write_balance,
    write_shared,
)
from lit_gpt.models.families.family import ANY, Family
from lit_gpt.models.families.weights import Entry, Permute, entry

_MLA = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_FRACTION = "partial_rotary_factor"


def latent_fields(values: dict[str, Any], defaults: dict[str, Any], **moe: Any) -> dict[str, Any]:
    """Return the fields of `GPTConfig` that DeepSeek-V3 and Mistral 4 store in the same way.

    Args:
        values: Content of config.json.
        defaults: Defaults of the transformers class, for keys missing in the file.
        **moe: Further fields of `MoEConfig`.
    """
    values = defaults | values
    expect(values, "rope_interleave", True)
    expect(values, "moe_layer_freq", 1)
    # partial_rotary_factor duplicates qk_rope_head_dim, so it is not read.
    parameters = {
        place: {key: value for key, value in values[place].items() if key != _FRACTION}
        for place in ("rope_parameters", "rope_scaling")
        if values.get(place)
    }
    others = {key: value for key, value in values.items() if key not in ("head_dim", _FRACTION)}
    fields = read_shared(others | parameters)
    n_layer, first = fields["n_layer"], integer(values, "first_k_dense_replace", 0)
    pattern = shortest_pattern([layer >= first for layer in range(n_layer)])
    width = required(values, "moe_intermediate_size")
    mixture = MoEConfig(
        num_experts=values.get("num_local_experts") or required(values, "n_routed_experts"),
        num_experts_per_tok=required(values, "num_experts_per_tok"),
        intermediate_size=width,
        shared_intermediate_size=width * required(values, "n_shared_experts"),
        layers=None if pattern == (True,) else pattern,
        norm_topk_prob=values["norm_topk_prob"],
        routed_scaling_factor=values["routed_scaling_factor"],
        n_group=values["n_group"] or 1,
        topk_group=values["topk_group"] or 1,
        **moe,
    )
    mla = MLAConfig(**{name: values[name] for name in _MLA})
    return fields | {"head_size": None, "mla": mla, "moe": mixture}


def latent_values(config: GPTConfig, rope: dict[str, Any] | None = None, **moe: Any) -> dict[str, Any]:
    """Return config.json's keys; the inverse of `latent_fields`.

    Args:
        config: The model's architecture.
        rope: RoPE's keys, if they differ from the shared form.
        **moe: Further differences for `require_moe`.

    Raises:
        UserError: The model cannot be expressed: no latent attention, an own scale, or other shared or dense layers.
    """
    bias = config.has_attention_bias
    require_llama(config, has_attention_bias=ANY, has_attention_out_bias=bias, mla=ANY, moe=ANY)
    plain: dict[str, Any] = dict.fromkeys(("norm_topk_prob", "routed_scaling_factor", "n_group"), ANY)
    plain["shared_intermediate_size"] = ANY
    mixture, mla = require_moe(config, **plain | moe), config.mla
    dense = [layer for layer in range(config.n_layer) if not config.is_moe(layer)]
    num_shared, rest = divmod(mixture.shared_intermediate_size, config.expert_size)
    if mla is None or config.attention_scale is not None:
        raise UserError(
            f"family {config.family!r} derives the scale of latent attention from mla: set mla and leave "
            "attention_scale at null"
        )
    if dense != list(range(len(dense))):
        raise UserError(
            f"family {config.family!r} has plain MLPs only in its first layers; moe.layers has them elsewhere"
        )
    if rest or not num_shared:
        raise UserError(
            f"family {config.family!r} counts shared experts: moe.shared_intermediate_size "
            f"{mixture.shared_intermediate_size} must be a multiple of moe.intermediate_size {config.expert_size}"
        )
    shared = {key: value for key, value in write_shared(config, rope).items() if key != "head_dim"}
    return {
        **shared,
        **{name: getattr(mla, name) for name in _MLA},
        "rope_interleave": True,
        "first_k_dense_replace": len(dense),
        "n_routed_experts": mixture.num_experts,
        "num_experts_per_tok": mixture.num_experts_per_tok,
        "moe_intermediate_size": config.expert_size,
        "n_shared_experts": num_shared,
        "norm_topk_prob": mixture.norm_topk_prob,
        "routed_scaling_factor": mixture.routed_scaling_factor,
        "n_group": mixture.n_group,
        "topk_group": mixture.topk_group,
    }


def latent_entries(config: GPTConfig, hf: str, local: str) -> list[Entry]:
    """Return the entries of one layer's attention."""
    mla = config.mla
    assert mla is not None
    hf, local = f"{hf}self_attn.", f"{local}attn."
    heads = Permute(_rotated_last(config.n_head, mla.qk_nope_head_dim, mla.qk_rope_head_dim))
    latent = Permute(_rotated_last(1, mla.kv_lora_rank, mla.qk_rope_head_dim))
    kinds = ("weight", "bias") if config.has_attention_bias else ("weight",)
    table = [entry(f"{hf}kv_a_proj_with_mqa.{kind}", f"{local}kv_a_proj.{kind}", latent) for kind in kinds]
    table += [
        entry(f"{hf}kv_a_layernorm.weight", f"{local}kv_a_norm.weight"),
        entry(f"{hf}kv_b_proj.weight", f"{local}kv_b_proj.weight"),
    ]
    table += [entry(f"{hf}o_proj.{kind}", f"{local}o_proj.{kind}") for kind in kinds]
    if mla.q_lora_rank is None:
        return [*table, entry(f"{hf}q_proj.weight", f"{local}q_proj.weight", heads)]
    table += [entry(f"{hf}q_a_proj.{kind}", f"{local}q_a_proj.{kind}") for kind in kinds]
    return [
        *table,
        entry(f"{hf}q_a_layernorm.weight", f"{local}q_a_norm.weight"),
        entry(f"{hf}q_b_proj.weight", f"{local}q_b_proj.weight", heads),
    ]


def shared_expert_entries(hf: str, local: str) -> list[Entry]:
    """Return the entries of one layer's shared expert, which processes every token."""
    names = [f"{part}_proj.weight" for part in ("gate", "up", "down")]
    return [entry(f"{hf}mlp.shared_experts.{name}", f"{local}mlp.shared.{name}") for name in names]


@cache
def _rotated_last(num_heads: int, plain: int, rotated: int) -> tuple[int, ...]:
    """Return the file's row index of each local row: per head the plain, then the even and odd rotary rows."""
    rows: list[int] = []
    for start in range(0, num_heads * (plain + rotated), plain + rotated):
        rows += range(start, start + plain)
        rows += range(start + plain, start + plain + rotated, 2)
        rows += range(start + plain + 1, start + plain + rotated, 2)
    return tuple(rows)


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
"""Defaults of `DeepseekV3Config`, for keys missing in a file."""


def read_config(values: dict[str, Any]) -> GPTConfig:
    """Convert a `DeepseekV3Config` to a `GPTConfig`."""
    expect(values, "scoring_func", "sigmoid")
    expect(values, "topk_method", "noaux_tc")
    moe = {"scores": "sigmoid", "selection_bias": True, **read_balance(values)}
    return GPTConfig(**latent_fields(values, _DEFAULTS, **moe), family="deepseek_v3")


def write_config(config: GPTConfig) -> dict[str, Any]:
    """Convert a `GPTConfig` to a `DeepseekV3Config`."""
    return {
        **latent_values(config, scores="sigmoid", selection_bias=True),
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "num_nextn_predict_layers": 0,
        **write_balance(config),
    }


def _mixture(config: GPTConfig, hf: str, local: str) -> list[Entry]:
    return [
        entry(f"{hf}mlp.gate.weight", f"{local}mlp.router.weight"),
        entry(f"{hf}mlp.gate.e_score_correction_bias", f"{local}mlp.router.selection_bias"),
        *expert_entries(config, f"{hf}mlp.experts.", f"{local}mlp.experts."),
        *shared_expert_entries(hf, local),
    ]


def _left_out(config: GPTConfig, values: Mapping[str, Any], names: Collection[str]) -> tuple[str, ...]:
    """Return the prefixes of the multi-token-prediction layers that config.json counts and the folder contains."""
    further = range(config.n_layer, config.n_layer + integer(values, "num_nextn_predict_layers", 0))
    prefixes = [f"model.layers.{layer}." for layer in further]
    return tuple(prefix for prefix in prefixes if f"{prefix}eh_proj.weight" in names)


DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    read_config=read_config,
    write_config=write_config,
    entries=partial(decoder_entries, attention=latent_entries, mlp=moe_or_mlp(_mixture)),
    left_out=_left_out,
    buffers=(".rotary_emb.inv_freq",),
)


_V3 = GPTConfig(
    n_layer=61,
    n_head=128,
    n_embd=7168,
    block_size=163840,
    vocab_size=129280,
    bias=False,
    norm="rmsnorm",
    norm_eps=1e-6,
    positions="rope",
    rope_theta=10_000.0,
    rope_scaling=RopeScaling("yarn", 40.0, original_block_size=4096, mscale=1.0, mscale_all_dim=1.0),
    mlp="swiglu",
    intermediate_size=18432,
    mla=MLAConfig(kv_lora_rank=512, q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128),
    moe=MoEConfig(
        num_experts=256,
        num_experts_per_tok=8,
        intermediate_size=2048,
        shared_intermediate_size=2048,
        layers=(False,) * 3 + (True,) * 58,
        scores="sigmoid",
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        n_group=8,
        topk_group=4,
        selection_bias=True,
        bias_update_rate=0.001,
        balance_loss_weight=0.0001,
    ),
    tie_embeddings=False,
    init_std=0.02,  # as in config.json; the paper uses 0.006
    scale_residual_init=False,
    family="deepseek_v3",
)
_MOONLIGHT = replace(
    _V3,
    n_layer=27,
    n_head=16,
    n_embd=2048,
    block_size=8192,
    vocab_size=163840,
    norm_eps=1e-5,
    rope_theta=50_000.0,
    rope_scaling=None,
    intermediate_size=11264,
    mla=MLAConfig(kv_lora_rank=512, q_lora_rank=None, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128),
    moe=MoEConfig(
        num_experts=64,
        num_experts_per_tok=6,
        intermediate_size=1408,
        shared_intermediate_size=2 * 1408,
        layers=(False,) + (True,) * 26,
        scores="sigmoid",
        norm_topk_prob=True,
        routed_scaling_factor=2.446,
        selection_bias=True,
        bias_update_rate=0.001,
        balance_loss_weight=0.0001,
    ),
)

PRESETS: dict[str, GPTConfig] = {
    "deepseek-v3": _V3,
    "deepseek-r1": _V3,
    "moonlight-16b-a3b": _MOONLIGHT,
}

# The papers state 671B and 16B; the exact numbers are from transformers' DeepseekV3ForCausalLM, counted on the meta
# device. (Hub pages also count selection biases, FP8 scales and the multi-token-prediction block: 685B.)
PUBLISHED: dict[str, int] = {
    "deepseek-v3": 671_026_404_352,
    "deepseek-r1": 671_026_404_352,
    "moonlight-16b-a3b": 15_960_108_544,
}


FAMILIES = (DEEPSEEK_V3,)
