"""Where a token stands: sinusoids, rotary embeddings and ALiBi's slopes; learned positions are a table in `GPT`.

Rotary embeddings (RoPE; Su et al. 2021, arXiv:2104.09864): queries and keys are rotated, in pairs of coordinates, by
an angle proportional to their position; the dot product of two of them then depends on their distance alone. The
tables are computed from `position_ids` once a forward, in float32, and handed to every block: no buffers, so nothing
to fill after a model leaves the meta device.

Pairs are (i, i + R/2), as in GPT-NeoX and Hugging Face, not the paper's (2i, 2i + 1): a permutation of the same.

B batch, T time, H heads, C model width, D head size, R rotated coordinates of a head (all of them, or its front).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lit_gpt.models.config import GPTConfig
from lit_gpt.models.rope_frequencies import rope_frequencies


class Rotation(NamedTuple):
    """What rotates the queries and keys of one layer."""

    cos: Tensor
    """(B or 1, T, 1, R) float32."""
    signed_sin: Tensor
    """(B or 1, T, 1, R) float32; its first half carries the minus of the rotation."""
    query_scale: Tensor | None = None
    """(B or 1, T, 1, 1) float32: what queries are multiplied by beyond the original context; None = nothing."""

    def rows(self, positions: Tensor) -> "Rotation":
        """Return the entries of some positions, (N,) int64, of a table over all of them."""
        scale = None if self.query_scale is None else self.query_scale.index_select(1, positions)
        return Rotation(self.cos.index_select(1, positions), self.signed_sin.index_select(1, positions), scale)


class Rotations(NamedTuple):
    """The rotation of layers that see the whole context, and of those that slide."""

    full: Rotation
    sliding: Rotation

    def rows(self, positions: Tensor) -> "Rotations":
        """Return the entries of some positions, (N,) int64, of tables over all of them."""
        full = self.full.rows(positions)
        return Rotations(full, full if self.sliding is self.full else self.sliding.rows(positions))


def build_rotations(config: GPTConfig, position_ids: Tensor, context_lengths: Tensor | None = None) -> Rotations | None:
    """The tables for these positions; None where the model does not rotate.

    Args:
        config: Says head size, bases and scaling.
        position_ids: (B, T) or (T,) int64.
        context_lengths: See `rope_frequencies`.
    """
    if config.positions != "rope":
        return None
    full = rope_rotation(config, position_ids, context_lengths=context_lengths)
    if config.rope_local_theta is None:
        return Rotations(full, full)
    return Rotations(full, rope_rotation(config, position_ids, local=True))


def rope_rotation(
    config: GPTConfig, position_ids: Tensor, local: bool = False, context_lengths: Tensor | None = None
) -> Rotation:
    """The tables of one kind of layer.

    Args:
        config: Says head size, bases and scaling.
        position_ids: (B, T) or (T,) int64.
        local: For layers that slide and have a base of their own.
        context_lengths: See `rope_frequencies`.
    """
    positions = position_ids if position_ids.dim() == 2 else position_ids[None]
    frequencies = rope_frequencies(config, positions, local, context_lengths)  # (R/2,), or one each position
    angles = positions[:, :, None, None].float() * frequencies  # (B or 1, T, 1, R/2)
    cos, sin = angles.cos(), angles.sin()
    scaling = None if local else config.rope_scaling
    if scaling is not None and scaling.rotation_scale != 1:
        cos, sin = cos * scaling.rotation_scale, sin * scaling.rotation_scale
    query_scale = None
    if scaling is not None and scaling.query_scale_beta:
        periods = (positions[:, :, None, None] / scaling.original_block_size).floor()
        query_scale = 1 + scaling.query_scale_beta * torch.log1p(periods)
    return Rotation(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1), query_scale)


def apply_rope(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate queries or keys.

    Args:
        x: (B, T, H, D) with D >= R; coordinates after the first R stay as they are.
        rotation: From `rope_rotation`.

    Returns:
        (B, T, H, D) float32: [x1 cos - x2 sin, x2 cos + x1 sin] for the halves x1, x2 of the first R coordinates.
    """
    cos, signed_sin, _ = rotation
    size = cos.shape[-1]
    front = x if x.shape[-1] == size else x[..., :size]
    rotated = torch.addcmul(front * cos, front.roll(size // 2, dims=-1), signed_sin)
    return rotated if x.shape[-1] == size else torch.cat((rotated, x[..., size:].to(rotated.dtype)), dim=-1)


def sinusoids(position_ids: Tensor, width: int) -> Tensor:
    """Sines and cosines of geometrically growing wavelengths (Vaswani et al. 2017, arXiv:1706.03762, section 3.5).

    Args:
        position_ids: (B, T) or (T,) int64.
        width: C, even or odd.

    Returns:
        (B, T, C) or (T, C) float32: coordinate 2i is sin(p / 10000^(2i/C)), coordinate 2i + 1 its cosine.
    """
    exponents = torch.arange(0, width, 2, device=position_ids.device).float() / width
    angles = position_ids[..., None].float() / 10000.0**exponents  # (..., T, ceil(C/2))
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :width]


def alibi_slopes(num_heads: int, device: torch.device | None = None) -> Tensor:
    """How steeply each head's scores fall with distance (Press et al. 2022, arXiv:2108.12409, section 3).

    Returns:
        (H,) float32: 2^(-8/H), 2^(-16/H), ... for H a power of two; else those of the next smaller power of two, then
        every second one of twice that power, as in the authors' code.
    """
    whole = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    slopes += [2 ** (-8 * (2 * i + 1) / (2 * whole)) for i in range(num_heads - whole)]
    return torch.tensor(slopes, device=device)
