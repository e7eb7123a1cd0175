"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1; also DeepSeek-V3, arXiv:2412.19437).

Keys and values of all heads are projected up from one latent per token, and the rotary part of the keys is shared by
all heads, so a cache stores R + D' values per token instead of 2 H D (D' = qk_rope_head_dim, D = head size). There are
two equivalent formulations:

- **expanded**, for training and prefill: per-head keys and values are computed from the latent, followed by standard
  attention;
- **absorbed**, for a few queries in decoding: q · (W_k c) = (W_kᵀ q) · c, so W_k is applied to the few queries instead
  of to all stored latents c, and W_v to the weighted mean of the latents instead of to each of them.

B batch, T queries, S keys, C model width, H heads, R width of the latent.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.models.attention import Scoring, attend
from lit_gpt.models.cache import KVState
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.linear import Linear
from lit_gpt.models.masks import Mask
from lit_gpt.models.mixers import Context, TokenMixer, register_token_mixer
from lit_gpt.models.norms import build_norm
from lit_gpt.models.positions import Rotation, apply_rope

if TYPE_CHECKING:
    from lit_gpt.models.cache import Part, StepState

LATENT_NORM_EPS = 1e-6
"""Epsilon of the latents' norms: DeepSeek's code and transformers use it regardless of the model's `norm_eps`."""


