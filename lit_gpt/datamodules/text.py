"""Any mix of local files and Hugging Face data sets."""

import os
from collections.abc import Sequence
from typing import Any

from lit_gpt.data.documents import Source, SplitName
from lit_gpt.data.sources import FileSource, HubDataset, HubSource, expand_files
from lit_gpt.datamodules.base import TokenDataModule
from lit_gpt.errors import UserError


class TextDataModule(TokenDataModule):
    """Text from files, folders, glob patterns and Hugging Face data sets.

    Files are read by their suffix: `.jsonl`, `.ndjson`, `.csv`, `.tsv` and `.parquet` hold a document a row, any other
    UTF-8 text (txt, md, code) is one document; each may be compressed (`.gz`, `.zst`). A folder is everything below it
    but hidden entries. The split into train, validation and test goes by each document's hash, so it never moves when
    data are added; `val_files` and `test_files` are held out whatever their hash, also where `files` names
    them too (with both fractions 0 they alone are).

    Args:
        files: Files, folders or glob patterns (`**` crosses folders) to train on.
        datasets: Hugging Face data sets to train on: names, or mappings with `path`, `name`, `split`, `streaming`, ...
        val_files: Files, folders or patterns whose documents are all for validation.
        test_files: Files, folders or patterns whose documents are all for the test.
        text_field: Field or column that holds the text in jsonl, csv, parquet and data sets.
        document_separator: String at which plain text files are cut into documents (a blank line, or the
            `<|endoftext|>` that some corpora are joined with); null keeps each file whole.
        kwargs: Arguments of `TokenDataModule`.

    Example:
        >>> data = TextDataModule(files="docs/**/*.md", block_size=512, global_batch_tokens=32768)
        >>> data.global_batch_size
        64
    """

    def __init__(
        self,
        files: str | list[str] | None = None,
        datasets: str | HubDataset | list[str | HubDataset] | None = None,
        val_files: str | list[str] | None = None,
        test_files: str | list[str] | None = None,
        text_field: str = "text",
        document_separator: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not files and not datasets:
            raise UserError("TextDataModule has nothing to read; set files (files, folders, patterns) or datasets")
        self.files = files
        self.datasets = datasets
        self.val_files = val_files
        self.test_files = test_files
        self.text_field = text_field
        self.document_separator = document_separator

    def sources(self) -> Sequence[Source]:
        """Returns what is held out by name, then the other files, then the data sets."""
        found: list[Source] = []
        taken: set[str] = set()  # a file is in one split, the first of these that names it
        named: list[tuple[str | list[str] | None, SplitName | None]] = [(self.test_files, "test")]
        for patterns, split in [*named, (self.val_files, "val"), (self.files, None)]:
            files = [(name, path) for name, path in expand_files(patterns or []) if os.path.realpath(path) not in taken]
            taken |= {os.path.realpath(path) for _, path in files}
            if files:
                name = patterns if isinstance(patterns, str) else ", ".join(patterns or ())
                found.append(FileSource(files, self.text_field, self.document_separator, split, name))
        specs = self.datasets if isinstance(self.datasets, list) else [self.datasets] if self.datasets else []
        for spec in specs:
            hub = HubDataset(spec) if isinstance(spec, str) else spec
            found.append(HubSource(hub, self.text_field))
        return found
