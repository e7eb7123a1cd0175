"""In which floating-point type a weight is kept when a model is converted."""

import torch
from torch import Tensor

KEPT_WIDE = (".router.selection_bias",)
"""Endings of names of what stays float32 in every model: a bias that training moves in steps of 0.001, and that
decides between near equals. `transformers` keeps it so too."""


def converted(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A weight in another floating-point type.

    Args:
        name: Of the weight, among ours.
        tensor: Its value, on any device (the meta device too).
        dtype: The type asked for; None = as it is.

    Returns:
        The tensor; float32 at least where the name says so, and as it is where it holds no floating-point numbers.
    """
    if not tensor.is_floating_point():
        return tensor
    if name.endswith(KEPT_WIDE):
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    return tensor if dtype is None else tensor.to(dtype)
