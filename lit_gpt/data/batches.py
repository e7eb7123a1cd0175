"""Token rows → a `Batch`, in numpy: windows of a token stream, and sequences of which only some tokens are learned.

Shapes: B rows, T positions. A row is read with one token more than it has positions: `labels[t]` is the token after
`input_ids[t]`. What a batch holds is described in `lit_gpt/batch.py`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lit_gpt.batch import IGNORE_INDEX, Batch

PAD_MULTIPLE = 8
"""Padded rows are as long as the longest, rounded up to this: few different shapes, and whole tiles on a GPU."""


class BatchBuilder:
    """Makes batches from windows of T + 1 tokens, without a loop over tokens.

    Args:
        separator_id: Token that opens each document.
        byte_lengths: (vocabulary,) int64 bytes of text of each token.
        isolate_documents: Give each document in a row its own id and positions from 0. The first one may be the rest
            of a document that the window cuts: its positions begin at 0 with the window. If False, a row is one
            document.
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
            sample_ids: (B,) int64.
            lengths: (B,) targets that count in each row, at most T; the rest is padding. None: all T.

        Returns:
            All keys of `Batch`; without isolation no `document_ids`: causality alone keeps a row from its padding.
        """
        # Copies, also where one row is contiguous already: inputs and labels overlap, and padding is written into both.
        inputs = rows[:, :-1].copy()
        labels = rows[:, 1:].copy()
        time = np.arange(inputs.shape[1])
        if self.isolate_documents:
            opens = inputs == self.separator_id
            opens[:, 0] = True  # whatever stands first in the row opens document 0
            document_ids = np.cumsum(opens, axis=1) - 1
            # The running maximum of (t where a document opens, else 0) is where the current document began.
            position_ids = time - np.maximum.accumulate(np.where(opens, time, 0), axis=1)
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
    """A batch of which few positions are supervised."""

    target_index: Tensor
    """(n,) int64: the supervised positions of the flattened (B · T) batch, so that the head runs on them alone."""


class RowBatchBuilder:
    """Makes batches from sequences: packed with document isolation, or padded on the right.

    A sequence of n tokens takes n - 1 positions; a label is -100 where the next token is not a target.

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
        """Return the batch of these rows.

        Args:
            rows: For each row the sequences in it, (ids, mask) each; a row without a sequence is all padding.
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
        # Index 0 stands in for the labels that do not count: -100 is no index.
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
