"""DataModules of instructions and conversations, for supervised fine-tuning."""

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
    """Conversations in which only the assistant's tokens contribute to the loss.

    Rows may be OpenAI `messages`, ShareGPT `conversations`, `prompt`/`completion`, `question`/`answer`, or the
    `instruction` format of Alpaca and Dolly. Tool calls are supported where the template has a format for them.

    Args:
        packing: Pack several short conversations into one row of `block_size` tokens, isolated from each other by the
            attention mask (best-fit decreasing; `global_batch_size` counts these rows). False: one conversation per
            row, padded, with rows of similar length batched together.
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
        """Return the encoder of a conversation."""
        return InstructionEncoder(*self._encoding())

    @property
    def tokens_per_step(self) -> int | None:
        """Input tokens per optimizer step over all devices if rows are packed, else None."""
        return self.global_batch_size * self.block_size if self.packing else None

    @property
    def data_info(self) -> DataInfo:
        """Facts about the data for the module and its callbacks; complete after `setup`."""
        return replace(super().data_info, packing=self.packing)

    def samples(self, split: RowSplit) -> list[np.ndarray]:
        """Return the indices of the conversations in each row of a batch."""
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
    """Docstring → function, from this machine's Python standard library: instruction data that needs no network.

    Functions of the files that `StdlibDataModule` holds out are held out here, too.

    Args:
        max_lines: Maximum number of lines; longer functions are left out.
        val_fraction: Fraction of the files held out for validation.
        test_fraction: Fraction of the files held out for testing.
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
