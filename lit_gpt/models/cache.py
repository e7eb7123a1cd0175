"""Decoding states: what each layer stores of the sequences so far, and the parts of one decoding forward.

Every token mixer creates its own state (`TokenMixer.new_state`). A state has one row per sequence and encapsulates how
rows are stored, copied, moved and truncated. `KVState` holds keys and values (or the latents of latent attention), of
all tokens or of those in a sliding window; a recurrent layer holds a matrix of fixed size.

One decoding forward runs over a single row of tokens, (1, N): the next token of each sequence being generated, then
chunks of prompts. Linear layers and norms treat all tokens alike; token mixers process them by part (`StepState.map`):

- `DecodePart`: one new token for each of the first B rows of a state, attended in one call;
- `PaddedDecodePart`: the same with fixed shapes, for `torch.compile`;
- `ChunkPart`: T consecutive tokens of one row (or of several rows of equal length): a chunk of a prompt, or draft
  tokens that are being verified.

A layer whose window is shorter than a row uses a ring buffer: the key of position p is entry p mod R. Keys are rotated
before they are stored, so their order in the ring does not matter; the mask recomputes the position of each entry.

On a CPU, a row's memory is taken page by page as its tokens arrive (`lazy_zeros`), and given back with the row: the
capacity of the rows is only a bound.

B rows, N tokens of the forward, T tokens of a row, S keys, H heads, K key/value heads, D head size, R ring entries.
"""

import contextlib
import math
import mmap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_gpt.errors import UserError
from lit_gpt.models.positions import alibi_slopes

if TYPE_CHECKING:
    from lit_gpt.models.config import GPTConfig
    from lit_gpt.models.gpt import GPT


