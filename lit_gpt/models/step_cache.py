"""One forward over tokens of many texts: which of them go together, and where their keys and values are kept.

The tokens of a step stand in one row, (1, N): the next token of each text that is being written, then pieces of
prompts that are being read. Linear layers and norms need not know; attention goes part by part:

- `DecodePart`: one new token for each of the first B rows of a slab (see `batch_cache`), attended in one call;
- `ChunkPart`: T consecutive tokens of one row: a piece of a prompt, or drafted tokens that are being verified.

A layer whose window is shorter than a row keeps a ring: the key of position p is entry p mod R. Keys are rotated
before they are stored, so their order in the ring does not matter; the mask finds each entry's position again.

B rows, N tokens of the step, T tokens of a chunk, S keys, K key/value heads, D head size, R entries of a ring.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from lit_gpt.models.config import GPTConfig
from lit_gpt.models.positions import alibi_slopes

if TYPE_CHECKING:
    from lit_gpt.models.batch_cache import Slab

Attend = Callable[[Sequence[Tensor], Tensor, Tensor, Tensor | None], Tensor]
"""`attend(queries each (B, T, H, *), keys (B, K, S, D), values (B, K, S, *), mask)` → (B, T, H, *)."""


class StepPart(Protocol):
    """Some consecutive tokens of a step that attend together."""

    @property
    def num_tokens(self) -> int:
        """How many."""
        ...

    def rows(self, x: Tensor) -> Tensor:
        """(1, number of tokens, H, D) → (B, T, H, D)."""
        ...

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Put away keys and values (B, K, T, ...); return all that the tokens may see, and the mask."""
        ...


