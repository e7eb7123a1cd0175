"""Attention masks: built once per forward and shared by all layers of the same kind.

A query attends to itself and the keys before it; with packed rows, only to those of its own document; in sliding-window
layers, only to the nearest `window` or to those of its own chunk. Padding (document -1) counts as one document, so
every position attends at least to itself and no softmax is empty.

There are three forms, from fastest to most general: None (plain causal without a mask: SDPA's fast path);
FlexAttention's BlockMask on CUDA, which skips the blocks that are masked out; and a dense tensor, on CPU and as the
tested fallback: booleans or, with ALiBi, values added to the scores. If rows are divided over processes, the queries
are this process's and the keys the whole row's: a BlockMask, or a mask for each chunk of queries and the keys that it
can reach.

FlexAttention (arXiv:2412.05496) compiles a kernel for a rule "may query i attend to key j" and skips the blocks that
the rule masks out, so a row of many short documents costs only what the documents cost, and no (T, T) mask is ever
stored. The block mask is built once per forward on the device, without synchronizing with it. FlexAttention has no
backward on CPU; there SDPA with a dense mask is used.

B batch, T time, S keys, H heads, K key/value heads, D head size.
"""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lit_gpt.models.config import GPTConfig
from lit_gpt.models.mixers import SequencePart
from lit_gpt.models.positions import alibi_slopes

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class ChunkMask(NamedTuple):
    """The mask of one chunk of a divided row."""

    queries: slice
    """The chunk's queries among this process's."""
    keys: slice
    """The keys of the whole row that one of them may attend to: none after the chunk, none before its windows."""
    mask: Tensor | None
    """Dense, as below; None: plain causal."""


Mask = Union[Tensor, "BlockMask", tuple[ChunkMask, ...], None]
"""None: plain causal. Tensor: (B or 1, 1, T, S) bool, True where a query may attend to a key, or (B or 1, H, T, S)
float32, added to the scores. BlockMask: FlexAttention's mask. A tuple: of the chunks of a divided row."""


class LayerMasks(NamedTuple):
    """The masks of full-attention layers and of sliding-window layers."""

    full: Mask
    sliding: Mask


def build_masks(
    config: GPTConfig,
    document_ids: Tensor | None,
    num_tokens: int,
    device: torch.device,
    dropout: float = 0.0,
    position_ids: Tensor | None = None,
    sequence: SequencePart | None = None,
) -> LayerMasks:
    """Return the masks of one forward.

    Args:
        config: The model's architecture (windows and ALiBi).
        document_ids: (B, T) int64, -1 on padding; None = each row is one document.
        num_tokens: T, the number of keys and, unless rows are divided, of queries.
        device: Device of the model.
        dropout: Attention dropout in this forward; FlexAttention does not support it, so dense masks are used then.
        position_ids: (B, T) or (T,) int64: chunks are counted from position 0; None = from the start of the row.
        sequence: The queries of this process, if rows are divided over processes.
    """
    if sequence is not None:
        return _build_masks(config, document_ids, num_tokens, device, dropout, position_ids, sequence)
    plain = config.sliding_window is None and not _biases_scores(config) and not _needs_flex(config, device)
    if document_ids is None and plain:
        return LayerMasks(None, None)
    return _build_masks(config, document_ids, num_tokens, device, dropout, position_ids)


