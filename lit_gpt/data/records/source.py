"""Base class of all record sources, and sources of local files, generators and iterables.

A `RecordSource` lists its parts (files, ranges of rows, shards), reads one part, and has a fingerprint that changes
when its records change. Everything else is derived from these three: reading all records in order, extracting their
texts, reading parts in parallel tasks, and resuming a stream within a part.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from lit_gpt.data.records.files import content_hash, estimated_bytes, expand_files, file_bytes
from lit_gpt.data.records.formats import FileFormat, read_records
from lit_gpt.data.records.record import BadInput, Document, Record, SplitName, TextField, documents_of
from lit_gpt.errors import UserError
from lit_gpt.hashing import FileHashes, sha256_json

FORMAT_VERSION = 1
"""Part of every fingerprint of files; increase it when the same bytes are read as different records."""


@dataclass(frozen=True)
class Part:
    """A part of a source that can be read separately: a file, a range of rows, a shard of a stream.

    Attributes:
        name: Name in messages.
        spec: JSON value that the source's `read` understands.
        stamp: JSON value that changes when the content does; compared when an interrupted run is restarted.
        num_bytes: Estimated bytes of text; None if unknown.
        path: Local path, if the part is a file on this machine.
    """

    name: str
    spec: Any
    stamp: Any
    num_bytes: int | None
    path: Path | None = None


class RecordSource(ABC):
    """A source of records. Every pass yields the same records in the same order; a source can be pickled.

    Attributes:
        name: Name in messages and lineage.
        split: Split that all of its records are assigned to; None: each by its own hash.
        text: How to extract the text of a record.
    """

    kind = "records"
    name: str
    split: SplitName | None = None
    text = TextField("text")

    @property
    def title(self) -> str:
        """Name in reports, without this machine's folders."""
        return self.name

    @abstractmethod
    def parts(self) -> Iterable[Part]:
        """Yield the parts, in the order of the corpus."""

    @abstractmethod
    def read(self, spec: Any, bad_input: BadInput, columns: Sequence[str] | None = None) -> Iterator[Record]:
        """Yield the records of a part, in bounded memory.

        Args:
            spec: `spec` of the part.
            bad_input: Collects input that cannot be read.
            columns: Fields that are needed; a source may omit the others, and may reject a table that lacks one.
        """

    @abstractmethod
    def fingerprint(self, hashes: FileHashes) -> str:
        """Return a hash that changes when the records, their order, their names or their texts do."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what lineage and the data card record about the source (JSON values)."""

    def read_from(
        self, spec: Any, position: Any, bad_input: BadInput, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[Record, Any]]:
        """Yield the records of a part from a position on, each with the position at which reading starts with it.

        Args:
            spec: `spec` of the part.
            position: Start position, as yielded by this function with a record (a JSON value); None: the beginning.
            bad_input: Collects input that cannot be read.
            columns: Fields that are needed.
        """
        begin = position or 0
        return zip(islice(self.read(spec, bad_input, columns), begin, None), count(begin), strict=False)

    def records(self, bad_input: BadInput, columns: Sequence[str] | None = None) -> Iterator[Record]:
        """Yield all records, part by part."""
        for part in self.parts():
            yield from self.read(part.spec, bad_input, columns)

    def read_documents(self, spec: Any, bad_input: BadInput) -> Iterator[Document]:
        """Yield the texts of a part."""
        return documents_of(self.read(spec, bad_input, self.text.columns), self.text, bad_input)

    def documents(self, bad_input: BadInput) -> Iterator[Document]:
        """Yield all texts, part by part."""
        return documents_of(self.records(bad_input, self.text.columns), self.text, bad_input)

    def num_bytes(self) -> int | None:
        """Estimate the UTF-8 bytes of all texts; None if this is unknown before reading them."""
        sizes = [part.num_bytes for part in self.parts()]
        return None if None in sizes else sum(size for size in sizes if size is not None)


