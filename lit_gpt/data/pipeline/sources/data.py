"""`files:`, `hub:` and `class_path:`: local files, Hugging Face datasets, and custom code.

Files are read as by all other readers of records; datasets are read in parallel tasks, by ranges of rows (downloaded)
or by shards (streamed).
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lit_gpt.data.cleaning.base import code_fingerprint
from lit_gpt.data.records import (
    BadInput,
    Document,
    FileFormat,
    FileRecords,
    HubDataset,
    HubRecords,
    Part,
    Record,
    RecordSource,
    TextField,
)
from lit_gpt.data.records.formats import Quoting
from lit_gpt.data.records.record import no_field
from lit_gpt.data.records.source import as_record
from lit_gpt.errors import UserError
from lit_gpt.hashing import FileHashes, sha256_json
from lit_gpt.instantiate import construct, import_object


class TextFiles(FileRecords):
    """Local files: text, JSON, JSON lines, CSV, TSV, Parquet, Arrow; optionally .gz, .zst, .bz2 or .xz.

    Args:
        files: Files, folders or glob patterns (`**` crosses folders).
        text_field: Field or column with the text, or a template of fields: "{question} {answer}".
        document_separator: String at which plain text files are split into documents; null does not split.
        encoding: `utf-8` treats other encodings as bad input, unless a byte order mark declares them; a name such as
            `latin-1`; or `detect`, which chooses one for each file that is not UTF-8. The encoding is recorded in
            documents that are not UTF-8.
        quoting: Quoting of CSV and TSV: `strict`, or `none` if quotes are ordinary characters.
        delimiter: Delimiter of CSV and TSV cells; null: a comma for .csv, a tab for .tsv.
        column_names: Column names for CSV and TSV files without a header line.
        keep_columns: Fields to store as metadata (url, language, license, ...).
    """

    def __init__(
        self,
        files: str | list[str],
        text_field: str = "text",
        document_separator: str | None = None,
        encoding: str = "utf-8",
        quoting: Quoting = "strict",
        delimiter: str | None = None,
        column_names: list[str] | None = None,
        keep_columns: list[str] | None = None,
    ) -> None:
        format = FileFormat(encoding, quoting, delimiter, column_names)
        super().__init__(files, text_field, document_separator, format=format, keep=keep_columns or ())


_ROWS_OF_A_PART = 50_000


class HubParts(HubRecords):
    """A Hugging Face dataset, downloaded or streamed.

    A row of a downloaded dataset keeps its number. A row of a stream with several shards is numbered within its shard
    (`name#3` is shard 3), because the number of rows in earlier shards is unknown.

    Args:
        hub: path, name, split, data_files, revision, streaming, text_field, max_documents. Pin `revision` of a stream.
        text_field: Column with the text, if `hub` names none.
        keep_columns: Columns to store as metadata (url, language, license, ...).
        document_start: For datasets whose rows are lines of documents (WikiText): a regular expression that matches the
            first row of a document. The rows up to the next match are joined; the record is the first row's number.

    Raises:
        UserError: `document_start` is not a regular expression.
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
            raise UserError(
                f"document_start {document_start!r} is not a regular expression ({error}); fix it"
            ) from error

    def parts(self) -> Iterator[Part]:
        """Yield ranges of rows, or the shards of the stream.

        Raises:
            UserError: if the dataset lacks a column of `text_field`.
        """
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
        """Yield a range of rows, or the rows of a shard."""
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
        """Yield the documents of a range of rows or of a shard."""
        documents = super().read_documents(spec, bad_input)
        return documents if self.document_start is None else _joined(documents, self.document_start)

    def describe(self) -> dict[str, Any]:
        """Return the dataset's description."""
        return {"kind": self.kind, **{k: v for k, v in dataclasses.asdict(self.hub).items() if v is not None}}


def _joined(rows: Iterator[Document], start: re.Pattern[str]) -> Iterator[Document]:
    """Join rows into documents, each of which starts with a row that `start` matches."""
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


class UserSource(RecordSource):
    """A custom generator: a function, or a class with a method `documents()`, that yields the documents.

    Each document is a text, a mapping `{"text": ..., <metadata>}` or a `lit_gpt.data.records.Document`; every pass must
    yield the same ones in the same order. To be read by several tasks at once, the class may also have `num_parts`
    (int) and accept the part as `documents(part)`.

    Args:
        class_path: Import path: `my_package.my_module.MySource`. Its folder must be on PYTHONPATH, or the package
            installed.
        init_args: Arguments of the class, or of the function.
        version: Version of the code, to be changed when the documents change, so that the corpus is prepared again.
            Without it, any change of the file with the code counts as a change.
    """

    kind = "class_path"
    text = TextField("text", keep=None)

    def __init__(self, class_path: str, init_args: dict[str, Any] | None = None, version: str | int = "") -> None:
        self.name = class_path
        self.class_path = class_path
        self.init_args = init_args or {}
        self.version = version

    def _made(self) -> Any:
        target = import_object(self.class_path, "source")
        if not callable(target):
            raise UserError(f"source {self.class_path} is a {type(target).__name__}; name a function or a class")
        return construct(target, self.init_args, f"source {self.class_path}")

    def parts(self) -> Iterator[Part]:
        """Yield one part, or as many as the class has.

        Raises:
            UserError: if the class yields no documents.
        """
        made = self._made()
        if not hasattr(made, "documents") and not isinstance(made, Iterable):
            raise UserError(f"source {self.class_path} has no method documents() and yields nothing; add the method")
        count = int(getattr(made, "num_parts", 1))
        for part in range(count):
            yield Part(f"{self.class_path}#{part}", part if count > 1 else None, self._stamp(), None)

    def read(self, spec: Any, bad_input: BadInput, columns: Sequence[str] | None = None) -> Iterator[Record]:
        """Yield the records of a part."""
        made = self._made()
        name = self.class_path if spec is None else f"{self.class_path}#{spec}"
        items = made
        if hasattr(made, "documents"):
            items = made.documents() if spec is None else made.documents(spec)
        for number, item in enumerate(items, start=1):
            record = as_record(item, name, number)
            if record is None:
                what = f"it is a {type(item).__name__}; yield a text, a mapping with a text under 'text', or a Document"
                bad_input.reject(f"{name}:{number}", what)
            else:
                yield record

    def fingerprint(self, hashes: FileHashes) -> str:
        """Return a hash of the code and its arguments."""
        return sha256_json([self.kind, self._stamp()])

    def _stamp(self) -> list[Any]:
        return [code_fingerprint(self.class_path, "source", self.version), self.init_args]

    def describe(self) -> dict[str, Any]:
        """Return the class and its arguments."""
        return {"kind": self.kind, "class_path": self.class_path, "init_args": self.init_args, "version": self.version}