@torch.compiler.disable  # reads the batch on CPU, and compiles its own kernel on CUDA
def _build_masks(
    config: GPTConfig,
    document_ids: Tensor | None,
    num_tokens: int,
    device: torch.device,
    dropout: float,
    position_ids: Tensor | None,
    sequence: SequencePart | None = None,
) -> LayerMasks:
    # Reading the batch costs nothing on CPU; on an accelerator it would make the host wait for the device.
    if document_ids is not None and device.type == "cpu" and is_plain_causal(document_ids):
        document_ids = None
    use_flex = dropout == 0 and flex_serves(config, device)

    def dense(window: int | None, query: Tensor, key: Tensor) -> Tensor | None:
        biased = _biases_scores(config)
        if document_ids is None and window is None and not biased and query.shape == key.shape:
            return None
        chunks = _chunks(position_ids, window, num_tokens, device) if config.chunked_window else None
        sees = dense_mask(document_ids, window, query, key, chunks)
        return _alibi(config, query, key).masked_fill(~sees, -math.inf) if biased else sees

    def build(window: int | None) -> Mask:
        # (A program exported for any length keeps its window, because it cannot depend on the length.)
        if window is not None and not torch.compiler.is_exporting() and window >= num_tokens:
            window = None
        masked = document_ids is not None or window is not None or sequence is not None
        if use_flex and (masked or _needs_flex(config, device)):
            chunks = _chunks(position_ids, window, num_tokens, device) if config.chunked_window else None
            index = None if sequence is None else sequence.index
            return flex_block_mask(document_ids, window, num_tokens, device, chunks, index)
        places = torch.arange(num_tokens, device=device)
        if sequence is None:
            return dense(window, places, places)
        # Each chunk attends to its reach alone, so that two chunks, one early and one late, cost every process the same
        # (the causal half of its rows' scores), and no mask is larger than a chunk times the row.
        masks, start = [], 0
        for chunk in sequence.chunks:
            queries = slice(start, start := start + chunk.stop - chunk.start)
            first = 0 if window is None or config.chunked_window else max(0, chunk.start - window + 1)
            keys = slice(first, chunk.stop)
            masks.append(ChunkMask(queries, keys, dense(window, places[chunk], places[keys])))
        return tuple(masks)

    if config.sliding_window is None:
        return LayerMasks(build(None), None)
    all_slide = all(config.slides(layer) for layer in range(config.n_layer))
    return LayerMasks(None if all_slide else build(None), build(config.sliding_window))


def is_plain_causal(document_ids: Tensor) -> bool:
    """Return whether each row is one document with padding only at its end, so that the causal mask is enough."""
    if isinstance(document_ids, FakeTensor):  # a plan's simulation has no values: the general case
        return False
    before, after = document_ids[:, :-1], document_ids[:, 1:]
    return bool(((after == before) | (after == -1)).all())


def dense_mask(
    document_ids: Tensor | None,
    window: int | None,
    query: Tensor,
    key: Tensor,
    chunks: Tensor | None = None,
) -> Tensor:
    """Return the dense mask: (B or 1, 1, T, S) bool, True where a query may attend to a key.

    Args:
        document_ids: (B, row) int64, or None.
        window: Number of tokens that a query attends to, including itself; None = all before it.
        query: (T,) int64, the place of each query in the row.
        key: (S,) int64, the place of each key.
        chunks: (B or 1, row) int64, the chunk index of each token; if given, it defines the window instead of the
            distance.
    """
    sees = (key[None] <= query[:, None])[None]  # (1, T, S)
    if window is not None and chunks is None:
        sees = sees & (query[:, None] - key[None] < window)
    if window is not None and chunks is not None:
        sees = sees & (chunks[:, query, None] == chunks[:, None, key])
    if document_ids is not None:
        sees = sees & (document_ids[:, query, None] == document_ids[:, None, key])
    return sees[:, None]


def _chunks(position_ids: Tensor | None, window: int | None, num_tokens: int, device: torch.device) -> Tensor | None:
    """Return the chunk index of each key, (B or 1, T)."""
    if window is None:
        return None
    if position_ids is None:
        return torch.arange(num_tokens, device=device)[None] // window
    return (position_ids if position_ids.dim() == 2 else position_ids[None]) // window


def _biases_scores(config: GPTConfig) -> bool:
    return config.positions == "alibi"


def _needs_flex(config: GPTConfig, device: torch.device) -> bool:
    """Return whether this device needs FlexAttention for modified scores even without a mask."""
    changes = config.attention_softcap is not None or config.attention_sinks or _biases_scores(config)
    return changes and flex_serves(config, device)


