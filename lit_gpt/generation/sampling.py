"""From logits to the next token: pure functions, applied in the order temperature, top-k, top-p.

B batch, V vocabulary.
"""

import math

import torch
from torch import Tensor

from lit_gpt.errors import UserError


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Refuse settings that mean nothing.

    Raises:
        UserError: If one is out of bounds; names it.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"temperature is {temperature}, it must be 0 (always the likeliest token) or a positive number")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k is {top_k}, it must be at least 1, or null for all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}, it must be greater than 0 and at most 1, or null for all tokens")


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """All but the k largest logits of each row become -inf (Fan et al. 2018, arXiv:1805.04833); ties stay in.

    Args:
        logits: (B, V).
        k: At least 1; more than V keeps all.
    """
    if k >= logits.shape[-1]:
        return logits
    smallest_kept = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest_kept, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751): the fewest tokens whose probability reaches p.

    Args:
        logits: (B, V).
        p: In (0, 1]; the likeliest token always stays.
    """
    if p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # of all likelier tokens
    return torch.full_like(logits, -math.inf).scatter(-1, order, ordered.masked_fill(before >= p, -math.inf))


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token a row.

    Args:
        logits: (B, V), any float dtype.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Keep this many of the likeliest tokens.
        top_p: Keep the likeliest tokens up to this much probability.
        generator: Of the random numbers, on the logits' device.

    Returns:
        (B,) int64.

    Raises:
        UserError: If a setting is out of bounds.
    """
    check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return torch.multinomial(logits.softmax(dim=-1), num_samples=1, generator=generator)[:, 0]
