"""A forward over trees of texts: which token sees which (see `prefix_trees`).

Trees of about the same size stand in the rows of a rectangle, so that they attend in one call; what fills up the
shorter ones sees itself alone and is read by nobody.

B trees, T tokens of the longest, S keys (a stem's P and T), K key/value heads, D head size.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_gpt.evaluation.prefix_trees import Tree
from lit_gpt.models import GPTConfig
from lit_gpt.models.step_cache import additive_mask

Layers = list[tuple[Tensor, Tensor]]
"""Keys and values (1, K, P, ...) of each layer."""


class TreesPart:
    """Trees of one forward; a part of a `StepCache`.

    Args:
        config: The model's.
        trees: In the rows, in order.
        stem: What stands before all of them; None = nothing.
        device: Of the model.
        keep: Keep the keys and values in `layers`, the stem's before them; for one tree.
    """

    def __init__(
        self, config: GPTConfig, trees: Sequence[Tree], stem: Layers | None, device: torch.device, keep: bool = False
    ) -> None:
        self.config, self.stem, self.keep = config, stem, keep
        self.width = max(len(tree.ids) for tree in trees)
        self.num_tokens = len(trees) * self.width
        self.layers: Layers = []
        self.stem_length = 0 if stem is None else stem[0][0].shape[2]
        self.ids = self._rows(trees, "ids", device)
        self.positions = self._rows(trees, "positions", device)
        self.is_causal = stem is None and all(tree.is_chain for tree in trees)
        self._ends = self._rows(trees, "ends", device)
        self._masks: dict[int | None, Tensor | None] = {}

    def _rows(self, trees: Sequence[Tree], name: str, device: torch.device) -> Tensor:
        """(B, T) int64, 0 where a tree has ended."""
        rows = torch.zeros(len(trees), self.width, dtype=torch.int64)
        for row, tree in zip(rows, trees, strict=True):
            row[: len(tree.ids)] = torch.from_numpy(getattr(tree, name))
        return rows.to(device)

    def rows(self, x: Tensor) -> Tensor:
        """(1, B T, H, D) → (B, T, H, D)."""
        return x.unflatten(1, (-1, self.width)).squeeze(0)

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return keys and values (B, K, S, ...) of the stem and of k, v (B, K, T, ...), and who sees whom."""
        if self.stem is not None:
            k, v = (
                torch.cat((before.expand(len(now), -1, -1, -1), now), dim=2)
                for before, now in zip(self.stem[layer], (k, v), strict=True)
            )
        if self.keep:
            self.layers.append((k, v))
        window = self.config.window(layer)
        if window not in self._masks:
            self._masks[window] = self._mask(window, k.dtype)
        return k, v, self._masks[window]

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        if self.is_causal and self.config.positions != "alibi" and (window is None or window >= self.width):
            return None  # what fills up comes last, so plain causality hides it
        device = self.ids.device
        before = torch.arange(self.stem_length, device=device).expand(len(self.ids), -1)
        keys = torch.cat((before, self.positions), dim=1)  # (B, S)
        mask = additive_mask(self.config, self.positions[:, :, None], keys[:, None], window, dtype)
        place = torch.arange(self.width, device=device)
        follows = (place[None] <= place[:, None]) & (place[:, None] < self._ends[:, None])  # (B, T, T)
        follows |= torch.eye(self.width, dtype=torch.bool, device=device)
        sees = torch.nn.functional.pad(follows, (self.stem_length, 0), value=True)
        return mask.masked_fill(~sees.unsqueeze(1), -math.inf)
