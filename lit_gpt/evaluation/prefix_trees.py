"""Which texts share a beginning, and how it is computed once.

The choices of a question begin alike, and so do all questions after one preamble. The texts are sorted, so that those
that begin alike stand together, and become two things:

- trees: a few texts as one sequence of tokens in which each token sees only those it follows in a text of its own.
  The choices of one question make one tree: the question, then each choice as a branch;
- stems: a beginning that many trees share. It runs alone, its keys and values are kept, and the trees go on from it.

A stem is worth a forward of its own where it saves a good part of one; see `plan_trees`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

TREE_TOKENS = 256
"""Texts of together so few tokens make one tree, however little they share: what it attends in vain is small."""
MIN_STEM = 16
"""Tokens of a stem, at least."""


class Scored(NamedTuple):
    """A text and which of its tokens are asked for.

    Attributes:
        ids: (n,) int32, what the model reads.
        targets: (m,) int32, m <= n: what follows its last m tokens.
    """

    ids: np.ndarray
    targets: np.ndarray

    @property
    def first(self) -> int:
        """The position that predicts the first target."""
        return len(self.ids) - len(self.targets)


@dataclass(frozen=True, eq=False)
class Stem:
    """A beginning that many trees share; `parent` comes before it."""

    parent: "Stem | None"
    start: int
    """Its first position: the tokens before it are its parents'."""
    ids: np.ndarray

    @property
    def end(self) -> int:
        """The first position after it."""
        return self.start + len(self.ids)


@dataclass(frozen=True, eq=False)
class Tree:
    """Several texts as one sequence, T tokens in depth-first order.

    Attributes:
        ids: (T,) int64.
        positions: (T,) int64, of each token in its text.
        ends: (T,) int64: token j is seen by tokens j to ends[j] - 1, those that follow it in a text.
        predictions: Of each text: its number, and where in the tree its predicting tokens stand (m,).
    """

    ids: np.ndarray
    positions: np.ndarray
    ends: np.ndarray
    predictions: tuple[tuple[int, np.ndarray], ...]

    @property
    def is_chain(self) -> bool:
        """Whether it is one text, or one after the other the beginnings of one."""
        return bool((self.ends == len(self.ids)).all())


def plan_trees(
    texts: Sequence[Scored], max_tokens: int, share: bool = True
) -> Iterator[tuple[Stem | None, list[Tree]]]:
    """Group texts by their beginnings.

    A stem is made where the trees after it would otherwise compute `max_tokens` / 2 tokens more.

    Args:
        texts: In any order.
        max_tokens: Tokens of one forward.
        share: False makes each text a tree of its own.

    Yields:
        A stem, or None for trees that go on from nothing, and its trees; a stem's parent has been yielded before it.
        Each text is in exactly one tree.
    """
    if not share:
        yield None, [_tree([text], [number], 0) for number, text in enumerate(texts)]
        return
    # Big-endian bytes sort as the numbers do.
    order = sorted(range(len(texts)), key=lambda number: texts[number].ids.astype(">u4").tobytes())
    chosen = [texts[number] for number in order]
    lengths = np.array([len(text.ids) for text in chosen])
    common = np.array([0, *map(_common, chosen[:-1], chosen[1:])])
    """Tokens that each text shares with the one before it."""
    new = np.concatenate(([0], np.cumsum(lengths - common)))

    def size(low: int, high: int, start: int) -> int:
        """Tokens of the tree of texts `low` to `high` beyond position `start`."""
        return int(new[high] - new[low + 1] + lengths[low] - start)

    pending: list[tuple[Stem | None, list[tuple[int, int]]]] = [(None, [(0, len(chosen))] if chosen else [])]
    while pending:
        stem, ranges = pending.pop()
        start = 0 if stem is None else stem.end
        trees = []
        while ranges:
            low, high = ranges.pop()
            tokens = size(low, high, start)
            if high - low == 1 or tokens <= max(TREE_TOKENS, 2 * (int(lengths[low:high].max()) - start)):
                trees.append(_tree(chosen[low:high], order[low:high], start))
                continue
            shared = int(common[low + 1 : high].min())
            cuts = [low, *(low + 1 + np.flatnonzero(common[low + 1 : high] == shared)).tolist(), high]
            branches = list(pairwise(cuts))
            end = min(shared, *(text.first for text in chosen[low:high]))
            if end - start >= MIN_STEM and (end - start) * (len(branches) - 1) >= max_tokens / 2:
                pending.append((Stem(stem, start, chosen[low].ids[start:end]), branches))
            else:
                ranges += branches
        yield stem, trees


def _common(one: Scored, other: Scored) -> int:
    """How many tokens two texts begin with alike."""
    count = min(len(one.ids), len(other.ids))
    different = one.ids[:count] != other.ids[:count]
    return int(different.argmax()) if different.any() else count


def _tree(texts: Sequence[Scored], numbers: Sequence[int], start: int) -> Tree:
    """Sorted texts as one tree, without their tokens before `start`."""
    ids: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    path = np.zeros(0, dtype=np.int64)
    """Where in the tree the tokens of the text before stand."""
    predictions = []
    before: Scored | None = None
    for text, number in zip(texts, numbers, strict=True):
        kept = 0 if before is None else max(_common(before, text) - start, 0)
        for place in path[kept:]:
            ends[place] = len(ids)
        added = text.ids[start + kept :]
        path = np.concatenate((path[:kept], np.arange(len(ids), len(ids) + len(added))))
        ids += added.tolist()
        positions += range(start + kept, len(text.ids))
        ends += [-1] * len(added)
        predictions.append((number, path[text.first - start :]))
        before = text
    for place in path:
        ends[place] = len(ids)
    return Tree(np.array(ids), np.array(positions), np.array(ends), tuple(predictions))
