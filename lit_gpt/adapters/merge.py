r"""Merge a LoRA or DoRA adapter into the base weights. Works on plain tensors; neither peft nor a model is needed.

LoRA: :math:`W' = W + s B A`. DoRA (Liu et al. 2024, arXiv:2402.09353, equation 5): :math:`W' = m (W + s B A) /
\lVert W + s B A \rVert`, where the norm is taken over each row (output feature). For a quantized base, W is the rounded
weight that the quantized layer computes with, so that the merged model equals the trained one.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lit_gpt.adapters.config import AdapterConfig
from lit_gpt.adapters.quantize import rounded_weight
from lit_gpt.errors import UserError


@torch.no_grad()
def merged_weights(
    weights: Mapping[str, Tensor], adapter: Mapping[str, Tensor], config: AdapterConfig, linears: list[str]
) -> dict[str, Tensor]:
    """Return the base weights with the adapter merged into them.

    Args:
        weights: Complete (unsharded) base weights by parameter name.
        adapter: The adapter's tensors (`adapter_state_dict`).
        config: The adapter's configuration.
        linears: Names of all linear layers of the blocks, which a quantized base rounds.

    Raises:
        UserError: if the adapter was trained on another model.
    """
    result = dict(weights)
    if config.quantize is not None:
        for name in linears:
            result[f"{name}.weight"] = rounded_weight(result[f"{name}.weight"], config.quantize)
    layers = sorted({name.rpartition(".lora_")[0] for name in adapter if ".lora_" in name})
    for layer in layers:
        name = f"{layer}.weight"
        a, b = adapter[f"{layer}.lora_A.weight"].float(), adapter[f"{layer}.lora_B.weight"].float()  # (r, in), (out, r)
        if name not in result or result[name].shape != (b.shape[0], a.shape[1]):
            found = tuple(result[name].shape) if name in result else "missing"
            raise UserError(
                f"the adapter was trained on another model: {name} has shape {found}, not {(b.shape[0], a.shape[1])}"
            )
        weight = result[name]
        whole = weight.float() + config.scaling * (b @ a)
        if config.dora:
            magnitude = adapter[f"{layer}.lora_magnitude_vector"].float()  # (out,)
            whole = whole * (magnitude / torch.linalg.vector_norm(whole, dim=1)).unsqueeze(1)
        result[name] = whole.to(weight.dtype)
    for name, value in adapter.items():
        if ".lora_" not in name:  # embedding and head, trained in full
            result[name] = value
    if "wte.weight" in adapter and "lm_head.weight" not in adapter:
        result.pop("lm_head.weight", None)  # tied: a single matrix, stored under the embedding's name
        result["lm_head.weight"] = result["wte.weight"]
    return result
