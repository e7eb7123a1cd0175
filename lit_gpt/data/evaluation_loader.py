"""Evaluation loaders, which visit a split once: by windows, by document, or alternating between several corpora.

Every rank yields the same number of batches, if necessary with empty ones at the end (all labels -100): a rank that
stopped early would leave the others waiting in a collective operation.

A Trainer may stop after the first batches (`limit_val_batches`). The first windows of a split come from its first files
and are not representative; so a loader that knows the limit (`sample_first`) starts with a random sample, which is the
same every time.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lit_gpt.batch import Batch
from lit_gpt.data.batches import BatchBuilder
from lit_gpt.data.sampler import hash_integers, permute
from lit_gpt.data.shards import TokenSplit
from lit_gpt.errors import UserError

SAMPLE_KEY = hash_integers(0, 4)  # fixed, because evaluations are compared across steps and runs with different seeds


class OrderedLoader(Dataset[Batch], ABC):
    """Base class of evaluation loaders: batch j of a split's items (windows, rows, prompts) goes to rank j mod W.

    Args:
        num_items: Number of items in the split.
        batch_size: B, items per batch.
        rank: Data-parallel rank of this process.
        world_size: W, number of data-parallel ranks.
        num_workers: Worker processes that prefetch batches; 0 reads in the main process.
        pin_memory: Whether to put batches into pinned memory.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.num_items = num_items
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self._shuffled = False

    def __len__(self) -> int:
        """Return the number of batches per rank."""
        return -(-self.num_items // (self.batch_size * self.world_size))

    def sample_first(self, num_batches: int) -> None:
        """Make each rank's first `num_batches` batches a random sample of the split, because no more will be read."""
        self._shuffled = num_batches < len(self)

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
            generator=torch.Generator(),  # does not touch the global generator, which dropout uses
        )

    def __getitem__(self, index: int) -> Batch:
        first = (index * self.world_size + self.rank) * self.batch_size
        items = np.arange(first, first + self.batch_size, dtype=np.int64)
        exists = items < self.num_items
        items[exists] = self._items(items[exists])
        return self._batch(items)

    def _items(self, positions: np.ndarray) -> np.ndarray:
        """Return the item at each position of the visiting order: (n,) int64 → (n,) int64."""
        # Every prefix of a random permutation is a random sample.
        return permute(positions, self.num_items, SAMPLE_KEY) if self._shuffled else positions

    @abstractmethod
    def _batch(self, items: np.ndarray) -> Batch:
        """Return the batch of these items: (B,) int64; indices from `num_items` on stand for empty rows."""


class TokenLoader(OrderedLoader):
    """Base class of loaders of windows of a token split.

    Args:
        split: Token split.
        builder: Batch builder.
        block_size: T, maximum window length in tokens.
        batch_size: Windows per batch.
        kwargs: Arguments of `OrderedLoader`.

    Raises:
        UserError: if the split is empty.
    """

    def __init__(
        self, split: TokenSplit, builder: BatchBuilder, block_size: int, batch_size: int, *args: Any, **kwargs: Any
    ) -> None:
        if split.num_tokens < 2:
            raise UserError(
                f"no document fell into the {split.name} split; set {split.name}_files, add documents (a file is one "
                f"document unless document_separator is set), raise {split.name}_fraction (for a prepared corpus, in "
                "the recipe of `prepare`), or set it to 0 to train without this split"
            )
        self.split = split
        self.builder = builder
        self.block_size = block_size
        super().__init__(self._count_windows(), batch_size, *args, **kwargs)

    @abstractmethod
    def _count_windows(self) -> int:
        """Return the number of windows in the split."""


