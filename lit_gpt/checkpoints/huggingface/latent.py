"""Multi-head latent attention in config.json and in files: DeepSeek-V3's, which Mistral 4 has too.

They rotate coordinates (2i, 2i + 1) together, we (i, i + R/2), so the rows that make the rotated parts change places.
"""

from functools import cache
from typing import Any

from lit_gpt.checkpoints.huggingface.experts import demand_moe
from lit_gpt.checkpoints.huggingface.family import Entry, entry, expect, required, whole
from lit_gpt.checkpoints.huggingface.layers import shortest_pattern
from lit_gpt.checkpoints.huggingface.layout import Permute
from lit_gpt.checkpoints.huggingface.shared import ANY, demand_llama, read_shared, write_shared
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig, MLAConfig, MoEConfig

_MLA = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_FRACTION = "partial_rotary_factor"


def read_latent(values: dict[str, Any], defaults: dict[str, Any], **moe: Any) -> dict[str, Any]:
    """The fields of `GPTConfig` that both families write alike.

    Args:
        values: config.json.
        defaults: The class's, for keys that a file may leave out.
        **moe: Further fields of `MoEConfig`.
    """
    values = defaults | values
    expect(values, "rope_interleave", True)
    expect(values, "moe_layer_freq", 1)
    # What config.json calls the rotated fraction of a head is qk_rope_head_dim.
    parameters = {
        place: {key: value for key, value in values[place].items() if key != _FRACTION}
        for place in ("rope_parameters", "rope_scaling")
        if values.get(place)
    }
    others = {key: value for key, value in values.items() if key not in ("head_dim", _FRACTION)}
    fields = read_shared(others | parameters)
    n_layer, first = fields["n_layer"], whole(values, "first_k_dense_replace", 0)
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


def write_latent(config: GPTConfig, rope: dict[str, Any] | None = None, **moe: Any) -> dict[str, Any]:
    """The inverse of `read_latent`.

    Args:
        config: The model's shape.
        rope: The keys of RoPE, if the family has its own.
        **moe: What `demand_moe` needs.
    """
    bias = config.has_attention_bias
    demand_llama(config, has_attention_bias=ANY, has_attention_out_bias=bias, mla=ANY, moe=ANY)
    plain: dict[str, Any] = dict.fromkeys(("norm_topk_prob", "routed_scaling_factor", "n_group"), ANY)
    plain["shared_intermediate_size"] = ANY
    mixture, mla = demand_moe(config, **plain | moe), config.mla
    dense = [layer for layer in range(config.n_layer) if not config.is_moe(layer)]
    num_shared, rest = divmod(mixture.shared_intermediate_size, config.expert_size)
    if mla is None or config.attention_scale is not None:
        raise UserError(f"family {config.family!r} has latent attention with a scale of its own: set mla alone")
    if dense != list(range(len(dense))):
        raise UserError(f"family {config.family!r} has plain MLPs in its first layers; moe.layers has them elsewhere")
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


def latent_entries(config: GPTConfig, theirs: str, ours: str) -> list[Entry]:
    """One layer's attention."""
    mla = config.mla
    assert mla is not None
    theirs, ours = f"{theirs}self_attn.", f"{ours}attn."
    heads = Permute(_rotated_last(config.n_head, mla.qk_nope_head_dim, mla.qk_rope_head_dim))
    latent = Permute(_rotated_last(1, mla.kv_lora_rank, mla.qk_rope_head_dim))
    kinds = ("weight", "bias") if config.has_attention_bias else ("weight",)
    table = [entry(f"{theirs}kv_a_proj_with_mqa.{kind}", f"{ours}kv_a_proj.{kind}", latent) for kind in kinds]
    table += [
        entry(f"{theirs}kv_a_layernorm.weight", f"{ours}kv_a_norm.weight"),
        entry(f"{theirs}kv_b_proj.weight", f"{ours}kv_b_proj.weight"),
    ]
    table += [entry(f"{theirs}o_proj.{kind}", f"{ours}o_proj.{kind}") for kind in kinds]
    if mla.q_lora_rank is None:
        return [*table, entry(f"{theirs}q_proj.weight", f"{ours}q_proj.weight", heads)]
    table += [entry(f"{theirs}q_a_proj.{kind}", f"{ours}q_a_proj.{kind}") for kind in kinds]
    return [
        *table,
        entry(f"{theirs}q_a_layernorm.weight", f"{ours}q_a_norm.weight"),
        entry(f"{theirs}q_b_proj.weight", f"{ours}q_b_proj.weight", heads),
    ]


def shared_expert_entries(theirs: str, ours: str) -> list[Entry]:
    """The expert that every token passes."""
    names = [f"{part}_proj.weight" for part in ("gate", "up", "down")]
    return [entry(f"{theirs}mlp.shared_experts.{name}", f"{ours}mlp.shared.{name}") for name in names]


@cache
def _rotated_last(num_heads: int, plain: int, rotated: int) -> tuple[int, ...]:
    """For each of our rows theirs: of each head the plain ones, then pairs taken apart."""
    rows: list[int] = []
    for start in range(0, num_heads * (plain + rotated), plain + rotated):
        rows += range(start, start + plain)
        rows += range(start + plain, start + plain + rotated, 2)
        rows += range(start + plain + 1, start + plain + rotated, 2)
    return tuple(rows)
