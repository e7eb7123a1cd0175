"""Grouped matrix products: consecutive rows, a matrix for each group of them.

S rows, E groups, I inputs, O outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """`x[i] @ weight[g].T` for each row i of each group g, by `grouped_mm` where it serves, else by a loop.

    Args:
        x: (S, I), sorted by group.
        weight: (E, O, I).
        ends: (E,) int32: the row after each group's last; the last of them is S.

    Returns:
        (S, O).
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):  # which does not know grouped_mm
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
    if torch.compiler.is_exporting() and x.dtype != torch.bfloat16:  # torch.export traces it in bfloat16 alone
        return masked_linear(x, weight, ends)
    if not grouped_mm_serves(x, weight):
        return looped_linear(x, weight, ends)
    if torch.compiler.is_compiling() and x.dtype != torch.bfloat16:
        return _uncompiled(x, weight, ends)
    return F.grouped_mm(x, weight.transpose(-2, -1), offs=ends)


def looped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The same, a group at a time: the fallback, and what the tests compare with. Arguments as `grouped_linear`'s."""
    bounds = [0, *ends.tolist()]  # on an accelerator, the host waits here
    groups = zip(bounds[:-1], bounds[1:], weight, strict=True)
    return torch.cat([F.linear(x[start:end], matrix) for start, end, matrix in groups])


def masked_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The same without a shape that depends on a value: each matrix with all rows, E times the work."""
    row = torch.arange(x.shape[0], device=x.device)[:, None]
    y = F.linear(x, weight[0])
    for group in range(1, weight.shape[0]):
        y = torch.where(row >= ends[group - 1], F.linear(x, weight[group]), y)
    return y


def grouped_mm_serves(x: Tensor, weight: Tensor) -> bool:
    """Whether `grouped_mm` takes these: no float64, rows in pieces of 16 bytes, on CUDA compute capability 8.0."""
    if not hasattr(F, "grouped_mm") or x.device.type not in ("cpu", "cuda") or x.dtype == torch.float64:
        return False
    if any(size * x.element_size() % 16 for size in weight.shape[1:]):
        return False
    return x.device.type == "cpu" or torch.cuda.get_device_capability(x.device) >= (8, 0)


@torch.compiler.disable
def _uncompiled(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    # Inductor has grouped_mm in bfloat16 alone.
    return F.grouped_mm(x, weight.transpose(-2, -1), offs=ends)
