"""The engine's cache: decoding states of many sequences in bounded memory, and the assignment of rows to requests.

The cache consists of blocks. A block has memory for a fixed number of tokens, divided into rows of equal capacity, one
row per sequence, so that its sequences are attended in one call without copying. A block takes its capacity from the
request that first needs it, and may be divided again into longer rows while few are in use. Each layer decides what a
row contains (`lit_gpt.models.cache.LayerState`): keys and values, a window of them, or a recurrent state.

A request gets a row with capacity for everything that it may generate, so a running request never stops for lack of
memory. Rows of finished requests are kept until their memory is needed, and evicted in least-recently-used order: the
next request with the same prefix (a system prompt, the earlier turns of a chat) reuses the row or copies from it. If a
layer cannot return to the state after a shorter prefix (a recurrent layer), a row is reused only if it ends exactly
there.
"""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from lit_gpt.models import GPT, LayerState

MIN_CAPACITY = 64
NUM_SMALL_BLOCKS = 8
"""Number of blocks in a cache whose memory is less than every row at full length needs."""
MIN_PREFIX = 8
"""Minimum length of a reused prefix in tokens; a shorter one is computed as fast as it is copied."""


class CacheEntry:
    """A sequence that has a row of the cache, or waits for one.

    Args:
        ids: Token ids of the sequence.
        max_tokens: Maximum length it may reach; None = limited only by the cache.
    """

    def __init__(self, ids: list[int], max_tokens: int | None) -> None:
        self.ids = ids
        """Token ids of the context: the prompt and the generated tokens (after a full context, its last part)."""
        self.max_tokens = max_tokens
        self.block: CacheBlock[Any] | None = None
        self.row = -1
        """Index of its row; changes when rows are moved."""
        self.num_cached = 0
        """Number of tokens of the context whose states are in the row."""
        self.prefix: tuple[CacheEntry, int] | None = None
        """The entry whose state to copy once it is available, and after how many tokens; None = nothing to copy."""
        self.finished = False

    def restart(self) -> None:
        """Discard what is cached: the whole context must be recomputed."""
        self.num_cached = 0
        if self.block is not None:
            self.block.reset(self)


Entry = TypeVar("Entry", bound=CacheEntry)


