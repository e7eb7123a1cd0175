"""Compute shared beginnings of texts only once: trees of tokens, and the forward pass over them.

The choices of a question have the same beginning, and so do all questions after one preamble. The texts are sorted, so
that those with a common beginning are adjacent, and become:

- trees: a few texts as one sequence of tokens in which each token attends only to the tokens before it in its own
  text. The choices of one question make one tree: the question, then each choice as a branch;
- shared prefixes: a beginning that many trees share. It runs separately, its keys and values are stored, and the trees
 continue from it.

A shared prefix is worth a separate forward pass if it saves a good part of one; see `plan_trees`.

In a forward, trees of about the same size are the rows of a rectangle, so that they attend in one call; padding
attends only to itself and its output is never read.

B trees, T tokens of the longest tree, S keys (P of the shared prefix and T), K key/value heads, D head size.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_gpt.models import GPTConfig
from lit_gpt.models.cache import Part, additive_mask

TREE_TOKENS = 256
"""Texts with at most this many tokens in total form one tree even if they share little: the masked work is small."""
MIN_PREFIX = 16
"""Minimum length of a shared prefix in tokens."""


class ScoredText(NamedTuple):
    """A text and its predicted tokens.

    Attributes:
        ids: (n,) int32, tokens that the model reads.
        targets: (m,) int32, m <= n: the tokens that follow its last m tokens.
    """

    ids: np.ndarray
    targets: np.ndarray

    @property
    def first(self) -> int:
        """The position that predicts the first target."""
        return len(self.ids) - len(self.targets)


@dataclass(frozen=True, eq=False)
class SharedPrefix:
    """A prefix that many trees share.

    Attributes:
        parent: The shared prefix before it, if any.
        start: Position of its first token; the tokens before it belong to its ancestors.
        ids: (P,) tokens, without those of its ancestors.
    """

    parent: "SharedPrefix | None"
    start: int
    ids: np.ndarray

    @property
    def end(self) -> int:
        """Position after its last token."""
        return self.start + len(self.ids)


@dataclass(frozen=True, eq=False)
class Tree:
    """Several texts as one sequence, T tokens in depth-first order.

    Attributes:
        ids: (T,) int64.
        positions: (T,) int64, position of each token in its text.
        ends: (T,) int64: token j is visible to tokens j to ends[j] - 1, which follow it in some text.
        predictions: One pair per text: index of the text, and the (m,) indices in the tree of the tokens that predict.
    """

    ids: np.ndarray
    positions: np.ndarray
    ends: np.ndarray
    predictions: tuple[tuple[int, np.ndarray], ...]

    @property
    def is_chain(self) -> bool:
        """Whether all texts are prefixes of the longest one, so that plain causal attention is correct."""
        return bool((self.ends == len(self.ids)).all())


def plan_trees(
    texts: Sequence[ScoredText], max_tokens: int, share: bool = True
) -> Iterator[tuple[SharedPrefix | None, list[Tree]]]:
    """Group texts by their beginnings.

    A shared prefix gets a separate forward if the trees after it would otherwise compute `max_tokens` / 2 tokens more.

    Args:
        texts: Texts in any order.
        max_tokens: Maximum number of tokens of one forward.
        share: If False, each text is a separate tree.

    Yields:
        A shared prefix, or None for trees without one, and its trees; the prefix's parent has been yielded before it.
        Each text is in exactly one tree.
    """
    if not share:
        yield None, [_tree([text], [number], 0) for number, text in enumerate(texts)]
        return
    # Big-endian bytes sort in numeric order.
    order = sorted(range(len(texts)), key=lambda number: texts[number].ids.astype(">u4").tobytes())
    chosen = [texts[number] for number in order]
    lengths = np.array([len(text.ids) for text in chosen])
    common = np.array([0, *map(_common, chosen[:-1], chosen[1:])])  # tokens shared with the text before
    new = np.concatenate(([0], np.cumsum(lengths - common)))

    def size(low: int, high: int, start: int) -> int:
        """Return the number of tokens of the tree of texts `low` to `high` beyond position `start`."""
        return int(new[high] - new[low + 1] + lengths[low] - start)

    pending: list[tuple[SharedPrefix | None, list[tuple[int, int]]]] = [(None, [(0, len(chosen))] if chosen else [])]
    while pending:
        prefix, ranges = pending.pop()
        start = 0 if prefix is None else prefix.end
        trees = []
        while ranges:
            low, high = ranges.pop()
            tokens = size(low, high, start)
            if high - low == 1 or tokens <= max(TREE_TOKENS, 2 * (int(lengths[low:high].max()) - start)):
                trees.append(_tree(chosen[low:high], order[low:high], start))
                continue
            # Too large for one tree: split where neighbors share the fewest tokens, i.e. the prefix of all texts.
            shared = int(common[low + 1 : high].min())
            cuts = [low, *(low + 1 + np.flatnonzero(common[low + 1 : high] == shared)).tolist(), high]
            branches = list(pairwise(cuts))
            # A predicting token must run with its text, because the head needs its hidden state.
            end = min(shared, *(text.first for text in chosen[low:high]))
            if end - start >= MIN_PREFIX and (end - start) * (len(branches) - 1) >= max_tokens / 2:
                pending.append((SharedPrefix(prefix, start, chosen[low].ids[start:end]), branches))
            else:
                ranges += branches
        yield prefix, trees


def _common(one: ScoredText, other: ScoredText) -> int:
    """Return the length of the common prefix of two texts."""
    count = min(len(one.ids), len(other.ids))
    different = one.ids[:count] != other.ids[:count]
    return int(different.argmax()) if different.any() else count


def _tree(texts: Sequence[ScoredText], numbers: Sequence[int], start: int) -> Tree:
    """Merge sorted texts into one tree, without their tokens before `start`."""
    ids: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    path = np.zeros(0, dtype=np.int64)  # index in the tree of each token of the previous text
    predictions = []
    before: ScoredText | None = None
    for text, number in zip(texts, numbers, strict=True):
        kept = 0 if before is None else max(_common(before, text) - start, 0)
        for position in path[kept:]:  # the branch of the previous text ends here: no later token attends to it
            ends[position] = len(ids)
        added = text.ids[start + kept :]
        path = np.concatenate((path[:kept], np.arange(len(ids), len(ids) + len(added))))
        ids += added.tolist()
        positions += range(start + kept, len(text.ids))
        ends += [-1] * len(added)
        predictions.append((number, path[text.first - start :]))
        before = text
    for position in path:  # the last text's tokens are visible up to the end
        ends[position] = len(ids)
    return Tree(np.array(ids), np.array(positions), np.array(ends), tuple(predictions))


Layers = list[tuple[Tensor, Tensor]]
"""Keys and values (1, K, P, D) of each layer."""


class TreesPart(Part):
    """The trees of one forward, and the keys and values that its attention layers see.

    Args:
        config: Config of the model.
        trees: Trees, one per row.
        prefix: Keys and values of the shared prefix before all of them; None if there is none.
        device: The model's device.
        keep: Whether to store keys and values in `layers`, including the prefix's; only for a single tree.
    """

    def __init__(
        self, config: GPTConfig, trees: Sequence[Tree], prefix: Layers | None, device: torch.device, keep: bool = False
    ) -> None:
        self.config, self.prefix, self.keep = config, prefix, keep
        self.width = max(len(tree.ids) for tree in trees)
        states = [TreeState(layer, self) for layer in range(config.n_layer)]
        super().__init__(states, len(trees), self.width, slice(0, len(trees)))
        self.layers: Layers = []
        self.prefix_length = 0 if prefix is None else prefix[0][0].shape[2]
        self.ids = self._rows(trees, "ids", device)
        self.positions = self._rows(trees, "positions", device)
        self.is_causal = prefix is None and all(tree.is_chain for tree in trees)
        self._ends = self._rows(trees, "ends", device)

    def _rows(self, trees: Sequence[Tree], name: str, device: torch.device) -> Tensor:
        """Return a field of all trees as (B, T) int64, padded with 0."""
        rows = torch.zeros(len(trees), self.width, dtype=torch.int64)
        for row, tree in zip(rows, trees, strict=True):
            row[: len(tree.ids)] = torch.from_numpy(getattr(tree, name))
        return rows.to(device)

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return keys and values (B, K, S, D) of the prefix and of k, v (B, K, T, D), and the attention mask."""
        if self.prefix is not None:
            k, v = (
                torch.cat((before.expand(len(now), -1, -1, -1), now), dim=2)
                for before, now in zip(self.prefix[layer], (k, v), strict=True)
            )
        if self.keep:
            self.layers.append((k, v))
        window = self.config.window(layer)
        if window not in self.masks:
            self.masks[window] = self._mask(window, k.dtype)
        return k, v, self.masks[window]

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        if self.is_causal and self.config.positions != "alibi" and (window is None or window >= self.width):
            return None  # padding comes last, so plain causal attention hides it
        device = self.ids.device
        before = torch.arange(self.prefix_length, device=device).expand(len(self.ids), -1)
        keys = torch.cat((before, self.positions), dim=1)  # (B, S)
        mask = additive_mask(self.config, self.positions[:, :, None], keys[:, None], window, dtype)
        position = torch.arange(self.width, device=device)
        follows = (position[None] <= position[:, None]) & (position[:, None] < self._ends[:, None])  # (B, T, T)
        follows |= torch.eye(self.width, dtype=torch.bool, device=device)
        sees = torch.nn.functional.pad(follows, (self.prefix_length, 0), value=True)
        return mask.masked_fill(~sees.unsqueeze(1), -math.inf)


class TreeState:
    """KV state of one attention layer in a forward over trees; nothing is kept for a later forward.

    Args:
        layer: Index of the layer, from 0.
        trees: All trees of the forward.
    """

    def __init__(self, layer: int, trees: TreesPart) -> None:
        self._layer, self._trees = layer, trees

    def update(self, part: Part, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return keys, values and mask as `KVState.update` does: k (B, T, K, D) and v (B, T, K, width) are new."""
        return self._trees.store(self._layer, k.transpose(1, 2), v.transpose(1, 2))
