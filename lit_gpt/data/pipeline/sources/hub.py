"""`hub:`: a Hugging Face data set, by ranges of rows (downloaded) or by its shards (streamed), read side by side."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from lit_gpt.data.documents import BadInput, Document
from lit_gpt.data.hub import HubDataset, HubSource
from lit_gpt.data.pipeline.parts import Part
from lit_gpt.errors import UserError

_ROWS_OF_A_PART = 50_000


class HubParts:
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

    kind = "hub"

    def __init__(
        self,
        hub: HubDataset,
        text_field: str = "text",
        keep_columns: list[str] | None = None,
        document_start: str | None = None,
    ) -> None:
        self.hub = hub
        self.text_field = hub.text_field or text_field
        self.keep_columns = keep_columns or []
        try:
            self.document_start = None if document_start is None else re.compile(document_start)
        except re.error as error:
            raise UserError(f"document_start {document_start!r} is no regular expression ({error}); mend it") from error
        self._source = HubSource(hub, text_field)

    def parts(self) -> Iterator[Part]:
        """Yields ranges of rows, or the shards of the stream."""
        source, hub = self._source, self.hub
        dataset = source.load()
        self._check(dataset.column_names)
        size = source.num_bytes()
        if not hub.streaming:
            rows = len(dataset) if hub.max_documents is None else min(len(dataset), hub.max_documents)
            stamp = dataset._fingerprint
            step = max(rows, 1) if self.document_start else _ROWS_OF_A_PART
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                share = None if size is None else max(size * (stop - start) // rows, 1)
                yield Part(f"{source.name}:{start + 1}", ["rows", start, stop], stamp, share)
            return
        stamp = source.describe()
        alone = hub.max_documents is not None or self.document_start is not None
        shards = 1 if alone else int(getattr(dataset, "num_shards", 1))
        for shard in range(shards):
            share = None if size is None else max(size // shards, 1)
            yield Part(f"{source.name}#{shard}", ["shard", shard, shards], stamp, share)

    def read(self, spec: Any, bad_input: BadInput) -> Iterator[Document]:
        """Yields the documents of some rows or of a shard."""
        rows = self._rows(spec, bad_input)
        return rows if self.document_start is None else _joined(rows, self.document_start)

    def _rows(self, spec: Any, bad_input: BadInput) -> Iterator[Document]:
        kind, first, last = spec
        dataset = self._source.load()
        name = self._source.name
        if dataset.column_names is not None:
            dataset = dataset.select_columns([self.text_field, *self.keep_columns])
        start = 0
        if kind == "rows":
            dataset, start = dataset.select(range(first, last)), first
        elif last > 1:
            dataset, name = dataset.shard(num_shards=last, index=first), f"{name}#{first}"
        for record, row in enumerate(dataset, start=start + 1):
            if self.hub.max_documents is not None and record > self.hub.max_documents:
                return
            text = row.get(self.text_field)
            if isinstance(text, str):
                kept = {column: _plain(row.get(column)) for column in self.keep_columns}
                yield Document(text, name, record, kept or None)
            elif self.text_field in row:
                bad_input.reject(
                    f"{name}:{record}", f"the column {self.text_field!r} holds {type(text).__name__}, not text"
                )
            else:
                names = ", ".join(map(repr, row))
                bad_input.reject(f"{name}:{record}", f"no column {self.text_field!r}; its columns are {names}")

    def _check(self, columns: list[str] | None) -> None:
        for column in [self.text_field, *self.keep_columns]:
            if columns is not None and column not in columns:
                names = ", ".join(map(repr, columns))
                raise UserError(
                    f"{self._source.name}: no column {column!r}; its columns are {names} (set text_field, keep_columns)"
                )

    def describe(self) -> dict[str, Any]:
        """Returns the data set's description."""
        return {"kind": self.kind, **{k: v for k, v in dataclasses.asdict(self.hub).items() if v is not None}}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_source": HubSource(self.hub, self.text_field)}


def _joined(rows: Iterator[Document], start: re.Pattern[str]) -> Iterator[Document]:
    """Joins rows to documents; each begins with a row in which `start` is found."""
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


def _plain(value: Any) -> Any:
    """Returns a value that JSON holds."""
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
