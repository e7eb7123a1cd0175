"""Who may attend to whom: built once a forward and shared by all layers of a kind.

A query sees the keys before it and itself; only those of its own document when rows are packed; only the nearest
`window` in layers that slide. Padding (document -1) counts as a document of its own, so that every position sees at
least itself and no softmax runs over nothing.

Three forms, from cheap to general: None (plain causal, no mask at all: SDPA's fast path); FlexAttention's BlockMask
on CUDA, which skips the blocks that are masked out; a dense (B, 1, T, S) boolean, on CPU and as the tested fallback.

B batch, T queries, S keys.
"""

from typing import TYPE_CHECKING, NamedTuple, Union

import torch
from torch import Tensor

from lit_gpt.models.config import GPTConfig
from lit_gpt.models.flex import flex_block_mask, flex_serves

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Mask = Union[Tensor, "BlockMask", None]
"""None: plain causal. Tensor: (B or 1, 1, T, S) bool, True where a query sees a key. BlockMask: FlexAttention's."""


class LayerMasks(NamedTuple):
    """The mask of layers that see the whole context and of those that slide."""

    full: Mask
    sliding: Mask


def build_masks(
    config: GPTConfig,
    document_ids: Tensor | None,
    num_queries: int,
    num_cached: int | None,
    device: torch.device,
    dropout: float = 0.0,
) -> LayerMasks:
    """The masks of one forward.

    Args:
        config: Says which layers slide and how far.
        document_ids: (B, T) int64, -1 on padding; None = each row is one document.
        num_queries: T.
        num_cached: Keys before the first query (S = num_cached + T); None = no cache.
        device: Where the model runs.
        dropout: Of attention weights in this forward; FlexAttention has none, so it then gives way to dense masks.
    """
    if document_ids is None and config.sliding_window is None and not num_cached:
        return LayerMasks(None, None)
    return _build_masks(config, document_ids, num_queries, num_cached, device, dropout)


@torch.compiler.disable  # looks at the batch on CPU, and compiles its own kernel on CUDA
def _build_masks(
    config: GPTConfig,
    document_ids: Tensor | None,
    num_queries: int,
    num_cached: int | None,
    device: torch.device,
    dropout: float,
) -> LayerMasks:
    start = num_cached or 0
    # On CPU looking at the batch costs nothing; on an accelerator it would stop the host until the device is done.
    if document_ids is not None and device.type == "cpu" and is_plain_causal(document_ids):
        document_ids = None
    # FlexAttention compiles for each length, so not for prompts, which have any.
    use_flex = num_cached is None and dropout == 0 and flex_serves(config, device)

    def build(window: int | None) -> Mask:
        if window is not None and window >= start + num_queries:
            window = None
        if document_ids is None and window is None and (start == 0 or num_queries == 1):
            return None
        if use_flex:
            return flex_block_mask(document_ids, window, num_queries, device)
        return dense_mask(document_ids, window, num_queries, start, device)

    if config.sliding_window is None:
        return LayerMasks(build(None), None)
    all_slide = config.layer_windows is None
    return LayerMasks(None if all_slide else build(None), build(config.sliding_window))


def is_plain_causal(document_ids: Tensor) -> bool:
    """Whether each row is one document, with padding only after it: then causality alone isolates it."""
    before, after = document_ids[:, :-1], document_ids[:, 1:]
    return bool(((after == before) | (after == -1)).all())


def dense_mask(
    document_ids: Tensor | None, window: int | None, num_queries: int, num_cached: int, device: torch.device
) -> Tensor:
    """The mask written out: (B or 1, 1, T, S) bool, True where a query sees a key."""
    assert document_ids is None or num_cached == 0, "packed documents and a cache do not go together"
    query = torch.arange(num_cached, num_cached + num_queries, device=device)[:, None]
    key = torch.arange(num_cached + num_queries, device=device)[None, :]
    sees = key <= query  # (T, S)
    if window is not None:
        sees = sees & (query - key < window)
    if document_ids is None:
        return sees[None, None]
    same = document_ids[:, :, None] == document_ids[:, None, :]  # (B, T, S)
    return (sees & same)[:, None]