class FileRecords(RecordSource):
    """Records of local files: text, JSON, JSON lines, CSV, TSV, Parquet, Arrow; optionally .gz, .zst, .bz2 or .xz.

    Args:
        files: Files, folders, glob patterns (see `expand_files`), or an already expanded list of (name, path).
        text_field: Field with the text of a record, or a template of fields in braces.
        document_separator: String at which plain text files are split into records; None does not split.
        split: Split that all records are assigned to; None assigns each by its hash.
        name: Name of the source in lineage; the patterns by default.
        format: Encoding, quoting and delimiter of the files.
        keep: Additional fields that become a document's metadata; None keeps all.

    Raises:
        UserError: if `document_separator` is empty.
    """

    kind = "files"

    def __init__(
        self,
        files: str | Sequence[str] | list[tuple[str, Path]],
        text_field: str = "text",
        document_separator: str | None = None,
        split: SplitName | None = None,
        name: str | None = None,
        format: FileFormat | None = None,
        keep: Sequence[str] | None = (),
    ) -> None:
        self.text = TextField(text_field, keep)
        if document_separator == "":
            raise UserError("document_separator is empty; give a string such as '\\n\\n', or null to keep files whole")
        self.document_separator = document_separator and _unescaped(document_separator)
        self.format = format or FileFormat()
        self.split = split
        self._named = files
        self._files: list[tuple[str, Path]] | None = None
        if name is None and not isinstance(files, str):
            name = _listed([item if isinstance(item, str) else item[0] for item in files])
        self.name = str(files) if name is None else name

    @property
    def title(self) -> str:
        """Names of the files, relative to the paths that the user named."""
        return _listed([name for name, _ in self.files()])

    def files(self) -> list[tuple[str, Path]]:
        """List (name, path) of each file; the disk is searched only once. Subclasses may exclude some."""
        if self._files is None:
            expanded = [] if isinstance(self._named, str) else [item for item in self._named if isinstance(item, tuple)]
            patterns = self._named if isinstance(self._named, str) else [str(pattern) for pattern in self._named]
            self._files = expanded or expand_files(patterns)
        return self._files

    def parts(self) -> Iterator[Part]:
        """Yield the files."""
        for name, path in self.files():
            try:
                stat = path.stat()
            except OSError as error:  # reading it will report the error according to on_bad_input
                yield Part(name, [name, str(path)], f"unreadable: {error.strerror}", 0, path)
                continue
            num_bytes = estimated_bytes(path, stat.st_size)
            yield Part(name, [name, str(path)], [stat.st_size, stat.st_mtime_ns], num_bytes, path)

    def read(self, spec: Any, bad_input: BadInput, columns: Sequence[str] | None = None) -> Iterator[Record]:
        """Yield the records of one file."""
        name, path = spec
        return self.read_file(name, Path(path), bad_input, columns)

    def records(self, bad_input: BadInput, columns: Sequence[str] | None = None) -> Iterator[Record]:
        """Yield all records, file by file."""
        for name, path in self.files():
            yield from self.read_file(name, path, bad_input, columns)

    def num_bytes(self) -> int:
        """Estimate the UTF-8 bytes of all texts from the files' sizes."""
        return sum(estimated_bytes(path) for _, path in self.files())

    def read_file(
        self, name: str, path: Path, bad_input: BadInput, columns: Sequence[str] | None = None
    ) -> Iterator[Record]:
        """Yield the records of one file; subclasses read other formats."""
        # The text of a plain text file is stored under the field name by which it will be looked up.
        field = self.text.text_field if self.text.fields == (self.text.text_field,) else "text"
        return read_records(path, name, bad_input, self.format, columns, self.document_separator, field)

    def fingerprint(self, hashes: FileHashes) -> str:
        """Return a hash of the files' names and contents and of the reading options."""
        content = [[name, content_hash(path, hashes)] for name, path in self.files()]
        return sha256_json([self.kind, FORMAT_VERSION, content, *self.reading_key(), self.split])

    def reading_key(self) -> list[Any]:
        """Return what the records depend on in addition to the files' contents (JSON values)."""
        return [self.text.text_field, self.document_separator, asdict(self.format)]

    def describe(self) -> dict[str, Any]:
        """Return name, number and total size of the files."""
        size = sum(file_bytes(path) for _, path in self.files())
        return {"kind": self.kind, "name": self.name, "num_files": len(self.files()), "file_bytes": size}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": None}  # a worker receives the file to read


