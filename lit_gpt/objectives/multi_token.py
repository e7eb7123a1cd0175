"""What multi-token prediction supervises (DeepSeek-V3, arXiv:2412.19437, section 2.2)."""

import torch
from torch import Tensor

from lit_gpt.batch import IGNORE_INDEX


def labels_ahead(labels: Tensor, document_ids: Tensor | None, depth: int) -> Tensor:
    """What a depth predicts, (B, T) int64: at i, the label of i + depth, if that is in the same document.

    Args:
        labels: (B, T) int64, shifted by one already.
        document_ids: (B, T) int64, or None.
        depth: From 1.
    """
    ahead = torch.full_like(labels, IGNORE_INDEX)
    ahead[:, :-depth] = labels[:, depth:]
    if document_ids is not None:
        same = document_ids[:, depth:] == document_ids[:, :-depth]
        ahead[:, :-depth] = torch.where(same, ahead[:, :-depth], IGNORE_INDEX)
    return ahead
