"""Position encodings: rotary embeddings, sinusoids and ALiBi's slopes (learned positions are a table in `GPT`).

Rotary embeddings (RoPE; Su et al. 2021, arXiv:2104.09864): queries and keys are rotated, in pairs of coordinates, by
an angle proportional to their position, so the dot product of two of them depends only on their distance. The first
part computes the frequencies, and how the five scalings to a longer context change them (see `RopeScaling`); the second
part the tables, which are computed from `position_ids` once per forward, in float32, and passed to every block. They
are not buffers, so nothing must be refilled after a model leaves the meta device.

Pairs are (i, i + R/2), as in GPT-NeoX and Hugging Face, instead of the paper's (2i, 2i + 1): a permutation.

B batch, T time, H heads, C model width, D head size, R rotated coordinates of a head (all, or the first ones).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lit_gpt.models.config import GPTConfig, RopeScaling


def rope_frequencies(
    config: GPTConfig,
    position_ids: Tensor | None = None,
    local: bool = False,
    context_lengths: Tensor | None = None,
) -> Tensor:
    """Return the frequency of each pair in radians per position: theta^(-2i/R), scaled by `rope_scaling`.

    Args:
        config: Provides head size, bases and scaling.
        position_ids: Any shape, int64; their maximum determines the context length if the scaling depends on it and
            `context_lengths` is None. None = a context no longer than the original one.
        local: Whether to use the separate base of sliding-window layers, to which no scaling applies.
        context_lengths: (B, T) or (B, 1) int64, the length of the text that each position belongs to, if there are
            several texts.

    Returns:
        (R/2,) float32, on the device of `position_ids`; with `context_lengths` and a scaling that depends on them,
        (B, T, 1, R/2) or (B, 1, 1, R/2).
    """
    device = None if position_ids is None else position_ids.device
    R, scaling = config.rope_size, None if local else config.rope_scaling
    theta = config.rope_local_theta if local and config.rope_local_theta is not None else config.rope_theta
    exponents = torch.arange(0, R, 2, dtype=torch.int64, device=device).float() / R
    frequencies = 1.0 / theta**exponents
    if scaling is None:
        return frequencies
    # A tensor, never read by the host: on an accelerator that would synchronize.
    length = None if position_ids is None else position_ids.max() + 1
    if context_lengths is not None:
        length = context_lengths[:, :, None, None]
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "dynamic":
        return frequencies if length is None else _dynamic(exponents, theta, R, length, scaling)
    if scaling.kind == "yarn":
        return _yarn(frequencies, theta, R, scaling)
    if scaling.kind == "longrope":
        return _longrope(frequencies, length, scaling)
    return _llama3(frequencies, scaling)


def context_lengths(config: GPTConfig, position_ids: Tensor, document_ids: Tensor | None) -> Tensor | None:
    """Return the length of each position's text, so that other documents and rows do not affect its frequencies.

    `transformers` uses the largest position of the whole batch; the two agree on a single text, and on rows of equal
    length. A text's length is its largest position plus one.

    Args:
        config: Determines whether the scaling depends on the length.
        position_ids: (B, T) or (T,) int64.
        document_ids: (B, T) int64, -1 on padding; None = each row is one text.

    Returns:
        (B, T) or (B, 1) int64; None if the lengths are not needed: no such scaling, or the same positions in each
        row.
    """
    if config.rope_scaling is None or not config.rope_scaling.follows_length or config.positions != "rope":
        return None
    if document_ids is None:
        return None if position_ids.dim() == 1 else position_ids.amax(1, keepdim=True) + 1
    # Documents numbered by their index in the sorted row: at most T of them, known without synchronizing.
    ids, order = document_ids.sort(dim=1, stable=True)
    changes = (ids[:, 1:] != ids[:, :-1]).long().cumsum(1)
    places = torch.zeros_like(document_ids).scatter_(1, order[:, 1:], changes)
    lengths = torch.zeros_like(places).scatter_reduce_(1, places, position_ids.expand_as(places) + 1, "amax")
    return lengths.gather(1, places)


def _dynamic(exponents: Tensor, theta: float, size: int, length: Tensor, scaling: RopeScaling) -> Tensor:
    """Return frequencies whose base grows with the context, so that the slowest pair is stretched by the excess."""
    beyond = torch.clamp(length, min=scaling.original_block_size) / scaling.original_block_size
    base = theta * (scaling.factor * beyond - (scaling.factor - 1)) ** (size / max(size - 2, 1))
    return 1.0 / base**exponents


def _yarn(frequencies: Tensor, theta: float, size: int, scaling: RopeScaling) -> Tensor:
    """Apply equations 17 to 21 of arXiv:2309.00071: a ramp over the pairs between `beta_fast` and `beta_slow` turns."""

    def pair(turns: float) -> float:  # the pair that makes this many turns in the original context
        return size * math.log(scaling.original_block_size / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    span = last - first if last != first else 0.001
    stretched = ((torch.arange(size // 2, device=frequencies.device).float() - first) / span).clamp(0, 1)
    return frequencies / scaling.factor * stretched + frequencies * (1 - stretched)


def _longrope(frequencies: Tensor, length: Tensor | None, scaling: RopeScaling) -> Tensor:
    """Divide each pair's frequency by its own divisor, from the short or the long table by the context's length."""
    device = frequencies.device
    short = torch.tensor(scaling.short_factors, dtype=torch.float32, device=device)
    if length is None:
        return frequencies / short
    long = torch.tensor(scaling.long_factors, dtype=torch.float32, device=device)
    return frequencies / torch.where(length > scaling.original_block_size, long, short)


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Scale each pair's frequency depending on its number of turns in the original context."""
    turns = scaling.original_block_size * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)  # 0 = fully scaled, 1 = unchanged
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