class LayerState:
    """The decoding state of one layer: tensors whose first dimension is the row, one row per sequence.

    This class suits layers whose state has a fixed size (recurrent layers): rows are copied and moved as a whole, and
    decoding can continue only from the latest token. `KVState` supports more.

    Args:
        tensors: Each (number of rows, ...); a row of zeros is the state before the first token.
    """

    can_truncate = False
    """Whether the last tokens of a row can be removed, as speculative decoding does with rejected draft tokens."""

    can_branch = False
    """Whether several continuations of a prefix can share one forward under a mask, as in attention."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def read(self, part: "Part") -> tuple[Tensor, ...]:
        """Return the rows that a part continues (copies or views), each (B, ...)."""
        return tuple(x[part.rows] for x in self.tensors)

    def write(self, part: "Part", *values: Tensor) -> None:
        """Store the states of a part's rows after its tokens, each (B, ...)."""
        for x, value in zip(self.tensors, values, strict=True):
            x[part.rows] = part.without_padding(value)

    def reset_row(self, row: int) -> None:
        """Reset a row: its next token is the first one of a sequence."""
        for x in self.tensors:
            x[row].zero_()

    def free_row(self, row: int) -> None:
        """Give back the memory of a row that is no longer in use, if the state can; its content is lost."""

    def copy_row(self, row: int, source: "LayerState", source_row: int, length: int) -> None:
        """Copy the state after `length` tokens from a row of this or another state of the same layer.

        Call it only if `can_resume` returns True.
        """
        for x, y in zip(self.tensors, source.tensors, strict=True):
            x[row].copy_(y[source_row])

    def swap_rows(self, one: int, other: int, length: int) -> None:
        """Exchange two rows, each holding at most `length` tokens."""
        for x in self.tensors:
            kept = x[one].clone()
            x[one].copy_(x[other])
            x[other].copy_(kept)

    def can_resume(self, num_stored: int, length: int) -> bool:
        """Return whether a row with `num_stored` tokens still contains the state after its first `length` tokens."""
        return num_stored == length

    @property
    def bytes_per_row(self) -> int:
        """Bytes per row that do not grow with the number of tokens."""
        return sum(x[0].numel() * x.element_size() for x in self.tensors)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that each further token adds to a row."""
        return 0

    def num_bytes(self) -> int:
        """Return the size of all rows in bytes."""
        return sum(x.numel() * x.element_size() for x in self.tensors)


class KVState(LayerState):
    """Keys and values of all tokens so far, or of the tokens in a window, in a ring buffer.

    Args:
        config: The model's architecture (windows and ALiBi).
        window: Number of tokens that a query sees; None = all before it.
        shapes: (heads, width) of the keys and of the values; latent attention stores its latent and its rotary key.
        num_rows: Number of sequences.
        capacity: Maximum number of tokens per sequence.
        margin: Entries of the ring buffer beyond the window: the maximum number of tokens that can be removed.
        dtype: Type of keys and values.
        device: Device of keys and values.
        store: Faster way to store one key and value per row, if there is one (`lit_gpt.models.native.store`).
    """

    can_truncate = True
    can_branch = True

    def __init__(
        self,
        config: "GPTConfig",
        window: int | None,
        shapes: tuple[tuple[int, int], tuple[int, int]],
        num_rows: int,
        capacity: int,
        margin: int,
        dtype: torch.dtype,
        device: torch.device,
        store: Callable[..., bool] | None = None,
    ) -> None:
        entries = capacity if window is None else min(capacity, window + margin)
        pairs = [lazy_zeros((num_rows, heads, entries, width), dtype, device) for heads, width in shapes]
        super().__init__(*(x for x, _ in pairs))
        self._mappings = [mapping for _, mapping in pairs]
        self.config, self.window, self.size, self.margin = config, window, entries, margin
        self.keys, self.values = self.tensors
        self.store = store

    def reset_row(self, row: int) -> None:
        """Do nothing: entries beyond a row's length have no weight in attention."""

    def free_row(self, row: int) -> None:
        """Give back the pages that lie within a row; they are zeros when it is used again."""
        for x, mapping in zip(self.tensors, self._mappings, strict=True):
            if mapping is None or not hasattr(mmap, "MADV_DONTNEED"):
                continue
            size = x.stride(0) * x.element_size()
            start = -(-row * size // mmap.PAGESIZE) * mmap.PAGESIZE
            length = (row + 1) * size // mmap.PAGESIZE * mmap.PAGESIZE - start
            if length > 0:
                mapping.madvise(mmap.MADV_DONTNEED, start, length)

    def copy_row(self, row: int, source: LayerState, source_row: int, length: int) -> None:
        """Copy the first `length` tokens; a ring buffer is copied completely."""
        for x, y in zip(self.tensors, source.tensors, strict=True):
            count = min(x.shape[2], y.shape[2], length)
            x[row, :, :count] = y[source_row, :, :count]

    def swap_rows(self, one: int, other: int, length: int) -> None:
        """Exchange the first `length` tokens of two rows."""
        for x in self.tensors:
            first, second = x[one, :, :length], x[other, :, :length]
            kept = first.clone()
            first.copy_(second)
            second.copy_(kept)

    def can_resume(self, num_stored: int, length: int) -> bool:
        """Return whether all keys before position `length` that are in its window are still stored."""
        if self.window is None or num_stored - length <= 1:
            return True  # the ring has one entry more than its window and the draft tokens
        return num_stored + self.margin <= self.size  # nothing has been overwritten yet

    @property
    def bytes_per_row(self) -> int:
        """Bytes per row that do not grow with the number of tokens: none."""
        return 0

    @property
    def bytes_per_token(self) -> int:
        """Bytes of the key and the value of one token inside the window."""
        return sum(x.shape[1] * x.shape[3] * x.element_size() for x in self.tensors)

    def update(self, part: "Part", k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store the new keys and values of a part and return all keys and values that its tokens may attend to.

        Args:
            part: The rows that the tokens continue.
            k: (B, T, K, D).
            v: (B, T, K, any width).

        Returns:
            Keys (B, K, S, D), values (B, K, S, width) and an additive mask, (B or 1, H or 1, T, S); mask None = causal,
            or, for a single query, no mask.
        """
        if isinstance(part, DecodePart):
            return self._append_one(part, k, v) if len(part.lengths) == 1 else self._append(part, k, v)
        if isinstance(part, PaddedDecodePart):
            return self._append_padded(part, k, v)
        assert isinstance(part, ChunkPart)
        return self._extend(part, k.transpose(1, 2), v.transpose(1, 2))

    def _append(self, part: "DecodePart", k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append one token to each of several rows of different lengths; a mask hides entries beyond each length."""
        self._store(part, k, v)
        B, S = len(part.lengths), min(max(part.lengths) + 1, self.size)
        return self.keys[:B, :, :S], self.values[:B, :, :S], self._ring_mask(part, S)

    def _append_one(self, part: "DecodePart", k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append one token to one row; no mask is needed while the visible entries are contiguous."""
        position, size, window = part.lengths[0], self.size, self.window
        entry = position % size
        self._store(part, k, v)
        first = first_visible(position, window, self.config.chunked_window)
        if self.config.positions != "alibi" and (position < size or (window == size and first == position - entry)):
            begin, end = first % size, entry + 1
            return self.keys[:1, :, begin:end], self.values[:1, :, begin:end], None
        S = min(position + 1, size)
        return self.keys[:1, :, :S], self.values[:1, :, :S], self._ring_mask(part, S)

    def _store(self, part: "DecodePart", k: Tensor, v: Tensor) -> None:
        """Store one key and value per row, each (B, 1, K, D), at the position of its token."""
        rows, entries = part.places(self.size, k.device)
        if self.store is not None and self.store(k, v, self.keys, self.values, entries):
            return
        if len(part.lengths) == 1:  # a copy is faster than an index
            entry = part.lengths[0] % self.size
            self.keys[0, :, entry], self.values[0, :, entry] = k[0, 0], v[0, 0]
        else:
            self.keys[rows, :, entries], self.values[rows, :, entries] = k[:, 0], v[:, 0]

    def _append_padded(self, part: "PaddedDecodePart", k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Like `_append`, but the positions of the sequences are in tensors and never in shapes."""
        entries = part.lengths % self.size
        self.keys[part.rows, :, entries] = part.without_padding(k)[:, 0]
        self.values[part.rows, :, entries] = part.without_padding(v)[:, 0]
        S = min(part.num_keys, self.size)
        return self.keys[: part.num_rows, :, :S], self.values[: part.num_rows, :, :S], self._ring_mask(part, S)

    def _ring_mask(self, part: "DecodePart | PaddedDecodePart", num_keys: int) -> Tensor:
        """Return the additive mask of one query per row, (B, 1 or H, 1, S); built once and shared by similar layers."""
        key = self.window, self.size
        if key not in part.masks:
            device = self.keys.device
            last = torch.as_tensor(part.lengths, device=device)[:, None]  # (B, 1)
            entry = torch.arange(num_keys, device=device)[None]
            # The latest position p <= last with p mod R = entry; negative if nothing was stored in the entry yet.
            position = last - (last - entry) % self.size  # (B, S)
            part.masks[key] = additive_mask(
                self.config, last[:, :, None], position[:, None], self.window, self.keys.dtype
            )
        return part.masks[key]

    def _extend(self, part: "ChunkPart", k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append T tokens to each row of a part, all of equal length; k (B, K, T, D) and v (B, K, T, width)."""
        keys, values = self.keys[part.rows], self.values[part.rows]
        size, start, end = self.size, part.start, part.start + part.num_tokens
        first = first_visible(start, self.window, self.config.chunked_window)
        wraps = end > size
        if wraps:
            # The new keys overwrite old ones that the first queries still see, so attend over a copy of both.
            earlier = torch.arange(first, start, device=k.device) % size
            seen = (
                torch.cat((keys.index_select(2, earlier), k), dim=2),
                torch.cat((values.index_select(2, earlier), v), dim=2),
            )
            kept = min(part.num_tokens, size)
            entries = torch.arange(end - kept, end, device=k.device) % size
            keys.index_copy_(2, entries, k[:, :, -kept:])
            values.index_copy_(2, entries, v[:, :, -kept:])
        else:
            keys[:, :, start:end] = k
            values[:, :, start:end] = v
            seen = keys[:, :, first:end], values[:, :, first:end]
        if (self.window, self.size) not in part.masks:
            part.masks[self.window, self.size] = self._chunk_mask(part, first, k)
        return *seen, part.masks[self.window, self.size]

    def _chunk_mask(self, part: "ChunkPart", first: int, like: Tensor) -> Tensor | None:
        start, end = part.start, part.start + part.num_tokens
        within = self.window is None or (end - first <= self.window and not self.config.chunked_window)
        if start == 0 and within and self.config.positions != "alibi":
            return None  # plain causal
        query = torch.arange(start, end, device=like.device)[None, :, None]
        key = torch.arange(first, end, device=like.device)[None, None]
        return additive_mask(self.config, query, key, self.window, like.dtype)


class Part:
    """Consecutive tokens of a decoding forward that a token mixer processes together: B rows of T tokens each.

    Args:
        states: The states of every layer; the tokens continue rows of them.
        num_rows: B, number of rows.
        num_tokens: T, number of tokens per row.
        rows: Index into the first dimension of a state's tensors.
    """

    def __init__(self, states: Sequence[Any], num_rows: int, num_tokens: int, rows: slice | Tensor) -> None:
        self.states, self.num_rows, self.num_tokens, self.rows = states, num_rows, num_tokens, rows
        self.masks: dict[Any, Any] = {}
        """Masks shared by layers of the same kind."""

    def without_padding(self, x: Tensor) -> Tensor:
        """Return x (B, ...) with the results of padding rows replaced by values that are safe to store there."""
        return x


class DecodePart(Part):
    """One new token for each of the first B rows.

    Args:
        states: The states of every layer.
        lengths: Lengths of the B rows in tokens before this forward, which are the positions of the new tokens.
    """

    def __init__(self, states: Sequence[Any], lengths: list[int]) -> None:
        super().__init__(states, len(lengths), 1, slice(0, len(lengths)))
        self.lengths = lengths
        self._row_ids: Tensor | None = None
        self._entries: dict[int, Tensor] = {}

    def places(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the row index of each new token and its entry in a ring of `size` entries; both (B,) int64."""
        if self._row_ids is None:
            self._row_ids = torch.arange(len(self.lengths), device=device)
        if size not in self._entries:
            self._entries[size] = torch.tensor([length % size for length in self.lengths], device=device)
        return self._row_ids, self._entries[size]


class PaddedDecodePart(Part):
    """Like `DecodePart` with fixed shapes, so that a compiled graph serves every step with as many rows and keys.

    Args:
        states: The states of every layer, with at least B rows.
        lengths: (B,) int64: the rows' lengths before this forward.
        rows: (B,) int64: the index of each row; 0 for padding.
        num_keys: S, greater than every length.
    """

    def __init__(self, states: Sequence[Any], lengths: Tensor, rows: Tensor, num_keys: int) -> None:
        super().__init__(states, lengths.shape[0], 1, rows)
        self.rows: Tensor = rows
        self.lengths, self.num_keys = lengths, num_keys

    def without_padding(self, x: Tensor) -> Tensor:
        """Return x with row 0 copied to all padding rows: padding writes to row 0 and must write the same values."""
        return x[self.rows]


class ChunkPart(Part):
    """T consecutive tokens of one row, or of several rows of equal length.

    Args:
        states: The states of every layer.
        row: Index of the row; if there are several, of the first one.
        start: Position of the first token: the row's length before this forward.
        num_tokens: T, number of tokens per row.
        num_rows: Number of rows.
    """

    def __init__(self, states: Sequence[Any], row: int, start: int, num_tokens: int, num_rows: int = 1) -> None:
        super().__init__(states, num_rows, num_tokens, slice(row, row + num_rows))
        self.start = start


class StepState:
    """The states of one layer in a decoding forward, one per part.

    Args:
        parts: The parts, which cover the forward's tokens in order.
        layer: Index of the layer, from 0.
    """

    def __init__(self, parts: Sequence[Part], layer: int) -> None:
        self.parts, self.layer = parts, layer

    def map(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Apply a function to each part's tokens and state, and concatenate the results.

        Args:
            function: `function(state, part, *tensors)`, where each tensor holds the part's tokens, (B, T, ...); it
                updates `state` and returns (B, T, ...).
            tensors: Each (1, N, ...), projections of the tokens.

        Returns:
            (1, N, ...).
        """
        if len(self.parts) == 1:
            part = self.parts[0]
            B, T = part.num_rows, part.num_tokens
            if B == 1:
                return function(part.states[self.layer], part, *tensors)
            mine = [x.reshape(B, T, *x.shape[2:]) for x in tensors]
            y = function(part.states[self.layer], part, *mine)
            return y.reshape(*tensors[0].shape[:2], *y.shape[2:])
        results = []
        start = 0
        for part in self.parts:
            B, T = part.num_rows, part.num_tokens
            end = start + B * T
            mine = [x[:, start:end].reshape(B, T, *x.shape[2:]) for x in tensors]
            results.append(function(part.states[self.layer], part, *mine).flatten(0, 1).unsqueeze(0))
            start = end
        return torch.cat(results, dim=1)


class DecodeStep:
    """The input of one decoding forward (`GPT.forward`): which tokens continue which rows.

    Args:
        parts: The parts, which cover the tokens in order.
        position_ids: (1, N) or (T,) int64.
        context_lengths: (1, N) int64, the length of each token's sequence, for RoPE scalings that depend on it; None =
            not needed.
        prepared: Whether the current weights have been laid out for decoding (`prepare_for_decoding`).
    """

    def __init__(
        self,
        parts: Sequence[Part],
        position_ids: Tensor,
        context_lengths: Tensor | None = None,
        prepared: bool = False,
    ) -> None:
        self.parts, self.position_ids, self.context_lengths = parts, position_ids, context_lengths
        self.prepared = prepared

    def layer(self, layer: int) -> StepState:
        """Return the states of a layer."""
        return StepState(self.parts, layer)


class Cache:
    """The states of B sequences of equal length, for calling a model directly; the engine manages its own blocks.

    Args:
        model: The model that decodes.
        batch_size: B, number of sequences.
        max_length: Maximum number of tokens per sequence; None = the model's block_size.

    Example:
        >>> cache = Cache(model, 1)  # doctest: +SKIP
        >>> logits = model(prompt, cache=cache.step(prompt.shape[1]))  # doctest: +SKIP
        >>> logits = model(token, cache=cache.step(1))  # doctest: +SKIP
    """

    def __init__(self, model: "GPT", batch_size: int, max_length: int | None = None) -> None:
        self.block_size = model.config.block_size
        self.max_length = self.block_size if max_length is None else max_length
        self.batch_size = batch_size
        self.length = 0
        """Number of tokens in each sequence so far."""
        self._device = model.wte.weight.device
        # The margin equals the row length: windowed layers keep all tokens too, so any number of them can be removed.
        self.states = model.new_states(batch_size, self.max_length, margin=self.max_length)

    def step(self, num_tokens: int) -> DecodeStep:
        """Return the decoding input for the next `num_tokens` tokens of every sequence, (B, num_tokens).

        Raises:
            UserError: If the sequences would exceed the model's block_size.
        """
        start, end = self.length, self.length + num_tokens
        if end > self.block_size:
            raise UserError(
                f"{end} tokens are more than the model's block_size {self.block_size}; "
                "shorten the context or build the model with a larger block_size"
            )
        assert end <= self.max_length, f"{end} tokens exceed the cache's max_length {self.max_length}"
        part: Part = ChunkPart(self.states, 0, start, num_tokens, self.batch_size)
        if num_tokens == 1:
            part = DecodePart(self.states, [start] * self.batch_size)
        self.length = end
        return DecodeStep([part], torch.arange(start, end, device=self._device))

    def truncate(self, length: int) -> None:
        """Remove all but the first `length` tokens.

        Raises:
            UserError: If a layer's state cannot be truncated.
        """
        assert 0 <= length <= self.length
        if length < self.length and not all(state.can_truncate for state in self.states):
            raise UserError("a layer of this model has a recurrent state, from which tokens cannot be removed")
        self.length = length


_LAZY_BYTES = 1 << 20
"""Smaller tensors are allocated at once."""


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, mmap.mmap | None]:
    """Return zeros that on a CPU take physical memory only where they are written to, page by page.

    `torch.zeros` writes to all of its memory at once: for a cache whose sequences rarely reach their full length, many
    times of what is ever used. Reading what was never written takes none: the system maps it to one page of zeros.

    Returns:
        The tensor, and the mapping that it is stored in; None = it is an ordinary tensor.
    """
    size = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or size < _LAZY_BYTES:
        return torch.zeros(shape, dtype=dtype, device=device), None
    if hasattr(mmap, "MAP_PRIVATE"):
        mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:  # Windows
        mapping = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # A huge page is as large as thousands of tokens of a head.
        with contextlib.suppress(OSError):  # a kernel without them
            mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(mapping, dtype=torch.uint8).view(dtype).view(shape), mapping


def first_visible(position: int, window: int | None, chunked: bool) -> int:
    """Return the first position that a query at `position` may attend to."""
    if window is None:
        return 0
    return position // window * window if chunked else max(0, position - window + 1)


def additive_mask(config: "GPTConfig", query: Tensor, key: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """Return 0 where a query may attend to a key (minus ALiBi's slope times their distance), else -inf.

    Args:
        config: The model's architecture (windows and ALiBi).
        query: (B or 1, T, 1) positions.
        key: (B or 1, 1, S) positions; negative = empty entry.
        window: The layer's window in tokens; None = no window.
        dtype: Type of the scores.

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
