"""Single answers that were judged good or bad, for KTO."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lit_gpt.batch import Batch
from lit_gpt.data.instructions import InstructionEncoder
from lit_gpt.data.rows import EncodedRow, Row, RowSplit
from lit_gpt.data.rows.loader import BuildBatch
from lit_gpt.datamodules.rows import RowDataModule
from lit_gpt.errors import UserError

_GOOD, _BAD = (True, 1, "true", "1", "good", "desirable"), (False, 0, "false", "0", "bad", "undesirable")


class FeedbackEncoder(InstructionEncoder):
    """An instruction and its answer, with whether the answer is a good one."""

    def __call__(self, row: Row) -> EncodedRow | str:
        """Encodes a row.

        Raises:
            UserError: if it has no usable form, or no label.
        """
        values = dict(row.values)
        label = values.pop(self.columns.get("label", "label"), None)
        label = label.strip().lower() if isinstance(label, str) else label
        if label not in (*_GOOD, *_BAD):
            raise UserError(f"its label is {label!r}; it must be true or false (set columns: {{label: ...}})")
        others = {ours: theirs for ours, theirs in self.columns.items() if ours != "label"}
        plain = InstructionEncoder(self.renderer, self.block_size, self.long_rows, others, self.system_prompt)
        encoded = plain(Row(values, row.source, row.record))
        if isinstance(encoded, str):
            return encoded
        return EncodedRow(encoded.sequences, encoded.split_key, {"desirable": float(label in _GOOD)}, encoded.notes)


class FeedbackDataModule(RowDataModule):
    """Answers with a label each: the fields of an instruction (`prompt`, `completion`, ...) and `label`, true or false.

    A batch has `desirable` (B,) bool, and under `mismatched` a batch of the same prompts with the answers of the next
    rows of the split: what KTO's reference point is measured on. Which those are depends on the row alone.

    Args:
        kwargs: Arguments of `RowDataModule`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def encoder(self) -> FeedbackEncoder:
        """Returns what renders an answer."""
        return FeedbackEncoder(self.renderer, self.block_size, self.long_rows, self.columns, self.system_prompt)

    def build_batch(self, length: int | None = None) -> BuildBatch:
        """Returns how answers become a batch."""
        builder = self.batch_builder(length)

        def build(split: RowSplit, samples: Sequence[np.ndarray], numbers: np.ndarray) -> Batch:
            batch: Any = builder([[split.sequence(row) for row in rows.tolist()] for rows in samples], numbers)
            labels = split.number("desirable")
            batch["desirable"] = torch.tensor([bool(labels[rows[0]]) if len(rows) else False for rows in samples])
            others = [[self._mismatched(split, row) for row in rows.tolist()] for rows in samples]
            batch["mismatched"] = builder(others, numbers)
            return batch

        return build

    def _mismatched(self, split: RowSplit, row: int) -> tuple[np.ndarray, np.ndarray]:
        """The row's prompt and the next row's answer, cut off at the context's end."""
        ids, mask = split.sequence(row)
        others, other_mask = split.sequence((row + 1) % len(split))
        first, other_first = int(mask.argmax()), int(other_mask.argmax())
        joined = np.concatenate([ids[:first], others[other_first:]])[: self.block_size + 1]
        joined_mask = np.concatenate([np.zeros(first, np.bool_), other_mask[other_first:]])[: self.block_size + 1]
        return joined, joined_mask
