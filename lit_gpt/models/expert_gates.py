"""What happens between an expert's projections: activation, gate and routing weight as one step.

Experts see k times as many rows as there are tokens, so what autograd keeps of each small operation is most of a
mixture's memory. The two gates that published mixtures have are written out here, forward and backward: they keep
nothing but gate and up, and work in place on what they make.

S rows, F width of an expert.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_gpt.models.mlp import ACTIVATIONS, GATES

CLAMP_LIMIT, CLAMP_ALPHA = 7.0, 1.702
"""GPT-OSS's (arXiv:2508.10925); as in `swiglu_clamped`."""


def weighted_hidden(kind: str, gate: Tensor | None, up: Tensor, weight: Tensor) -> Tensor:
    """Make weight · act(up), or weight · act(gate) · up where there is a gate.

    Args:
        kind: The model's `mlp`.
        gate: (S, F), or None.
        up: (S, F).
        weight: (S, 1), what each row counts.

    Returns:
        (S, F), in the dtype of `up`.
    """
    if gate is None:
        return (ACTIVATIONS[kind](up) * weight).to(up.dtype)
    if kind in _WRITTEN_OUT:
        return _WRITTEN_OUT[kind].apply(gate, up, weight)
    return (GATES[kind](gate, up) * weight).to(up.dtype)


class _SwiGLU(torch.autograd.Function):
    """w · silu(g) · u."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return F.silu(gate).mul_(up).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, up, weight = ctx.saved_tensors
        activated = F.silu(gate)
        grad_up = grad * activated
        grad_weight = _row_products(grad_up, up, weight)
        grad_up.mul_(weight)
        grad_activated = (grad * up).mul_(weight)
        return torch.ops.aten.silu_backward(grad_activated, gate), grad_up, grad_weight


class _ClampedSwiGLU(torch.autograd.Function):
    """w · g · sigmoid(1.702 g) · (u + 1), with g at most 7 and u within ±7."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        bounded = gate.clamp(max=CLAMP_LIMIT)
        shifted = up.clamp(-CLAMP_LIMIT, CLAMP_LIMIT).add_(1)
        return (bounded * CLAMP_ALPHA).sigmoid_().mul_(bounded).mul_(shifted).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, up, weight = ctx.saved_tensors
        bounded = gate.clamp(max=CLAMP_LIMIT)
        sigmoid = (bounded * CLAMP_ALPHA).sigmoid_()
        activated = bounded.mul_(sigmoid)  # g · sigmoid(1.702 g)
        shifted = up.clamp(-CLAMP_LIMIT, CLAMP_LIMIT).add_(1)
        grad_up = grad * activated
        grad_weight = _row_products(grad_up, shifted, weight)
        grad_up.mul_(weight).masked_fill_(up.abs() > CLAMP_LIMIT, 0)
        # d/dg of g s(a g)  =  s + a g s (1 - s)
        slope = (1 - sigmoid).mul_(activated).mul_(CLAMP_ALPHA).add_(sigmoid)
        grad_gate = shifted.mul_(grad).mul_(weight).mul_(slope).masked_fill_(gate > CLAMP_LIMIT, 0)
        return grad_gate, grad_up, grad_weight


def _row_products(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """The dot product of each two rows, (S, 1)."""
    return torch.linalg.vecdot(a, b).unsqueeze(1).to(like.dtype)


_WRITTEN_OUT: dict[str, type[torch.autograd.Function]] = {"swiglu": _SwiGLU, "swiglu_clamped": _ClampedSwiGLU}