def _alibi(config: GPTConfig, query: Tensor, key: Tensor) -> Tensor:
    """Return -slope · distance, (1, H, T, S) float32 (arXiv:2108.12409), for queries (T,) and keys (S,)."""
    return alibi_slopes(config.n_head, query.device)[None, :, None, None] * (key[None] - query[:, None]).float()


MIN_HEAD_SIZE = 16
"""Minimum width of the kernel's tensor-core tiles."""


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
    queries: Tensor | None = None,
) -> "BlockMask":
    """Return the block mask equivalent to `dense_mask`.

    Args:
        document_ids: (B, T) int64 or None.
        window: Number of tokens that a query attends to, including itself; None = all before it.
        num_tokens: T, the number of keys and, unless `queries` is given, of queries.
        device: Device of the mask.
        chunks: (B or 1, T) int64, the chunk index of each token; if given, it defines the window instead of the
            distance.
        queries: (t,) int64, the place of each query among the keys, if rows are divided over processes.
    """

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if queries is not None:
            query = queries[query]
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
    num_queries = num_tokens if queries is None else len(queries)
    return _create_block_mask(device.type)(sees, B if B > 1 else None, None, num_queries, num_tokens, device=device)


def flex_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: "BlockMask",
    scale: float | None = None,
    softcap: float | None = None,
    slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    queries: Tensor | None = None,
) -> Tensor:
    """Compute attention with a block mask.

    Args:
        q: (B, H, T, D).
        k: (B, K, S, D).
        v: (B, K, S, D).
        block_mask: From `flex_block_mask`.
        scale: Multiplier of the scores; None = 1 / √D.
        softcap: Soft-cap of the scores, cap · tanh(s / cap); None = no cap.
        slopes: (H,) ALiBi's slopes, whose bias decreases with distance, or None.
        sinks: (H,) logits that are included in each head's softmax, or None.
        queries: (T,) int64, the place of each query among the keys; None = T = S.

    Returns:
        (B, H, T, D).
    """
    from torch.nn.attention.flex_attention import flex_attention

    run: Callable[..., Any] = flex_attention
    if q.device.type == "cuda" and not torch.compiler.is_compiling():
        run = _compiled_flex_attention()
    change = _score_change(softcap, slopes, queries) if softcap is not None or slopes is not None else None
    options: dict[str, Any] = {"block_mask": block_mask, "scale": scale, "enable_gqa": q.shape[1] != k.shape[1]}
    if sinks is None:
        return run(q, k, v, change, **options)
    y, log_total = _with_log_total(run, q, k, v, change, options)
    # A sink is one more logit in the softmax with a zero value: it scales the result by
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
    """Return the attention output and the logarithm of each query's softmax denominator, (B, H, T)."""
    from torch.nn.attention import flex_attention as module

    if hasattr(module, "AuxRequest"):
        y, aux = run(q, k, v, change, return_aux=module.AuxRequest(lse=True), **options)
        return y, aux.lse
    return run(q, k, v, change, return_lse=True, **options)


def _score_change(softcap: float | None, slopes: Tensor | None, queries: Tensor | None) -> Callable[..., Tensor]:
    """Return FlexAttention's score modification: apply the soft-cap, then add ALiBi's bias."""

    def change(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if slopes is not None:
            score = score + slopes[head] * (key - (query if queries is None else queries[query]))
        return score

    return change


@functools.cache
def _compiled_flex_attention() -> Callable[..., Any]:
    """Return FlexAttention, compiled on first use: uncompiled it would materialize the full score matrix."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@functools.cache
def _create_block_mask(device_type: str) -> Callable[..., Any]:
    """Return the builder of block masks, compiled so that it does not materialize (B, T, T)."""
    from torch.nn.attention.flex_attention import create_block_mask

    build: Callable[..., Any] = create_block_mask
    return torch.compile(build, dynamic=False) if device_type == "cuda" else build
