"""`files:`: text, code and tables on this disk, as the text data module reads them; optionally in any encoding."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lit_gpt.data.compression import inner_suffix
from lit_gpt.data.documents import BadInput, Document
from lit_gpt.data.pipeline.encoding import decode_any
from lit_gpt.data.pipeline.parts import FileParts
from lit_gpt.data.readers import MAX_DOCUMENT_BYTES, read_file

_TABLES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".gz", ".zst")


class TextFiles(FileParts):
    """Local files: txt, md, code and any other text; json, jsonl, csv, tsv, parquet; each also as .gz or .zst.

    Args:
        files: Files, folders or glob patterns (`**` crosses folders).
        text_field: Field or column that holds the text in json, jsonl, csv, tsv and parquet.
        document_separator: String at which plain text files are cut into documents; null keeps a file whole.
        encoding: `utf-8` takes any other encoding for bad input; `detect` decodes a plain text file that is not UTF-8
            by its byte order mark or its statistics, and keeps the name of the encoding with the document.
    """

    kind = "files"

    def __init__(
        self,
        files: str | list[str],
        text_field: str = "text",
        document_separator: str | None = None,
        encoding: Literal["utf-8", "detect"] = "utf-8",
    ) -> None:
        super().__init__(files)
        self.text_field = text_field
        self.document_separator = document_separator
        self.encoding = encoding

    def read_file(self, name: str, path: Path, bad_input: BadInput) -> Iterator[Document]:
        """Yields the documents of one file."""
        if self.encoding == "detect" and inner_suffix(path) not in _TABLES and path.suffix not in _TABLES:
            size = path.stat().st_size
            if size <= MAX_DOCUMENT_BYTES:
                text, encoding = decode_any(path.read_bytes())
                if encoding != "utf-8":
                    yield from self._decoded(name, text, encoding, bad_input)
                    return
        yield from read_file(path, name, bad_input, self.text_field, self.document_separator)

    def _decoded(self, name: str, text: str | None, encoding: str, bad_input: BadInput) -> Iterator[Document]:
        if text is None:
            bad_input.reject(name, "it is binary, or text in no encoding that could be found")
            return
        metadata = {"encoding": encoding}
        if not self.document_separator:
            yield Document(text, name, 0, metadata)
            return
        documents = [part for part in text.split(self.document_separator) if part.strip()]
        for record, part in enumerate(documents, start=1):
            yield Document(part, name, record if len(documents) > 1 else 0, metadata)