class CacheBlock(Generic[Entry]):
    """Rows of equal capacity, in this order: decoding requests, requests in prefill, finished requests kept for reuse.

    Rows are swapped to keep that order, so that the decoding rows are the first ones of every tensor.

    Args:
        model: Model whose states it stores.
        num_tokens: Memory of the block, in tokens of a full-attention layer.
        max_rows: Maximum number of rows, however short they are.
        margin: Maximum number of tokens that may be removed from the end of a row.
        dtype: Type of the states.
        device: Device of the states.
    """

    def __init__(
        self, model: GPT, num_tokens: int, max_rows: int, margin: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.model, self.num_tokens, self.max_rows, self.margin = model, num_tokens, max_rows, margin
        self.dtype, self.device = dtype, device
        self.capacity = 0
        """Capacity of each row in tokens; 0 = not divided yet."""
        self.entries: list[Entry] = []
        """Entries of the rows in use, in order."""
        self.num_decoding = 0
        self.num_active = 0
        """Number of rows that decode or are in prefill; the other rows in use are kept for their prefixes."""
        self.states: list[LayerState] = []
        """The state of each layer."""

    def num_rows(self, capacity: int) -> int:
        """Return how many rows of this capacity fit."""
        return min(self.num_tokens // capacity, self.max_rows)

    def has_free_row(self, capacity: int) -> bool:
        """Return whether another row would be free after dividing into rows of at least this capacity."""
        return len(self.entries) < self.num_rows(max(capacity, self.capacity))

    def cut(self, capacity: int) -> None:
        """Divide the block into rows of another capacity, keeping the content of those in use."""
        assert len(self.entries) <= self.num_rows(capacity)
        before = self.states
        fresh: list[LayerState] = []
        for layer, mixer in enumerate(self.model.token_mixers):
            state = mixer.new_state(self.num_rows(capacity), capacity, self.margin, self.dtype, self.device)
            if before:
                for row, entry in enumerate(self.entries):
                    # A row may contain draft tokens beyond the counted ones.
                    state.copy_row(row, before[layer], row, min(entry.num_cached + self.margin, self.capacity))
                before[layer] = LayerState()  # frees it before the next layer's state is created
            fresh.append(state)
        self.states, self.capacity = fresh, capacity

    def take(self, entry: Entry) -> None:
        """Give a free row to an entry that starts its prefill."""
        row = len(self.entries)
        self.entries.append(entry)
        entry.block, entry.row = self, row
        self._move(row, self.num_active)
        self.num_active += 1
        self.reset(entry)

    def reset(self, entry: Entry) -> None:
        """Reset an entry's row: none of its tokens is cached."""
        entry.num_cached = 0
        for state in self.states:
            state.reset_row(entry.row)

    def reuse(self, entry: Entry, row: int) -> None:
        """Give a finished entry's row, with its content, to an entry that starts with the same tokens."""
        assert row >= self.num_active
        self._swap(row, self.num_active)
        before = self.entries[self.num_active]
        before.block, before.row = None, -1
        self.entries[self.num_active] = entry
        entry.block, entry.row = self, self.num_active
        self.num_active += 1

    def start_decoding(self, row: int) -> None:
        """Move a row whose prefill is complete to the decoding rows."""
        self._swap(row, self.num_decoding)
        self.num_decoding += 1

    def re_prefill(self, row: int) -> None:
        """Move a decoding row back to prefill, because its context is restarted."""
        self.num_decoding -= 1
        self._swap(row, self.num_decoding)

    def release(self, row: int) -> None:
        """Move the row of a finished entry behind the active ones and keep it."""
        if row < self.num_decoding:
            self.num_decoding -= 1
            self._swap(row, self.num_decoding)
            row = self.num_decoding
        self.num_active -= 1
        self._swap(row, self.num_active)

    def free(self, row: int) -> None:
        """Free a kept row."""
        assert row >= self.num_active
        self._swap(row, len(self.entries) - 1)
        freed = self.entries.pop()
        freed.block, freed.row = None, -1
        for state in self.states:
            state.free_row(len(self.entries))
        if not self.entries:
            self.capacity, self.states = 0, []

    def copy_prefix(self, entry: Entry, donor: CacheEntry, length: int) -> None:
        """Copy the state after `length` tokens from another entry's row."""
        assert donor.block is not None
        for state, source in zip(self.states, donor.block.states, strict=True):
            state.copy_row(entry.row, source, donor.row, length)
        entry.num_cached = length

    def can_resume(self, num_stored: int, length: int) -> bool:
        """Return whether every layer still has the state after `length` of the `num_stored` tokens of a row."""
        return all(state.can_resume(num_stored, length) for state in self.states)

    def num_bytes(self) -> int:
        """Return the current size of all states in bytes."""
        return sum(state.num_bytes() for state in self.states)

    def _move(self, source: int, target: int) -> None:
        """Exchange a row without content with another one."""
        if source == target:
            return
        for state in self.states:
            state.copy_row(source, state, target, self.entries[target].num_cached)
        self._exchange_owners(source, target)

    def _swap(self, one: int, other: int) -> None:
        """Exchange two rows."""
        if one == other:
            return
        length = max(self.entries[one].num_cached, self.entries[other].num_cached)
        for state in self.states:
            state.swap_rows(one, other, length)
        self._exchange_owners(one, other)

    def _exchange_owners(self, one: int, other: int) -> None:
        for row, entry in ((one, self.entries[other]), (other, self.entries[one])):
            self.entries[row], entry.row = entry, row


class Admission:
    """Admission control: assigns rows to requests, and finds prefixes that are already cached.

    Args:
        model: The model that runs.
        blocks: The blocks of the cache.
        max_length: Maximum length of an entry, in tokens.
        max_rows: Maximum number of running entries.
        reuse_prefixes: Keep the rows of finished requests, and start from states that other entries have cached.
    """

    def __init__(
        self, model: GPT, blocks: Sequence[CacheBlock[Any]], max_length: int, max_rows: int, reuse_prefixes: bool
    ) -> None:
        self._scaling, self._blocks = model.config.rope_scaling, blocks
        self._max_length, self._max_rows, self._reuse = max_length, max_rows, reuse_prefixes
        self._always_full = len(blocks) == 1 and blocks[0].num_tokens >= max_rows * max_length
        self._any_prefix = can_truncate(model)
        """Whether a row can return to (almost) any prefix, or has only its latest state."""
        self._kept: dict[CacheEntry, None] = {}
        """Finished entries whose rows are kept, least recently used first."""
        self.reused_tokens = 0

    def place(self, entry: CacheEntry) -> bool:
        """Give an entry a row; return False if none is available now."""
        if sum(block.num_active for block in self._blocks) >= self._max_rows:
            return False
        capacity = self._capacity(entry)
        donor, length = self._best_prefix(entry)
        if donor is not None and donor in self._kept and self._reuse_row(entry, donor, length, capacity):
            return True
        block = self._find_block(capacity)
        while block is None and self._kept:
            self._evict(donor)
            block = self._find_block(capacity)
        if block is None:
            return False
        block.take(entry)
        entry.prefix = None if donor is None else (donor, length)
        return True

    def copy_prefix(self, entry: CacheEntry) -> bool:
        """Copy the prefix that the entry shares, if it is cached by now; return False if the entry must wait."""
        if entry.prefix is None:
            return True
        donor, length = entry.prefix
        if donor.block is not None and donor.num_cached < length and not donor.finished:
            return False
        entry.prefix = None
        if common_prefix(entry.ids, donor.ids) < length or not self._independent_of_length(donor):
            return True  # meanwhile the context became full and was restarted from another token
        length = min(length, donor.num_cached)
        if donor.block is not None and length >= MIN_PREFIX and donor.block.can_resume(donor.num_cached, length):
            assert entry.block is not None
            entry.block.copy_prefix(entry, donor, length)
            self.reused_tokens += length
        return True

    def release(self, entry: CacheEntry) -> None:
        """Keep or free the row of a finished entry."""
        block = entry.block
        assert block is not None
        block.release(entry.row)
        if self._reuse and entry.num_cached >= MIN_PREFIX:
            self._kept[entry] = None
        else:
            block.free(entry.row)

    def forget(self) -> None:
        """Free all kept rows."""
        while self._kept:
            self._evict(None)

    def _capacity(self, entry: CacheEntry) -> int:
        if self._always_full or entry.max_tokens is None:
            return self._max_length
        return row_capacity(entry.max_tokens, self._max_length)

    def _reuse_row(self, entry: CacheEntry, donor: CacheEntry, length: int, capacity: int) -> bool:
        """Continue in the donor's row, unless much of its content would be lost while another row is free."""
        block = donor.block
        assert block is not None
        if block.capacity < capacity or not block.can_resume(donor.num_cached, length):
            return False
        if 2 * length < donor.num_cached and self._find_block(capacity, cut=False) is not None:
            return False
        del self._kept[donor]
        block.reuse(entry, donor.row)
        entry.num_cached = length
        self.reused_tokens += length
        return True

    def _find_block(self, capacity: int, cut: bool = True) -> CacheBlock[Any] | None:
        """Return a block with a free row: of the smallest sufficient capacity, or newly divided."""
        ready = [b for b in self._blocks if b.capacity >= capacity and b.has_free_row(b.capacity)]
        if ready:
            return min(ready, key=lambda b: b.capacity)
        if not cut:
            return None
        # Prefer an empty block, then the one with the least to move.
        others = [b for b in self._blocks if b.capacity < capacity and b.has_free_row(capacity)]
        if not others:
            return None
        block = min(others, key=lambda b: len(b.entries))
        block.cut(capacity)
        return block

    def _evict(self, spared: CacheEntry | None) -> None:
        evicted = next((one for one in self._kept if one is not spared), spared)
        assert evicted is not None
        del self._kept[evicted]
        assert evicted.block is not None
        evicted.block.free(evicted.row)

    def _best_prefix(self, entry: CacheEntry) -> tuple[CacheEntry | None, int]:
        """Return the entry with the longest common prefix, among those that have it cached or in prefill."""
        best, longest = None, MIN_PREFIX - 1
        if not self._reuse or not self._independent_of_length(entry):
            return None, 0
        if not self._any_prefix:
            return self._best_whole_row(entry)
        late: tuple[CacheEntry, int] | None = None
        for block in self._blocks:
            for row, other in enumerate(block.entries):
                if not self._independent_of_length(other):
                    continue
                in_prefill = block.num_decoding <= row < block.num_active
                known = len(other.ids) if in_prefill else other.num_cached
                length = min(common_prefix(entry.ids, other.ids), known, len(entry.ids) - 1)
                if other.prefix is None and length > longest:
                    best, longest = other, length
                elif other.prefix is not None and length > (late[1] if late else 0):
                    late = other, length
        # Waiting for an entry that itself waits for a prefix takes longer: worth it only for many tokens.
        if late is not None and late[1] >= longest + MIN_PREFIX:
            return late
        return best, longest if best is not None else 0

    def _best_whole_row(self, entry: CacheEntry) -> tuple[CacheEntry | None, int]:
        """Return the finished entry with the most tokens that is a complete prefix of the entry."""
        best: CacheEntry | None = None
        for other in self._kept:
            length = other.num_cached
            fits = MIN_PREFIX <= length < len(entry.ids) and (best is None or length > best.num_cached)
            if fits and common_prefix(entry.ids, other.ids) >= length:
                best = other
        return best, 0 if best is None else best.num_cached

    def _independent_of_length(self, entry: CacheEntry) -> bool:
        """Return whether the keys of a sequence do not depend on its length."""
        if self._scaling is None or not self._scaling.follows_length:
            return True
        return len(entry.ids) <= self._scaling.original_block_size


def build_blocks(
    model: GPT,
    num_tokens: int,
    max_length: int,
    max_rows: int,
    margin: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[CacheBlock[Any]]:
    """Return a cache of `num_tokens`: a single block if all rows fit at full length, else several blocks.

    Args:
        model: Model whose states it stores.
        num_tokens: Memory in tokens, at least `max_length`.
        max_length: Maximum length of a sequence, in tokens.
        max_rows: Maximum number of running sequences.
        margin: See `CacheBlock`.
        dtype: Type of the states.
        device: Device of the states.
    """
    if max_rows * max_length <= num_tokens:
        return [CacheBlock(model, num_tokens, max(max_rows, num_tokens // max_length), margin, dtype, device)]
    size = max(max_length, num_tokens // NUM_SMALL_BLOCKS)
    count = num_tokens // size
    return [CacheBlock(model, num_tokens // count, max_rows, margin, dtype, device) for _ in range(count)]


def row_capacity(num_tokens: int, max_length: int) -> int:
    """Return a row's capacity for this many tokens: the next power of two, at least 64, at most `max_length`."""
    return min(max_length, max(MIN_CAPACITY, 1 << (num_tokens - 1).bit_length()))


def can_truncate(model: GPT) -> bool:
    """Return whether tokens can be removed from the end of every layer's state."""
    return all(state.can_truncate for state in model.new_states(1, 1))


def cache_bytes(model: GPT, num_tokens: int, max_length: int, max_rows: int, margin: int, dtype: torch.dtype) -> int:
    """Return the maximum size in bytes of the cache that `build_blocks` returns for the same arguments."""
    if max_rows * max_length <= num_tokens:  # every row has this length; layers with a window store less of it
        states = model.new_states(1, max_length, margin, dtype, torch.device("meta"))
        return max(max_rows, num_tokens // max_length) * sum(state.num_bytes() for state in states)
    states = model.new_states(1, 1, margin, dtype, torch.device("meta"))
    num_rows = max_rows * min(NUM_SMALL_BLOCKS, num_tokens // max_length)
    per_token, per_row = (sum(getattr(s, name) for s in states) for name in ("bytes_per_token", "bytes_per_row"))
    return num_tokens * per_token + num_rows * per_row


def tokens_that_fit(model: GPT, num_bytes: int, max_length: int, max_rows: int, margin: int, dtype: torch.dtype) -> int:
    """Return the tokens of the largest cache within so many bytes, at most `max_rows` sequences of `max_length`.

    Arguments as for `build_blocks`; the result may be less than one sequence of `max_length`.
    """
    if cache_bytes(model, max_rows * max_length, max_length, max_rows, margin, dtype) <= num_bytes:
        return max_rows * max_length
    states = model.new_states(1, 1, margin, dtype, torch.device("meta"))
    per_token, per_row = (sum(getattr(s, name) for s in states) for name in ("bytes_per_token", "bytes_per_row"))
    left = max(0, num_bytes - max_rows * NUM_SMALL_BLOCKS * per_row)
    return min(max_rows * max_length, left // max(per_token, 1))


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the longest common prefix of two sequences."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return int(np.argmax(np.array(one[:length]) != np.array(other[:length])))
