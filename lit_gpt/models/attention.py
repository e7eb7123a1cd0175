"""Causal self-attention: multi-head, grouped-query or multi-query, with what later models added by config.

B batch, T time, S keys (T and what a cache holds), C model width, H heads, K key/value heads, D head size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_gpt.models.attend import Scoring, attend
from lit_gpt.models.cache import KVCache
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.fused import FusedLinears
from lit_gpt.models.masks import Mask
from lit_gpt.models.norms import build_norm
from lit_gpt.models.positions import Rotation, apply_rope
from lit_gpt.models.step_cache import StepCache


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
        H, K = config.n_head, config.num_kv_heads
        self.layer, self.head_size, self.dropout = layer, D, config.dropout
        self.scoring = Scoring.of(config)
        self.q_proj = nn.Linear(C, H * D, bias=bias)
        self.k_proj = nn.Linear(C, K * D, bias=bias)
        self.v_proj = nn.Linear(C, K * D, bias=bias)
        self.o_proj = nn.Linear(H * D, C, bias=config.has_attention_out_bias)
        self.norms_heads = config.qk_norm == "head"
        self.q_norm = build_norm(config, D if self.norms_heads else H * D) if config.qk_norm else None
        self.k_norm = build_norm(config, D if self.norms_heads else K * D) if config.qk_norm else None
        self.sinks = nn.Parameter(torch.zeros(H)) if config.attention_sinks else None
        self.drop = nn.Dropout(config.dropout)
        self.fused: FusedLinears | None = None

    def fusable(self) -> list[nn.Linear]:
        """Layers of one input (see `prepare_for_decoding`)."""
        return [self.q_proj, self.k_proj, self.v_proj]

    def forward(
        self, x: Tensor, rotation: Rotation | None = None, mask: Mask = None, cache: KVCache | StepCache | None = None
    ) -> Tensor:
        """Attend.

        Args:
            x: (B, T, C).
            rotation: RoPE's tables for these positions, or None.
            mask: From `build_masks`; None = causal, or, for one query after a cache, everything.
            cache: Earlier keys and values, or None; a `StepCache` has masks of its own.

        Returns:
            (B, T, C).
        """
        q, k, v = self.project(x, rotation)
        if isinstance(cache, StepCache):
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            y = cache.attend(self.layer, (q,), k, v, self._attend_step)
            return self.drop(self.o_proj(y.flatten(2)))
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        y = attend(q, k, v, mask, self.scoring, self.sinks, self.dropout if self.training else 0.0)  # (B, H, T, D)
        return self.drop(self.o_proj(y.transpose(1, 2).flatten(2)))

    def _attend_step(self, queries: Sequence[Tensor], keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        return attend(queries[0].transpose(1, 2), keys, values, mask, self.scoring, self.sinks).transpose(1, 2)

    def project(self, x: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, D), keys and values (B, K, T, D) of x (B, T, C), normalised and rotated."""
        shape = (*x.shape[:2], -1, self.head_size)
        if self.fused is not None and self.fused.serves((self.q_proj, self.k_proj, self.v_proj)):
            q, k, v = self.fused(x)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        v = v.view(shape)
        if self.norms_heads:
            q, k = q.view(shape), k.view(shape)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = q.view(shape), k.view(shape)
        if rotation is not None:
            q, k = apply_rope(q, rotation), apply_rope(k, rotation)
            if rotation.query_scale is not None:
                q = q * rotation.query_scale
        q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast, norms and rotations give float32
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
