"""Rotary position embeddings (RoPE; Su et al. 2021, arXiv:2104.09864).

Queries and keys are rotated, in pairs of coordinates, by an angle proportional to their position; the dot product
of two of them then depends on their distance alone. The tables are computed from `position_ids` once a forward,
in float32, and handed to every block: no buffers, so nothing to fill after a model leaves the meta device.

Pairs are (i, i + D/2), as in GPT-NeoX and Hugging Face, not the paper's (2i, 2i + 1): a permutation of the same.

B batch, T time, H heads, D head size.
"""

import math

import torch
from torch import Tensor

from lit_gpt.models.config import GPTConfig, RopeScaling

Rotation = tuple[Tensor, Tensor]
"""cos and signed sin, each (B or 1, T, 1, D) float32."""


def rope_rotation(config: GPTConfig, position_ids: Tensor) -> Rotation:
    """The tables for these positions.

    Args:
        config: Says head size, base and scaling.
        position_ids: (B, T) or (T,) int64.

    Returns:
        cos and signed sin, each (B or 1, T, 1, D) float32. The first half of the sines carries the minus of the
        rotation, so that `apply_rope` needs no negation.
    """
    frequencies = rope_frequencies(config, position_ids.device)
    positions = position_ids if position_ids.dim() == 2 else position_ids[None]
    angles = positions[:, :, None, None].float() * frequencies  # (B, T, 1, D/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def apply_rope(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate queries or keys.

    Args:
        x: (B, T, H, D).
        rotation: From `rope_rotation`.

    Returns:
        (B, T, H, D) float32: [x1 cos - x2 sin, x2 cos + x1 sin] for the halves x1, x2 of the last dimension.
    """
    cos, signed_sin = rotation
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), signed_sin)


def rope_frequencies(config: GPTConfig, device: torch.device | None = None) -> Tensor:
    """Radians per position of each pair, (D/2,) float32: theta^(-2i/D), stretched by `rope_scaling`."""
    D = config.head_dim
    exponents = torch.arange(0, D, 2, dtype=torch.int64, device=device).float() / D
    frequencies = 1.0 / config.rope_theta**exponents
    if config.rope_scaling is None:
        return frequencies
    return _scaled(frequencies, config.rope_scaling)


def _scaled(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    slow = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slow
    # Llama 3.1: how often a pair turns in the original context decides how much of it is stretched.
    turns = scaling.original_block_size * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)  # 0 = all stretched, 1 = as it was
    return (1 - kept) * slow + kept * frequencies
