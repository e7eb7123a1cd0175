"""The dtype of each weight when a model is converted to another dtype."""

import torch
from torch import Tensor

KEPT_WIDE = (".router.selection_bias",)
"""Name endings of weights that stay float32 in every model: biases that training updates in steps of 0.001 and that
decide between nearly equal scores. `transformers` keeps them in float32 too."""


def converted(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a weight converted to another floating-point dtype.

    Args:
        name: The weight's name in our models.
        tensor: Value of the weight, on any device (also meta).
        dtype: The requested dtype; None = unchanged.

    Returns:
        The converted tensor; at least float32 for the names above, and unchanged if it is not floating-point.
    """
    if not tensor.is_floating_point():
        return tensor
    if name.endswith(KEPT_WIDE):
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    return tensor if dtype is None else tensor.to(dtype)
