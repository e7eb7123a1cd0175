"""The floating-point type of each weight when a model is converted."""

import torch
from torch import Tensor

KEPT_WIDE = (".router.selection_bias",)
"""Endings of names of weights that stay float32 in every model: a bias that training moves in steps of 0.001, and that
decides between near equals. `transformers` keeps it in float32 too."""


def converted(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a weight in another floating-point type.

    Args:
        name: The weight's name in our models.
        tensor: Its value, on any device (also meta).
        dtype: The type asked for; None = unchanged.

    Returns:
        The tensor; at least float32 for the names above, and unchanged if it holds no floating-point numbers.
    """
    if not tensor.is_floating_point():
        return tensor
    if name.endswith(KEPT_WIDE):
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    return tensor if dtype is None else tensor.to(dtype)
