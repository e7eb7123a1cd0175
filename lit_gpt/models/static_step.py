"""Decoding with fixed shapes, for `torch.compile`: one graph serves every step of a shape.

Rows and keys are padded to the next power of two; where the texts stand is in tensors, never in shapes. A row that is
only padding repeats the first text's token, writes what the first text writes, and its result is thrown away.

B rows, padded; S keys, padded.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_gpt.models.batch_cache import Slab
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.head import HeadFn
from lit_gpt.models.step_cache import StepCache, additive_mask

MIN_KEYS = 128
MAX_GRAPHS = 64
"""Shapes that are compiled before the rest runs uncompiled."""


class StaticDecodePart:
    """As `DecodePart`, with everything that changes in tensors.

    Args:
        config: The model's.
        layers: Keys and values of each layer, of B rows at least.
        windows: Of each layer.
        lengths: (B,) int64, of the texts before this step.
        rows: (B,) int64: which text each row is; 0 where it is padding.
        num_keys: S, more than every length.
    """

    def __init__(
        self,
        config: GPTConfig,
        layers: list[tuple[Tensor, Tensor]],
        windows: list[int | None],
        lengths: Tensor,
        rows: Tensor,
        num_keys: int,
    ) -> None:
        self.config, self.layers, self.windows = config, layers, windows
        self.lengths, self.row_ids, self.num_keys = lengths, rows, num_keys
        self.num_tokens = lengths.shape[0]
        self._masks: dict[int | None, Tensor] = {}

    def rows(self, x: Tensor) -> Tensor:
        """(1, B, H, D) → (B, 1, H, D)."""
        return x.transpose(0, 1)

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Put away k (B, K, 1, D) and v (B, K, 1, width); return keys, values (B, K, S, ...) and the mask."""
        keys, values = self.layers[layer]
        window, size, B = self.windows[layer], keys.shape[2], self.num_tokens
        entries = self.lengths % size
        keys[self.row_ids, :, entries] = k[self.row_ids, :, 0]
        values[self.row_ids, :, entries] = v[self.row_ids, :, 0]
        S = min(self.num_keys, size)
        if window not in self._masks:
            last = self.lengths[:, None]
            entry = torch.arange(S, device=k.device)[None]
            position = last - (last - entry) % size
            self._masks[window] = additive_mask(self.config, last[:, :, None], position[:, None], window, k.dtype)
        return keys[:B, :, :S], values[:B, :, :S], self._masks[window]


class StaticDecoder:
    """Compiled decoding of a slab's first rows.

    Args:
        forward: `GPT.forward`, or a `FlatModel`.
        config: The model's.
        head_fn: From hidden states (1, B, C) to logits (B, V).
    """

    def __init__(self, forward: Callable[..., Any], config: GPTConfig, head_fn: HeadFn) -> None:
        self._forward, self._config, self._head_fn = forward, config, head_fn
        self._compiled = torch.compile(self._run, dynamic=False)

    def __call__(self, slab: Slab[Any], ids: Tensor, lengths: list[int], with_context: bool) -> Tensor:
        """Logits of the next tokens.

        Args:
            slab: Whose first rows take a token more.
            ids: (1, n) int64, their last tokens.
            lengths: Of the n texts.
            with_context: Whether positions are rotated by the length of their text.

        Returns:
            (n, V).
        """
        n = len(lengths)
        B = min(_next_power(n), slab.layers[0][0].shape[0])
        rows = torch.tensor([*range(n), *[0] * (B - n)], device=ids.device)
        positions = torch.tensor(lengths, device=ids.device)[rows]
        num_keys = min(slab.capacity, max(MIN_KEYS, _next_power(max(lengths) + 1)))
        context = positions[None] + 1 if with_context else None
        with torch._dynamo.config.patch(recompile_limit=MAX_GRAPHS):
            logits = self._compiled(ids[:, rows], positions, rows, slab.layers, slab.windows, num_keys, context)
        return logits[:n]

    def _run(
        self,
        ids: Tensor,
        positions: Tensor,
        rows: Tensor,
        layers: list[tuple[Tensor, Tensor]],
        windows: list[int | None],
        num_keys: int,
        context: Tensor | None,
    ) -> Tensor:
        part = StaticDecodePart(self._config, layers, windows, positions, rows, num_keys)
        cache = StepCache([part], context)
        logits: Tensor = self._forward(ids, position_ids=positions[None], cache=cache, head_fn=self._head_fn)
        return logits


def _next_power(number: int) -> int:
    return 1 << (number - 1).bit_length()
