"""Pairs of a better and a worse answer, for preference learning and reward models."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_gpt.batch import Batch
from lit_gpt.data.instructions import PreferenceEncoder
from lit_gpt.data.instructions.stdlib import StdlibPreferences
from lit_gpt.data.rows import RowSource, RowSplit
from lit_gpt.data.rows.loader import BuildBatch
from lit_gpt.datamodules.rows import RowDataModule


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
        """Returns what renders both sides."""
        return PreferenceEncoder(self.renderer, self.block_size, self.long_rows, self.columns, self.system_prompt)

    def build_batch(self, length: int | None = None) -> BuildBatch:
        """Returns how pairs become a batch."""
        builder = self.batch_builder(length)

        def build(split: RowSplit, samples: Sequence[np.ndarray], numbers: np.ndarray) -> Batch:
            rows = [[split.sequence(row, side) for row in pair.tolist()] for side in (0, 1) for pair in samples]
            return builder(rows, np.concatenate([numbers, numbers]))

        return build


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

    def row_sources(self) -> Sequence[RowSource]:
        """Returns the pairs of the standard library."""
        return [StdlibPreferences(max_lines=self.max_lines)]
