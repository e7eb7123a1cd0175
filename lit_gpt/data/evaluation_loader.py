"""Loaders that visit a split once, in a fixed order: windows for a loss over all of it, or document by document.

Every rank yields the same number of batches, the last ones empty (all labels -100) where they do not come out even:
ranks that stopped early would leave the others waiting in a collective operation.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lit_gpt.batch import Batch
from lit_gpt.data.batches import BatchBuilder
from lit_gpt.data.shards import TokenSplit
from lit_gpt.errors import UserError


class OrderedLoader(Dataset[Batch], ABC):
    """Batch j of the split goes to rank j mod W.

    Args:
        split: Token stream.
        builder: Makes batches.
        block_size: T, tokens of a window at most.
        batch_size: Windows of a batch.
        rank: This process's place among those that see different data.
        world_size: W, their number.
        num_workers: Processes that read ahead; 0 reads in this one.
        pin_memory: Put batches where a GPU fetches them faster.
    """

    def __init__(
        self,
        split: TokenSplit,
        builder: BatchBuilder,
        block_size: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        if split.num_tokens < 2:
            raise UserError(
                f"no document fell into the {split.name} split; raise {split.name}_fraction, add documents (a file is "
                "one, unless document_separator cuts it), or set the fraction to 0 to go without"
            )
        self.split = split
        self.builder = builder
        self.block_size = block_size
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.num_windows = self._count_windows()

    def __len__(self) -> int:
        """Batches of each rank."""
        return -(-self.num_windows // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Batch]:
        indices = range(len(self))
        if self.num_workers == 0 and not self.pin_memory:
            yield from map(self.__getitem__, indices)
            return
        yield from DataLoader(
            cast(Dataset[Batch], self),
            batch_size=None,
            sampler=indices,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # leaves the global one, which dropout uses, alone
        )

    def __getitem__(self, index: int) -> Batch:
        first = (index * self.world_size + self.rank) * self.batch_size
        return self._batch(np.arange(first, first + self.batch_size, dtype=np.int64))

    @abstractmethod
    def _count_windows(self) -> int:
        """Returns the number of windows in the split."""

    @abstractmethod
    def _batch(self, windows: np.ndarray) -> Batch:
        """Returns the batch of these windows; numbers past the last one are empty rows."""


class EvaluationLoader(OrderedLoader):
    """Windows side by side from the start of the split: every token but the first is a target exactly once.

    The bytes of all batches (`num_bytes`) hence add up to those of the split's documents. `sample_ids` is the number of
    the window.
    """

    def _count_windows(self) -> int:
        return -(-(self.split.num_tokens - 1) // self.block_size)

    def _batch(self, windows: np.ndarray) -> Batch:
        targets = np.clip(self.split.num_tokens - 1 - windows * self.block_size, 0, self.block_size)
        rows = np.zeros((len(windows), self.block_size + 1), dtype=np.int64)
        for row, window, count in zip(rows, windows.tolist(), targets.tolist(), strict=True):
            if count:
                row[: count + 1] = self.split.read(window * self.block_size, count + 1)
        return self.builder(rows, windows, targets)


class DocumentBatch(Batch, total=False):
    """A batch whose rows are windows of single documents."""

    document_index: torch.Tensor
    """(B,) int64: index of the row's document in its split, -1 for an empty row."""
    sources: list[str]
    """B names of sources, with the line or row after a colon where the source has several; "" for an empty row."""


class DocumentLoader(OrderedLoader):
    """Documents one by one, each in as many windows as it needs; no row holds two.

    The targets of a document are its tokens and the separator that closes it. Rows are as long as the longest in the
    batch. `sample_ids` is the number of the window.
    """

    def _count_windows(self) -> int:
        targets = self.split.document_lengths() + 1
        self._ends = np.cumsum(-(-targets // self.block_size))
        return int(self._ends[-1])

    def _batch(self, windows: np.ndarray) -> Batch:
        documents = np.searchsorted(self._ends, windows, side="right")
        rows: list[np.ndarray] = []
        sources: list[str] = []
        for window, index in zip(windows.tolist(), documents.tolist(), strict=True):
            if index == len(self._ends):
                rows.append(np.empty(0, dtype=np.int64))
                sources.append("")
                continue
            span = self.split.document(index)
            place = window - (int(self._ends[index - 1]) if index else 0)
            begin = place * self.block_size
            count = min(self.block_size, span.num_tokens + 1 - begin)
            row = self.split.read(span.start + begin, min(count + 1, span.num_tokens + 1 - begin))
            closed = np.append(row.astype(np.int64), self.builder.separator_id)
            rows.append(closed[: count + 1])
            sources.append(f"{span.source}:{span.record}" if span.record else span.source)
        lengths = np.array([max(len(row) - 1, 0) for row in rows])
        table = np.zeros((len(rows), max(int(lengths.max()), 1) + 1), dtype=np.int64)
        for target, row in zip(table, rows, strict=True):
            target[: len(row)] = row
        batch = cast(DocumentBatch, self.builder(table, windows, lengths))
        batch["document_index"] = torch.from_numpy(np.where(documents < len(self._ends), documents, -1))
        batch["sources"] = sources
        return batch
