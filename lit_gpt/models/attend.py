"""softmax(scale · q kᵀ + mask) v, and what published models do to the scores in between.

Four ways to compute the same, each taken where it is fastest and has what the model asks for:

- `scaled_dot_product_attention`: everything without soft-capping;
- the same with one more key for attention sinks (its score is the head's learned logit, its value zero);
- FlexAttention under a BlockMask on CUDA, which has all of it;
- the formula written out, for soft-capped scores elsewhere.

B batch, T queries, S keys, H heads, K key/value heads, D head size.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.models.config import GPTConfig
from lit_gpt.models.flex import flex_attend
from lit_gpt.models.masks import Mask


class Scoring(NamedTuple):
    """What happens to q kᵀ before the softmax; ALiBi is part of the mask, or FlexAttention adds it on CUDA."""

    scale: float
    softcap: float | None = None
    alibi: bool = False

    @classmethod
    def of(cls, config: GPTConfig) -> "Scoring":
        """What a model asks for."""
        return cls(config.score_scale, config.attention_softcap, config.positions == "alibi")


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    scoring: Scoring | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention by the kernel that fits.

    Args:
        q: (B, H, T, D).
        k: (B, K, S, D).
        v: (B, K, S, any width).
        mask: From `build_masks`; None = causal, or, for one query after a cache, everything.
        scoring: None = scores are multiplied by 1 / √D, and that is all.
        sinks: (H,) logits that join each head's softmax, or None.
        dropout: Probability of dropping an attention weight.

    Returns:
        (B, H, T, width of v).
    """
    scoring = scoring or Scoring(q.shape[-1] ** -0.5)
    if mask is not None and not isinstance(mask, Tensor):
        return flex_attend(q, k, v, mask, scoring.scale, scoring.softcap, scoring.alibi, sinks)
    if scoring.softcap is not None:
        return _written_out(q, k, v, mask, scoring, sinks, dropout)
    if sinks is not None:
        q, k, padded, mask = _with_sink_key(q, k, v, mask, sinks, scoring.scale)
        return _sdpa(q, k, padded, mask, scoring.scale, dropout)[..., : v.shape[-1]]
    return _sdpa(q, k, v, mask, scoring.scale, dropout)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask if mask is None or mask.dtype == torch.bool else mask.to(q.dtype),
        dropout_p=dropout,
        # SDPA aligns its causal mask with the first key, which is right only while T = S: `build_masks` gives None
        # to several queries only then, and a single query after a cache sees everything. (Where T is a symbol, there
        # is no cache, and for T = 1 both are the same.)
        is_causal=mask is None and (torch.compiler.is_exporting() or q.shape[2] > 1),
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _with_sink_key(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One key more, seen by every query, whose score is the head's sink and whose value is zero.

    Queries get one coordinate more, sink / scale; the new key is 1 there and 0 elsewhere, the others are 0 there. So
    the fast kernels compute the larger softmax, and the sinks' gradient comes through the queries.
    """
    T, S = q.shape[2], k.shape[2]
    sink = (sinks / scale).to(q.dtype).view(1, -1, 1, 1).expand(q.shape[0], -1, T, 1)
    q = torch.cat((q, sink), dim=-1)
    k = F.pad(k, (0, 1, 1, 0))
    k[:, :, 0, -1] = 1
    v = F.pad(v, (0, k.shape[-1] - v.shape[-1], 1, 0))
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)[None, None]
    return q, k, v, F.pad(mask, (1, 0), value=1 if mask.dtype == torch.bool else 0)


def _written_out(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scoring: Scoring, sinks: Tensor | None, dropout: float
) -> Tensor:
    """The formula, step by step: (B, H, T, S) weights exist."""
    weights = attention_weights(q, k, mask, scoring, sinks).to(v.dtype)
    if dropout:
        weights = F.dropout(weights, dropout)
    shared = weights.unflatten(1, (k.shape[1], -1)) @ v.unsqueeze(2)  # (B, K, H/K, T, width)
    return shared.flatten(1, 2)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, scoring: Scoring, sinks: Tensor | None) -> Tensor:
    """What each query takes from each key.

    Args:
        q: (B, H, T, D).
        k: (B, K, S, D).
        mask: Dense, or None as in `attend`.
        scoring: Scale and soft-cap.
        sinks: (H,) or None.

    Returns:
        (B, H, T, S) float32 (float64 for float64 inputs); a row sums to 1, less what its head's sink took.
    """
    T, S = q.shape[2], k.shape[2]
    grouped = (q * scoring.scale).unflatten(1, (k.shape[1], -1))  # (B, K, H/K, T, D)
    scores = (grouped @ k.unsqueeze(2).transpose(-1, -2)).flatten(1, 2)  # (B, H, T, S)
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    if mask is None and (torch.compiler.is_exporting() or T > 1):
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    if sinks is not None:
        sink = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(q.shape[0], -1, T, 1)
        scores = torch.cat((scores, sink), dim=-1)
    return scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))[..., :S]