class GeneratedRecords(RecordSource):
    """Records yielded by a subclass's `generate`, in a single part.

    Attributes:
        version: Version of the generator; increase it when the records for the same input change, so that caches are
            not reused.
    """

    kind = "generated"
    version: str | int | None = None

    @abstractmethod
    def generate(self) -> Iterator[Record]:
        """Yield the records, which must be the same every time."""

    def parts(self) -> Iterator[Part]:
        """Yield the only part."""
        yield Part(self.name, None, self.version, None)

    def read(self, spec: Any, bad_input: BadInput, columns: Sequence[str] | None = None) -> Iterator[Record]:
        """Yield the records."""
        return self.generate()

    def describe(self) -> dict[str, Any]:
        """Return name and version."""
        return {"kind": self.kind, "name": self.name, "version": self.version}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


class IterableRecords(GeneratedRecords):
    """Records from a Python function.

    Args:
        make_records: Called for each pass; returns texts, dicts, `Record`s or `Document`s, which must be the same every
            time.
        name: Name in messages and lineage.
        version: Value that changes when the records do; without it, the records are hashed in an additional pass.
        split: Split that all records are assigned to; None assigns each by its hash.
        text_field: Field with the text of a record.

    Example:
        >>> source = IterableRecords(lambda: ["one text", {"text": "another"}], name="two texts")
        >>> [document.text for document in source.documents(BadInput())]
        ['one text', 'another']
    """

    kind = "iterable"

    def __init__(
        self,
        make_records: Callable[[], Iterable[str | dict[str, Any] | Record | Document]],
        name: str,
        version: str | None = None,
        split: SplitName | None = None,
        text_field: str = "text",
    ) -> None:
        self._make_records = make_records
        self._fingerprint: str | None = None
        self._last_made: object = None
        self.name = name
        self.version = version
        self.split = split
        self.text = TextField(text_field, keep=None)

    def generate(self) -> Iterator[Record]:
        """Yield the function's records; those without a record number are numbered from 1.

        Raises:
            UserError: if the function returns the same iterator again, or yields something that is not a record.
        """
        made = self._make_records()
        if made is self._last_made:
            raise UserError(
                f"{self.name}: documents() (or the function that makes its records) returned the same iterator twice, "
                "which is exhausted after the first pass; create a new one at each call (with yield), or return a list"
            )
        self._last_made = made if isinstance(made, Iterator) else None
        for number, item in enumerate(made, start=1):
            record = as_record(item, self.name, number, self.text.text_field)
            if record is None:
                raise UserError(
                    f"{self.name}:{number} is a {type(item).__name__}; yield a text, a dict, a Record or a Document"
                )
            yield record

    def fingerprint(self, hashes: FileHashes) -> str:
        """Return the hash of `version`, or of every record if there is no version."""
        if self._fingerprint is None:
            content = self.version
            if content is None:
                digest = hashlib.sha256()
                for record in self.generate():
                    values = [record.values, record.source, record.split, record.split_key]
                    raw = json.dumps(values, default=str).encode()
                    digest.update(len(raw).to_bytes(8, "little") + raw)
                content = digest.hexdigest()
            self._fingerprint = sha256_json([self.kind, self.name, content, self.split])
        return self._fingerprint

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last_made": None}  # a generator cannot be pickled


def _unescaped(separator: str) -> str:
    r"""Return a separator with the escapes of a command line or a quoted YAML resolved: `\n` becomes a line break."""
    return separator.replace("\\r", "\r").replace("\\n", "\n").replace("\\t", "\t")


def as_record(item: object, name: str, number: int, text_field: str = "text") -> Record | None:
    """Convert an item that user code yielded to a record; None if it is not convertible.

    Args:
        item: A text, a dict, a `Record` or a `Document`.
        name: Source name for a text or dict.
        number: Record number in the source.
        text_field: Field name for the text of a text or document.
    """
    match item:
        case Record():
            return item
        case str():
            return Record({text_field: item}, name, number)
        case Document():
            return Record({text_field: item.text, **(item.metadata or {})}, item.source, item.record)
        case dict():
            return Record(dict(item), name, number)
    return None


def corpus_fingerprint(sources: Iterable[RecordSource], hashes: FileHashes) -> str:
    """Return the hash of everything in the sources, in order."""
    return sha256_json([source.fingerprint(hashes) for source in sources])


def total_bytes(sources: Iterable[RecordSource]) -> int | None:
    """Estimate the bytes of text in all sources; None if it is unknown for one of them."""
    sizes = [source.num_bytes() for source in sources]
    return None if None in sizes else sum(size for size in sizes if size is not None)
