"""What a model that starts from weights may differ in from them, and how a weight is copied where it belongs."""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_gpt.checkpoints.huggingface import config_to_hf
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig

WEIGHTLESS = {
    "attention_scale",
    "attention_softcap",
    "chunked_window",
    "dropout",
    "embedding_scale",
    "init_std",
    "layer_windows",
    "logit_scale",
    "logit_softcap",
    "multi_token",
    "norm_eps",
    "residual_scale",
    "rope_fraction",
    "rope_layers",
    "rope_local_theta",
    "rope_scaling",
    "rope_theta",
    "scale_residual_init",
    "sliding_window",
}
"""Fields of `GPTConfig` that hold no weights, or (`multi_token`) weights that may start at random."""
WEIGHTLESS_MOE = {
    "balance_loss_weight",
    "bias_update_rate",
    "norm_topk_prob",
    "num_experts_per_tok",
    "routed_scaling_factor",
    "topk_group",
    "z_loss_weight",
}
"""The same of `MoEConfig`."""


def warn_if_not_exportable(config: GPTConfig) -> None:
    """Say before the first step what `export` would say after the last."""
    try:
        config_to_hf(config)
    except UserError as error:
        rank_zero_warn(f"this model could not be exported to Hugging Face: {error}")


def fit_context(
    config: GPTConfig, overrides: dict[str, Any], vocab_size: int | None, block_size: int | None
) -> GPTConfig:
    """Check the linked sizes against weights that exist; only fields that hold no weights may be overridden."""
    for name, needed in (("vocab_size", vocab_size), ("block_size", block_size)):
        if needed is not None and needed > getattr(config, name):
            raise UserError(
                f"the data needs {name} {needed}, but the weights of init_from have {getattr(config, name)}; "
                "use the tokenizer and context of that model"
            )
    moe = overrides.get("moe")
    fixed = sorted(overrides.keys() - WEIGHTLESS)
    if moe and WEIGHTLESS_MOE.issuperset(moe):
        fixed.remove("moe")
    if fixed:
        raise UserError(
            f"overrides {', '.join(fixed)} would not fit the weights of init_from; only "
            f"{', '.join(sorted(WEIGHTLESS))}, and of moe {', '.join(sorted(WEIGHTLESS_MOE))}, may differ from them"
        )
    return config.overridden(overrides)


@torch.no_grad()
def copy_whole(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter that may be sharded."""
    if parameter.shape != value.shape:
        raise UserError(f"a weight has shape {tuple(value.shape)} where the model has {tuple(parameter.shape)}")
    if isinstance(parameter, DTensor):
        value = distribute_tensor(
            value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    parameter.copy_(value)
