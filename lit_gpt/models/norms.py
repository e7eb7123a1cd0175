"""The norm a config asks for: LayerNorm (arXiv:1607.06450), RMSNorm (arXiv:1910.07467), or RMSNorm as Gemma has it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.models.config import GPTConfig


class RMSNorm(nn.RMSNorm):
    """RMSNorm that computes at least in its gain's type: autocast does that for LayerNorm, and not for this one."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) → (..., C)."""
        return super().forward(x.to(torch.promote_types(x.dtype, self.weight.dtype)))


class OffsetRMSNorm(nn.RMSNorm):
    """RMSNorm with its gain stored less one, so that a gain starts at 1 and weight decay pulls it there (Gemma).

    The gain is added up and applied in float32 at least: 1 + w in bfloat16 would lose most of w.
    """

    def reset_parameters(self) -> None:
        """A gain of one."""
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) → (..., C)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        gain = 1 + self.weight.to(wide.dtype)
        return F.rms_norm(wide, self.normalized_shape, gain, self.eps).to(self.weight.dtype)


def build_norm(config: GPTConfig, width: int) -> nn.LayerNorm | nn.RMSNorm:
    """A norm over the last dimension, of size `width`."""
    if config.norm == "layernorm":
        return nn.LayerNorm(width, eps=config.norm_eps, bias=config.bias)
    return (OffsetRMSNorm if config.norm_offset else RMSNorm)(width, eps=config.norm_eps)
