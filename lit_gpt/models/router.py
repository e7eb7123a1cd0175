"""The router of a mixture of experts: which experts a token goes to, and how much each of them counts.

B batch, T time, C model width, E experts, G groups of experts, k experts a token.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.models.config import GPTConfig


class Routes(NamedTuple):
    """Where tokens go."""

    experts: Tensor
    """(..., k) int64: the chosen experts, all different."""
    weights: Tensor
    """(..., k) float32, with gradient: what their outputs are multiplied by."""
    logits: Tensor
    """(..., E) float32."""
    scores: Tensor
    """(..., E) float32: the softmax or sigmoid of the logits."""


class Router(nn.Linear):
    """A linear layer whose largest outputs choose the experts (Shazeer et al. 2017, arXiv:1701.06538).

    It computes in float32 whatever the model's precision: a choice is a comparison of near equals.

    Args:
        config: The model's shape; `moe` says how to choose.
    """

    selection_bias: Tensor | None

    def __init__(self, config: GPTConfig) -> None:
        assert config.moe is not None
        super().__init__(config.n_embd, config.moe.num_experts, bias=config.moe.router_bias)
        self.moe = config.moe
        # Moved by the balance of loads, not by gradients (arXiv:2408.15664): a buffer, saved with the weights.
        # Wide from birth: under a default dtype of bfloat16, steps of 0.001 would be lost from 0.5 on.
        bias = torch.zeros(self.moe.num_experts, dtype=torch.float32) if self.moe.selection_bias else None
        self.register_buffer("selection_bias", bias)

    def forward(self, x: Tensor) -> Routes:  # type: ignore[override]
        """(..., C) → the routes of each token."""
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(wide)
            logits = F.linear(x.to(wide), self.weight.to(wide), bias)
        scores = logits.softmax(-1) if self.moe.scores == "softmax" else logits.sigmoid()
        experts = self.choose(scores.detach())
        weights = scores.gather(-1, experts)
        if self.moe.norm_topk_prob:
            # Sigmoids may all be 0 in float32; a softmax's largest cannot.
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        if self.moe.routed_scaling_factor != 1:
            weights = weights * self.moe.routed_scaling_factor
        return Routes(experts, weights, logits, scores)

    @torch.no_grad()
    def choose(self, scores: Tensor) -> Tensor:
        """The k experts with the largest scores, biased and limited to the best groups where the config says so.

        A group is as good as the sum of its two best (DeepSeek-V3, arXiv:2412.19437, section 2.1.2).

        Args:
            scores: (..., E).

        Returns:
            (..., k) int64.
        """
        if self.selection_bias is not None:
            scores = scores + self.selection_bias
        if self.moe.topk_group < self.moe.n_group:
            grouped = scores.unflatten(-1, (self.moe.n_group, -1))  # (..., G, E/G)
            best = grouped.topk(2, dim=-1).values.sum(-1).topk(self.moe.topk_group, dim=-1).indices
            outside = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter_(-1, best, False)  # (..., G)
            scores = grouped.masked_fill(outside.unsqueeze(-1), -math.inf).flatten(-2)
        return scores.topk(self.moe.num_experts_per_tok, dim=-1).indices

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Router":
        """Follow the module to its device, but not to its precision: bfloat16 has no room for steps of 0.001."""
        before = self.selection_bias
        super()._apply(fn, recurse)
        after = self.selection_bias
        if before is not None and after is not None and after.dtype != before.dtype:
            self.selection_bias = before.to(after.device)
        return self
