"""Batches of separate rows from a `RowStore`: the samples of a step, their collation into batches, and the loaders.

`pack` packs several short rows into a sample, otherwise each row is a sample; a `RowSampler` (sampler.py) chooses the
samples of an optimizer step; a collator makes a batch of samples; `RowSteps` is the dataset of optimizer steps over
which a `StepLoader` (loader.py) iterates, and `RowEvaluationLoader` visits every row once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lit_gpt.batch import Batch, StepBatch
from lit_gpt.data.batches import RowBatchBuilder
from lit_gpt.data.evaluation_loader import SAMPLE_KEY, OrderedLoader
from lit_gpt.data.loader import StepSource, check_batch_sizes
from lit_gpt.data.rows.store import RowSplit
from lit_gpt.data.sampler import RowSampler, permute

Collator = Callable[[RowSplit, Sequence[np.ndarray], np.ndarray], Batch]
"""Function from a split, the rows of each of B samples, and the (B,) sample indices to a batch. It must be picklable,
because workers may be spawned; a sample without rows becomes a row of padding."""


class SequenceCollator:
    """Collates each sample into one row of the batch: its sequence, or several packed sequences.

    Args:
        builder: Pads or packs the sequences.
    """

    def __init__(self, builder: RowBatchBuilder) -> None:
        self.builder = builder

    def __call__(self, split: RowSplit, samples: Sequence[np.ndarray], numbers: np.ndarray) -> Batch:
        """Return the batch of these samples."""
        return self.builder([[split.sequence(row) for row in rows.tolist()] for rows in samples], numbers)


def pack(lengths: np.ndarray, capacity: int, key: int = 0) -> list[np.ndarray]:
    """Pack rows into bins of T tokens with best-fit decreasing.

    The longest rows come first, each into the fullest bin with enough free space (Krell et al. 2021, "Efficient
    Sequence Packing without Cross-contamination", arXiv:2107.02027). Free space is a small integer, so the bins are
    grouped in lists by free space, and the set of existing free spaces is one Python integer of T + 1 bits, in which
    the best fit is the lowest set bit at or above the row's length. A million rows take seconds.

    Args:
        lengths: (n,) int64 number of tokens of each row, at least 1 and at most `capacity`.
        capacity: T, tokens per bin.
        key: Key for shuffling rows of equal length, so that neighbors in a file are not packed together.

    Returns:
        For each bin, the indices of its rows, (k,) int64; every row is in exactly one bin.
    """
    if len(lengths) == 0:
        return []
    assert lengths.min() >= 1
    assert lengths.max() <= capacity
    shuffled = permute(np.arange(len(lengths)), len(lengths), key)
    order = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    bins: list[list[int]] = []
    with_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = 0  # bit s is set if some bin has s free tokens
    for row, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            index = with_space[space].pop()
            if not with_space[space]:
                spaces &= ~(1 << space)
            bins[index].append(row)
        else:
            space, index = capacity, len(bins)
            bins.append([row])
        left = space - length
        if left:
            with_space[left].append(index)
            spaces |= 1 << left
    return [np.array(rows, dtype=np.int64) for rows in bins]


class RowSteps(StepSource):
    """Optimizer steps made of rows; with N samples an epoch has max(1, N // G) steps.

    Args:
        split: Rows of the split.
        samples: Row indices of each sample.
        sampler: Chooses the samples of a step.
        collate: Makes a batch of samples.
        micro_batch_size: Samples per micro-batch; divides the rank's share.
        rank: Data-parallel rank of this process.
        world_size: Number of data-parallel ranks; divides the global batch size.
        options: Other options on which the order of the samples depends, by name; part of `identity`.

    Raises:
        UserError: if the sizes do not divide.
    """

    def __init__(
        self,
        split: RowSplit,
        samples: Sequence[np.ndarray],
        sampler: RowSampler,
        collate: Collator,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        options: dict[str, Any] | None = None,
    ) -> None:
        size = sampler.global_batch_size
        check_batch_sizes(size, micro_batch_size, world_size)
        super().__init__(size, max(1, sampler.num_samples // size))
        self.split = split
        self.samples = samples
        self.sampler = sampler
        self.collate = collate
        self.micro_batch_size = micro_batch_size
        self.options = dict(options or {})
        share = size // world_size
        self.share = slice(rank * share, (rank + 1) * share)

    def __getitem__(self, step: int) -> StepBatch:
        numbers = self.sampler.step(step)[self.share]
        size = self.micro_batch_size
        chunks = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        return [self.collate(self.split, [self.samples[n] for n in chunk.tolist()], chunk) for chunk in chunks]

    def identity(self) -> dict[str, Any]:
        """Return rows, seed, global batch size and the options."""
        order = {"seed": self.sampler.seed, "global_batch_size": self.global_batch_size}
        return {"rows": self.split.fingerprint, **order, **self.options}


class RowEvaluationLoader(OrderedLoader):
    """Visits every row once, the longest first, so that batches have little padding.

    Args:
        split: Rows of the split.
        collate: Makes a batch of samples.
        args: Positional arguments of `OrderedLoader` from `batch_size` on.
        kwargs: Keyword arguments of `OrderedLoader`.
    """

    def __init__(self, split: RowSplit, collate: Collator, *args: Any, **kwargs: Any) -> None:
        super().__init__(len(split), *args, **kwargs)
        self.split = split
        self.collate = collate
        self._rows = self._longest_first(np.arange(len(split)))

    def sample_first(self, num_batches: int) -> None:
        """Make each rank's first `num_batches` batches a random sample of the rows, because no more will be read."""
        if num_batches >= len(self):
            return
        # Sort the sample and the rest by length separately: with all rows sorted, the first ones would be the longest.
        shuffled = permute(np.arange(self.num_items), self.num_items, SAMPLE_KEY)
        size = num_batches * self.batch_size * self.world_size
        self._rows = np.concatenate([self._longest_first(shuffled[:size]), self._longest_first(shuffled[size:])])

    def _longest_first(self, rows: np.ndarray) -> np.ndarray:
        return rows[np.argsort(-self.split.lengths()[rows], kind="stable")]

    def _items(self, positions: np.ndarray) -> np.ndarray:
        return self._rows[positions]

    def _batch(self, items: np.ndarray) -> Batch:
        rows = items[items < self.num_items]
        # Pad with rows without a sequence, so that all ranks have the same number of batches and rows.
        missing = self.batch_size - len(rows) if self.world_size > 1 else 0
        if not len(rows) and not missing:
            missing = 1
        samples = [np.array([row]) for row in rows.tolist()] + [np.empty(0, dtype=np.int64)] * missing
        return self.collate(self.split, samples, np.concatenate([rows, np.full(missing, -1)]))
