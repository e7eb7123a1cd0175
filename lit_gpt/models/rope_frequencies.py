"""How fast each pair of a rotated head turns, and how the five scalings change it (see `RopeScaling`).

R rotated coordinates of a head, in R/2 pairs.
"""

import math

import torch
from torch import Tensor

from lit_gpt.models.config import GPTConfig
from lit_gpt.models.rope_scaling import RopeScaling


def rope_frequencies(
    config: GPTConfig,
    position_ids: Tensor | None = None,
    local: bool = False,
    context_lengths: Tensor | None = None,
) -> Tensor:
    """Radians per position of each pair: theta^(-2i/R), stretched by `rope_scaling`.

    Args:
        config: Says head size, bases and scaling.
        position_ids: Any shape, int64; the largest of them decides where a scaling depends on the context's length
            and `context_lengths` does not. None = a context no longer than the original one.
        local: For layers that slide and have a base of their own, which no scaling stretches.
        context_lengths: (B, T) or (B, 1) int64, the length of the text that each position belongs to, where they are
            of several.

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
    # A tensor, never read by the host: on an accelerator that would wait for the device.
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
    """How long each position's own text is, so that neither other documents nor other rows change its frequencies.

    `transformers` takes the largest position of the whole batch for all of it; the two agree on a single text, and on
    rows of one length. A text's length is its largest position, plus one.

    Args:
        config: Says whether its scaling depends on the length.
        position_ids: (B, T) or (T,) int64.
        document_ids: (B, T) int64, -1 on padding; None = each row is one text.

    Returns:
        (B, T) or (B, 1) int64; None where the rule is the plain one: no such scaling, or the same positions in each
        row.
    """
    if config.rope_scaling is None or not config.rope_scaling.follows_length or config.positions != "rope":
        return None
    if document_ids is None:
        return None if position_ids.dim() == 1 else position_ids.amax(1, keepdim=True) + 1
    # Documents numbered by their place in the sorted row: at most T of them, known without asking the device.
    ids, order = document_ids.sort(dim=1, stable=True)
    changes = (ids[:, 1:] != ids[:, :-1]).long().cumsum(1)
    places = torch.zeros_like(document_ids).scatter_(1, order[:, 1:], changes)
    lengths = torch.zeros_like(places).scatter_reduce_(1, places, position_ids.expand_as(places) + 1, "amax")
    return lengths.gather(1, places)


def _dynamic(exponents: Tensor, theta: float, size: int, length: Tensor, scaling: RopeScaling) -> Tensor:
    """A base that grows with the context, so that the slowest pair is stretched by what is beyond the original."""
    beyond = torch.clamp(length, min=scaling.original_block_size) / scaling.original_block_size
    base = theta * (scaling.factor * beyond - (scaling.factor - 1)) ** (size / max(size - 2, 1))
    return 1.0 / base**exponents


def _yarn(frequencies: Tensor, theta: float, size: int, scaling: RopeScaling) -> Tensor:
    """Equations 17 to 21 of arXiv:2309.00071: between `beta_fast` and `beta_slow` turns, a ramp over the pairs."""

    def pair(turns: float) -> float:  # the pair that turns so often in the original context
        return size * math.log(scaling.original_block_size / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    span = last - first if last != first else 0.001
    stretched = ((torch.arange(size // 2, device=frequencies.device).float() - first) / span).clamp(0, 1)
    return frequencies / scaling.factor * stretched + frequencies * (1 - stretched)


def _longrope(frequencies: Tensor, length: Tensor | None, scaling: RopeScaling) -> Tensor:
    """Each pair's own divisor, from one of two tables by the context's length."""
    device = frequencies.device
    short = torch.tensor(scaling.short_factors, dtype=torch.float32, device=device)
    if length is None:
        return frequencies / short
    long = torch.tensor(scaling.long_factors, dtype=torch.float32, device=device)
    return frequencies / torch.where(length > scaling.original_block_size, long, short)


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """How often a pair turns in the original context decides how much of it is stretched."""
    turns = scaling.original_block_size * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)  # 0 = all stretched, 1 = as it was
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies
