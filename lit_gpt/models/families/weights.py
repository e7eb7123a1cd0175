"""Reversible weight tables: which tensors of a file correspond to which of ours, and how they are rearranged.

A table is a list of entries. An entry maps some tensors of a file to some of our tensors through transforms; without
transforms it only renames. One table serves both directions: reading applies the transforms in order, writing undoes
them in reverse order. Transforms move numbers and never compute with them, so a round trip is exact bit for bit.
Tables also run on the meta device, which yields only the shapes.

    entry("h.0.attn.c_attn.weight", ["q.weight", "k.weight", "v.weight"], Transpose(), Split((8, 8, 8)))

In all names, "file" is the external side (a Hugging Face or a GGUF file) and "local" is a `GPT`'s `state_dict`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class WeightTransform(Protocol):
    """A rearrangement of tensors that can be undone exactly."""

    def to_local(self, tensors: list[Tensor]) -> list[Tensor]:
        """Convert the file's tensors to ours."""
        ...

    def to_file(self, tensors: list[Tensor]) -> list[Tensor]:
        """Convert our tensors to the file's; the inverse of `to_local`."""
        ...


@dataclass(frozen=True)
class Entry:
    """Some tensors of a file and the local tensors that they correspond to; made by `entry`."""

    file: tuple[str, ...]
    local: tuple[str, ...]
    transforms: tuple[WeightTransform, ...] = ()
    """Applied in this order from file to local, and undone in reverse order."""

    def to_local(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return our tensors by name, as views where the transforms allow it.

        Args:
            tensors: The file's tensors, in the order of `file`.
        """
        parts = list(tensors)
        for transform in self.transforms:
            parts = transform.to_local(parts)
        return dict(zip(self.local, parts, strict=True))

    def to_file(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the file's tensors by name, as views where the transforms allow it.

        Args:
            state_dict: Our tensors by name, of which those in `local` are used.
        """
        parts = [state_dict[name] for name in self.local]
        for transform in reversed(self.transforms):
            parts = transform.to_file(parts)
        return dict(zip(self.file, parts, strict=True))


def entry(file: str | Sequence[str], local: str | Sequence[str], *transforms: WeightTransform) -> Entry:
    """Create an entry of a weight table.

    Args:
        file: Name in the file, or names in the order in which the first transform expects them.
        local: Our name, or names in the order in which the last transform returns them.
        *transforms: Transforms from the file's tensors to ours; none if they are equal.
    """
    return Entry(
        (file,) if isinstance(file, str) else tuple(file),
        (local,) if isinstance(local, str) else tuple(local),
        transforms,
    )


@dataclass(frozen=True)
class Transpose:
    """Swap two dimensions of each tensor, as for GPT-2's Conv1D, which stores (inputs, outputs)."""

    first: int = -2
    second: int = -1

    def to_local(self, tensors: list[Tensor]) -> list[Tensor]:
        """Swap the dimensions; the same in both directions."""
        return [tensor.transpose(self.first, self.second) for tensor in tensors]

    to_file = to_local


@dataclass(frozen=True)
class Split:
    """Split one tensor of the file into several of ours with these sizes: q, k and v, or gate and up."""

    sizes: tuple[int, ...]
    dim: int = 0

    def to_local(self, tensors: list[Tensor]) -> list[Tensor]:
        """Split one tensor into several."""
        (tensor,) = tensors
        return list(tensor.split(self.sizes, dim=self.dim))

    def to_file(self, tensors: list[Tensor]) -> list[Tensor]:
        """Concatenate several tensors into one."""
        return [torch.cat(tensors, dim=self.dim)]


@dataclass(frozen=True)
class Interleave:
    """De-interleave one tensor of the file into `parts` tensors that alternate in it, `block` rows of each at a time.

    GPT-NeoX stores (H, 3, D) rows, for each head its queries, keys and values: `Interleave(3, D)`. GPT-OSS alternates
    columns of gate and up: `Interleave(2, 1, dim=-1)`.
    """

    parts: int
    block: int = 1
    dim: int = 0

    def to_local(self, tensors: list[Tensor]) -> list[Tensor]:
        """Separate one tensor into `parts` tensors."""
        (tensor,) = tensors
        dim = self.dim % tensor.dim()
        blocks = tensor.unflatten(dim, (-1, self.parts, self.block))
        return [part.flatten(dim, dim + 1) for part in blocks.unbind(dim + 1)]

    def to_file(self, tensors: list[Tensor]) -> list[Tensor]:
        """Interleave `parts` tensors into one."""
        dim = self.dim % tensors[0].dim()
        blocks = [tensor.unflatten(dim, (-1, self.block)) for tensor in tensors]
        return [torch.stack(blocks, dim=dim + 1).flatten(dim, dim + 2)]


@dataclass(frozen=True)
class Permute:
    """Reorder the rows of each tensor: our row i is the file's row `order[i]`."""

    order: tuple[int, ...]
    dim: int = 0

    def to_local(self, tensors: list[Tensor]) -> list[Tensor]:
        """Take the rows in `order`."""
        return [_take_rows(tensor, self.dim, self.order) for tensor in tensors]

    def to_file(self, tensors: list[Tensor]) -> list[Tensor]:
        """Put the rows back."""
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return [_take_rows(tensor, self.dim, inverse) for tensor in tensors]


@dataclass(frozen=True)
class Stack:
    """Stack several tensors of the file (one per expert) into one of ours with a new first dimension."""

    def to_local(self, tensors: list[Tensor]) -> list[Tensor]:
        """Stack several tensors into one."""
        return [torch.stack(tensors)]

    def to_file(self, tensors: list[Tensor]) -> list[Tensor]:
        """Unstack one tensor into several."""
        (tensor,) = tensors
        return list(tensor.unbind())


def _take_rows(tensor: Tensor, dim: int, order: Sequence[int]) -> Tensor:
    if tensor.shape[dim] != len(order):  # index_select would silently take a part of a larger tensor
        raise RuntimeError(f"{tensor.shape[dim]} rows do not match a permutation of {len(order)}")
    return tensor.index_select(dim, torch.tensor(order, device=tensor.device))
