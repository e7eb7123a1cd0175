"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1; also DeepSeek-V3, arXiv:2412.19437).

Keys and values of all heads are unfolded from one latent a token, and the part of the keys that is rotated is shared
by all heads; so a cache holds R + D' numbers a token instead of 2 H D. Two ways to compute the same:

- **unfolded**, for training and prompts: keys and values are made for every head, then it is ordinary attention;
- **absorbed**, for a few queries after a cache: q · (W_k c) = (W_kᵀ q) · c, so the queries are brought to the latents
  instead of all the latents to the heads, and the sum of latents goes through W_v once.

B batch, T queries, S keys, C model width, H heads, R width of the latent.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.models.attend import Scoring, attend
from lit_gpt.models.cache import KVCache
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.masks import Mask
from lit_gpt.models.norms import build_norm
from lit_gpt.models.positions import Rotation, apply_rope
from lit_gpt.models.step_cache import StepCache

LATENT_NORM_EPS = 1e-6
"""Of the latents' norms: DeepSeek's code and transformers' keep it whatever the model's own."""


class LatentAttention(nn.Module):
    """`SelfAttention` over latents; takes and returns the same.

    Args:
        config: The model's shape; `mla` has the widths.
        layer: Which block this is, from 0 (its place in the cache).
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        assert config.mla is not None
        self.mla, self.layer, self.dropout = config.mla, layer, config.dropout
        self.scoring = Scoring.of(config)
        C, H, R, bias = config.n_embd, config.n_head, self.mla.kv_lora_rank, config.has_attention_bias
        self.num_heads = H
        rank = self.mla.q_lora_rank
        self.q_proj = nn.Linear(C, H * self.mla.qk_head_dim, bias=False) if rank is None else None
        self.q_a_proj = nn.Linear(C, rank, bias=bias) if rank is not None else None
        self.q_a_norm = _latent_norm(config, rank) if rank is not None else None
        self.q_b_proj = nn.Linear(rank, H * self.mla.qk_head_dim, bias=False) if rank is not None else None
        self.kv_a_proj = nn.Linear(C, R + self.mla.qk_rope_head_dim, bias=bias)
        self.kv_a_norm = _latent_norm(config, R)
        self.kv_b_proj = nn.Linear(R, H * (self.mla.qk_nope_head_dim + self.mla.v_head_dim), bias=False)
        self.o_proj = nn.Linear(H * self.mla.v_head_dim, C, bias=config.has_attention_out_bias)
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, rotation: Rotation | None = None, mask: Mask = None, cache: KVCache | StepCache | None = None
    ) -> Tensor:
        """Attend.

        Args:
            x: (B, T, C).
            rotation: RoPE's tables for these positions, over `qk_rope_head_dim` coordinates; None = not rotated.
            mask: From `build_masks`; None = causal, or, for one query after a cache, everything.
            cache: Earlier latents and rotated keys, or None; a `StepCache` has masks of its own.

        Returns:
            (B, T, C).
        """
        q, q_rotated = self._queries(x, rotation)
        latent, k_rotated = self._latents(x, rotation)
        if isinstance(cache, StepCache):
            y = cache.attend(self.layer, (q, q_rotated), latent.unsqueeze(2), k_rotated.unsqueeze(2), self._attend_step)
            return self.drop(self.o_proj(y.flatten(2)))
        earlier = 0
        if cache is not None:
            earlier = cache.length
            stored = cache.update(self.layer, latent.unsqueeze(1), k_rotated.unsqueeze(1))
            latent, k_rotated = (part.squeeze(1) for part in stored)
        if earlier and self._absorbing_is_cheaper(x.shape[1], latent.shape[1]):
            assert mask is None or isinstance(mask, Tensor)
            y = self.absorbed(q, q_rotated, latent, k_rotated, mask)
        else:
            y = self.unfolded(q, q_rotated, latent, k_rotated, mask)
        return self.drop(self.o_proj(y.flatten(2)))

    def _attend_step(self, queries: Sequence[Tensor], latents: Tensor, rotated: Tensor, mask: Tensor | None) -> Tensor:
        q, q_rotated = queries
        latents, rotated = latents.squeeze(1), rotated.squeeze(1)
        few = self._absorbing_is_cheaper(q.shape[1], latents.shape[1])
        if few and (mask is not None or q.shape[1] == 1):
            return self.absorbed(q, q_rotated, latents, rotated, mask)
        return self.unfolded(q, q_rotated, latents, rotated, mask)

    def _queries(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor]:
        """(B, T, H, qk_nope_head_dim) and, rotated, (B, T, H, qk_rope_head_dim)."""
        if self.q_proj is not None:
            q = self.q_proj(x)
        else:
            assert self.q_a_proj is not None
            assert self.q_a_norm is not None
            assert self.q_b_proj is not None
            q = self.q_b_proj(_normed(self.q_a_norm, self.q_a_proj(x)))
        q = q.unflatten(2, (self.num_heads, -1))
        if rotation is not None and rotation.query_scale is not None:
            q = (q * rotation.query_scale).to(q.dtype)
        plain, rotated = q.split((self.mla.qk_nope_head_dim, self.mla.qk_rope_head_dim), dim=-1)
        return plain, rotated if rotation is None else apply_rope(rotated, rotation).to(q.dtype)

    def _latents(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor]:
        """What is cached of each token: its latent (B, T, R) and its rotated key (B, T, qk_rope_head_dim)."""
        latent, key = self.kv_a_proj(x).split((self.mla.kv_lora_rank, self.mla.qk_rope_head_dim), dim=-1)
        if rotation is not None:
            key = apply_rope(key.unsqueeze(2), rotation).squeeze(2).to(key.dtype)
        return _normed(self.kv_a_norm, latent).to(key.dtype), key

    def unfolded(self, q: Tensor, q_rotated: Tensor, latent: Tensor, k_rotated: Tensor, mask: Mask) -> Tensor:
        """Attention of every head over keys and values of its own.

        Args:
            q: (B, T, H, qk_nope_head_dim).
            q_rotated: (B, T, H, qk_rope_head_dim).
            latent: (B, S, R).
            k_rotated: (B, S, qk_rope_head_dim).
            mask: As in `forward`.

        Returns:
            (B, T, H, v_head_dim).
        """
        q, k, v = self._unfold(q, q_rotated, latent, k_rotated)
        if v.device.type == "cpu" and v.shape[-1] < k.shape[-1]:
            v = F.pad(v, (0, k.shape[-1] - v.shape[-1]))  # SDPA's fused CPU kernel wants one width
        y = attend(q, k, v, mask, self.scoring, None, self.dropout if self.training else 0.0)
        return y.transpose(1, 2)[..., : self.mla.v_head_dim]

    def project(self, x: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys (B, H, T, qk_head_dim) and values (B, H, T, v_head_dim) of x (B, T, C), rotated."""
        return self._unfold(*self._queries(x, rotation), *self._latents(x, rotation))

    def _unfold(self, q: Tensor, q_rotated: Tensor, latent: Tensor, k_rotated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kv = self.kv_b_proj(latent).unflatten(2, (self.num_heads, -1))
        k, v = kv.split((self.mla.qk_nope_head_dim, self.mla.v_head_dim), dim=-1)
        q = torch.cat((q, q_rotated), dim=-1)
        k = torch.cat((k, k_rotated.unsqueeze(2).expand(-1, -1, self.num_heads, -1)), dim=-1)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def absorbed(self, q: Tensor, q_rotated: Tensor, latent: Tensor, k_rotated: Tensor, mask: Tensor | None) -> Tensor:
        """The same, over the latents themselves; arguments and result as in `unfolded`."""
        T = q.shape[1]
        unfold = self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1))  # (H, D + V, R)
        to_keys, to_values = unfold.split((self.mla.qk_nope_head_dim, self.mla.v_head_dim), dim=1)
        brought = torch.einsum("bthd,hdr->bhtr", q, to_keys).flatten(1, 2)  # (B, H T, R)
        scores = brought @ latent.mT + q_rotated.transpose(1, 2).flatten(1, 2) @ k_rotated.mT  # (B, H T, S)
        scores = scores.unflatten(1, (-1, T)) * self.scoring.scale
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        assert mask is not None or T == 1, "several queries after a cache need a mask"
        weights = F.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(latent.dtype)
        mean = weights.flatten(1, 2) @ latent  # (B, H T, R)
        return torch.einsum("bhtr,hvr->bthv", mean.unflatten(1, (-1, T)), to_values)

    def _absorbing_is_cheaper(self, num_queries: int, num_keys: int) -> bool:
        """Compare the products of one head, in multiplications a key."""
        R, rotated = self.mla.kv_lora_rank, self.mla.qk_rope_head_dim
        plain, v = self.mla.qk_nope_head_dim, self.mla.v_head_dim
        absorbed = num_queries * (2 * R + rotated) + num_queries * R * (plain + v) / num_keys
        unfolded = R * (plain + v) + num_queries * (plain + rotated + v)
        return absorbed < unfolded


def _latent_norm(config: GPTConfig, width: int) -> nn.LayerNorm | nn.RMSNorm:
    norm = build_norm(config, width)
    norm.eps = LATENT_NORM_EPS
    return norm


def _normed(norm: nn.LayerNorm | nn.RMSNorm, x: Tensor) -> Tensor:
    """The norm in its own precision: autocast leaves x narrower."""
    return norm(x.to(norm.weight.dtype)).to(x.dtype)