class Rotation(NamedTuple):
    """RoPE's tables for the queries and keys of one layer."""

    cos: Tensor
    """(B or 1, T, 1, R) float32."""
    signed_sin: Tensor
    """(B or 1, T, 1, R) float32; the first half has the rotation's minus sign."""
    query_scale: Tensor | None = None
    """(B or 1, T, 1, 1) float32: multiplier of the queries beyond the original context; None = no scaling."""

    def rows(self, positions: Tensor) -> "Rotation":
        """Return the rows for some positions, (N,) int64, of a table over all positions."""
        scale = None if self.query_scale is None else self.query_scale.index_select(1, positions)
        return Rotation(self.cos.index_select(1, positions), self.signed_sin.index_select(1, positions), scale)


class Rotations(NamedTuple):
    """The tables of full-attention layers and of sliding-window layers."""

    full: Rotation
    sliding: Rotation

    def rows(self, positions: Tensor) -> "Rotations":
        """Return the rows for some positions, (N,) int64, of tables over all positions."""
        full = self.full.rows(positions)
        return Rotations(full, full if self.sliding is self.full else self.sliding.rows(positions))


def build_rotations(config: GPTConfig, position_ids: Tensor, context_lengths: Tensor | None = None) -> Rotations | None:
    """Return the tables for these positions; None if the model does not use RoPE.

    Args:
        config: Provides head size, bases and scaling.
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
    """Return the tables of one layer kind.

    Args:
        config: Provides head size, bases and scaling.
        position_ids: (B, T) or (T,) int64.
        local: Whether to use the separate base of sliding-window layers.
        context_lengths: See `rope_frequencies`.
    """
    positions = position_ids if position_ids.dim() == 2 else position_ids[None]
    frequencies = rope_frequencies(config, positions, local, context_lengths)  # (R/2,), or one set per position
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
    """Rotate queries or keys by their positions.

    Args:
        x: (B, T, H, D) with D >= R; coordinates after the first R are unchanged.
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
    """Return sines and cosines of growing wavelengths (Vaswani et al. 2017, arXiv:1706.03762, section 3.5).

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
    """Return ALiBi's slope of each head, the decrease of its scores per position (arXiv:2108.12409, section 3).

    Returns:
        (H,) float32: 2^(-8/H), 2^(-16/H), ... if H is a power of two; else those of the next smaller power of two,
        then every second one of twice that power, as in the authors' code.
    """
    whole = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    slopes += [2 ** (-8 * (2 * i + 1) / (2 * whole)) for i in range(num_heads - whole)]
    return torch.tensor(slopes, dtype=torch.float32, device=device)
