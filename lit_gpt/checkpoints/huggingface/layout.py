"""How a family's tensors lie differently from ours: small steps, each of them undone exactly.

A step turns a list of their tensors into a list of ours and back. It moves numbers and never computes with them, so
that what comes in goes out bit for bit; and it works on the meta device too, where it tells the shapes alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Step(Protocol):
    """One re-arrangement, both ways."""

    def to_ours(self, tensors: list[Tensor]) -> list[Tensor]:
        """Theirs → ours."""
        ...

    def to_theirs(self, tensors: list[Tensor]) -> list[Tensor]:
        """Ours → theirs."""
        ...


@dataclass(frozen=True)
class Transpose:
    """Two dimensions of each tensor change places, as in GPT-2's Conv1D, which stores (inputs, outputs)."""

    first: int = -2
    second: int = -1

    def to_ours(self, tensors: list[Tensor]) -> list[Tensor]:
        """Theirs → ours."""
        return [tensor.transpose(self.first, self.second) for tensor in tensors]

    to_theirs = to_ours


@dataclass(frozen=True)
class Split:
    """One tensor is several of ours laid end to end, of these sizes: q, k and v, or gate and up."""

    sizes: tuple[int, ...]
    dim: int = 0

    def to_ours(self, tensors: list[Tensor]) -> list[Tensor]:
        """Theirs (one) → ours (several)."""
        (tensor,) = tensors
        return list(tensor.split(self.sizes, dim=self.dim))

    def to_theirs(self, tensors: list[Tensor]) -> list[Tensor]:
        """Ours (several) → theirs (one)."""
        return [torch.cat(tensors, dim=self.dim)]


@dataclass(frozen=True)
class Interleave:
    """One tensor is `parts` of ours dealt out in turn, `block` rows of each at a time.

    GPT-NeoX stores (H, 3, D) rows: for each head its queries, keys, values (`Interleave(3, D)`). GPT-OSS alternates
    gate and up (`Interleave(2, 1, dim=-1)`).
    """

    parts: int
    block: int = 1
    dim: int = 0

    def to_ours(self, tensors: list[Tensor]) -> list[Tensor]:
        """Theirs (one) → ours (`parts`)."""
        (tensor,) = tensors
        dim = self.dim % tensor.dim()
        dealt = tensor.unflatten(dim, (-1, self.parts, self.block))
        return [part.flatten(dim, dim + 1) for part in dealt.unbind(dim + 1)]

    def to_theirs(self, tensors: list[Tensor]) -> list[Tensor]:
        """Ours (`parts`) → theirs (one)."""
        dim = self.dim % tensors[0].dim()
        blocks = [tensor.unflatten(dim, (-1, self.block)) for tensor in tensors]
        return [torch.stack(blocks, dim=dim + 1).flatten(dim, dim + 2)]


@dataclass(frozen=True)
class Permute:
    """Rows in another order: our row i is their row `order[i]`, in each tensor."""

    order: tuple[int, ...]
    dim: int = 0

    def to_ours(self, tensors: list[Tensor]) -> list[Tensor]:
        """Theirs → ours."""
        return [_rows(tensor, self.dim, self.order) for tensor in tensors]

    def to_theirs(self, tensors: list[Tensor]) -> list[Tensor]:
        """Ours → theirs."""
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return [_rows(tensor, self.dim, inverse) for tensor in tensors]


@dataclass(frozen=True)
class Stack:
    """Several tensors of one shape, an expert each, are one of ours with a new first dimension."""

    def to_ours(self, tensors: list[Tensor]) -> list[Tensor]:
        """Theirs (several) → ours (one)."""
        return [torch.stack(tensors)]

    def to_theirs(self, tensors: list[Tensor]) -> list[Tensor]:
        """Ours (one) → theirs (several)."""
        (tensor,) = tensors
        return list(tensor.unbind())


def _rows(tensor: Tensor, dim: int, order: Sequence[int]) -> Tensor:
    if tensor.shape[dim] != len(order):  # index_select would quietly take a part of a larger tensor
        raise RuntimeError(f"{tensor.shape[dim]} rows cannot be put in an order of {len(order)}")
    return tensor.index_select(dim, torch.tensor(order, device=tensor.device))