class EvaluationLoader(TokenLoader):
    """Consecutive windows from the start of the split: every token but the first is a target exactly once.

    Therefore the bytes of all batches (`num_bytes`) add up to those of the split's documents. `sample_ids` are window
    indices.
    """

    def _count_windows(self) -> int:
        return -(-(self.split.num_tokens - 1) // self.block_size)

    def _batch(self, items: np.ndarray) -> Batch:
        targets = np.clip(self.split.num_tokens - 1 - items * self.block_size, 0, self.block_size)
        rows = np.zeros((len(items), self.block_size + 1), dtype=np.int64)
        for row, window, count in zip(rows, items.tolist(), targets.tolist(), strict=True):
            if count:
                row[: count + 1] = self.split.read(window * self.block_size, count + 1)
        return self.builder(rows, items, targets)


class DocumentBatch(Batch, total=False):
    """A batch whose rows are windows of single documents."""

    document_index: torch.Tensor
    """(B,) int64: index of the row's document in its split, -1 for an empty row."""
    sources: list[str]
    """B source names, followed by a colon and the line or row if the source has several; "" for an empty row."""


class DocumentLoader(TokenLoader):
    """Documents one by one, each in as many windows as it needs; a row never contains two documents.

    The targets of a document are its tokens and the separator after it. Rows are padded to the longest in the batch.
    `sample_ids` are window indices.
    """

    def _count_windows(self) -> int:
        targets = self.split.document_lengths() + 1
        self._ends = np.cumsum(-(-targets // self.block_size))  # (documents,) cumulative number of windows
        return int(self._ends[-1])

    def _batch(self, items: np.ndarray) -> Batch:
        documents = np.searchsorted(self._ends, items, side="right")
        rows: list[np.ndarray] = []
        sources: list[str] = []
        for window, index in zip(items.tolist(), documents.tolist(), strict=True):
            if index == len(self._ends):
                rows.append(np.empty(0, dtype=np.int64))
                sources.append("")
                continue
            span = self.split.document(index)
            index_in_document = window - (int(self._ends[index - 1]) if index else 0)
            begin = index_in_document * self.block_size
            count = min(self.block_size, span.num_tokens + 1 - begin)
            row = self.split.read(span.start + begin, min(count + 1, span.num_tokens + 1 - begin))
            # The separator after the document is the first token of the next one, or is missing at the end of the
            # stream.
            closed = np.append(row.astype(np.int64), self.builder.separator_id)
            rows.append(closed[: count + 1])
            sources.append(f"{span.source}:{span.record}" if span.record else span.source)
        lengths = np.array([max(len(row) - 1, 0) for row in rows])
        table = np.zeros((len(rows), max(int(lengths.max()), 1) + 1), dtype=np.int64)
        for target, row in zip(table, rows, strict=True):
            target[: len(row)] = row
        batch = cast(DocumentBatch, self.builder(table, items, lengths))
        batch["document_index"] = torch.from_numpy(np.where(documents < len(self._ends), documents, -1))
        batch["sources"] = sources
        return batch


class AlternatingLoader:
    """Alternates between the evaluation loaders of several corpora; each batch is from one corpus, named in `corpus`.

    It alternates so that a loop that stops early (`limit_val_batches`) has visited every corpus.

    Args:
        loaders: Loader of each corpus, by corpus name.
    """

    def __init__(self, loaders: dict[str, TokenLoader]) -> None:
        self.loaders = loaders

    def __len__(self) -> int:
        return sum(map(len, self.loaders.values()))

    def sample_first(self, num_batches: int) -> None:
        """Start with a random sample of every corpus, unless `num_batches` are all the batches."""
        if num_batches < len(self):
            for loader in self.loaders.values():
                loader.sample_first(0)  # how many of its batches are read depends on the other corpora

    def __iter__(self) -> Iterator[Batch]:
        rest = [(name, iter(loader)) for name, loader in self.loaders.items()]
        sizes = [loader.split.num_documents for loader in self.loaders.values()]
        first_document = dict(zip(self.loaders, accumulate(sizes, initial=0), strict=False))
        while rest:
            for name, batches in list(rest):
                batch = next(batches, None)
                if batch is None:
                    rest = [pair for pair in rest if pair[0] != name]
                    continue
                batch["corpus"] = name
                fields: dict[str, Any] = batch  # type: ignore[assignment]
                if "document_index" in fields:  # cumulative over all corpora
                    index = fields["document_index"]
                    fields["document_index"] = torch.where(index >= 0, index + first_document[name], index)
                    fields["sources"] = [f"{name}/{source}" if source else "" for source in fields["sources"]]
                yield batch
