"""The corpus that needs no network: the Python standard library of this machine."""

from collections.abc import Sequence
from typing import Any

from lit_gpt.data.documents import Source
from lit_gpt.data.stdlib import stdlib_source
from lit_gpt.datamodules.base import TokenDataModule


class StdlibDataModule(TokenDataModule):
    """The source of this machine's Python standard library, without its tests: about 12 MB in 700 files.

    Args:
        vocab_size: Entries of the byte-level BPE tokenizer that is trained on it.
        val_fraction: Share of the files held out for validation, chosen by each file's hash.
        test_fraction: Share of the files held out for the test.
        kwargs: Arguments of `TokenDataModule`.
    """

    def __init__(
        self,
        vocab_size: int | None = 4096,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(vocab_size=vocab_size, val_fraction=val_fraction, test_fraction=test_fraction, **kwargs)

    def sources(self) -> Sequence[Source]:
        """Returns the standard library."""
        return [stdlib_source()]