class LatentAttention(TokenMixer):
    """Causal attention whose keys and values are computed from one latent per token.

    Args:
        config: The model's architecture; `mla` has the widths.
        layer: Index of the block, from 0.
    """

    divides_rows = True

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        assert config.mla is not None
        self.config, self.mla, self.layer, self.dropout = config, config.mla, layer, config.dropout
        self.slides, self.rotates = config.slides(layer), config.rotates(layer)
        self.scoring = Scoring.of(config)
        C, H, R, bias = config.n_embd, config.n_head, self.mla.kv_lora_rank, config.has_attention_bias
        self.num_heads = H
        rank = self.mla.q_lora_rank
        self.q_proj = Linear(C, H * self.mla.qk_head_dim, bias=False) if rank is None else None
        self.q_a_proj = Linear(C, rank, bias=bias) if rank is not None else None
        self.q_a_norm = _latent_norm(config, rank) if rank is not None else None
        self.q_b_proj = Linear(rank, H * self.mla.qk_head_dim, bias=False) if rank is not None else None
        self.kv_a_proj = Linear(C, R + self.mla.qk_rope_head_dim, bias=bias)
        self.kv_a_norm = _latent_norm(config, R)
        self.kv_b_proj = Linear(R, H * (self.mla.qk_nope_head_dim + self.mla.v_head_dim), bias=False)
        self.o_proj = Linear(H * self.mla.v_head_dim, C, bias=config.has_attention_out_bias)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, context: Context, state: "StepState | None" = None) -> Tensor:
        """Attend: (B, T, C) → (B, T, C); see `TokenMixer.forward`."""
        rotation = context.rotation(self.slides) if self.rotates else None
        q, q_rotated = self._queries(x, rotation)
        latent, k_rotated = self._latents(x, rotation)
        if state is not None:
            y = state.map(self._attend_part, q, q_rotated, latent, k_rotated)
        else:
            queries = None
            if context.sequence is not None:
                # The latents, before they are expanded to keys and values: R + D' values a token instead of 2 H D.
                latent, k_rotated = context.sequence.gather(latent, k_rotated)
                queries = context.sequence.index
            y = self.expanded(q, q_rotated, latent, k_rotated, context.mask(self.slides), queries)
        return self.drop(self.o_proj(y.flatten(2)))

    def _attend_part(
        self, state: KVState, part: "Part", q: Tensor, q_rotated: Tensor, latent: Tensor, k_rotated: Tensor
    ) -> Tensor:
        # The KV state is reused with a single head: its keys are the latents and its values the rotary keys.
        latents, rotated, mask = state.update(part, latent.unsqueeze(2), k_rotated.unsqueeze(2))
        latents, rotated = latents.squeeze(1), rotated.squeeze(1)
        few = self._absorbing_is_cheaper(q.shape[1], latents.shape[1])
        if few and (mask is not None or q.shape[1] == 1):
            return self.absorbed(q, q_rotated, latents, rotated, mask)
        return self.expanded(q, q_rotated, latents, rotated, mask)

    def new_state(self, num_rows: int, capacity: int, margin: int, dtype: torch.dtype, device: torch.device) -> KVState:
        """Return an empty state of latents and rotary keys."""
        shapes = ((1, self.mla.kv_lora_rank), (1, self.mla.qk_rope_head_dim))
        window = self.config.window(self.layer)
        return KVState(self.config, window, shapes, num_rows, capacity, margin, dtype, device)

    @classmethod
    def flops_per_token(cls, config: GPTConfig, layer: int, context: int) -> int:
        """Return the FLOPs of q kᵀ and of the weighted sum of values in expanded form, forward and backward."""
        assert config.mla is not None
        width = config.n_head * (config.mla.qk_head_dim + config.mla.v_head_dim)
        return 6 * width * min(context, config.window(layer) or context)

    def _queries(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor]:
        """Return queries without positions (B, T, H, qk_nope_head_dim) and rotary ones (B, T, H, qk_rope_head_dim)."""
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
        """Return the cached values of each token: latent (B, T, R) and rotary key (B, T, qk_rope_head_dim)."""
        latent, key = self.kv_a_proj(x).split((self.mla.kv_lora_rank, self.mla.qk_rope_head_dim), dim=-1)
        if rotation is not None:
            key = apply_rope(key.unsqueeze(2), rotation).squeeze(2).to(key.dtype)
        return _normed(self.kv_a_norm, latent).to(key.dtype), key

    def expanded(
        self,
        q: Tensor,
        q_rotated: Tensor,
        latent: Tensor,
        k_rotated: Tensor,
        mask: Mask,
        queries: Tensor | None = None,
    ) -> Tensor:
        """Attend with per-head keys and values.

        Args:
            q: (B, T, H, qk_nope_head_dim).
            q_rotated: (B, T, H, qk_rope_head_dim).
            latent: (B, S, R).
            k_rotated: (B, S, qk_rope_head_dim).
            mask: From `build_masks`; None = causal.
            queries: See `attend`.

        Returns:
            (B, T, H, v_head_dim).
        """
        q, k, v = (part.transpose(1, 2) for part in self._expand(q, q_rotated, latent, k_rotated))
        if v.device.type == "cpu" and v.shape[-1] < k.shape[-1]:
            v = F.pad(v, (0, k.shape[-1] - v.shape[-1]))  # SDPA's fused CPU kernel needs equal widths
        y = attend(q, k, v, mask, self.scoring, None, self.dropout if self.training else 0.0, queries)
        return y.transpose(1, 2)[..., : self.mla.v_head_dim]

    def project(self, x: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries and keys (B, T, H, qk_head_dim) and values (B, T, H, v_head_dim) of x (B, T, C)."""
        return self._expand(*self._queries(x, rotation), *self._latents(x, rotation))

    def _expand(self, q: Tensor, q_rotated: Tensor, latent: Tensor, k_rotated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kv = self.kv_b_proj(latent).unflatten(2, (self.num_heads, -1))
        k, v = kv.split((self.mla.qk_nope_head_dim, self.mla.v_head_dim), dim=-1)
        q = torch.cat((q, q_rotated), dim=-1)
        k = torch.cat((k, k_rotated.unsqueeze(2).expand(-1, -1, self.num_heads, -1)), dim=-1)
        return q, k, v

    def absorbed(self, q: Tensor, q_rotated: Tensor, latent: Tensor, k_rotated: Tensor, mask: Tensor | None) -> Tensor:
        """Attend over the latents directly; arguments and result as in `expanded`."""
        T = q.shape[1]
        # kv_b_proj holds W_k and W_v of every head: (H (D + V), R). Scores: q · W_k c = (W_kᵀ q) · c, plus the part
        # with positions, whose key all heads share. Output: W_v (Σ w c) = Σ w (W_v c).
        kv_up_proj = self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1))  # (H, D + V, R)
        to_keys, to_values = kv_up_proj.split((self.mla.qk_nope_head_dim, self.mla.v_head_dim), dim=1)
        absorbed = torch.einsum("bthd,hdr->bhtr", q, to_keys).flatten(1, 2)  # (B, H T, R)
        scores = absorbed @ latent.mT + q_rotated.transpose(1, 2).flatten(1, 2) @ k_rotated.mT  # (B, H T, S)
        scores = scores.unflatten(1, (-1, T)) * self.scoring.scale
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        assert mask is not None or T == 1, "several queries in decoding require a mask"
        weights = F.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(latent.dtype)
        mean = weights.flatten(1, 2) @ latent  # (B, H T, R)
        return torch.einsum("bhtr,hvr->bthv", mean.unflatten(1, (-1, T)), to_values)

    def _absorbing_is_cheaper(self, num_queries: int, num_keys: int) -> bool:
        """Return whether the absorbed form needs fewer multiplications, counted per head and key."""
        R, rotated = self.mla.kv_lora_rank, self.mla.qk_rope_head_dim
        plain, v = self.mla.qk_nope_head_dim, self.mla.v_head_dim
        absorbed = num_queries * (2 * R + rotated) + num_queries * R * (plain + v) / num_keys
        expanded = R * (plain + v) + num_queries * (plain + rotated + v)
        return absorbed < expanded


def _latent_norm(config: GPTConfig, width: int) -> nn.LayerNorm | nn.RMSNorm:
    norm = build_norm(config, width)
    norm.eps = LATENT_NORM_EPS
    return norm


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a norm in its parameters' precision, because under autocast x has a lower one."""
    wide = next((parameter.dtype for parameter in norm.parameters()), x.dtype)
    return norm(x.to(wide)).to(x.dtype)


register_token_mixer("latent", LatentAttention)
