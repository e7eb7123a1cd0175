"""Sequences → a `Batch`: packed with document isolation, or padded on the right.

B rows, T positions. A sequence of n tokens takes n - 1 positions: `labels[t]` is the token after `input_ids[t]` where
that one is a target, else -100.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lit_gpt.batch import IGNORE_INDEX, Batch

PAD_MULTIPLE = 8
"""Padded rows are as long as the longest, rounded up to this: few different shapes, and whole tiles on a GPU."""


class TargetBatch(Batch, total=False):
    """A batch of which few positions are supervised."""

    target_index: Tensor
    """(n,) int64: the supervised positions of the flattened (B · T) batch, so that the head runs on them alone."""


class RowBatchBuilder:
    """Makes batches.

    Args:
        separator_id: Token that fills padding; nothing is learned from it and no document sees it.
        byte_lengths: (vocabulary,) int64 bytes of text of each token.
        length: T; None: as long as the longest row.
    """

    def __init__(self, separator_id: int, byte_lengths: np.ndarray, length: int | None = None) -> None:
        self.separator_id = separator_id
        self.byte_lengths = byte_lengths
        self.length = length

    def __call__(self, rows: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], sample_ids: np.ndarray) -> TargetBatch:
        """Returns the batch of these rows.

        Args:
            rows: For each row the sequences in it, (ids, mask) each; no sequence is a row of padding.
            sample_ids: (B,) int64.

        Returns:
            `document_ids` only where a row holds more than one sequence: causality alone keeps the others from their
            padding, and attention without a mask is faster.
        """
        longest = max((sum(len(ids) - 1 for ids, _ in row) for row in rows), default=0)
        length = max(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, PAD_MULTIPLE) if self.length is None else self.length
        shape = (len(rows), length)
        inputs = np.full(shape, self.separator_id, dtype=np.int64)
        labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        documents = np.full(shape, -1, dtype=np.int64)
        for place, row in enumerate(rows):
            start = 0
            for number, (ids, mask) in enumerate(row):
                span = slice(start, start + len(ids) - 1)
                inputs[place, span] = ids[:-1]
                labels[place, span] = np.where(mask[1:], ids[1:], IGNORE_INDEX)
                positions[place, span] = np.arange(len(ids) - 1)
                documents[place, span] = number
                start = span.stop
        targets = labels != IGNORE_INDEX
        num_bytes = np.where(targets, self.byte_lengths[np.where(targets, labels, 0)], 0).sum(axis=1)
        batch = TargetBatch(
            input_ids=torch.from_numpy(inputs),
            labels=torch.from_numpy(labels),
            position_ids=torch.from_numpy(positions),
            sample_ids=torch.from_numpy(np.asarray(sample_ids, dtype=np.int64)),
            num_bytes=torch.from_numpy(num_bytes),
            target_index=torch.from_numpy(np.flatnonzero(targets)),
        )
        if any(len(row) > 1 for row in rows):
            batch["document_ids"] = torch.from_numpy(documents)
        return batch
