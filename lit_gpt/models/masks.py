"""Who may attend to whom: built once a forward and shared by all layers of a kind.

A query sees the keys before it and itself; only those of its own document when rows are packed; only the nearest
`window`, or those of its own chunk, in layers that slide. Padding (document -1) counts as a document of its own, so
that every position sees at least itself and no softmax runs over nothing.

Three forms, from cheap to general: None (plain causal, no mask at all: SDPA's fast path); FlexAttention's BlockMask
on CUDA, which skips the blocks that are masked out; a dense tensor, on CPU and as the tested fallback: booleans, or,
with ALiBi, what is added to the scores.

B batch, T queries, S keys, H heads.
"""

import math
from typing import TYPE_CHECKING, NamedTuple, Union

import torch
from torch import Tensor

from lit_gpt.models.config import GPTConfig
from lit_gpt.models.flex import flex_block_mask, flex_serves
from lit_gpt.models.positions import alibi_slopes

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Mask = Union[Tensor, "BlockMask", None]
"""None: plain causal. Tensor: (B or 1, 1, T, S) bool, True where a query sees a key, or (B or 1, H, T, S) float32,
added to the scores. BlockMask: FlexAttention's."""


class LayerMasks(NamedTuple):
    """The mask of layers that see the whole context and of those that slide."""

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
    """The masks of one forward.

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
    """Whether each row is one document, with padding only after it: then causality alone isolates it."""
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
    """Whether a fast kernel on this device needs FlexAttention even without a mask: it has the scores' changes."""
    changes = config.attention_softcap is not None or config.attention_sinks or _biases_scores(config)
    return changes and flex_serves(config, device)


def _alibi(config: GPTConfig, num_tokens: int, device: torch.device) -> Tensor:
    """Return -slope · distance, (1, H, T, T) float32 (arXiv:2108.12409)."""
    query = torch.arange(num_tokens, device=device)[:, None]
    key = torch.arange(num_tokens, device=device)[None, :]
    return alibi_slopes(config.n_head, device)[None, :, None, None] * (key - query).float()
