"""Causal self-attention: multi-head, grouped-query or multi-query, with the extensions of later models.

The first part computes softmax(scale · q kᵀ + mask) v, with the changes that published models make to the scores. It
has five equivalent implementations and picks the fastest one that supports what the model needs:

- `scaled_dot_product_attention`: everything except soft-capping;
- in training on a CPU, a compiled kernel for causal attention without bias (`training_kernels`);
- the same with one more key for attention sinks (its score is the head's learned logit, its value zero);
- FlexAttention with a BlockMask on CUDA, which supports everything;
- the formula written out, for soft-capped scores elsewhere.

The second part is the layer (`SelfAttention`).

B batch, T time or queries, S keys (T and what a state holds), C model width, H heads, K key/value heads, D head size.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.models.cache import KVState
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.fused import FusedLinears
from lit_gpt.models.linear import Linear
from lit_gpt.models.masks import Mask, flex_attend
from lit_gpt.models.mixers import Context, TokenMixer, register_token_mixer
from lit_gpt.models.norms import apply_norm, build_norm
from lit_gpt.models.positions import Rotation, alibi_slopes, apply_rope
from lit_gpt.models.training_kernels import causal_attention

if TYPE_CHECKING:
    from lit_gpt.models.cache import Part, StepState


class Scoring(NamedTuple):
    """How scores q kᵀ are changed before the softmax; ALiBi is added by the mask or, on CUDA, by FlexAttention."""

    scale: float
    softcap: float | None = None
    alibi: bool = False
    heads: tuple[int, int] | None = None
    """(first, total): a process that holds some of the heads holds `first` and the following ones; None = all heads."""

    @classmethod
    def of(cls, config: GPTConfig) -> "Scoring":
        """Return the scoring that a model's config specifies."""
        return cls(config.score_scale, config.attention_softcap, config.positions == "alibi")


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    scoring: Scoring | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
    queries: Tensor | None = None,
) -> Tensor:
    """Compute attention with the fastest kernel that supports the arguments.

    Args:
        q: (B, H, T, D).
        k: (B, K, S, D).
        v: (B, K, S, any width).
        mask: From `build_masks`; None = causal, or, for a single query with a cache, no mask.
        scoring: Scale and soft-cap; None = scale by 1 / √D only.
        sinks: (H,) logits that are included in each head's softmax, or None.
        dropout: Probability of dropping an attention weight.
        queries: (T,) int64, the place of each query among the keys, if rows are divided over processes; None = T = S.

    Returns:
        (B, H, T, width of v).
    """
    scoring = scoring or Scoring(q.shape[-1] ** -0.5)
    if isinstance(mask, tuple):
        chunks = [
            attend(q[:, :, c.queries], k[:, :, c.keys], v[:, :, c.keys], c.mask, scoring, sinks, dropout) for c in mask
        ]
        return torch.cat(chunks, dim=2)
    if mask is not None and not isinstance(mask, Tensor):
        slopes = None
        if scoring.alibi:
            first, total = scoring.heads or (0, q.shape[1])
            slopes = alibi_slopes(total, q.device)[first : first + q.shape[1]]
        return flex_attend(q, k, v, mask, scoring.scale, scoring.softcap, slopes, sinks, queries)
    if mask is not None and scoring.heads is not None and mask.shape[1] == scoring.heads[1]:
        mask = mask[:, scoring.heads[0] : scoring.heads[0] + q.shape[1]]  # ALiBi's, of all heads
    if scoring.softcap is not None:
        return _written_out(q, k, v, mask, scoring, sinks, dropout)
    if sinks is not None:
        q, k, padded, mask = _with_sink_key(q, k, v, mask, sinks, scoring.scale)
        return _sdpa(q, k, padded, mask, scoring.scale, dropout)[..., : v.shape[-1]]
    compiled = None if dropout else causal_attention(q, k, v, mask, scoring.scale)
    return _sdpa(q, k, v, mask, scoring.scale, dropout) if compiled is None else compiled


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask if mask is None or mask.dtype == torch.bool else mask.to(q.dtype),
        dropout_p=dropout,
        # SDPA aligns its causal mask with the first key (upper left), which is correct only if T = S. Several queries
        # come without a mask only in that case, and a single query in decoding sees every stored key. (In torch.export,
        # T is a symbol that cannot be compared; nothing is cached there, and for T = 1 causal and full are the same.)
        is_causal=mask is None and (torch.compiler.is_exporting() or q.shape[2] > 1),
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _with_sink_key(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Express attention sinks as one more key, visible to every query, with the sink as its score and a zero value.

    Queries get one more coordinate, sink / scale; the new key is 1 in it and 0 elsewhere, all other keys are 0 in it.
    So the score of the new key is scale · (sink / scale) = sink, the fast kernels compute the extended softmax, and
    the gradient of the sinks flows through the queries.
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
    """Compute attention by the formula, materializing the (B, H, T, S) weights."""
    weights = attention_weights(q, k, mask, scoring, sinks).to(v.dtype)
    if dropout:
        weights = F.dropout(weights, dropout)
    shared = weights.unflatten(1, (k.shape[1], -1)) @ v.unsqueeze(2)  # (B, K, H/K, T, width)
    return shared.flatten(1, 2)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, scoring: Scoring, sinks: Tensor | None) -> Tensor:
    """Return the attention weights of each query over the keys.

    Args:
        q: (B, H, T, D).
        k: (B, K, S, D).
        mask: Dense, or None as in `attend`.
        scoring: Scale and soft-cap.
        sinks: (H,) or None.

    Returns:
        (B, H, T, S) float32 (float64 for float64 inputs); a row sums to 1, minus the share of its head's sink.
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


class SelfAttention(TokenMixer):
    """Causal self-attention layer.

    The number of heads is taken from the projections' outputs and not from the config: under tensor parallelism each
    device holds only a part of the heads.

    Args:
        config: The model's architecture.
        layer: Index of the block, from 0.
    """

    divides_rows = True

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        C, D, bias = config.n_embd, config.head_dim, config.has_attention_bias
        H, K = config.n_head, config.num_kv_heads
        self.config, self.layer, self.head_size, self.dropout = config, layer, D, config.dropout
        self.num_heads, self.num_kv_heads = H, K
        self.slides, self.rotates = config.slides(layer), config.rotates(layer)
        self.scoring = Scoring.of(config)
        self.q_proj = Linear(C, H * D, bias=bias)
        self.k_proj = Linear(C, K * D, bias=bias)
        self.v_proj = Linear(C, K * D, bias=bias)
        self.o_proj = Linear(H * D, C, bias=config.has_attention_out_bias)
        self.norms_heads = config.qk_norm == "head"
        self.q_norm: nn.Module | None = None
        self.k_norm: nn.Module | None = None
        if config.qk_norm:
            self.q_norm = build_norm(config, D if self.norms_heads else H * D)
            self.k_norm = build_norm(config, D if self.norms_heads else K * D)
        self.sinks = nn.Parameter(torch.zeros(H)) if config.attention_sinks else None
        self.drop = nn.Dropout(config.dropout)
        self.fused: FusedLinears | None = None
        self.rotate: Callable[[Tensor, Rotation], Tensor] = apply_rope
        self.attend_one: Callable[..., Tensor | None] | None = None
        """Faster attention of single queries, if there is one (`lit_gpt.models.native`)."""
        self.store: Callable[..., bool] | None = None
        """Likewise, of a key and a value per row in the KV cache."""

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
            queries = None
            if context.sequence is not None:
                k, v = context.sequence.gather(k, v)  # (B, whole row, K, D); the queries stay this process's
                queries = context.sequence.index
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            mask = context.mask(self.slides)
            y = attend(q, k, v, mask, self.scoring, self.sinks, dropout, queries).transpose(1, 2)
        y = self.o_proj(y.flatten(2))
        return self.drop(y) if self.training else y

    def _attend_part(self, state: KVState, part: "Part", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values, mask = state.update(part, k, v)
        if self.attend_one is not None:
            y = self.attend_one(q, keys, values, mask, self.scoring.scale)
            if y is not None:
                return y
        return attend(q.transpose(1, 2), keys, values, mask, self.scoring, self.sinks).transpose(1, 2)

    def project(
        self, x: Tensor, rotation: Rotation | None = None, prepared: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, T, H, D), keys and values (B, T, K, D) of x (B, T, C), normalized and rotated.

        Args:
            x: (B, T, C).
            rotation: RoPE's tables for these positions, or None.
            prepared: See `Context`.
        """
        shape = (*x.shape[:2], -1, self.head_size)
        if self.fused is not None and (prepared or self.fused.serves((self.q_proj, self.k_proj, self.v_proj))):
            if self.q_norm is None and self.k_norm is None:
                # Queries and keys are adjacent, so one call rotates both.
                heads = self.num_heads + self.num_kv_heads
                qk, v = self.fused.product(x).view(shape).split_with_sizes((heads, self.num_kv_heads), dim=2)
                if rotation is not None:
                    qk = self.rotate(qk, rotation).to(v.dtype)
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
        q = q if self.q_norm is None else apply_norm(self.q_norm, q, prepared)
        k = k if self.k_norm is None else apply_norm(self.k_norm, k, prepared)
        q, k = q.view(shape), k.view(shape)
        if rotation is not None:
            q, k = apply_rope(q, rotation), apply_rope(k, rotation)
            if rotation.query_scale is not None:
                q = q * rotation.query_scale
        return q.to(v.dtype), k.to(v.dtype), v  # under autocast, norms and rotations give float32

    def new_state(self, num_rows: int, capacity: int, margin: int, dtype: torch.dtype, device: torch.device) -> KVState:
        """Return an empty KV state."""
        shapes = ((self.num_kv_heads, self.head_size), (self.num_kv_heads, self.head_size))
        window = self.config.window(self.layer)
        return KVState(self.config, window, shapes, num_rows, capacity, margin, dtype, device, self.store)

    @classmethod
    def flops_per_token(cls, config: GPTConfig, layer: int, context: int) -> int:
        """Return the FLOPs of q kᵀ and of the weighted sum of values, forward and backward, per token."""
        return 6 * 2 * config.n_head * config.head_dim * min(context, config.window(layer) or context)


register_token_mixer("attention", SelfAttention)
register_token_mixer("sliding", SelfAttention)
