"""Mixtures of experts in config.json and in files, as far as families share them.

On the hub every expert is a tensor of its own; here, and in transformers' memory, they are stacked.
"""

from collections.abc import Callable
from typing import Any

from lit_gpt.checkpoints.huggingface.family import Entry, entry
from lit_gpt.checkpoints.huggingface.layout import Stack
from lit_gpt.checkpoints.huggingface.shared import ANY, mlp_entries
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig, MoEConfig

_PLAIN: dict[str, Any] = {
    "shared_intermediate_size": 0,
    "scores": "softmax",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "router_bias": False,
    "selection_bias": False,
}

MixtureEntries = Callable[[GPTConfig, str, str], list[Entry]]
"""Entries of one layer's mixture, from (config, "model.layers.0.", "blocks.0.")."""


def demand_moe(config: GPTConfig, every_layer: bool = False, one_width: bool = False, **differences: Any) -> MoEConfig:
    """Refuse to export a mixture that the family cannot express.

    Args:
        config: The model's shape, whose `family` is meant.
        every_layer: All of the layers must be mixtures.
        one_width: The experts must be as wide as `intermediate_size` says.
        **differences: Fields of `moe` with the value that the family needs, or `ANY`, where it is not the plain one:
            a softmax over the chosen experts.

    Raises:
        UserError: Naming the first field that the family cannot express.
    """
    family, moe = config.family, config.moe
    if moe is None:
        raise UserError(f"family {family!r} is a mixture of experts, but moe is null; set `family` to a dense one")
    for name, value in (_PLAIN | differences).items():
        if value is not ANY and getattr(moe, name) != value:
            raise UserError(
                f"family {family!r} cannot express moe.{name} {getattr(moe, name)!r} (only {value!r}); "
                "set `family` to one that can, or train with that value"
            )
    if every_layer and not all(config.is_moe(layer) for layer in range(config.n_layer)):
        raise UserError(f"family {family!r} has experts in every layer, but moe.layers is {moe.layers}")
    if one_width and config.expert_size != config.mlp_size:
        raise UserError(
            f"family {family!r} has one width: moe.intermediate_size {config.expert_size} must be intermediate_size "
            f"{config.mlp_size}"
        )
    return moe


def read_balance(values: dict[str, Any], key: str = "aux_loss_alpha") -> dict[str, Any]:
    """What evens out the routers in training, as fields of `MoEConfig`.

    Args:
        values: config.json.
        key: Where the family keeps its balance loss's weight. That of `router_aux_loss_coef` weighs a loss that is k
            when balanced and a mean over the layers; ours is 1 when balanced and added up over them.
    """
    weight = values.get(key) or 0.0
    if key == "router_aux_loss_coef":
        weight = weight * values["num_experts_per_tok"] / values["num_hidden_layers"]
    return {
        "balance_loss_weight": weight,
        "z_loss_weight": values.get("router_z_loss_coef") or 0.0,
        "bias_update_rate": values.get("bias_update_speed") or 0.0,
    }


def write_balance(config: GPTConfig, key: str = "aux_loss_alpha") -> dict[str, Any]:
    """The inverse of `read_balance`; transformers reads `router_aux_loss_coef` and keeps the others as they are."""
    moe = config.moe
    assert moe is not None
    weight = moe.balance_loss_weight
    if key == "router_aux_loss_coef":
        weight = float(f"{weight * config.n_layer / moe.num_experts_per_tok:.12g}")  # what it was before dividing
    rest = {"router_z_loss_coef": moe.z_loss_weight, "bias_update_speed": moe.bias_update_rate}
    return {key: weight} | {name: value for name, value in rest.items() if value}


def moe_or_mlp(mixture: MixtureEntries) -> MixtureEntries:
    """Entries of one layer's MLP, which is a mixture where the config says so."""

    def entries(config: GPTConfig, theirs: str, ours: str) -> list[Entry]:
        layer = int(ours.split(".")[1])
        return mixture(config, theirs, ours) if config.is_moe(layer) else mlp_entries(config, theirs, ours)

    return entries


def expert_entries(config: GPTConfig, theirs: str, ours: str, names: dict[str, str]) -> list[Entry]:
    """The experts of one layer, a tensor each.

    Args:
        config: The model's shape.
        theirs: Up to the expert's number, such as "model.layers.0.mlp.experts.".
        ours: Up to the stack's name: "blocks.0.mlp.experts.".
        names: Their name of a projection → ours, such as {"w1": "gate_proj"}.
    """
    assert config.moe is not None
    numbers = range(config.moe.num_experts)
    return [
        entry([f"{theirs}{number}.{name}.weight" for number in numbers], f"{ours}{stack}", Stack())
        for name, stack in names.items()
    ]
