"""The engine's cache: states of many sequences in a bounded number of tokens, and which request gets which row.

The cache is made of blocks. A block has memory for a fixed number of tokens, cut into rows of one capacity, one row a
sequence, so that its sequences are attended in one call without a copy. A block takes its capacity from the request
that first needs it, and may be cut anew into longer rows while few are in use. What a row holds is each layer's own
affair (`lit_gpt.models.cache.LayerState`): keys and values, a window of them, or a recurrent state.

A request gets a row with capacity for all that it may write, so nothing that runs is ever stopped for lack of memory.
Rows of ended requests stay until their memory is needed, the longest unused evicted first: the next request with the
same beginning (a system prompt, the earlier turns of a chat) reuses the row or copies from it. Where a layer's state
cannot give the state after a shorter prefix (a recurrent layer), only a row that stands exactly at its end is reused.
"""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from lit_gpt.models import GPT, LayerState

MIN_CAPACITY = 64
NUM_SMALL_BLOCKS = 8
"""Into how many blocks a cache is cut that has no capacity for every row at full length."""
MIN_PREFIX = 8
"""Tokens: a shorter prefix is computed as fast as it is copied."""


class CacheEntry:
    """A sequence that has a row of the cache, or waits for one.

    Args:
        ids: Its tokens.
        max_tokens: How long it may become; None = as long as the cache allows.
    """

    def __init__(self, ids: list[int], max_tokens: int | None) -> None:
        self.ids = ids
        """Of the context: the prompt and what was drawn (after a full context, the last part of it)."""
        self.max_tokens = max_tokens
        self.block: CacheBlock[Any] | None = None
        self.row = -1
        """Changes when rows change places."""
        self.num_cached = 0
        """Tokens of its context whose states are in the row."""
        self.prefix: tuple[CacheEntry, int] | None = None
        """Whose state to copy, after how many tokens, as soon as it is there."""
        self.finished = False

    def restart(self) -> None:
        """Forget what is cached: the whole context has to be computed again."""
        self.num_cached = 0
        if self.block is not None:
            self.block.reset(self)


Entry = TypeVar("Entry", bound=CacheEntry)


