"""`hub:`: a Hugging Face data set, by ranges of rows (downloaded) or by its shards (streamed), read side by side."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

from lit_gpt.data.records import BadInput, Document, HubDataset, HubRecords, Part, Record
from lit_gpt.data.records.record import no_field
from lit_gpt.errors import UserError

_ROWS_OF_A_PART = 50_000


class HubParts(HubRecords):
    """A Hugging Face data set, downloaded or streamed.

    A row of a downloaded data set keeps its number; one of a stream that has several shards is numbered within its
    shard (`name#3` is shard 3), because nobody knows how many rows the shards before it have.

    Args:
        hub: path, name, split, data_files, revision, streaming, text_field, max_documents. Pin `revision` of a stream.
        text_field: Column that holds the text, where `hub` names none.
        keep_columns: Columns that go along as metadata (url, language, license, ...).
        document_start: Where rows are lines of documents (WikiText): a regular expression that finds the row with which
            a new document starts. The rows before the next such row are joined; the record is the first row's number.
    """

    def __init__(
        self,
        hub: HubDataset,
        text_field: str = "text",
        keep_columns: list[str] | None = None,
        document_start: str | None = None,
    ) -> None:
        super().__init__(hub, text_field, keep=keep_columns or ())
        self.hub = hub
        self.keep_columns = keep_columns or []
        try:
            self.document_start = None if document_start is None else re.compile(document_start)
        except re.error as error:
            raise UserError(f"document_start {document_start!r} is no regular expression ({error}); fix it") from error

    def parts(self) -> Iterator[Part]:
        """Yield ranges of rows, or the shards of the stream."""
        hub, dataset = self.hub, self.load()
        for column in self.text.columns or ():
            if dataset.column_names is not None and column not in dataset.column_names:
                raise UserError(f"{self.name}: {no_field(column, dataset.column_names, 'column')}")
        size = self.num_bytes()
        if not hub.streaming:
            rows = len(dataset) if hub.max_documents is None else min(len(dataset), hub.max_documents)
            stamp = dataset._fingerprint
            step = max(rows, 1) if self.document_start else _ROWS_OF_A_PART
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                share = None if size is None else max(size * (stop - start) // rows, 1)
                yield Part(f"{self.name}:{start + 1}", ["rows", start, stop], stamp, share)
            return
        stamp = super().describe()
        alone = hub.max_documents is not None or self.document_start is not None
        shards = 1 if alone else int(getattr(dataset, "num_shards", 1))
        for shard in range(shards):
            share = None if size is None else max(size // shards, 1)
            yield Part(f"{self.name}#{shard}", ["shard", shard, shards], stamp, share)

    def read(self, spec: Any, bad_input: BadInput, columns: Sequence[str] | None = None) -> Iterator[Record]:
        """Yield some rows, or those of a shard."""
        kind, first, last = spec
        dataset, name, start = self.selected(self.load(), columns), self.name, 0
        if kind == "rows":
            dataset, start = dataset.select(range(first, last)), first
        elif last > 1:
            dataset, name = dataset.shard(num_shards=last, index=first), f"{name}#{first}"
        for record, row in enumerate(dataset, start=start + 1):
            if self.hub.max_documents is not None and record > self.hub.max_documents:
                return
            yield Record(dict(row), name, record)

    def read_documents(self, spec: Any, bad_input: BadInput) -> Iterator[Document]:
        """Yield the documents of some rows or of a shard."""
        documents = super().read_documents(spec, bad_input)
        return documents if self.document_start is None else _joined(documents, self.document_start)

    def describe(self) -> dict[str, Any]:
        """Return the data set's description."""
        return {"kind": self.kind, **{k: v for k, v in dataclasses.asdict(self.hub).items() if v is not None}}


def _joined(rows: Iterator[Document], start: re.Pattern[str]) -> Iterator[Document]:
    """Join rows to documents; each begins with a row in which `start` is found."""
    first: Document | None = None
    texts: list[str] = []
    for row in rows:
        if first is None or start.search(row.text):
            if first is not None:
                yield dataclasses.replace(first, text="".join(texts))
            first, texts = row, []
        texts.append(row.text if row.text.endswith("\n") else row.text + "\n")
    if first is not None:
        yield dataclasses.replace(first, text="".join(texts))
