"""Causal self-attention: multi-head, grouped-query or multi-query, with optional QK-norm and RoPE.

B batch, T time, S keys (T and what a cache holds), C model width, H heads, K key/value heads, D head size.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.models.cache import KVCache
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.flex import flex_attend
from lit_gpt.models.masks import Mask
from lit_gpt.models.norms import build_norm
from lit_gpt.models.positions import Rotation, apply_rope


class SelfAttention(nn.Module):
    """Each token asks (q) the tokens it may see (k) and takes in a mean of what they carry (v).

    Heads are counted from the projections' outputs, not from the config: under tensor parallelism a device holds
    only its share of them.

    Args:
        config: The model's shape.
        layer: Which block this is, from 0 (its place in the cache).
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        C, D, bias = config.n_embd, config.head_dim, config.has_attention_bias
        self.layer, self.head_size, self.dropout = layer, D, config.dropout
        self.q_proj = nn.Linear(C, config.n_head * D, bias=bias)
        self.k_proj = nn.Linear(C, config.num_kv_heads * D, bias=bias)
        self.v_proj = nn.Linear(C, config.num_kv_heads * D, bias=bias)
        self.o_proj = nn.Linear(config.n_head * D, C, bias=bias)
        self.q_norm = build_norm(config, D) if config.qk_norm else None
        self.k_norm = build_norm(config, D) if config.qk_norm else None
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, rotation: Rotation | None = None, mask: Mask = None, cache: KVCache | None = None
    ) -> Tensor:
        """Attend.

        Args:
            x: (B, T, C).
            rotation: RoPE's tables for these positions, or None.
            mask: From `build_masks`; None = causal, or, for one query after a cache, everything.
            cache: Earlier keys and values, or None.

        Returns:
            (B, T, C).
        """
        q, k, v = self.project(x, rotation)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        y = attend(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, H, T, D)
        return self.drop(self.o_proj(y.transpose(1, 2).flatten(2)))

    def project(self, x: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, D), keys and values (B, K, T, D) of x (B, T, C), normalised and rotated."""
        shape = (*x.shape[:2], -1, self.head_size)
        q, k, v = self.q_proj(x).view(shape), self.k_proj(x).view(shape), self.v_proj(x).view(shape)
        if self.q_norm is not None and self.k_norm is not None:
            dtype = self.q_norm.weight.dtype  # autocast left q and k narrower than the norms compute
            q, k = self.q_norm(q.to(dtype)), self.k_norm(k.to(dtype))
        if rotation is not None:
            q, k = apply_rope(q, rotation), apply_rope(k, rotation)
        q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast, norms and rotations give float32
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout: float = 0.0) -> Tensor:
    """softmax(q kᵀ / √D + mask) v, by the kernel that fits the mask.

    Args:
        q: (B, H, T, D).
        k: (B, K, S, D).
        v: (B, K, S, D).
        mask: From `build_masks`.
        dropout: Probability of dropping an attention weight.

    Returns:
        (B, H, T, D).
    """
    if mask is not None and not isinstance(mask, Tensor):
        return flex_attend(q, k, v, mask)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        # SDPA aligns its causal mask with the first key, which is right only while T = S: `build_masks` gives None
        # to several queries only then, and a single query after a cache sees everything.
        is_causal=mask is None and q.shape[2] > 1,
        enable_gqa=q.shape[1] != k.shape[1],
    )
