"""Where rows come from: local files, Hugging Face data sets, a Python function."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lit_gpt.data.documents import BadInput, SplitName
from lit_gpt.data.files import content_hash, expand_files
from lit_gpt.data.hub import HubDataset, HubSource
from lit_gpt.data.rows.reading import read_rows
from lit_gpt.hashing import FileHashes, sha256_json


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read.

    Attributes:
        values: Its fields.
        source: File (relative to what the user named) or data set.
        record: Line or row in it, from 1.
        split: Split that it belongs to whatever its hash; None decides by the hash.
        split_key: Text whose hash decides the split; None takes what the encoder says (the prompt). Rows that belong
            together, such as those from one file, share one.
    """

    values: dict[str, Any]
    source: str
    record: int
    split: SplitName | None = None
    split_key: str | None = None

    @property
    def where(self) -> str:
        """`source:record`, for messages."""
        return f"{self.source}:{self.record}"


class RowSource(Protocol):
    """Where rows come from. Reading it twice yields the same rows in the same order."""

    name: str

    def fingerprint(self, hashes: FileHashes) -> str:
        """Returns a hash that changes when the rows, their order or their names do."""
        ...

    def rows(self, bad_input: BadInput) -> Iterator[Row]:
        """Yields the rows; what cannot be read goes to `bad_input`."""
        ...


class FileRows:
    """Rows of local files: json, jsonl, csv, tsv, parquet; each also as `.gz` or `.zst`.

    Args:
        patterns: Files, folders, glob patterns, or an already expanded list of (name, path).
        split: Split that all rows go to; None decides each by its hash.
    """

    def __init__(self, patterns: str | Sequence[str] | list[tuple[str, Path]], split: SplitName | None = None) -> None:
        given = [] if isinstance(patterns, str) else [item for item in patterns if isinstance(item, tuple)]
        texts = [patterns] if isinstance(patterns, str) else [str(item) for item in patterns if isinstance(item, str)]
        self.files: list[tuple[str, Path]] = given or expand_files(texts)
        self.split: SplitName | None = split
        self.name = ", ".join(name for name, _ in self.files[:3]) + (", ..." if len(self.files) > 3 else "")

    def fingerprint(self, hashes: FileHashes) -> str:
        """Returns a hash of the files' names and contents."""
        return sha256_json(["rows of files", [[n, content_hash(path, hashes)] for n, path in self.files], self.split])

    def rows(self, bad_input: BadInput) -> Iterator[Row]:
        """Yields the rows, file by file."""
        for name, path in self.files:
            for record, values in read_rows(path, name, bad_input):
                yield Row(values, name, record, self.split)


class HubRows:
    """Rows of a Hugging Face data set.

    Args:
        spec: Which data set; `text_field` is not used.
        split: Our split that all rows go to; None decides each by its hash.
    """

    def __init__(self, spec: HubDataset, split: SplitName | None = None) -> None:
        self.spec = spec
        self._source = HubSource(spec, split=split)
        self.split: SplitName | None = split
        self.name = self._source.name

    def fingerprint(self, hashes: FileHashes) -> str:
        """Returns the content's hash, or for a stream that of its description."""
        return sha256_json(["rows", self._source.fingerprint(hashes)])

    def rows(self, bad_input: BadInput) -> Iterator[Row]:
        """Yields the rows in order."""
        for record, values in enumerate(self._source.load(), start=1):
            if self.spec.max_documents is not None and record > self.spec.max_documents:
                return
            yield Row(dict(values), self.name, record, self.split)


class IterableRows:
    """Rows from a Python function.

    Args:
        make_rows: Called for each pass; returns the rows (or plain dicts), each time the same ones.
        name: What messages call it.
        version: Changes when the rows do. Without it a pass over all of them finds their hash.
    """

    def __init__(
        self, make_rows: Callable[[], Iterable[Row | dict[str, Any]]], name: str, version: str | None = None
    ) -> None:
        self._make_rows = make_rows
        self._fingerprint: str | None = None
        self.name = name
        self.version = version

    def fingerprint(self, hashes: FileHashes) -> str:
        """Returns the hash of `version`, or else of every row."""
        if self._fingerprint is None:
            content = self.version
            if content is None:
                digest = hashlib.sha256()
                for row in self.rows(BadInput()):
                    digest.update(json.dumps([row.values, row.source, row.split, row.split_key], default=str).encode())
                content = digest.hexdigest()
            self._fingerprint = sha256_json(["rows of a function", self.name, content])
        return self._fingerprint

    def rows(self, bad_input: BadInput) -> Iterator[Row]:
        """Yields the function's rows, plain dicts numbered from 1."""
        for record, item in enumerate(self._make_rows(), start=1):
            yield item if isinstance(item, Row) else Row(dict(item), self.name, record)
