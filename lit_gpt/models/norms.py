"""The norm a config asks for: LayerNorm (arXiv:1607.06450), RMSNorm (arXiv:1910.07467), or RMSNorm as Gemma has it."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.models.config import GPTConfig


class LayerNorm(nn.LayerNorm):
    """LayerNorm with the arguments of the other norms."""

    def forward(self, x: Tensor, prepared: bool = False) -> Tensor:
        """(..., C) → (..., C)."""
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """RMSNorm that computes at least in its gain's type: autocast does that for LayerNorm, and not for this one."""

    def forward(self, x: Tensor, prepared: bool = False) -> Tensor:
        """(..., C) → (..., C).

        Args:
            x: Any float dtype.
            prepared: In an engine's decoding step, where the fastest form counts and the last bit does not.
        """
        weight = self.weight
        prepared = prepared and not torch.compiler.is_compiling()  # a compiler fuses the usual form
        if prepared and weight.is_cpu and x.dtype == weight.dtype == torch.float32:
            return _few_operations(x, weight, self.eps or 0.0)
        return super().forward(x.to(torch.promote_types(x.dtype, weight.dtype)))


class OffsetRMSNorm(nn.RMSNorm):
    """RMSNorm with its gain stored less one, so that a gain starts at 1 and weight decay pulls it there (Gemma).

    The gain is added up and applied in float32 at least: 1 + w in bfloat16 would lose most of w.
    """

    def reset_parameters(self) -> None:
        """Set the gain to one."""
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor, prepared: bool = False) -> Tensor:
        """(..., C) → (..., C)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        gain = 1 + self.weight.to(wide.dtype)
        return F.rms_norm(wide, self.normalized_shape, gain, self.eps).to(self.weight.dtype)


def _few_operations(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute RMSNorm, x w / √(mean x² + ε), with √(Σ x² + C ε) as the hypotenuse of ‖x‖ and √(C ε).

    On a CPU, RMSNorm has no kernel of its own and is seven operations; for a few tokens each of them costs more than
    the arithmetic in it. These are five.
    """
    width = x.shape[-1]
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (x * weight).div_(torch.hypot(size, _floor(width, eps)).mul_(width**-0.5))


@functools.cache
def _floor(width: int, eps: float) -> Tensor:
    with torch.inference_mode(False):  # it outlives the iteration that first needs it
        return torch.tensor((width * eps) ** 0.5)


def build_norm(config: GPTConfig, width: int) -> LayerNorm | RMSNorm | OffsetRMSNorm:
    """Return a norm over the last dimension, of size `width`."""
    if config.norm == "layernorm":
        return LayerNorm(width, eps=config.norm_eps, bias=config.bias)
    return (OffsetRMSNorm if config.norm_offset else RMSNorm)(width, eps=config.norm_eps)