class StepCache:
    """What a model's attention needs to know of one step.

    Args:
        parts: Cover the step's tokens in order.
        context: (1, N) int64, the length of each token's text, for a RoPE scaling that depends on it; None = no need.
    """

    def __init__(self, parts: "Sequence[StepPart]", context: Tensor | None = None) -> None:
        self.parts, self.context = parts, context

    def attend(self, layer: int, queries: Sequence[Tensor], k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        """Store the step's keys and values and attend, part by part.

        Args:
            layer: From 0.
            queries: Each (1, N, H, any width).
            k: (1, N, K, D).
            v: (1, N, K, any width).
            attend: The attention itself.

        Returns:
            (1, N, H, width of what `attend` returns).
        """
        if len(self.parts) == 1:
            part = self.parts[0]
            keys, values, mask = part.store(layer, part.rows(k).transpose(1, 2), part.rows(v).transpose(1, 2))
            return attend([part.rows(q) for q in queries], keys, values, mask).flatten(0, 1).unsqueeze(0)
        results = []
        start = 0
        for part in self.parts:
            end = start + part.num_tokens
            mine = [part.rows(x[:, start:end]) for x in (*queries, k, v)]
            keys, values, mask = part.store(layer, mine[-2].transpose(1, 2), mine[-1].transpose(1, 2))
            results.append(attend(mine[:-2], keys, values, mask).flatten(0, 1).unsqueeze(0))
            start = end
        return torch.cat(results, dim=1)


class DecodePart:
    """One token more for each of the first B rows of a slab.

    Args:
        slab: Where the rows are.
        lengths: Of the first B rows, in tokens before this step: the positions of the new ones.
    """

    def __init__(self, slab: "Slab", lengths: list[int]) -> None:
        self.slab, self.lengths = slab, lengths
        self.num_tokens = len(lengths)
        self._row_ids: Tensor | None = None
        self._masks: dict[int | None, Tensor | None] = {}
        self._entries: dict[int, Tensor] = {}

    def rows(self, x: Tensor) -> Tensor:
        """(1, B, H, D) → (B, 1, H, D)."""
        return x.transpose(0, 1)

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Put away k (B, K, 1, D) and v (B, K, 1, width); return keys, values (B, K, S, ...) and the mask."""
        keys, values = self.slab.layers[layer]
        window, size = self.slab.windows[layer], keys.shape[2]
        if len(self.lengths) == 1:
            return self._store_one(keys, values, k, v, window)
        rows, entries = self._places(keys.device, size)
        keys[rows, :, entries] = k[:, :, 0]
        values[rows, :, entries] = v[:, :, 0]
        B, S = len(self.lengths), min(max(self.lengths) + 1, size)
        if window not in self._masks:
            self._masks[window] = self._mask(window, size, S, keys)
        return keys[:B, :, :S], values[:B, :, :S], self._masks[window]

    def _store_one(
        self, keys: Tensor, values: Tensor, k: Tensor, v: Tensor, window: int | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """A row alone needs no mask while what it sees stands together."""
        position, size = self.lengths[0], keys.shape[2]
        entry = position % size
        keys[0, :, entry] = k[0, :, 0]
        values[0, :, entry] = v[0, :, 0]
        first = _first_visible(position, window, self.slab.config.chunked_window)
        if self.slab.config.positions != "alibi" and (
            position < size or (window == size and first == position - entry)
        ):
            begin, end = first % size, entry + 1
            return keys[:1, :, begin:end], values[:1, :, begin:end], None
        if window not in self._masks:
            self._masks[window] = self._mask(window, size, min(position + 1, size), keys)
        S = min(position + 1, size)
        return keys[:1, :, :S], values[:1, :, :S], self._masks[window]

    def _places(self, device: torch.device, size: int) -> tuple[Tensor, Tensor]:
        """Row numbers, and the entry of each row's new token in a layer of `size` entries."""
        if self._row_ids is None:
            self._row_ids = torch.arange(len(self.lengths), device=device)
        if size not in self._entries:
            self._entries[size] = torch.tensor([length % size for length in self.lengths], device=device)
        return self._row_ids, self._entries[size]

    def _mask(self, window: int | None, size: int, num_keys: int, like: Tensor) -> Tensor:
        """What is added to scores, (B, 1 or H, 1, S)."""
        last = torch.tensor(self.lengths, device=like.device)[:, None]  # (B, 1)
        entry = torch.arange(num_keys, device=like.device)[None]
        position = last - (last - entry) % size  # of each entry, (B, S); negative where nothing was stored yet
        return additive_mask(self.slab.config, last[:, :, None], position[:, None], window, like.dtype)


class ChunkPart:
    """T consecutive tokens of one row.

    Args:
        slab: Where the row is.
        row: Its number there.
        start: Position of the first of them: the row's length before this step.
        num_tokens: T.
    """

    def __init__(self, slab: "Slab", row: int, start: int, num_tokens: int) -> None:
        self.slab, self.row, self.start, self.num_tokens = slab, row, start, num_tokens
        self._masks: dict[tuple[int | None, bool], Tensor | None] = {}

    def rows(self, x: Tensor) -> Tensor:
        """(1, T, H, D), as it is."""
        return x

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Put away k (1, K, T, D) and v (1, K, T, width); return keys, values (1, K, S, ...) and the mask."""
        layers = self.slab.layers[layer]
        keys, values = (x[self.row : self.row + 1] for x in layers)
        window, size, end = self.slab.windows[layer], keys.shape[2], self.start + self.num_tokens
        first = _first_visible(self.start, window, self.slab.config.chunked_window)
        wraps = end > size
        if wraps:
            earlier = torch.arange(first, self.start, device=k.device) % size
            whole = tuple(
                torch.cat((old.index_select(2, earlier), new), dim=2) for old, new in ((keys, k), (values, v))
            )
            kept = min(self.num_tokens, size)
            entries = torch.arange(end - kept, end, device=k.device) % size
            keys.index_copy_(2, entries, k[:, :, -kept:])
            values.index_copy_(2, entries, v[:, :, -kept:])
        else:
            keys[:, :, self.start : end] = k
            values[:, :, self.start : end] = v
            whole = keys[:, :, first:end], values[:, :, first:end]
        if (window, wraps) not in self._masks:
            self._masks[window, wraps] = self._mask(window, first, end, k)
        return whole[0], whole[1], self._masks[window, wraps]

    def _mask(self, window: int | None, first: int, end: int, like: Tensor) -> Tensor | None:
        within = window is None or (end - first <= window and not self.slab.config.chunked_window)
        if self.start == 0 and within and self.slab.config.positions != "alibi":
            return None  # plain causal
        query = torch.arange(self.start, end, device=like.device)[None, :, None]
        key = torch.arange(first, end, device=like.device)[None, None]
        return additive_mask(self.slab.config, query, key, window, like.dtype)


def _first_visible(position: int, window: int | None, chunked: bool) -> int:
    """The first position that a query sees."""
    if window is None:
        return 0
    return position // window * window if chunked else max(0, position - window + 1)


def additive_mask(config: GPTConfig, query: Tensor, key: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """0 where a query sees a key (less ALiBi's slope times their distance), else -inf.

    Args:
        config: Says whether windows are chunks, and whether scores fall with distance.
        query: (B or 1, T, 1) positions.
        key: (B or 1, 1, S) positions; negative = nothing there.
        window: Of the layer.
        dtype: Of the scores.

    Returns:
        (B or 1, 1 or H, T, S).
    """
    sees = (key <= query) & (key >= 0)
    if window is not None:
        sees = sees & (key >= query // window * window if config.chunked_window else key > query - window)
    bias = torch.zeros(1, 1, 1, 1, dtype=dtype, device=query.device)
    if config.positions == "alibi":
        slopes = alibi_slopes(config.n_head, query.device)[None, :, None, None]
        bias = (slopes * (key - query).unsqueeze(1)).to(dtype)
    return torch.where(sees.unsqueeze(1), bias, -math.inf)
