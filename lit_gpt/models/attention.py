"""Causal self-attention: multi-head, grouped-query or multi-query, with what later models added by config.

B batch, T time, S keys (T and what a state holds), C model width, H heads, K key/value heads, D head size.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lit_gpt.models.attend import Scoring, attend
from lit_gpt.models.cache import KVState
from lit_gpt.models.fused import FusedLinears
from lit_gpt.models.mixers import Context, TokenMixer, register_token_mixer
from lit_gpt.models.norms import build_norm
from lit_gpt.models.positions import Rotation, apply_rope

if TYPE_CHECKING:
    from lit_gpt.models.cache import Part, StepState
    from lit_gpt.models.config import GPTConfig


class SelfAttention(TokenMixer):
    """Each token compares its query with the keys of the tokens it may see, and takes a weighted mean of their values.

    Heads are counted from the projections' outputs, not from the config: under tensor parallelism a device holds
    only its share of them.

    Args:
        config: The model's shape.
        layer: Which block this is, from 0.
    """

    def __init__(self, config: "GPTConfig", layer: int) -> None:
        super().__init__()
        C, D, bias = config.n_embd, config.head_dim, config.has_attention_bias
        H, K = config.n_head, config.num_kv_heads
        self.config, self.layer, self.head_size, self.dropout = config, layer, D, config.dropout
        self.num_heads, self.num_kv_heads = H, K
        self.slides, self.rotates = config.slides(layer), config.rotates(layer)
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
        """Return the linear layers that share an input (see `prepare_for_decoding`)."""
        return [self.q_proj, self.k_proj, self.v_proj]

    def forward(self, x: Tensor, context: Context, state: "StepState | None" = None) -> Tensor:
        """Attend: (B, T, C) → (B, T, C); see `TokenMixer.forward`."""
        rotation = context.rotation(self.slides) if self.rotates else None
        q, k, v = self.project(x, rotation, context.prepared)  # (B, T, H or K, D)
        if state is not None:
            y = state.map(self._attend_part, q, k, v)
        else:
            dropout = self.dropout if self.training else 0.0
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            y = attend(q, k, v, context.mask(self.slides), self.scoring, self.sinks, dropout).transpose(1, 2)
        y = self.o_proj(y.flatten(2))
        return self.drop(y) if self.training else y

    def _attend_part(self, state: KVState, part: "Part", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values, mask = state.update(part, k, v)
        return attend(q.transpose(1, 2), keys, values, mask, self.scoring, self.sinks).transpose(1, 2)

    def project(
        self, x: Tensor, rotation: Rotation | None = None, prepared: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, T, H, D), keys and values (B, T, K, D) of x (B, T, C), normalised and rotated.

        Args:
            x: (B, T, C).
            rotation: RoPE's tables for these positions, or None.
            prepared: See `Context`.
        """
        shape = (*x.shape[:2], -1, self.head_size)
        if self.fused is not None and (prepared or self.fused.serves((self.q_proj, self.k_proj, self.v_proj))):
            if not self.config.qk_norm:
                # Queries and keys stand side by side: one rotation for both.
                heads = self.num_heads + self.num_kv_heads
                qk, v = self.fused.product(x).view(shape).split_with_sizes((heads, self.num_kv_heads), dim=2)
                if rotation is not None:
                    qk = apply_rope(qk, rotation).to(v.dtype)
                q, k = qk[:, :, : self.num_heads], qk[:, :, self.num_heads :]
                if rotation is not None and rotation.query_scale is not None:
                    q = (q * rotation.query_scale).to(v.dtype)
                return q, k, v
            q, k, v = self.fused(x)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        v = v.view(shape)
        if self.norms_heads:
            q, k = q.view(shape), k.view(shape)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q, prepared), self.k_norm(k, prepared)
        q, k = q.view(shape), k.view(shape)
        if rotation is not None:
            q, k = apply_rope(q, rotation), apply_rope(k, rotation)
            if rotation.query_scale is not None:
                q = q * rotation.query_scale
        return q.to(v.dtype), k.to(v.dtype), v  # under autocast, norms and rotations give float32

    def new_state(self, num_rows: int, capacity: int, margin: int, dtype: torch.dtype, device: torch.device) -> KVState:
        """Return keys and values of no tokens."""
        shapes = ((self.num_kv_heads, self.head_size), (self.num_kv_heads, self.head_size))
        window = self.config.window(self.layer)
        return KVState(self.config, window, shapes, num_rows, capacity, margin, dtype, device)

    @classmethod
    def flops_per_token(cls, config: "GPTConfig", layer: int, context: int) -> int:
        """Return the FLOPs of q kᵀ and of the weighted sum of values, forward and backward."""
        return 6 * 2 * config.n_head * config.head_dim * min(context, config.window(layer) or context)


register_token_mixer("attention", SelfAttention)
register_token_mixer("sliding", SelfAttention)
