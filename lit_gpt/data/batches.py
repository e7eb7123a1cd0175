"""Build batches from numpy token rows: windows of a token stream, or sequences with a loss mask.

Shapes: B rows, T positions. A row is read with T + 1 tokens: `labels[t]` is the token after `input_ids[t]`. The fields
of a batch are described in `lit_gpt/batch.py`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lit_gpt.batch import IGNORE_INDEX, Batch

PAD_MULTIPLE = 8
"""Padded rows are as long as the longest, rounded up to this, for few different shapes and full GPU tiles."""


class BatchBuilder:
    """Builds pretraining batches from contiguous windows of T + 1 tokens, vectorized over tokens.

    Args:
        separator_id: Token at the start of each document.
        byte_lengths: (vocabulary,) int64 number of text bytes of each token.
        isolate_documents: Whether each document in a row gets its own id and positions from 0. The first one may be the
            remainder of a document that the window cuts: its positions start at 0 with the window. If False, a row is
            treated as one document.
    """

    def __init__(self, separator_id: int, byte_lengths: np.ndarray, isolate_documents: bool) -> None:
        self.separator_id = separator_id
        self.byte_lengths = byte_lengths
        self.isolate_documents = isolate_documents

    def __call__(
        self, rows: np.ndarray, sample_ids: np.ndarray, lengths: Sequence[int] | np.ndarray | None = None
    ) -> Batch:
        """Return the batch of these rows.

        Args:
            rows: (B, T + 1) int64 tokens.
            sample_ids: (B,) int64 sample indices.
            lengths: (B,) number of valid targets in each row, at most T; the rest is padding. None: all T.

        Returns:
            All keys of `Batch`. Without isolation there are no `document_ids`: the causal mask already keeps real
            tokens from attending to right padding.
        """
        # Copy even if a row is contiguous already: inputs and labels overlap, and padding is written into both.
        inputs = rows[:, :-1].copy()
        labels = rows[:, 1:].copy()
        time = np.arange(inputs.shape[1])
        if self.isolate_documents:
            starts = inputs == self.separator_id
            starts[:, 0] = True  # the first token of each row always starts document 0
            document_ids = np.cumsum(starts, axis=1) - 1
            # The running maximum of (t where a document starts, else 0) is the start of the current document.
            position_ids = time - np.maximum.accumulate(np.where(starts, time, 0), axis=1)
        else:
            document_ids = None
            position_ids = np.broadcast_to(time, inputs.shape).copy()
        target_bytes = self.byte_lengths[labels]
        if lengths is not None:
            padding = time >= np.asarray(lengths)[:, None]
            inputs[padding] = self.separator_id
            labels[padding] = IGNORE_INDEX
            if document_ids is not None:
                document_ids[padding] = -1
            position_ids[padding] = 0
            target_bytes[padding] = 0
        batch = Batch(
            input_ids=torch.from_numpy(inputs),
            labels=torch.from_numpy(labels),
            position_ids=torch.from_numpy(position_ids),
            sample_ids=torch.from_numpy(sample_ids),
            num_bytes=torch.from_numpy(target_bytes.sum(axis=1)),
        )
        if document_ids is not None:
            batch["document_ids"] = torch.from_numpy(document_ids)
        return batch


class TargetBatch(Batch, total=False):
    """A batch in which few positions are supervised."""

    target_index: Tensor
    """(n,) int64: the supervised positions of the flattened (B · T) batch, so that the head runs only on them."""


class RowBatchBuilder:
    """Builds fine-tuning batches from whole sequences, packed with document isolation or padded on the right.

    A sequence of n tokens occupies n - 1 positions; labels are -100 where the next token is masked out of the loss.

    Args:
        separator_id: Padding token; it contributes nothing to the loss and no document attends to it.
        byte_lengths: (vocabulary,) int64 number of text bytes of each token.
        length: T; None: the length of the longest row.
    """

    def __init__(self, separator_id: int, byte_lengths: np.ndarray, length: int | None = None) -> None:
        self.separator_id = separator_id
        self.byte_lengths = byte_lengths
        self.length = length

    def __call__(self, rows: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], sample_ids: np.ndarray) -> TargetBatch:
        """Return the batch of these rows.

        Args:
            rows: For each row, its sequences as (ids, mask) pairs; a row without sequences is all padding.
            sample_ids: (B,) int64 sample indices.

        Returns:
            `document_ids` only if a row holds more than one sequence: otherwise the causal mask already prevents real
            tokens from attending to right padding, and attention without a mask is faster.
        """
        longest = max((sum(len(ids) - 1 for ids, _ in row) for row in rows), default=0)
        length = max(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, PAD_MULTIPLE) if self.length is None else self.length
        shape = (len(rows), length)
        inputs = np.full(shape, self.separator_id, dtype=np.int64)
        labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        documents = np.full(shape, -1, dtype=np.int64)
        for row_index, row in enumerate(rows):
            start = 0
            for index, (ids, mask) in enumerate(row):
                span = slice(start, start + len(ids) - 1)
                inputs[row_index, span] = ids[:-1]
                labels[row_index, span] = np.where(mask[1:], ids[1:], IGNORE_INDEX)
                positions[row_index, span] = np.arange(len(ids) - 1)
                documents[row_index, span] = index
                start = span.stop
        targets = labels != IGNORE_INDEX
        # Ignored labels (-100) are not valid indices, so look up index 0 for them; the result is masked out anyway.
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
