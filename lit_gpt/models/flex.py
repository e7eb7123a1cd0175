"""FlexAttention (arXiv:2412.05496): the CUDA path for packed documents, windows, and changed scores.

It compiles a kernel for a rule "may query i see key j" and skips the blocks that the rule empties, so a row of many
short documents costs what the documents cost and no (T, T) mask is ever stored. The block mask is built once a
forward on the device, without waiting for it. Its backward does not exist on CPU; there SDPA with a dense mask serves.

B batch, T time, H heads, K key/value heads, D head size.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_gpt.models.config import GPTConfig
from lit_gpt.models.positions import alibi_slopes

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

MIN_HEAD_SIZE = 16
"""The kernel's tensor-core tiles are at least this wide."""


def flex_serves(config: GPTConfig, device: torch.device) -> bool:
    """Whether FlexAttention can run this model on this device."""
    head_size = config.head_dim if config.mla is None else min(config.mla.qk_head_dim, config.mla.v_head_dim)
    return device.type == "cuda" and head_size >= MIN_HEAD_SIZE


def flex_block_mask(
    document_ids: Tensor | None,
    window: int | None,
    num_tokens: int,
    device: torch.device,
    chunks: Tensor | None = None,
) -> "BlockMask":
    """The block mask of the rule that `lit_gpt.models.masks.dense_mask` writes out.

    Args:
        document_ids: (B, T) int64 or None.
        window: Tokens a query sees, itself among them; None = all before it.
        num_tokens: T, queries and keys alike.
        device: Where it is built.
        chunks: (B or 1, T) int64: which chunk each token is in; then that, and not distance, makes the window.
    """

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed = query >= key
        if chunks is not None:
            row = 0 if chunks.shape[0] == 1 else batch
            allowed = allowed & (chunks[row, query] == chunks[row, key])
        elif window is not None:
            allowed = allowed & (query - key < window)
        if document_ids is not None:
            allowed = allowed & (document_ids[batch, query] == document_ids[batch, key])
        return allowed

    rows = [ids.shape[0] for ids in (document_ids, chunks) if ids is not None]
    B = max(rows, default=1)
    return _create_block_mask(device.type)(sees, B if B > 1 else None, None, num_tokens, num_tokens, device=device)


def flex_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: "BlockMask",
    scale: float | None = None,
    softcap: float | None = None,
    alibi: bool = False,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention under a block mask.

    Args:
        q: (B, H, T, D).
        k: (B, K, T, D).
        v: (B, K, T, D).
        block_mask: From `flex_block_mask`.
        scale: What scores are multiplied by; None = 1 / √D.
        softcap: Scores s become cap · tanh(s / cap); None = they do not.
        alibi: Whether scores fall with distance.
        sinks: (H,) logits that join each head's softmax, or None.

    Returns:
        (B, H, T, D).
    """
    from torch.nn.attention.flex_attention import flex_attention

    run: Callable[..., Any] = flex_attention
    if q.device.type == "cuda" and not torch.compiler.is_compiling():
        run = _compiled_flex_attention()
    slopes = alibi_slopes(q.shape[1], q.device) if alibi else None
    change = _score_change(softcap, slopes) if softcap is not None or slopes is not None else None
    options: dict[str, Any] = {"block_mask": block_mask, "scale": scale, "enable_gqa": q.shape[1] != k.shape[1]}
    if sinks is None:
        return run(q, k, v, change, **options)
    y, log_total = _with_log_total(run, q, k, v, change, options)
    # One more logit in the softmax takes its share from all: total / (total + e^sink) is left.
    share = torch.sigmoid(log_total - sinks.to(log_total.dtype)[:, None])  # (B, H, T)
    return y * share[..., None].to(y.dtype)


def _with_log_total(
    run: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    change: Callable[..., Tensor] | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Attention, and the logarithm of each query's softmax total (B, H, T)."""
    from torch.nn.attention import flex_attention as module

    if hasattr(module, "AuxRequest"):
        y, aux = run(q, k, v, change, return_aux=module.AuxRequest(lse=True), **options)
        return y, aux.lse
    return run(q, k, v, change, return_lse=True, **options)


def _score_change(softcap: float | None, slopes: Tensor | None) -> Callable[..., Tensor]:
    """What FlexAttention does to each score: cap it, then add ALiBi's bias."""

    def change(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if slopes is not None:
            score = score + slopes[head] * (key - query)
        return score

    return change


@functools.cache
def _compiled_flex_attention() -> Callable[..., Any]:
    """FlexAttention, compiled at its first use: uncompiled it would store the whole score matrix."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@functools.cache
def _create_block_mask(device_type: str) -> Callable[..., Any]:
    """The mask's builder, compiled so that it reduces to blocks without storing (B, T, T)."""
    from torch.nn.attention.flex_attention import create_block_mask

    build: Callable[..., Any] = create_block_mask
    return torch.compile(build, dynamic=False) if device_type == "cuda" else build
