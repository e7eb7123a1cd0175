"""Who may attend to whom: built once a forward and shared by all layers of a kind.

A query sees the keys before it and itself; only those of its own document when rows are packed; only the nearest
`window`, or those of its own chunk, in layers that slide. Padding (document -1) counts as a document of its own, so
that every position sees at least itself and no softmax runs over nothing.

Three forms, from cheap to general: None (plain causal, no mask at all: SDPA's fast path); FlexAttention's BlockMask
on CUDA, which skips the blocks that are masked out; a dense tensor, on CPU and as the tested fallback: booleans, or,
with ALiBi, what is added to the scores.

FlexAttention (arXiv:2412.05496) compiles a kernel for a rule "may query i see key j" and skips the blocks that the
rule empties, so a row of many short documents costs what the documents cost and no (T, T) mask is ever stored. The
block mask is built once a forward on the device, without waiting for it. Its backward does not exist on CPU; there
SDPA with a dense mask serves.

B batch, T time, S keys, H heads, K key/value heads, D head size.
"""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import torch
from torch import Tensor

from lit_gpt.models.config import GPTConfig
from lit_gpt.models.positions import alibi_slopes

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


Mask = Union[Tensor, "BlockMask", None]
"""None: plain causal. Tensor: (B or 1, 1, T, S) bool, True where a query sees a key, or (B or 1, H, T, S) float32,
added to the scores. BlockMask: FlexAttention's."""


class LayerMasks(NamedTuple):
    """The masks of layers that see the whole context and of layers that slide."""

    full: Mask
    sliding: Mask


def build_masks(
    config: GPTConfig,
    document_ids: Tensor | None,
    num_tokens: int,
    device: torch.device,
    dropout: float = 0.0,
    position_ids: Tensor | None = None,
) -> LayerMasks:
    """Return the masks of one forward.

    Args:
        config: Says which layers slide and how far, and whether scores get a bias.
        document_ids: (B, T) int64, -1 on padding; None = each row is one document.
        num_tokens: T, queries and keys alike.
        device: Where the model runs.
        dropout: Of attention weights in this forward; FlexAttention has none, so it then gives way to dense masks.
        position_ids: (B, T) or (T,) int64: chunks are counted from where these are 0; None = from the row's start.
    """
    plain = config.sliding_window is None and not _biases_scores(config) and not _needs_flex(config, device)
    if document_ids is None and plain:
        return LayerMasks(None, None)
    return _build_masks(config, document_ids, num_tokens, device, dropout, position_ids)


@torch.compiler.disable  # looks at the batch on CPU, and compiles its own kernel on CUDA
def _build_masks(
    config: GPTConfig,
    document_ids: Tensor | None,
    num_tokens: int,
    device: torch.device,
    dropout: float,
    position_ids: Tensor | None,
) -> LayerMasks:
    # On CPU looking at the batch costs nothing; on an accelerator it would stop the host until the device is done.
    if document_ids is not None and device.type == "cpu" and is_plain_causal(document_ids):
        document_ids = None
    use_flex = dropout == 0 and flex_serves(config, device)
    bias = _alibi(config, num_tokens, device) if _biases_scores(config) and not use_flex else None

    def build(window: int | None) -> Mask:
        # (A program that is exported for any length keeps its window: it cannot choose by the length.)
        if window is not None and not torch.compiler.is_exporting() and window >= num_tokens:
            window = None
        if use_flex and (document_ids is not None or window is not None or _needs_flex(config, device)):
            chunks = _chunks(position_ids, window, num_tokens, device) if config.chunked_window else None
            return flex_block_mask(document_ids, window, num_tokens, device, chunks)
        if document_ids is None and window is None and bias is None:
            return None
        chunks = _chunks(position_ids, window, num_tokens, device) if config.chunked_window else None
        sees = dense_mask(document_ids, window, num_tokens, device, chunks)
        return sees if bias is None else bias.masked_fill(~sees, -math.inf)

    if config.sliding_window is None:
        return LayerMasks(build(None), None)
    all_slide = all(config.slides(layer) for layer in range(config.n_layer))
    return LayerMasks(None if all_slide else build(None), build(config.sliding_window))


def is_plain_causal(document_ids: Tensor) -> bool:
    """Return whether each row is one document, with padding only after it: then causality alone isolates it."""
    before, after = document_ids[:, :-1], document_ids[:, 1:]
    return bool(((after == before) | (after == -1)).all())