class CacheBlock(Generic[Entry]):
    """Rows of one capacity, in this order: requests that decode, requests in prefill, ended requests kept for reuse.

    Rows change places to keep that order, so that the rows that decode are the first ones of every tensor.

    Args:
        model: Whose states it holds.
        num_tokens: Its memory, in tokens of a layer that sees the whole context.
        max_rows: At most, however short they are.
        margin: How many tokens may be taken back at the end of a row.
        dtype: Of the states.
        device: Where they are.
    """

    def __init__(
        self, model: GPT, num_tokens: int, max_rows: int, margin: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.model, self.num_tokens, self.max_rows, self.margin = model, num_tokens, max_rows, margin
        self.dtype, self.device = dtype, device
        self.capacity = 0
        """Tokens of one row; 0 = not cut yet."""
        self.entries: list[Entry] = []
        """Of the rows in use, in order."""
        self.num_decoding = 0
        self.num_active = 0
        """Rows that decode or are in prefill; the others in use are kept for their prefixes."""
        self.states: list[LayerState] = []
        """Of each layer."""

    def num_rows(self, capacity: int) -> int:
        """Return how many rows of a capacity fit."""
        return min(self.num_tokens // capacity, self.max_rows)

    def has_free_row(self, capacity: int) -> bool:
        """Return whether one more row could be taken after cutting into rows of at least this capacity."""
        return len(self.entries) < self.num_rows(max(capacity, self.capacity))

    def cut(self, capacity: int) -> None:
        """Cut into rows of another capacity, keeping the content of those in use."""
        assert len(self.entries) <= self.num_rows(capacity)
        before = self.states
        fresh: list[LayerState] = []
        for layer, mixer in enumerate(self.model.token_mixers):
            state = mixer.new_state(self.num_rows(capacity), capacity, self.margin, self.dtype, self.device)
            if before:
                for row, entry in enumerate(self.entries):
                    # A row may hold guesses beyond the tokens that count.
                    state.copy_row(row, before[layer], row, min(entry.num_cached + self.margin, self.capacity))
                before[layer] = LayerState()  # frees it before the next layer's is made
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
        """Start an entry's row anew: none of its tokens is cached."""
        entry.num_cached = 0
        for state in self.states:
            state.reset_row(entry.row)

    def reuse(self, entry: Entry, row: int) -> None:
        """Give the kept row of an ended entry, with its content, to an entry that begins like it."""
        assert row >= self.num_active
        self._swap(row, self.num_active)
        before = self.entries[self.num_active]
        before.block, before.row = None, -1
        self.entries[self.num_active] = entry
        entry.block, entry.row = self, self.num_active
        self.num_active += 1

    def start_decoding(self, row: int) -> None:
        """Move a row whose prefill is complete to those that decode."""
        self._swap(row, self.num_decoding)
        self.num_decoding += 1

    def re_prefill(self, row: int) -> None:
        """Move a row that decodes back to prefill: its context starts afresh."""
        self.num_decoding -= 1
        self._swap(row, self.num_decoding)

    def release(self, row: int) -> None:
        """Keep the row of an ended entry behind the active ones."""
        if row < self.num_decoding:
            self.num_decoding -= 1
            self._swap(row, self.num_decoding)
            row = self.num_decoding
        self.num_active -= 1
        self._swap(row, self.num_active)

    def free(self, row: int) -> None:
        """Give up a kept row."""
        assert row >= self.num_active
        self._swap(row, len(self.entries) - 1)
        freed = self.entries.pop()
        freed.block, freed.row = None, -1
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
        """Return the bytes of all states now."""
        return sum(state.num_bytes() for state in self.states)

    def _move(self, source: int, target: int) -> None:
        """Exchange a row that holds nothing yet with another."""
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
    """Admission control: gives rows to requests, and finds prefixes that are cached already.

    Args:
        model: Whose cache it is.
        blocks: The cache.
        max_length: Of one entry, in tokens.
        max_rows: CacheEntrys that run at once.
        reuse_prefixes: Keep the rows of ended requests, and begin with states that others have.
    """

    def __init__(
        self, model: GPT, blocks: Sequence[CacheBlock[Any]], max_length: int, max_rows: int, reuse_prefixes: bool
    ) -> None:
        self._scaling, self._blocks = model.config.rope_scaling, blocks
        self._max_length, self._max_rows, self._reuse = max_length, max_rows, reuse_prefixes
        self._always_full = len(blocks) == 1 and blocks[0].num_tokens >= max_rows * max_length
        self._any_prefix = can_truncate(model)
        """Whether a row gives its prefixes of (almost) any length, or only the state where it stands."""
        self._kept: dict[CacheEntry, None] = {}
        """Ended requests whose rows are kept, the longest unused first."""
        self.reused_tokens = 0

    def place(self, entry: CacheEntry) -> bool:
        """Give an entry a row; return False if there is none for now."""
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
        """Copy the prefix that the entry shares, if it is cached by now; return False if it has to wait."""
        if entry.prefix is None:
            return True
        donor, length = entry.prefix
        if donor.block is not None and donor.num_cached < length and not donor.finished:
            return False
        entry.prefix = None
        if common_prefix(entry.ids, donor.ids) < length or not self._independent_of_length(donor):
            return True  # its context has become full meanwhile, and started afresh from another token
        length = min(length, donor.num_cached)
        if donor.block is not None and length >= MIN_PREFIX and donor.block.can_resume(donor.num_cached, length):
            assert entry.block is not None
            entry.block.copy_prefix(entry, donor, length)
            self.reused_tokens += length
        return True

    def release(self, entry: CacheEntry) -> None:
        """Keep, or free, the row of an entry that has ended."""
        block = entry.block
        assert block is not None
        block.release(entry.row)
        if self._reuse and entry.num_cached >= MIN_PREFIX:
            self._kept[entry] = None
        else:
            block.free(entry.row)

    def forget(self) -> None:
        """Free all rows that are kept."""
        while self._kept:
            self._evict(None)

    def _capacity(self, entry: CacheEntry) -> int:
        if self._always_full or entry.max_tokens is None:
            return self._max_length
        return row_capacity(entry.max_tokens, self._max_length)

    def _reuse_row(self, entry: CacheEntry, donor: CacheEntry, length: int, capacity: int) -> bool:
        """Continue in the donor's own row, unless much of its content would be lost while another row is free."""
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
        """Return a block with a free row: of the smallest capacity that suffices, or cut anew."""
        ready = [b for b in self._blocks if b.capacity >= capacity and b.has_free_row(b.capacity)]
        if ready:
            return min(ready, key=lambda b: b.capacity)
        if not cut:
            return None
        # An empty block first, then the one with the least to move.
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
        # One that itself waits for another's prefix keeps this one waiting longer: worth it for many tokens.
        if late is not None and late[1] >= longest + MIN_PREFIX:
            return late
        return best, longest if best is not None else 0

    def _best_whole_row(self, entry: CacheEntry) -> tuple[CacheEntry | None, int]:
        """Return the ended entry with the most tokens, all of which the entry begins with."""
        best: CacheEntry | None = None
        for other in self._kept:
            length = other.num_cached
            fits = MIN_PREFIX <= length < len(entry.ids) and (best is None or length > best.num_cached)
            if fits and common_prefix(entry.ids, other.ids) >= length:
                best = other
        return best, 0 if best is None else best.num_cached

    def _independent_of_length(self, entry: CacheEntry) -> bool:
        """Return whether the keys of a sequence are what they would be in a longer one."""
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
    """Return a cache of `num_tokens`: one block if every row may have full length, else several.

    Args:
        model: Whose states it holds.
        num_tokens: At least `max_length`.
        max_length: Of one sequence.
        max_rows: Sequences at once.
        margin: See `CacheBlock`.
        dtype: Of the states.
        device: Where they are.
    """
    if max_rows * max_length <= num_tokens:
        return [CacheBlock(model, num_tokens, max(max_rows, num_tokens // max_length), margin, dtype, device)]
    size = max(max_length, num_tokens // NUM_SMALL_BLOCKS)
    count = num_tokens // size
    return [CacheBlock(model, num_tokens // count, max_rows, margin, dtype, device) for _ in range(count)]


def row_capacity(num_tokens: int, max_length: int) -> int:
    """Return a row's capacity for so many tokens: the next power of two, at least 64, at most `max_length`."""
    return min(max_length, max(MIN_CAPACITY, 1 << (num_tokens - 1).bit_length()))


def can_truncate(model: GPT) -> bool:
    """Return whether every layer's state can take tokens back."""
    return all(state.can_truncate for state in model.new_states(1, 1))


def cache_bytes(model: GPT, num_tokens: int, num_rows: int, dtype: torch.dtype) -> int:
    """Return what a cache takes at most: every token inside every window, and every row's fixed part."""
    states = model.new_states(1, 1, dtype=dtype)
    per_token = sum(state.bytes_per_token for state in states)
    return num_tokens * per_token + num_rows * sum(state.bytes_per_row for state in states)


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common from their beginning."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return int(np.argmax(np.array(one[:length]) != np.array(other[:length])))
