"""What the routers of one forward chose: handed to `GPT.forward`, filled by its mixtures of experts.

Balance losses and selection biases need to know where tokens went. Layers write it down here, as sums over each row
of the batch, and the caller makes of it what it likes (`objectives/routing.py`); a forward without a record computes
none of this. Padding (document -1) is routed like anything else but does not count.

B batch, T time, E experts, k experts a token.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class LayerRouting(NamedTuple):
    """One layer's choices, summed over the tokens of each row."""

    counts: Tensor
    """(B, E) float32: how many of the row's choices fell on each expert; sums to k times its tokens."""
    scores: Tensor | None
    """(B, E) with gradient: the sum of the tokens' scores, each token's adding up to 1; None if not asked for."""
    squared_log_z: Tensor | None
    """(B,) with gradient: the sum of logsumexp(logits)²; None if not asked for."""


class Routing:
    """The record of one forward.

    Args:
        document_ids: (B, T) int64 as given to the model, -1 on padding; None = no padding.
    """

    def __init__(self, document_ids: Tensor | None = None) -> None:
        self.real = None if document_ids is None else document_ids != -1
        self.layers: dict[int, LayerRouting] = {}
        """By layer; blocks that predict further tokens come after the last one."""
        self._length = 1

    @property
    def num_tokens(self) -> Tensor | int:
        """Tokens of each row that count: (B,), at least 1; or one number, where there is no padding."""
        return self._length if self.real is None else self.real.sum(1).clamp(min=1)

    def record(
        self, layer: int, chosen: Tensor, logits: Tensor, scores: Tensor, with_scores: bool, with_log_z: bool
    ) -> None:
        """Note a layer's choices; the first note stays, because checkpointed blocks run a second time.

        Args:
            layer: Which one.
            chosen: (B, T, k) int64.
            logits: (B, T, E) float32.
            scores: (B, T, E) float32, positive.
            with_scores: Note the scores too, for a balance loss.
            with_log_z: Note logsumexp(logits)² too, for a z-loss.
        """
        # Computed in the second run as well: recomputation must save the tensors that the first run saved.
        found = summarize(chosen, logits, scores, self.real, with_scores, with_log_z)
        self.layers.setdefault(layer, found)
        self._length = logits.shape[1]


def summarize(
    chosen: Tensor, logits: Tensor, scores: Tensor, real: Tensor | None, with_scores: bool, with_log_z: bool
) -> LayerRouting:
    """Sums over each row's tokens; see `Routing.record`.

    Args:
        chosen: (B, T, k) int64.
        logits: (B, T, E) float32.
        scores: (B, T, E) float32, positive.
        real: (B, T) bool, False on padding; None = no padding.
        with_scores: Whether to sum the scores.
        with_log_z: Whether to sum logsumexp(logits)².
    """
    B, T, E = logits.shape
    kept = logits.new_ones(B, T) if real is None else real.to(logits.dtype)
    each = kept.unsqueeze(2).expand_as(chosen).flatten(1)  # (B, T k)
    counts = logits.new_zeros(B, E).scatter_add_(1, chosen.flatten(1), each)  # whole numbers: exact in any order
    sums = squares = None
    if with_scores:
        shares = scores / scores.sum(-1, keepdim=True)  # DeepSeek-V3, equation 19; of a softmax, itself
        sums = torch.einsum("bte,bt->be", shares, kept)
    if with_log_z:
        squares = (logits.logsumexp(-1).square() * kept).sum(1)
    return LayerRouting(counts.detach(), sums, squares)