def dense_mask(
    document_ids: Tensor | None,
    window: int | None,
    num_tokens: int,
    device: torch.device,
    chunks: Tensor | None = None,
) -> Tensor:
    """Return the mask written out: (B or 1, 1, T, T) bool, True where a query sees a key.

    Args:
        document_ids: (B, T) int64, or None.
        window: Tokens a query sees, itself among them; None = all before it.
        num_tokens: T.
        device: Where it is built.
        chunks: (B or 1, T) int64: which chunk each key is in; then that, and not distance, makes the window.
    """
    query = torch.arange(num_tokens, device=device)[:, None]
    key = torch.arange(num_tokens, device=device)[None, :]
    sees = (key <= query)[None]  # (1, T, T)
    if window is not None and chunks is None:
        sees = sees & (query - key < window)
    if window is not None and chunks is not None:
        sees = sees & (chunks[:, :, None] == chunks[:, None, :])
    if document_ids is not None:
        sees = sees & (document_ids[:, :, None] == document_ids[:, None, :])
    return sees[:, None]


def _chunks(position_ids: Tensor | None, window: int | None, num_tokens: int, device: torch.device) -> Tensor | None:
    """Return which chunk each key is in, (B or 1, T)."""
    if window is None:
        return None
    if position_ids is None:
        return torch.arange(num_tokens, device=device)[None] // window
    return (position_ids if position_ids.dim() == 2 else position_ids[None]) // window


def _biases_scores(config: GPTConfig) -> bool:
    return config.positions == "alibi"


def _needs_flex(config: GPTConfig, device: torch.device) -> bool:
    """Return whether changed scores need FlexAttention on this device even without a mask."""
    changes = config.attention_softcap is not None or config.attention_sinks or _biases_scores(config)
    return changes and flex_serves(config, device)


def _alibi(config: GPTConfig, num_tokens: int, device: torch.device) -> Tensor:
    """Return -slope · distance, (1, H, T, T) float32 (arXiv:2108.12409)."""
    query = torch.arange(num_tokens, device=device)[:, None]
    key = torch.arange(num_tokens, device=device)[None, :]
    return alibi_slopes(config.n_head, device)[None, :, None, None] * (key - query).float()


MIN_HEAD_SIZE = 16
"""The kernel's tensor-core tiles are at least this wide."""


def flex_serves(config: GPTConfig, device: torch.device) -> bool:
    """Return whether FlexAttention can run this model on this device."""
    head_size = config.head_dim if config.mla is None else min(config.mla.qk_head_dim, config.mla.v_head_dim)
    return device.type == "cuda" and head_size >= MIN_HEAD_SIZE


def flex_block_mask(
    document_ids: Tensor | None,
    window: int | None,
    num_tokens: int,
    device: torch.device,
    chunks: Tensor | None = None,
) -> "BlockMask":
    """Return the block mask of the rule that `dense_mask` writes out.

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
    """Compute attention under a block mask.

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
    # A sink is one more logit in the softmax, with a value of zero: it scales the result by
    # total / (total + e^sink) = sigmoid(log total - sink).
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
    """Return attention, and the logarithm of each query's softmax denominator (B, H, T)."""
    from torch.nn.attention import flex_attention as module

    if hasattr(module, "AuxRequest"):
        y, aux = run(q, k, v, change, return_aux=module.AuxRequest(lse=True), **options)
        return y, aux.lse
    return run(q, k, v, change, return_lse=True, **options)


def _score_change(softcap: float | None, slopes: Tensor | None) -> Callable[..., Tensor]:
    """Return how FlexAttention changes each score: cap it, then add ALiBi's bias."""

    def change(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if slopes is not None:
            score = score + slopes[head] * (key - query)
        return score

    return change


@functools.cache
def _compiled_flex_attention() -> Callable[..., Any]:
    """Return FlexAttention, compiled at its first use: uncompiled it would store the whole score matrix."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@functools.cache
def _create_block_mask(device_type: str) -> Callable[..., Any]:
    """Return the builder of block masks, compiled so that it reduces to blocks without storing (B, T, T)."""
    from torch.nn.attention.flex_attention import create_block_mask

    build: Callable[..., Any] = create_block_mask
    return torch.compile(build, dynamic=False) if device_type == "cuda" else build
