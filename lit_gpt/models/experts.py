"""The experts of a mixture: E small MLPs as stacked matrices, each applied to the tokens that chose it.

Tokens are sorted by expert once; then each projection is one grouped matrix product over consecutive rows, as long
as they happen to be. No expert has a capacity, so no token is dropped and none is padded (MegaBlocks, Gale et al.
2022, arXiv:2211.15841).

N tokens, k experts a token, S = N k rows, E experts, C model width, F width of an expert.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.models.choices import GATED
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.expert_gates import weighted_hidden
from lit_gpt.models.grouped import grouped_linear


class Experts(nn.Module):
    """`num_experts` MLPs of width `expert_size`, with the model's activation and, if it has them, biases.

    Args:
        config: The model's shape.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.moe is not None
        E, inner, C = config.moe.num_experts, config.expert_size, config.n_embd
        self.kind = config.mlp
        gated, bias = config.mlp in GATED, config.has_mlp_bias
        self.gate_proj = nn.Parameter(torch.empty(E, inner, C)) if gated else None
        self.up_proj = nn.Parameter(torch.empty(E, inner, C))
        self.down_proj = nn.Parameter(torch.empty(E, C, inner))
        self.gate_bias = nn.Parameter(torch.zeros(E, inner)) if gated and bias else None
        self.up_bias = nn.Parameter(torch.zeros(E, inner)) if bias else None
        self.down_bias = nn.Parameter(torch.zeros(E, C)) if bias else None
        for matrix in (self.gate_proj, self.up_proj, self.down_proj):
            if matrix is not None and not matrix.is_meta:
                nn.init.normal_(matrix, std=config.init_std)

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Each token's weighted sum over its experts.

        Args:
            x: (N, C).
            chosen: (N, k) int64, below E.
            weights: (N, k).

        Returns:
            (N, C).
        """
        order = sort_by_expert(chosen, self.up_proj.shape[0])
        rows = _Take.apply(x, order.token, order.place)  # (S, C)
        up = self._linear(rows, self.up_proj, self.up_bias, order)  # (S, F)
        gate = None if self.gate_proj is None else self._linear(rows, self.gate_proj, self.gate_bias, order)
        # Weighted before the last product instead of after it: the same, and F is usually smaller than C.
        weight = weights.flatten().index_select(0, order.row).unsqueeze(1)  # (S, 1)
        hidden = weighted_hidden(self.kind, gate, up, weight)
        y = grouped_linear(hidden, self.down_proj, order.ends)
        if self.down_bias is not None:
            y = y + (weight * self.down_bias.index_select(0, order.expert)).to(y.dtype)
        return _Sum.apply(y, order.token, order.place).to(x.dtype)

    @staticmethod
    def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None, order: "Order") -> Tensor:
        y = grouped_linear(rows, weight, order.ends)
        return y if bias is None else y.add_(bias.index_select(0, order.expert))


class Order(NamedTuple):
    """Rows sorted by expert, and the ways there and back; row n k + j is the j-th choice of token n."""

    row: Tensor
    """(S,) int64: which row comes at each place."""
    token: Tensor
    """(S,) int64: which token that is."""
    place: Tensor
    """(N, k) int64: where each row has gone."""
    expert: Tensor
    """(S,) int64: the expert at each place, ascending."""
    ends: Tensor
    """(E,) int32: the place after each expert's last."""


@torch.no_grad()
def sort_by_expert(chosen: Tensor, num_experts: int) -> Order:
    """Sort the rows of (N, k) choices; nothing here waits for the device."""
    expert, row = chosen.flatten().sort(stable=True)
    place = torch.empty_like(row)
    place[row] = torch.arange(row.numel(), device=row.device)
    ids = torch.arange(num_experts, device=row.device)
    ends = torch.searchsorted(expert, ids, right=True, out_int32=True)
    return Order(row, row // chosen.shape[1], place.view_as(chosen), expert, ends)


class _Take(torch.autograd.Function):
    """Rows of tokens in the experts' order. Its backward is `_Sum` and the other way round.

    Autograd's own backward of indexing adds row by row, slowly on a CPU and in no fixed order on a GPU; here every
    token knows its k places, so that its gradient is a sum in one order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, place: Tensor) -> Tensor:
        """(N, C) → (S, C)."""
        ctx.save_for_backward(token, place)
        return x.index_select(0, token)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """(S, C) → (N, C)."""
        token, place = ctx.saved_tensors
        return _Sum.apply(grad, token, place), None, None


class _Sum(torch.autograd.Function):
    """Rows in the experts' order, added up for each token."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, token: Tensor, place: Tensor) -> Tensor:
        """(S, C) → (N, C)."""
        ctx.save_for_backward(token, place)
        if y.device.type == "cpu":
            return F.embedding_bag(place, y, mode="sum")  # one pass: 6 times as fast as taking the rows first
        return y.index_select(0, place.flatten()).view(*place.shape, -1).sum(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """(N, C) → (S, C)."""
        token, place = ctx.saved_tensors
        return _Take.apply(grad, token, place), None, None
