"""Batches of separate rows from a `RowStore`: which rows a step has, how they become a batch, and the loaders.

In stages: `pack` puts short rows side by side, or each row is a sample of its own; a `RowSampler` (sampler.py) says
which samples are in optimizer step s; a collator makes a batch of some samples; `RowSteps` is the data set of optimizer
steps that a `StepLoader` (loader.py) goes through, and `RowEvaluationLoader` visits every row once.
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
"""(split, for each of B samples the rows in it, (B,) numbers of the samples) → a batch. An object that can be pickled,
because workers may be spawned; a sample without rows becomes a row of padding."""


class SequenceCollator:
    """Makes each sample one row of the batch: its sequence, or several packed side by side.

    Args:
        builder: Pads or packs sequences.
    """

    def __init__(self, builder: RowBatchBuilder) -> None:
        self.builder = builder

    def __call__(self, split: RowSplit, samples: Sequence[np.ndarray], numbers: np.ndarray) -> Batch:
        """Return the batch of these samples."""
        return self.builder([[split.sequence(row) for row in rows.tolist()] for rows in samples], numbers)


def pack(lengths: np.ndarray, capacity: int, key: int = 0) -> list[np.ndarray]:
    """Put rows into bins of T tokens: best-fit decreasing.

    The longest come first, each into the fullest bin that still has space for it (Krell et al. 2021, "Efficient
    Sequence Packing without Cross-contamination", arXiv:2107.02027). Free space is a small integer, so the bins with a
    given free space are one list, and which free spaces exist is one Python integer of T + 1 bits: the best fit is its
    lowest set bit from the wanted size on. A million rows take seconds.

    Args:
        lengths: (n,) int64 tokens of each row, at least 1 and at most `capacity`.
        capacity: T, tokens of a bin.
        key: Shuffles rows of equal length, so that neighbours in a file are not packed together.

    Returns:
        For each bin the rows in it, (k,) int64; every row is in exactly one.
    """
    if len(lengths) == 0:
        return []
    assert lengths.min() >= 1
    assert lengths.max() <= capacity
    shuffled = permute(np.arange(len(lengths)), len(lengths), key)
    order = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    bins: list[list[int]] = []
    with_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = 0  # bit s: some bin has s tokens free
    for row, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            place = with_space[space].pop()
            if not with_space[space]:
                spaces &= ~(1 << space)
            bins[place].append(row)
        else:
            space, place = capacity, len(bins)
            bins.append([row])
        left = space - length
        if left:
            with_space[left].append(place)
            spaces |= 1 << left
    return [np.array(rows, dtype=np.int64) for rows in bins]


class RowSteps(StepSource):
    """Optimizer steps made of rows; an epoch has max(1, N // G) of them for N samples.

    Args:
        split: The rows.
        samples: For each sample the rows in it.
        sampler: Says which samples a step has.
        collate: Makes a batch.
        micro_batch_size: Samples of a micro-batch; divides the rank's share.
        rank: This process's place among those that see different data.
        world_size: Number of these processes; divides the global batch size.
        options: What the order depends on besides rows, seed and global batch size, by the name of the option.

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
    """Every row once, the longest first, so that a batch has little padding.

    Args:
        split: The rows.
        collate: Makes a batch.
        args: Arguments of `OrderedLoader` from `batch_size` on.
        kwargs: The same by name.
    """

    def __init__(self, split: RowSplit, collate: Collator, *args: Any, **kwargs: Any) -> None:
        super().__init__(len(split), *args, **kwargs)
        self.split = split
        self.collate = collate
        self._rows = self._longest_first(np.arange(len(split)))

    def sample_first(self, num_batches: int) -> None:
        """Let each rank's first `num_batches` batches be a random sample of the rows, because no more will be read."""
        if num_batches >= len(self):
            return
        # The sample and the rest are sorted by length separately: all rows sorted, the first would be the longest.
        shuffled = permute(np.arange(self.num_items), self.num_items, SAMPLE_KEY)
        size = num_batches * self.batch_size * self.world_size
        self._rows = np.concatenate([self._longest_first(shuffled[:size]), self._longest_first(shuffled[size:])])

    def _longest_first(self, rows: np.ndarray) -> np.ndarray:
        return rows[np.argsort(-self.split.lengths()[rows], kind="stable")]

    def _items(self, places: np.ndarray) -> np.ndarray:
        return self._rows[places]

    def _batch(self, items: np.ndarray) -> Batch:
        rows = items[items < self.num_items]
        # Past the end: rows without a sequence, so that all ranks have as many batches of the same number of rows.
        missing = self.batch_size - len(rows) if self.world_size > 1 else 0
        if not len(rows) and not missing:
            missing = 1
        samples = [np.array([row]) for row in rows.tolist()] + [np.empty(0, dtype=np.int64)] * missing
        return self.collate(self.split, samples, np.concatenate([rows, np.full(missing, -1)]))
