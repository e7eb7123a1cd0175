"""Keys and values of many texts at once, in a bounded number of tokens.

The cache is made of slabs. A slab has room for a fixed number of tokens, cut into rows of one capacity, one row a
text, so that the texts in it attend in one call without a copy: a rectangle (rows, K, capacity, D) a layer. A slab
takes its capacity from the text that first needs it, and may be cut anew into longer rows while few are in use.
Layers with a window hold no more than the window a row; latent attention holds its latents.

The rows of a slab stand in this order: texts that are being written, texts whose prompt is still being read, texts
that have ended and are kept because another may begin like them; then free ones. Rows change places to keep it so.
"""

from typing import Generic, TypeVar

import torch
from torch import Tensor

from lit_gpt.models.config import GPTConfig


class Occupant:
    """A text that has a row of the cache."""

    def __init__(self) -> None:
        self.slab: Slab | None = None
        self.row = -1
        """Changes when rows change places."""
        self.num_cached = 0
        """Tokens of its context whose keys are in the cache."""


Owner = TypeVar("Owner", bound=Occupant)
MIN_CAPACITY = 64
SMALL_SLABS = 8
"""Into how many slabs a cache is cut that has not room for every row at full length."""


class Slab(Generic[Owner]):
    """Rows of one capacity.

    Args:
        config: The model's.
        num_tokens: Room, in tokens of a layer that sees the whole context.
        max_rows: At most, however short they are.
        margin: Entries of a ring beyond its window: how many tokens may be taken back.
        dtype: Of keys and values.
        device: Where they are.
    """

    def __init__(
        self,
        config: GPTConfig,
        num_tokens: int,
        max_rows: int,
        margin: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.config, self.num_tokens, self.max_rows, self.margin = config, num_tokens, max_rows, margin
        self.dtype, self.device = dtype, device
        self.capacity = 0
        """Tokens of one row; 0 = not cut yet."""
        self.owners: list[Owner] = []
        """Of the rows in use, in order."""
        self.num_decoding = 0
        self.num_active = 0
        """Rows being written or read; the others in use are kept for their beginnings."""
        self.layers: list[tuple[Tensor, Tensor]] = []
        """(rows, K, entries, D) keys and values of each layer."""
        self.windows = [config.window(layer) for layer in range(config.n_layer)]

    def num_rows(self, capacity: int) -> int:
        """Rows of a capacity that fit."""
        return min(self.num_tokens // capacity, self.max_rows)

    def has_room(self, capacity: int) -> bool:
        """Whether a row more could be taken after cutting the slab into rows of at least this capacity."""
        return len(self.owners) < self.num_rows(max(capacity, self.capacity))

    def entries(self, layer: int, capacity: int) -> int:
        """Tokens that a row keeps in a layer."""
        window = self.windows[layer]
        return capacity if window is None else min(capacity, window + self.margin)

    def cut(self, capacity: int) -> None:
        """Cut into rows of another capacity, keeping what is in those in use."""
        assert len(self.owners) <= self.num_rows(capacity)
        old, self.layers = self.layers, []
        for layer in range(self.config.n_layer):
            shape = self.num_rows(capacity), self.entries(layer, capacity)
            rooms = []
            for heads, width in layer_shapes(self.config):
                room = torch.zeros(shape[0], heads, shape[1], width, dtype=self.dtype, device=self.device)
                rooms.append(room)
            if old:
                used = len(self.owners)
                for room, before in zip(rooms, old[layer], strict=True):
                    room[:used, :, : before.shape[2]] = before[:used]
                old[layer] = (before.new_empty(0), before.new_empty(0))  # free it before the next layer is made
            self.layers.append((rooms[0], rooms[1]))
        self.capacity = capacity

    def take(self, owner: Owner) -> int:
        """Give a free row to a text whose prompt will be read; returns its number."""
        row = len(self.owners)
        self.owners.append(owner)
        owner.slab, owner.row = self, row
        self._swap(row, self.num_active, row)
        self.num_active += 1
        return self.num_active - 1

    def wake(self, owner: Owner, row: int) -> None:
        """Give a kept row, with what is in it, to a text that begins like it."""
        assert row >= self.num_active
        self._swap(row, self.num_active)
        before = self.owners[self.num_active]
        before.slab, before.row = None, -1
        self.owners[self.num_active] = owner
        owner.slab, owner.row = self, self.num_active
        self.num_active += 1

    def start_decoding(self, row: int) -> None:
        """The prompt is read."""
        self._swap(row, self.num_decoding)
        self.num_decoding += 1

    def reread(self, row: int) -> None:
        """A text that was being written has to be read again."""
        self.num_decoding -= 1
        self._swap(row, self.num_decoding)

    def retire(self, row: int) -> None:
        """A text has ended: its row is kept, behind those in use."""
        if row < self.num_decoding:
            self.num_decoding -= 1
            self._swap(row, self.num_decoding)
            row = self.num_decoding
        self.num_active -= 1
        self._swap(row, self.num_active)

    def free(self, row: int) -> None:
        """Give up a row that is kept."""
        assert row >= self.num_active
        self._swap(row, len(self.owners) - 1)
        gone = self.owners.pop()
        gone.slab, gone.row = None, -1
        if not self.owners:
            self.capacity, self.layers = 0, []

    def _swap(self, one: int, other: int, empty: int | None = None) -> None:
        """Two rows change places; what is in row `empty` need not be kept."""
        if one == other:
            return
        used = max(self.owners[one].num_cached, self.owners[other].num_cached)
        for pair in self.layers:
            for x in pair:
                first, second = x[one, :, :used], x[other, :, :used]
                if empty == one:
                    first.copy_(second)
                elif empty == other:
                    second.copy_(first)
                else:
                    kept = first.clone()
                    first.copy_(second)
                    second.copy_(kept)
        for row, owner in ((one, self.owners[other]), (other, self.owners[one])):
            self.owners[row], owner.row = owner, row

    def copy_prefix(self, row: int, source: "Slab[Owner]", source_row: int, length: int) -> None:
        """Copy the first `length` tokens of another row; a ring is copied whole."""
        for mine, theirs in zip(self.layers, source.layers, strict=True):
            for x, y in zip(mine, theirs, strict=True):
                count = min(x.shape[2], y.shape[2], length)
                x[row, :, :count] = y[source_row, :, :count]

    def num_bytes(self) -> int:
        """Of all keys and values now."""
        return sum(x.numel() * x.element_size() for pair in self.layers for x in pair)


def layer_shapes(config: GPTConfig) -> list[tuple[int, int]]:
    """Heads and width of what a layer stores of each token: keys and values, or a latent and a rotated key."""
    if config.mla is not None:
        return [(1, config.mla.kv_lora_rank), (1, config.mla.qk_rope_head_dim)]
    return [(config.num_kv_heads, config.head_dim)] * 2


def build_slabs(
    config: GPTConfig,
    num_tokens: int,
    max_length: int,
    max_rows: int,
    margin: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Slab]:
    """A cache of `num_tokens`: one slab if every row may have full length, else several.

    Args:
        config: The model's.
        num_tokens: At least `max_length`.
        max_length: Of one text.
        max_rows: Texts at once.
        margin: See `Slab`.
        dtype: Of keys and values.
        device: Where they are.
    """
    if max_rows * max_length <= num_tokens:
        return [Slab(config, num_tokens, max(max_rows, num_tokens // max_length), margin, dtype, device)]
    size = max(max_length, num_tokens // SMALL_SLABS)
    count = num_tokens // size
    return [Slab(config, num_tokens // count, max_rows, margin, dtype, device) for _ in range(count)]


def row_capacity(num_tokens: int, max_length: int) -> int:
    """The capacity of a row for a text of so many tokens: the next power of two, at least 64, at most `max_length`."""
    return min(max_length, max(MIN_CAPACITY, 1 << (num_tokens - 1).bit_length()))


def bytes_per_token(config: GPTConfig, dtype: torch.dtype) -> int:
    """What one token costs in all layers, while it is inside every window."""
    return config.n_layer * sum(heads * width for heads, width in layer_shapes(config)) * dtype.itemsize
