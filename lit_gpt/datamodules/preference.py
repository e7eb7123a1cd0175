"""Judged answers: pairs of a better and a worse one (DPO, reward models), and single good or bad ones (KTO)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lit_gpt.batch import Batch
from lit_gpt.data.batches import RowBatchBuilder
from lit_gpt.data.instructions import InstructionEncoder, PreferenceEncoder
from lit_gpt.data.instructions.stdlib import StdlibPreferences
from lit_gpt.data.records import Record, RecordSource
from lit_gpt.data.rows import EncodedRow, RowSplit
from lit_gpt.data.rows.loader import Collator, SequenceCollator
from lit_gpt.datamodules.rows import RowDataModule
from lit_gpt.errors import UserError

_GOOD, _BAD = (True, 1, "true", "1", "good", "desirable"), (False, 0, "false", "0", "bad", "undesirable")


class PreferenceDataModule(RowDataModule):
    """Pairs: a batch of B has 2 B rows, the chosen answers first, then the rejected ones in the same order.

    Rows may be `prompt`, `chosen`, `rejected`; `chosen` and `rejected` as conversations; HH-RLHF's texts; or Alpaca's
    `instruction` with `chosen` and `rejected`. The tokens after the shared prompt are compared.

    Args:
        kwargs: Arguments of `RowDataModule`; sizes count pairs.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def encoder(self) -> PreferenceEncoder:
        """Return what renders both sides."""
        return PreferenceEncoder(self.renderer, self.block_size, self.long_rows, self.columns, self.system_prompt)

    def collator(self, length: int | None = None) -> Collator:
        """Return what makes a batch of pairs."""
        return PairCollator(self.batch_builder(length))


class PairCollator:
    """Makes a batch of 2 B rows from B pairs: the chosen answers, then the rejected ones.

    Args:
        builder: Pads sequences.
    """

    def __init__(self, builder: RowBatchBuilder) -> None:
        self.builder = builder

    def __call__(self, split: RowSplit, samples: Sequence[np.ndarray], numbers: np.ndarray) -> Batch:
        """Return the batch of these pairs."""
        rows = [[split.sequence(row, side) for row in pair.tolist()] for side in (0, 1) for pair in samples]
        return self.builder(rows, np.concatenate([numbers, numbers]))


class StdlibPreferenceDataModule(PreferenceDataModule):
    """Docstring → its function rather than another one, from this machine's Python standard library.

    The rejected answer is the body of another function of about the same length under the signature that was asked
    for. Held out are the files that `StdlibDataModule` holds out.

    Args:
        max_lines: Functions with more lines are left out.
        val_fraction: Share of the files held out for validation.
        test_fraction: Share of the files held out for the test.
        kwargs: Arguments of `PreferenceDataModule`.
    """

    def __init__(
        self, max_lines: int = 20, val_fraction: float = 0.05, test_fraction: float = 0.05, **kwargs: Any
    ) -> None:
        super().__init__(val_fraction=val_fraction, test_fraction=test_fraction, **kwargs)
        self.max_lines = max_lines

    def row_sources(self) -> Sequence[RecordSource]:
        """Return the pairs of the standard library."""
        return [StdlibPreferences(max_lines=self.max_lines)]


class FeedbackEncoder(InstructionEncoder):
    """An instruction and its answer, with whether the answer is a good one."""

    def __call__(self, row: Record) -> EncodedRow | str:
        """Encode a row.

        Raises:
            UserError: if it has no usable form, or no label.
        """
        values = dict(row.values)
        label = values.pop(self.columns.get("label", "label"), None)
        label = label.strip().lower() if isinstance(label, str) else label
        if label not in (*_GOOD, *_BAD):
            raise UserError(f"its label is {label!r}; it must be true or false (set columns: {{label: ...}})")
        others = {field: column for field, column in self.columns.items() if field != "label"}
        plain = InstructionEncoder(self.renderer, self.block_size, self.long_rows, others, self.system_prompt)
        encoded = plain(Record(values, row.source, row.record))
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
        """Return what renders an answer."""
        return FeedbackEncoder(self.renderer, self.block_size, self.long_rows, self.columns, self.system_prompt)

    def collator(self, length: int | None = None) -> Collator:
        """Return what makes a batch of answers."""
        return FeedbackCollator(self.batch_builder(length), self.block_size)


class FeedbackCollator(SequenceCollator):
    """Makes a batch of answers with their labels, and of the same prompts with other answers.

    Args:
        builder: Pads sequences.
        block_size: Tokens of a row at most.
    """

    def __init__(self, builder: RowBatchBuilder, block_size: int) -> None:
        super().__init__(builder)
        self.block_size = block_size

    def __call__(self, split: RowSplit, samples: Sequence[np.ndarray], numbers: np.ndarray) -> Batch:
        """Return the batch of these samples, with `desirable` and `mismatched`."""
        batch: Any = super().__call__(split, samples, numbers)
        labels = split.number("desirable")
        batch["desirable"] = torch.tensor([bool(labels[rows[0]]) if len(rows) else False for rows in samples])
        others = [[self._mismatched(split, row) for row in rows.tolist()] for rows in samples]
        batch["mismatched"] = self.builder(others, numbers)
        return batch

    def _mismatched(self, split: RowSplit, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and mask of the row's prompt with the next row's answer, cut off at the end of the context."""
        ids, mask = split.sequence(row)
        others, other_mask = split.sequence((row + 1) % len(split))
        first, other_first = int(mask.argmax()), int(other_mask.argmax())
        joined = np.concatenate([ids[:first], others[other_first:]])[: self.block_size + 1]
        joined_mask = np.concatenate([np.zeros(first, np.bool_), other_mask[other_first:]])[: self.block_size + 1]
        return joined, joined_mask
