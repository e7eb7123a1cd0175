"""Windows of tokens → a `Batch`, in numpy and without a loop over tokens.

Shapes: B windows, T tokens of a window; a window is read with one token more, the last target.
"""

from collections.abc import Sequence

import numpy as np
import torch

from lit_gpt.batch import IGNORE_INDEX, Batch


class BatchBuilder:
    """Makes batches from rows of T + 1 tokens.

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
        """Returns the batch of these rows.

        Args:
            rows: (B, T + 1) int64 tokens.
            sample_ids: (B,) int64.
            lengths: (B,) targets that count in each row, at most T; the rest is padding. None: all T.

        Returns:
            All keys of `Batch`; without isolation no `document_ids`: causality alone keeps a row from its padding.
        """
        # Copies, also where one row is contiguous already: they overlap, and padding is written into both.
        inputs = rows[:, :-1].copy()
        labels = rows[:, 1:].copy()
        time = np.arange(inputs.shape[1])
        if self.isolate_documents:
            opens = inputs == self.separator_id
            opens[:, 0] = True  # whatever stands first in the row opens document 0
            document_ids = np.cumsum(opens, axis=1) - 1
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
