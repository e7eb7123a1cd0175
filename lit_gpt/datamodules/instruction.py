"""Instructions and conversations, for supervised fine-tuning."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lit_gpt.data.instructions import InstructionEncoder, StdlibInstructions
from lit_gpt.data.records import RecordSource
from lit_gpt.data.rows import RowSplit
from lit_gpt.data.rows.loader import pack
from lit_gpt.data.sampler import hash_integers
from lit_gpt.data_info import DataInfo
from lit_gpt.datamodules.rows import RowDataModule


class InstructionDataModule(RowDataModule):
    """Conversations of which the assistant's tokens are learned.

    Rows may be OpenAI `messages`, ShareGPT `conversations`, `prompt`/`completion`, `question`/`answer`, or Alpaca's
    and Dolly's `instruction`; with tool calls where the template has a form for them.

    Args:
        packing: Put short conversations side by side in rows of `block_size` tokens, where they do not see each
            other (best-fit decreasing; `global_batch_size` counts these rows). False: one per row, padded, rows of
            similar length together.
        kwargs: Arguments of `RowDataModule`.

    Example:
        >>> data = InstructionDataModule(
        ...     tokenizer="runs/quickstart", chat_template="chatml", files="alpaca.json", block_size=512
        ... )  # doctest: +SKIP
    """

    def __init__(self, packing: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.packing = packing

    def encoder(self) -> InstructionEncoder:
        """Return what renders a conversation."""
        return InstructionEncoder(self.renderer, self.block_size, self.long_rows, self.columns, self.system_prompt)

    @property
    def tokens_per_step(self) -> int | None:
        """Input tokens of one optimizer step over all devices, if rows are packed."""
        return self.global_batch_size * self.block_size if self.packing else None

    @property
    def data_info(self) -> DataInfo:
        """What the module and its callbacks may know about the data; complete after `setup`."""
        return replace(super().data_info, packing=self.packing)

    def samples(self, split: RowSplit) -> list[np.ndarray]:
        """Return the conversations in each row of a batch."""
        if not self.packing:
            return super().samples(split)
        return pack(split.lengths() - 1, self.block_size, hash_integers(self.seed, 3))

    @property
    def _row_length(self) -> int | None:
        return self.block_size if self.packing else None

    def _lengths(self, split: RowSplit) -> np.ndarray | None:
        return None if self.packing else super()._lengths(split)

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "packing": self.packing}


class StdlibInstructionDataModule(InstructionDataModule):
    """Docstring → function, from this machine's Python standard library: instructions without a network.

    The held-out functions are those of the files that `StdlibDataModule` holds out.

    Args:
        max_lines: Functions with more lines are left out.
        val_fraction: Share of the files held out for validation.
        test_fraction: Share of the files held out for the test.
        kwargs: Arguments of `InstructionDataModule`.
    """

    def __init__(
        self, max_lines: int = 30, val_fraction: float = 0.05, test_fraction: float = 0.05, **kwargs: Any
    ) -> None:
        super().__init__(val_fraction=val_fraction, test_fraction=test_fraction, **kwargs)
        self.max_lines = max_lines

    def row_sources(self) -> Sequence[RecordSource]:
        """Return the functions of the standard library."""
        return [StdlibInstructions(max_lines=self.max_lines)]
