"""FlexAttention (arXiv:2412.05496): the CUDA path for packed documents and sliding windows.

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

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

MIN_HEAD_SIZE = 16
"""The kernel's tensor-core tiles are at least this wide."""


def flex_serves(config: GPTConfig, device: torch.device) -> bool:
    """Whether FlexAttention can run this model on this device."""
    return device.type == "cuda" and config.head_dim >= MIN_HEAD_SIZE


def flex_block_mask(
    document_ids: Tensor | None, window: int | None, num_tokens: int, device: torch.device
) -> "BlockMask":
    """The block mask of the rule that `lit_gpt.models.masks.dense_mask` writes out.

    Args:
        document_ids: (B, T) int64 or None.
        window: Tokens a query sees, itself among them; None = all before it.
        num_tokens: T, queries and keys alike.
        device: Where it is built.
    """

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed = query >= key
        if window is not None:
            allowed = allowed & (query - key < window)
        if document_ids is not None:
            allowed = allowed & (document_ids[batch, query] == document_ids[batch, key])
        return allowed

    B = None if document_ids is None else document_ids.shape[0]
    return _create_block_mask(device.type)(sees, B, None, num_tokens, num_tokens, device=device)


def flex_attend(q: Tensor, k: Tensor, v: Tensor, block_mask: "BlockMask") -> Tensor:
    """Attention under a block mask: q (B, H, T, D), k and v (B, K, T, D) → (B, H, T, D)."""
    from torch.nn.attention.flex_attention import flex_attention

    attend: Callable[..., Any] = flex_attention
    if q.device.type == "cuda" and not torch.compiler.is_compiling():
        attend = _compiled_flex_attention()
    return attend(q, k, v, block_mask=block_mask, enable_gqa=q.shape[1] != k.shape[1])


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
