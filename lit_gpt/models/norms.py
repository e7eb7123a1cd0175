"""Normalization layers: LayerNorm (arXiv:1607.06450), RMSNorm (arXiv:1910.07467), and Gemma's variant of RMSNorm."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.models.config import GPTConfig


class LayerNorm(nn.LayerNorm):
    """LayerNorm with the arguments of the other norms."""

    def forward(self, x: Tensor, prepared: bool = False) -> Tensor:
        """Normalize: (..., C) → (..., C)."""
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """RMSNorm that computes in its gain's dtype or wider; autocast does so for LayerNorm but not for RMSNorm."""

    def forward(self, x: Tensor, prepared: bool = False) -> Tensor:
        """Normalize: (..., C) → (..., C).

        Args:
            x: Any float dtype.
            prepared: Whether an engine is decoding, where speed matters more than the last bit.
        """
        weight = self.weight
        prepared = prepared and not torch.compiler.is_compiling()  # the compiler fuses the standard form
        if prepared and weight.is_cpu and x.dtype == weight.dtype == torch.float32:
            return _few_operations(x, weight, self.eps or 0.0)
        return super().forward(x.to(torch.promote_types(x.dtype, weight.dtype)))


class OffsetRMSNorm(nn.RMSNorm):
    """RMSNorm that stores `gain - 1`, so that zero initialization and weight decay act around a gain of 1 (Gemma).

    The gain is computed and applied in at least float32: 1 + w in bfloat16 would lose most of w's precision.
    """

    def reset_parameters(self) -> None:
        """Initialize the gain to one."""
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor, prepared: bool = False) -> Tensor:
        """Normalize: (..., C) → (..., C)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        gain = 1 + self.weight.to(wide.dtype)
        return F.rms_norm(wide, self.normalized_shape, gain, self.eps).to(self.weight.dtype)


def _few_operations(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute RMSNorm, x w / √(mean x² + ε), with √(Σ x² + C ε) as the hypotenuse of ‖x‖ and √(C ε).

    On a CPU, RMSNorm has no kernel of its own and runs as seven operations; for a few tokens the overhead of each one
    exceeds its arithmetic. This form has five.
    """
    width = x.shape[-1]
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (x * weight).div_(torch.hypot(size, _floor(width, eps)).mul_(width**-0.5))


@functools.cache
def _floor(width: int, eps: float) -> Tensor:
    with torch.inference_mode(False):  # cached beyond the inference-mode block that first needs it
        return torch.tensor((width * eps) ** 0.5, dtype=torch.float32)


def apply_norm(norm: nn.Module, x: Tensor, prepared: bool) -> Tensor:
    """Apply a norm of this file, or any module (..., C) → (..., C) that replaced it.

    Args:
        norm: The module.
        x: (..., C).
        prepared: See `RMSNorm.forward`; only the norms of this file are told.
    """
    return norm(x, prepared) if prepared and isinstance(norm, LayerNorm | RMSNorm | OffsetRMSNorm) else norm(x)


def build_norm(config: GPTConfig, width: int) -> LayerNorm | RMSNorm | OffsetRMSNorm:
    """Return the norm that the config selects, over a last dimension of size `width`."""
    if config.norm == "layernorm":
        return LayerNorm(width, eps=config.norm_eps, bias=config.bias)
    return (OffsetRMSNorm if config.norm_offset else RMSNorm)(width, eps=config.norm_eps)
