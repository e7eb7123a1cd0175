"""DataModules of preferences: pairs of answers (DPO, reward models) and single labeled answers (KTO)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lit_gpt.batch import Batch
from lit_gpt.data.batches import RowBatchBuilder
from lit_gpt.data.cache import print_status
from lit_gpt.data.instructions import InstructionEncoder, PreferenceEncoder, conversation_of
from lit_gpt.data.instructions.encoder import as_context, prompt_key
from lit_gpt.data.instructions.stdlib import StdlibPreferences
from lit_gpt.data.records import Record, RecordSource
from lit_gpt.data.rows import EncodedRow, RowSplit, RowStore
from lit_gpt.data.rows.loader import Collator, SequenceCollator
from lit_gpt.datamodules.rows import RowDataModule
from lit_gpt.errors import UserError

_GOOD, _BAD = (True, 1, "true", "1", "good", "desirable"), (False, 0, "false", "0", "bad", "undesirable")


class PreferenceDataModule(RowDataModule):
    """Preference pairs. A batch of B pairs has 2 B rows: the chosen answers, then the rejected ones in the same order.

    Rows may have `prompt`, `chosen` and `rejected`; `chosen` and `rejected` as conversations; the texts of HH-RLHF; or
    Alpaca's `instruction` with `chosen` and `rejected`. Only the tokens after the shared prompt are compared.

    Args:
        kwargs: Arguments of `RowDataModule`; batch sizes count pairs.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def encoder(self) -> PreferenceEncoder:
        """Return the encoder of both sides."""
        return PreferenceEncoder(*self._encoding())

    def collator(self, length: int | None = None) -> Collator:
        """Return the collator of pairs."""
        return PairCollator(self.batch_builder(length))


class PairCollator:
    """Collates B pairs into 2 B rows: first the chosen answers, then the rejected ones.

    Args:
        builder: Pads the sequences.
    """

    def __init__(self, builder: RowBatchBuilder) -> None:
        self.builder = builder

    def __call__(self, split: RowSplit, samples: Sequence[np.ndarray], numbers: np.ndarray) -> Batch:
        """Return the batch of these pairs."""
        rows = [[split.sequence(row, side) for row in pair.tolist()] for side in (0, 1) for pair in samples]
        return self.builder(rows, np.concatenate([numbers, numbers]))


class StdlibPreferenceDataModule(PreferenceDataModule):
    """Docstring → the documented function (chosen) or another one (rejected), from this machine's standard library.

    The rejected answer has the requested signature and the body of another function of about the same length. The files
    that `StdlibDataModule` holds out are held out here, too.

    Args:
        max_lines: Maximum number of lines; longer functions are left out.
        val_fraction: Fraction of the files held out for validation.
        test_fraction: Fraction of the files held out for testing.
        kwargs: Arguments of `PreferenceDataModule`.
    """

    def __init__(
        self, max_lines: int = 20, val_fraction: float = 0.05, test_fraction: float = 0.05, **kwargs: Any
    ) -> None:
        super().__init__(val_fraction=val_fraction, test_fraction=test_fraction, **kwargs)
        self.max_lines = max_lines

    def row_sources(self) -> Sequence[RecordSource]:
        """Return the source of pairs from the standard library."""
        return [StdlibPreferences(max_lines=self.max_lines)]


class FeedbackEncoder(InstructionEncoder):
    """Encodes an instruction, its last answer and whether that answer is desirable."""

    def __call__(self, row: Record) -> EncodedRow | str:
        """Encode a row.

        Raises:
            UserError: if the row has no supported format, or no label.
        """
        values = dict(row.values)
        label = values.pop(self.columns.get("label", "label"), None)
        label = label.strip().lower() if isinstance(label, str) else label
        if label not in (*_GOOD, *_BAD):
            raise UserError(f"its label is {label!r}; it must be true or false (set columns: {{label: ...}})")
        others = {field: column for field, column in self.columns.items() if field != "label"}
        conversation = conversation_of(values, others, self.system_prompt, self.ignore_fields)
        *before, answer = conversation.messages
        encoded = self.sequence([*as_context(before), answer], conversation.tools)
        if isinstance(encoded, str):
            return encoded
        sequence, notes = encoded
        number = {"desirable": float(label in _GOOD)}
        return EncodedRow((sequence,), prompt_key(conversation.prompt), number, notes, left_out=conversation.left_out)


class FeedbackDataModule(RowDataModule):
    """Labeled answers: the fields of an instruction (`prompt`, `completion`, ...) and a boolean `label`.

    A batch has `desirable` (B,) bool and `mismatched`, a batch that pairs the same prompts with the answers of the next
    rows of the split, on which KTO's reference point is estimated. The pairing depends only on the row.

    Args:
        kwargs: Arguments of `RowDataModule`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def prepare_data(self) -> None:
        """Encode the rows, and print how many answers are good and bad: with only one kind, little can be learned."""
        super().prepare_data()
        assert self._folder is not None
        labels = RowStore(self._folder).split("train").number("desirable")
        good, bad = int(labels.sum()), int(len(labels) - labels.sum())
        missing = (
            "" if good and bad else f"; KTO learns from the difference to {'bad' if good else 'good'} ones: add some"
        )
        print_status(f"labels: {good:,} good, {bad:,} bad{missing}")

    def encoder(self) -> FeedbackEncoder:
        """Return the encoder of a labeled answer."""
        return FeedbackEncoder(*self._encoding())

    def collator(self, length: int | None = None) -> Collator:
        """Return the collator of labeled answers."""
        return FeedbackCollator(self.batch_builder(length), self.block_size)


class FeedbackCollator(SequenceCollator):
    """Collates answers with their labels, and the same prompts with mismatched answers.

    Args:
        builder: Pads the sequences.
        block_size: Maximum row length in tokens.
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
        """Return ids and mask of the row's prompt with the next row's answer, truncated to the context length."""
        ids, mask = split.sequence(row)
        others, other_mask = split.sequence((row + 1) % len(split))
        first, other_first = int(mask.argmax()), int(other_mask.argmax())
        joined = np.concatenate([ids[:first], others[other_first:]])[: self.block_size + 1]
        joined_mask = np.concatenate([np.zeros(first, np.bool_), other_mask[other_first:]])[: self.block_size + 1]
        return joined, joined_mask
