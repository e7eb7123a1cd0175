"""DataModules of labeled texts, for classification."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lit_gpt.batch import Batch
from lit_gpt.data.classification import STDLIB_PACKAGES, ClassificationEncoder, StdlibOrigins
from lit_gpt.data.instructions.encoder import tokenizer_folder
from lit_gpt.data.records import RecordSource
from lit_gpt.data.rows import RowSplit
from lit_gpt.data.rows.loader import Collator, SequenceCollator
from lit_gpt.data.tokenizers import Tokenizer, load_tokenizer
from lit_gpt.data_info import DataInfo
from lit_gpt.datamodules.rows import RowDataModule
from lit_gpt.errors import UserError


class ClassificationDataModule(RowDataModule):
    """Texts with one class each, in the fields `text` and `label` (see `columns`); no chat template is used.

    Args:
        classes: Names of the classes, as written in `label` (a number is compared by its decimal digits); the model has
            one output per class.
        kwargs: Arguments of `RowDataModule`.

    Raises:
        UserError: There are fewer than two `classes`, or two are the same.
    """

    def __init__(self, classes: list[str | int], **kwargs: Any) -> None:
        names = [str(name) for name in classes]
        if len(set(names)) != len(names) or len(names) < 2:
            raise UserError(f"classes is {classes}; give at least two different names")
        super().__init__(**kwargs)
        self.classes = names

    def load_tokenizer(self) -> tuple[Tokenizer, list[str]]:
        """Return the model's tokenizer unchanged."""
        return load_tokenizer(tokenizer_folder(self.tokenizer)), []

    def encoder(self) -> ClassificationEncoder:
        """Return the encoder of a text and its class."""
        return ClassificationEncoder(
            self.chat_tokenizer, self.classes, self.block_size, self.long_rows, self.columns, self.ignore_fields
        )

    def collator(self, length: int | None = None) -> Collator:
        """Return the collator of texts, whose batches have `classes` (B,) int64."""
        return ClassCollator(self.batch_builder(length))

    @property
    def data_info(self) -> DataInfo:
        """Facts about the data for the module and its callbacks; complete after `setup`."""
        return replace(super().data_info, classes=self.classes)


class ClassCollator(SequenceCollator):
    """Collates texts with their class indices."""

    def __call__(self, split: RowSplit, samples: Sequence[np.ndarray], numbers: np.ndarray) -> Batch:
        """Return the batch of these samples, with `classes` (B,) int64 (0 for an empty row)."""
        batch: Any = super().__call__(split, samples, numbers)
        classes = split.number("class")
        batch["classes"] = torch.tensor([int(classes[rows[0]]) if len(rows) else 0 for rows in samples])
        return batch


class StdlibClassificationDataModule(ClassificationDataModule):
    """Functions of this machine's Python standard library, labeled with the package that each is from.

    Args:
        classes: Names of the packages, which are the classes.
        max_lines: Maximum number of lines; longer functions are left out.
        val_fraction: Fraction of the functions held out for validation.
        test_fraction: Fraction of the functions held out for testing.
        kwargs: Arguments of `ClassificationDataModule`.
    """

    def __init__(
        self,
        classes: list[str | int] | None = None,
        max_lines: int = 40,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        **kwargs: Any,
    ) -> None:
        packages: list[str | int] = list(STDLIB_PACKAGES) if classes is None else classes
        super().__init__(classes=packages, val_fraction=val_fraction, test_fraction=test_fraction, **kwargs)
        self.max_lines = max_lines

    def row_sources(self) -> Sequence[RecordSource]:
        """Return the functions of the packages."""
        return [StdlibOrigins(self.classes, self.max_lines)]
