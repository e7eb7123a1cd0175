"""Steps and evaluation batches from a store."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lit_gpt.batch import Batch, StepBatch
from lit_gpt.data.loader import StepLoader, check_batch_sizes
from lit_gpt.data.rows.batches import RowBatchBuilder
from lit_gpt.data.rows.order import SampleOrder
from lit_gpt.data.rows.store import RowSplit

BuildBatch = Callable[[RowSplit, Sequence[np.ndarray], np.ndarray], Batch]
"""(split, for each sample the rows in it, (B,) numbers of the samples) → a batch."""


def sequences_batch(builder: RowBatchBuilder) -> BuildBatch:
    """Returns how a batch is made where each row of a batch is one sequence or several packed ones."""

    def build(split: RowSplit, samples: Sequence[np.ndarray], numbers: np.ndarray) -> Batch:
        return builder([[split.sequence(row) for row in rows.tolist()] for rows in samples], numbers)

    return build


class RowSteps(Dataset[StepBatch]):
    """Item s is this rank's share of optimizer step s.

    Args:
        split: The rows.
        samples: For each sample the rows in it.
        order: Says which samples a step has.
        build: Makes a batch.
        micro_batch_size: Samples of a micro-batch.
        rank: Which share.
        world_size: Number of shares.
    """

    def __init__(
        self,
        split: RowSplit,
        samples: Sequence[np.ndarray],
        order: SampleOrder,
        build: BuildBatch,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.split = split
        self.samples = samples
        self.order = order
        self.build = build
        self.micro_batch_size = micro_batch_size
        share = order.global_batch_size // world_size
        self.share = slice(rank * share, (rank + 1) * share)

    def __getitem__(self, step: int) -> StepBatch:
        numbers = self.order.step(step)[self.share]
        size = self.micro_batch_size
        chunks = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        return [self.build(self.split, [self.samples[n] for n in chunk.tolist()], chunk) for chunk in chunks]


def row_step_loader(
    steps: RowSteps,
    identity: dict[str, Any],
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> StepLoader:
    """Returns the resumable loader; an epoch is max(1, N // G) steps of N samples.

    Args:
        steps: The steps of this rank.
        identity: What the order depends on beside the split, by the name that a user gives it.
        world_size: Number of ranks.
        num_workers: Processes that read ahead.
        pin_memory: Put batches where a GPU fetches them faster.

    Raises:
        UserError: if the sizes do not divide.
    """
    size = steps.order.global_batch_size
    check_batch_sizes(size, steps.micro_batch_size, world_size)
    identity = {"rows": steps.split.fingerprint, "seed": steps.order.seed, "global_batch_size": size, **identity}
    return StepLoader(
        steps, max(1, steps.order.num_samples // size), size, identity, num_workers=num_workers, pin_memory=pin_memory
    )


class RowEvaluationLoader(Dataset[Batch]):
    """Every sample once, the longest first; batch j goes to rank j mod W, and all ranks have as many.

    Args:
        split: The rows.
        build: Makes a batch; one of no rows at all must be all padding.
        batch_size: Rows of a batch.
        rank: This process's place among those that see different data.
        world_size: W, their number.
        pin_memory: Put batches where a GPU fetches them faster.
    """

    def __init__(
        self,
        split: RowSplit,
        build: BuildBatch,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self.split = split
        self.build = build
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.pin_memory = pin_memory
        self._rows = np.argsort(-split.lengths(), kind="stable")

    def __len__(self) -> int:
        """Batches of each rank."""
        return -(-len(self._rows) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Batch]:
        indices = range(len(self))
        if not self.pin_memory:
            yield from map(self.__getitem__, indices)
            return
        loader: Any = DataLoader(self, batch_size=None, sampler=indices, pin_memory=True, generator=torch.Generator())
        yield from loader

    def __getitem__(self, index: int) -> Batch:
        first = (index * self.world_size + self.rank) * self.batch_size
        rows = self._rows[first : first + self.batch_size]
        # Past the end: rows without a sequence, so that all ranks have as many batches of the same number of rows.
        missing = self.batch_size - len(rows) if self.world_size > 1 else 0
        if not len(rows) and not missing:
            missing = 1
        samples = [np.array([row]) for row in rows.tolist()] + [np.empty(0, dtype=np.int64)] * missing
        return self.build(self.split, samples, np.concatenate([rows, np.full(missing, -1)]))
